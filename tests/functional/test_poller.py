"""What the poller knows survives that it begins to wait anew."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import redis
from kombu import Connection
from servers import Server
from waiting import wait_until

from bullmq_kombu.connection import Server as Redis
from bullmq_kombu.connection import address_of
from bullmq_kombu.options import check_options
from bullmq_kombu.poller import Poller
from bullmq_kombu.scripts import QueueState


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
