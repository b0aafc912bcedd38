"""Kombu's own integration tests for every transport, over `bullmq://`, and over `redis://` for comparison.

They are in Kombu's source distribution (`t/integration/common.py`), which is fetched when this runs: `tox -e upstream-kombu`.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from typing import Any

import kombu
import pytest
from servers import Server
from upstream.sources import source_of

import bullmq_kombu  # noqa: F401

sys.path.append(str(source_of("kombu")))
common: Any = importlib.import_module("t.integration.common")
of_redis: Any = importlib.import_module("t.integration.test_redis")

pytestmark = [pytest.mark.filterwarnings("default"), pytest.mark.env("any")]


@pytest.fixture(params=["bullmq", "redis"])
def connection(request: pytest.FixtureRequest, server: Server) -> Iterator[kombu.Connection]:
    server.client().flushall()
    with kombu.Connection(server.url_of(request.param)) as connection:
        yield connection


@pytest.fixture(params=["bullmq", "redis"])
def invalid_connection(request: pytest.FixtureRequest) -> kombu.Connection:
    return kombu.Connection(f"{request.param}://localhost:12345")


@pytest.fixture(params=["bullmq", "redis"])
def failover_connection(request: pytest.FixtureRequest, server: Server) -> kombu.Connection:
    return kombu.Connection(f"{request.param}://localhost:12345;{server.url_of(request.param)}", connect_timeout=10)


# All of Kombu's classes but BaseTimeToLive, which Kombu does not run for redis:// either: there as here a message has no time of its own
# after which it is dropped (`expiration`). Celery's `expires` is another thing, which workers look at.
#
# BasePriority is in TestPriority.


class TestFailover(common.BaseFailover):  # type: ignore[misc]
    pass


class TestBasicFunctionality(common.BasicFunctionality):  # type: ignore[misc]
    pass


class TestExchangeTypes(common.BaseExchangeTypes):  # type: ignore[misc]
    pass


class TestPriority(of_redis.test_RedisPriority):  # type: ignore[misc]
    # As Kombu tests its Redis transport: lower runs first, and one message is drained at a time.
    pass


class TestMessage(common.BaseMessage):  # type: ignore[misc]
    pass


class TestEventLoop(common.BaseEventLoop):  # type: ignore[misc]
    pass
