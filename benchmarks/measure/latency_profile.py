"""Where the time goes from a publication to its receipt on an idle queue, through Kombu: `latency_profile.py PORT COUNT`.

The times at which each side sends and reads are taken in both processes. The consumer is the same file, `… consume`.
"""

from __future__ import annotations

import json
import random
import statistics
import subprocess
import sys
import time
from typing import Any

import kombu
from kombu_latency import PAUSES_S, QUEUE, WARM, receive
from meter import answer

from bullmq_kombu.wire import Wire

STEPS = (
    ("publish() called → its script sent", "Kombu's and this package's Python"),
    ("→ the marker read by the consumer", "the server adds the job; it and the consumer wake up"),
    ("→ the next script sent", "this package's Python"),
    ("→ its answer read", "the server takes the job; it and the consumer wake up"),
    ("→ received", "this package's and Kombu's Python"),
)


class Stamps:
    """When a wire of this process last sent, and read, something; and read the time before."""

    def __init__(self) -> None:
        self.sent = self.read = self.before = 0.0
        send, read = Wire.send, Wire.read

        def stamped_send(wire: Wire, *command: Any) -> None:
            send(wire, *command)
            self.sent = time.time()

        def stamped_read(wire: Wire) -> Any:
            self.before = self.read
            found = read(wire)
            self.read = time.time()
            return found

        Wire.send, Wire.read = stamped_send, stamped_read  # type: ignore[method-assign]


def publish(port: str, count: int) -> None:
    consumer = subprocess.Popen([sys.executable, __file__, port, str(count), "consume"], stdout=subprocess.PIPE, text=True)
    assert consumer.stdout is not None
    stamps, began = Stamps(), []
    with kombu.Connection(f"bullmq://127.0.0.1:{port}/0") as connection:
        kombu.Queue(QUEUE)(connection.default_channel).declare()
        producer = kombu.Producer(connection.default_channel)
        consumer.stdout.readline()
        for _ in range(count + WARM):
            time.sleep(random.uniform(*PAUSES_S))
            called = time.time()
            producer.publish({"n": 1}, routing_key=QUEUE, serializer="json")
            began.append((called, stamps.sent))
    rows = [(*ours, *theirs) for ours, theirs in zip(began, json.loads(consumer.stdout.readline()), strict=True)][WARM:]
    consumer.wait()
    lines = [f"Median of {count}, µs", ""]
    for at, (step, what) in enumerate(STEPS):
        lines.append(f"{statistics.median(row[at + 1] - row[at] for row in rows) * 1e6:8.0f}  {step:38} {what}")
    lines.append(f"{statistics.median(row[-1] - row[0] for row in rows) * 1e6:8.0f}  all")
    answer({"profile": "\n".join(lines) + "\n"})


def consume(port: str, count: int) -> None:
    stamps = Stamps()
    receive("bullmq", port, count, lambda body: (stamps.before, stamps.sent, stamps.read, time.time()))


if __name__ == "__main__":
    (consume if sys.argv[-1] == "consume" else publish)(sys.argv[1], int(sys.argv[2]))
