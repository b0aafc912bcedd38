"""What every test may ask for: a server of our own, a client of it, a queue nobody else uses."""

from __future__ import annotations

import secrets
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

# The tests are no package, so that they run against the installed wheel and not against the source beside them. Their
# own modules (servers, waiting, node_driver) are found from any folder of tests, whatever pytest's import mode.
_HERE = Path(__file__).parent
for _folder in (_HERE, _HERE / "interop"):
    if str(_folder) not in sys.path:
        sys.path.insert(0, str(_folder))

from servers import Server  # noqa: E402 - needs the path above


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    """The server of this run (of this worker, under xdist).

    For a test that stops or breaks one, start another ``Server()``.
    """
    with Server() as running:
        yield running


@pytest.fixture
def redis_client(server: Server) -> Iterator[redis.Redis]:
    """Redis as it is, for looking at keys; answers are ``str``."""
    with server.client() as client:
        yield client


@pytest.fixture
def queue_name() -> str:
    """A queue nobody else uses: tests share a server and clean nothing up."""
    return f"q-{secrets.token_hex(6)}"
