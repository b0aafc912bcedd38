"""How soon a message reaches a consumer that waits on an idle queue, through Kombu: `kombu_latency.py SCHEME PORT COUNT`.

The consumer is another process, as a worker is: the same file, `… consume`.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import kombu
from meter import answer

import bullmq_kombu  # noqa: F401 - registers the URL schemes

QUEUE = "bench"
#: Messages before those that count.
WARM = 5
#: Between two messages, s: the queue is idle again, and the consumer waits.
PAUSES_S = (0.015, 0.035)


def publish(scheme: str, port: str, count: int) -> None:
    consumer = subprocess.Popen([sys.executable, __file__, scheme, port, str(count), "consume"], stdout=subprocess.PIPE, text=True)
    assert consumer.stdout is not None
    with kombu.Connection(f"{scheme}://127.0.0.1:{port}/0") as connection:
        kombu.Queue(QUEUE)(connection.default_channel).declare()
        producer = kombu.Producer(connection.default_channel)
        consumer.stdout.readline()
        for _ in range(count + WARM):
            time.sleep(random.uniform(*PAUSES_S))
            producer.publish({"sent": time.time()}, routing_key=QUEUE, serializer="json")
        samples = json.loads(consumer.stdout.readline())
    consumer.wait()
    answer({"kombu latency": {"samples": [one * 1e6 for one in samples[WARM:]]}})


def consume(scheme: str, port: str, count: int) -> None:
    receive(scheme, port, count, lambda body: time.time() - body["sent"])


def receive(scheme: str, port: str, count: int, note: Callable[[Any], Any]) -> None:
    """Says that it waits, and in the end what `note` made of each message when it came."""
    found: list[Any] = []

    def received(body: Any, message: Any) -> None:
        found.append(note(body))
        message.ack()

    with kombu.Connection(f"{scheme}://127.0.0.1:{port}/0") as connection:
        with kombu.Consumer(connection, [kombu.Queue(QUEUE)], callbacks=[received]) as consumer:
            consumer.qos(prefetch_count=4)
            sys.stdout.write("ready\n")
            sys.stdout.flush()
            while len(found) < count + WARM:
                connection.drain_events(timeout=30)
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    (consume if sys.argv[-1] == "consume" else publish)(sys.argv[1], sys.argv[2], int(sys.argv[3]))
