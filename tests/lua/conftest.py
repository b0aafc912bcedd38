"""A queue of its own for each test, and the package's own connection to the server."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis
from servers import Server

from bullmq_kombu import connection
from bullmq_kombu.options import Options

_HERE = Path(__file__).parent
if str(_HERE) not in sys.path:
    sys.path.insert(0, str(_HERE))

from one_queue import Queue  # noqa: E402 - needs the path above


@pytest.fixture(scope="session")
def wire(server: Server) -> Iterator[connection.Server]:
    """The package's own connection to the server of this run."""
    opened = connection.Server(connection.Address("tcp", ((server.host, server.port),)), Options())
    yield opened
    opened.close()


@pytest.fixture
def make_queue(redis_client: redis.Redis, wire: connection.Server, queue_name: str) -> Callable[[str], Queue]:
    return lambda suffix="": Queue(redis_client, wire, queue_name + suffix)


@pytest.fixture
def queue(make_queue: Callable[[str], Queue]) -> Queue:
    return make_queue("")


@pytest.fixture
def other(make_queue: Callable[[str], Queue]) -> Queue:
    """A second queue."""
    return make_queue("-other")
