"""Publishing and consuming through Kombu: `kombu_client.py SCHEME PORT PUBLISHED CONSUMED [PREFETCH …]`.

SCHEME `memory` is Kombu's transport without a server: what Kombu itself costs. An acknowledgement counts when the server has it.
"""

from __future__ import annotations

import contextlib
import sys
from typing import Any

import kombu
from meter import PAYLOAD, Meter, answer, client_of

import bullmq_kombu

QUEUE = "bench"
BATCH = 1000


def main(scheme: str, port: int, published: int, consumed: int, *prefetches: int) -> None:
    client = client_of(port)
    url = "memory://" if scheme == "memory" else f"{scheme}://127.0.0.1:{port}/0"
    results: dict[str, Any] = {}
    with kombu.Connection(url) as connection:
        queue = kombu.Queue(QUEUE)
        channel = connection.default_channel
        queue(channel).declare()
        producer = kombu.Producer(channel)
        publish_many(producer, 50)  # scripts loaded, caches warm
        queue(channel).purge()
        with Meter(client, published) as cost:
            for _ in range(published):
                producer.publish(PAYLOAD, routing_key=QUEUE, serializer="json")
        results["publish one by one"] = cost.result
        queue(channel).purge()
        with Meter(client, published) as cost:
            publish_many(producer, published)
        results["publish many"] = cost.result
        queue(channel).purge()
        for prefetch in prefetches:
            publish_many(producer, consumed)
            results[f"consume+ack, prefetch {prefetch}"] = consume(connection, client, queue, consumed, prefetch)
    answer(results)


def publish_many(producer: Any, count: int) -> None:
    with batch_of(producer):
        for _ in range(count):
            producer.publish(PAYLOAD, routing_key=QUEUE, serializer="json")


def batch_of(producer: Any) -> Any:
    """The way in bulk that each transport has."""
    if producer.connection.transport_cls.startswith("bullmq"):
        return bullmq_kombu.bulk()
    return producer.batch(max_size=BATCH) if hasattr(producer, "batch") else contextlib.nullcontext()


def consume(connection: Any, client: Any, queue: Any, count: int, prefetch: int) -> dict[str, float]:
    got = 0

    def received(body: Any, message: Any) -> None:
        nonlocal got
        message.ack()
        got += 1

    channel = connection.channel()
    with kombu.Consumer(channel, [queue], callbacks=[received]) as consumer:
        consumer.qos(prefetch_count=prefetch)
        with Meter(client, count) as cost:
            while got < count:
                connection.drain_events(timeout=20)
            if hasattr(channel, "leases"):
                channel.leases.send(channel.server)  # acknowledgements that would be sent within milliseconds
    channel.close()
    return cost.result


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
