"""One consumer of several queues: each gets its turn, whichever had work first."""

from __future__ import annotations

import time
from typing import Any

import pytest
from kombu import Connection, Consumer, Queue
from servers import Server

from bullmq_kombu import Queue as Jobs

#: How long each message takes, s: in what the consumer may hold, and between two looks, there are a few dozens.
WORK_S = 0.002
PREFETCH = 4


class Taker:
    """A consumer that has waited in vain for all its queues, and writes down whence each message comes."""

    def __init__(self, connection: Connection, *names: str) -> None:
        self.connection = connection
        self.got: list[str] = []
        self.consumer = Consumer(
            connection, [Queue(name) for name in names], callbacks=[self._take], accept=["json"], prefetch_count=PREFETCH
        )
        self.consumer.consume()
        with pytest.raises(TimeoutError):
            connection.drain_events(timeout=0.2)

    def _take(self, body: Any, message: Any) -> None:
        self.got.append(message.delivery_info["routing_key"])
        message.ack()
        time.sleep(WORK_S)

    def drain(self, count: int) -> list[str]:
        while len(self.got) < count:
            self.connection.drain_events(timeout=10)
        return self.got


def fill(server: Server, queue: str, count: int, **options: Any) -> None:
    with Jobs(queue, server.url) as jobs:
        jobs.add_bulk([{"name": "t", "opts": options} for _ in range(count)])


@pytest.mark.parametrize("strategy", ["round_robin", "priority", "sorted"])
def test_a_queue_with_much_work_keeps_no_other_waiting(server: Server, queue_name: str, strategy: str) -> None:
    """It had the consumer's attention first, and has work enough for long."""
    first, busy = f"{queue_name}-1", f"{queue_name}-2"
    with Connection(server.url, transport_options={"queue_order_strategy": strategy}) as connection:
        taker = Taker(connection, first, busy)
        fill(server, busy, 600)
        taker.drain(10)
        fill(server, first, 100)
        got = taker.drain(700)
    at = got.index(first)
    assert at < 300, "the other queue had to wait"
    following = got[at : at + 100]
    if strategy == "round_robin":
        assert 30 <= following.count(first) <= 70
    else:  # it is named first
        assert following.count(first) >= 90
    assert got.count(first) == 100


def test_what_is_due_in_another_queue_is_not_late(server: Server, queue_name: str) -> None:
    first, busy = f"{queue_name}-1", f"{queue_name}-2"
    with Connection(server.url) as connection:
        taker = Taker(connection, first, busy)
        fill(server, first, 1, delay=300)
        with pytest.raises(TimeoutError):
            connection.drain_events(timeout=0.1)  # now it knows when that is due
        fill(server, busy, 600)
        got = taker.drain(601)
    assert got.index(first) < 450
