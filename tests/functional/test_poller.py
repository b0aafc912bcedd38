"""What the poller knows survives that it begins to wait anew."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
import redis
from kombu import Connection
from servers import Server
from waiting import wait_until

from bullmq_kombu.address import address_of
from bullmq_kombu.connection import Server as Redis
from bullmq_kombu.options import check_options
from bullmq_kombu.poller import LOOK_EVERY_S, Poller
from bullmq_kombu.scripts import QueueState
from bullmq_kombu.wire import wait_any


@pytest.fixture
def poller(server: Server) -> Iterator[Poller]:
    redis_server = Redis(address_of(Connection(server.url)), check_options({}))
    made = Poller(redis_server, "poller", 5.0)
    yield made
    made.stop()
    redis_server.close()


@pytest.mark.parametrize("change", ["add", "remove"])
def test_a_wake_up_that_nobody_has_read_is_not_lost(change: str, poller: Poller, redis_client: redis.Redis, queue_name: str) -> None:
    base, other = f"bull:{queue_name}:", f"bull:{queue_name}-other:"
    poller.add(base)
    if change == "remove":
        poller.add(other)
    poller.learned(poller.bases, [QueueState(one, 0, 0) for one in poller.bases], False)
    assert poller.hot() == []
    poller.wait()
    wait_until(lambda: redis_client.info("clients")["blocked_clients"] >= 1, what="the poller to block")
    redis_client.zadd(f"{base}marker", {"0": 0})
    wait_until(lambda: not redis_client.exists(f"{base}marker"), what="the marker to be taken")
    getattr(poller, change)(other)
    assert base in poller.hot()


def test_who_is_woken_looks_at_all_queues(poller: Poller, redis_client: redis.Redis, queue_name: str) -> None:
    """A marker of another one may have been taken by somebody who is busy, or gone."""
    base, other = f"bull:{queue_name}:", f"bull:{queue_name}-other:"
    poller.add(base)
    poller.add(other)
    assert poller.hot() == [base, other]
    for pause in (0.0, 2 * LOOK_EVERY_S):
        poller.learned(poller.bases, [QueueState(one, 0, 0) for one in poller.bases], False)
        time.sleep(pause)
        poller.wait()
        redis_client.zadd(f"{base}marker", {"0": 0})
        wait_until(lambda: poller.has_come, what="the marker to come")
        assert poller.read() == base
        assert poller.hot() == ([base, other] if pause else [base])


def test_while_all_queues_are_closed_no_job_is_in_the_way(poller: Poller, redis_client: redis.Redis, queue_name: str) -> None:
    """A job's key is the queue's base and its id, which its producer chooses."""
    base = f"bull:{queue_name}:"
    redis_client.hset(f"{base}closed", "name", "a job")
    poller.add(base)
    poller.learned([base], [QueueState(base, 50, 0)], False)
    poller.wait()
    descriptor = poller.fileno()
    assert descriptor is not None
    wait_until(lambda: wait_any([descriptor], 1.0), what="the wait to be over")
    poller.read()
    wait_until(lambda: poller.hot() == [base], what="the queue to be open again")
