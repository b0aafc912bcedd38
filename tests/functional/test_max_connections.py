"""The option `max_connections`: so many short commands at a time, and one more is an error, as with Kombu's Redis transport."""

from __future__ import annotations

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError
from servers import Server as RealServer

from bullmq_kombu.address import address_of
from bullmq_kombu.connection import Server
from bullmq_kombu.options import check_options


def test_one_more_than_max_connections_is_an_error(server: RealServer) -> None:
    from kombu import Connection

    limited = Server(address_of(Connection(server.url)), check_options({"max_connections": 2}))
    first, _second = limited.lend(), limited.lend()
    with pytest.raises(RedisConnectionError, match="max_connections"):
        limited.lend()
    limited.give_back(first)
    assert limited.call("PING") == "PONG"
    limited.close()
