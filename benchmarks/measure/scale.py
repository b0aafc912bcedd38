"""What one job costs beside many others: `scale.py PORT (fill | measure) KIND COUNT`, KIND waiting, kept or held.

`fill` puts COUNT jobs there; `measure` publishes and consumes COUNT more through Kombu, beside them. Held jobs are held by whoever
measures, which takes them first: `measure held COUNT HELD`.
"""

from __future__ import annotations

import sys
from typing import Any

import kombu
from meter import PAYLOAD, Meter, answer, client_of

from bullmq_kombu import Queue

QUEUE = "bench"
BATCH = 500
PREFETCH = 10
#: Nothing that is kept goes away while it is measured.
KEPT = {"removeOnComplete": {"count": 1_000_000}}


def main(port: int, what: str, kind: str, count: int, held: int = 0) -> None:
    url = f"bullmq://127.0.0.1:{port}/0"
    if what == "fill":
        fill(url, count)
        if kind == "kept":
            with kombu.Connection(url) as connection:
                consume(connection, count, 500)
        answer({})
        return
    client = client_of(port)
    with kombu.Connection(url) as connection:
        holder = connection.channel()
        if held:
            fill(url, held)
            hold(connection, holder, held)
        producer = kombu.Producer(connection.default_channel)
        kombu.Queue(QUEUE)(connection.default_channel).declare()
        with Meter(client, count) as cost:
            for _ in range(count):
                producer.publish(PAYLOAD, routing_key=QUEUE, serializer="json", bullmq=KEPT)
            consume(connection, count, PREFETCH)
    answer({kind: cost.result})


def fill(url: str, count: int) -> None:
    with Queue(QUEUE, url) as queue:
        jobs = [{"name": "kombu.message", "data": PAYLOAD, "opts": KEPT}] * BATCH
        for left in range(count, 0, -BATCH):
            queue.add_bulk(jobs[: min(BATCH, left)])


def hold(connection: Any, channel: Any, count: int) -> None:
    got = 0

    def received(body: Any, message: Any) -> None:
        nonlocal got
        got += 1

    consumer = kombu.Consumer(channel, [kombu.Queue(QUEUE)], callbacks=[received])
    consumer.qos(prefetch_count=count)
    consumer.consume()
    while got < count:
        connection.drain_events(timeout=20)
    channel.basic_cancel(next(iter(consumer._active_tags.values())))


def consume(connection: Any, count: int, prefetch: int) -> None:
    got = 0

    def received(body: Any, message: Any) -> None:
        nonlocal got
        message.ack()
        got += 1

    channel = connection.channel()
    with kombu.Consumer(channel, [kombu.Queue(QUEUE)], callbacks=[received]) as consumer:
        consumer.qos(prefetch_count=prefetch)
        while got < count:
            connection.drain_events(timeout=20)
    channel.close()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], sys.argv[3], *map(int, sys.argv[4:]))
