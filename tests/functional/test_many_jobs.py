"""A consumer that may hold very many jobs: they come in calls that keep nobody waiting."""

from __future__ import annotations

from typing import Any

import kombu
import redis
from servers import Server
from waiting import wait_until

from bullmq_kombu import Queue

JOBS = 9000


def test_a_prefetch_count_of_thousands(server: Server, redis_client: redis.Redis, queue_name: str) -> None:
    with Queue(queue_name, server.url) as queue:
        for _ in range(JOBS // 1000):
            queue.add_bulk([{"name": "kombu.message", "data": {"n": 1}}] * 1000)
    got: list[Any] = []

    with kombu.Connection(server.url) as connection:
        with kombu.Consumer(connection, [kombu.Queue(queue_name)], callbacks=[lambda body, message: got.append(message)]) as consumer:
            consumer.qos(prefetch_count=JOBS + 1000)
            while len(got) < JOBS:
                connection.drain_events(timeout=10)
            assert redis_client.llen(f"bull:{queue_name}:active") == JOBS
            for message in got:
                message.ack()

    # The last of them may be on their way by the thread that keeps the locks.
    wait_until(lambda: redis_client.llen(f"bull:{queue_name}:active") == 0, what="all to have ended")
    assert redis_client.zcard(f"bull:{queue_name}:completed") == JOBS
