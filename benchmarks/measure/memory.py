"""Bytes in Redis for one task, waiting and kept when it is done: `memory.py SCHEME PORT COUNT`; the broker is in the environment.

The server has nothing else. What a task needs once per queue is in the figure, and small beside COUNT of them.
"""

from __future__ import annotations

import sys
from typing import Any

import kombu
from celery_tasks import app
from meter import answer, client_of
from task import KEPT, KWARGS, NAME

QUEUE = "mail"


def send_receipt(**kwargs: Any) -> None:
    """What is sent; nobody runs it."""


def main(scheme: str, port: int, count: int) -> None:
    client = client_of(port)
    options: dict[str, Any] = {"bullmq": KEPT} if scheme == "bullmq" else {}
    with app.producer_pool.acquire(block=True) as producer:
        app.conf.task_ignore_result = False
        send = app.task(send_receipt, name=NAME).apply_async
        send(kwargs=KWARGS, producer=producer, queue=QUEUE, **options)
        before = used(client)
        for _ in range(count):
            send(kwargs=KWARGS, producer=producer, queue=QUEUE, **options)
    results = {"waiting": {"bytes": (used(client) - before) / count}}
    if scheme == "bullmq":
        consume(count + 1)
        results["kept"] = {"bytes": (used(client) - before) / count}
    answer(results)


def consume(count: int) -> None:
    got = 0

    def received(body: Any, message: Any) -> None:
        nonlocal got
        message.ack()
        got += 1

    with app.connection_for_read() as connection:
        with kombu.Consumer(connection, [kombu.Queue(QUEUE)], callbacks=[received]) as consumer:
            consumer.qos(prefetch_count=50)
            while got < count:
                connection.drain_events(timeout=20)


def used(client: Any) -> int:
    client.execute_command("MEMORY", "PURGE")
    return int(client.info("memory")["used_memory"])


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
