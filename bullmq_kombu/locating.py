"""Where the master is now, and redis-py connections to it: one address, Sentinel, Cluster, or another pool's way of connecting."""

from __future__ import annotations

import inspect
import logging
import re
from collections.abc import Mapping
from functools import cache
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError
from redis.retry import Retry

from bullmq_kombu.address import Address
from bullmq_kombu.errors import BadInput
from bullmq_kombu.options import Options
from bullmq_kombu.wire import Wire

logger = logging.getLogger(__name__)


class Locator:
    """Makes redis-py connections to where the master is now: Sentinel and Cluster are asked each time, for it may have moved."""

    def __init__(self, address: Address, options: Options, pool: Any = None) -> None:
        self.address = address
        self.options = options
        self._pool = pool

    def connection(self, name: str | None, limit: float | None = None) -> Any:
        """Connected, authenticated, named. No step may take longer than `limit` or the options' time limits (s)."""
        connection = self._like_the_pool(limit) if self._pool is not None else self._own(limit)
        connection.connect()
        try:
            _introduce(connection, name, self.address.where)
        except BaseException:
            connection.disconnect()
            raise
        return connection

    def _usual(self, limit: float | None) -> dict[str, Any]:
        options = self.options
        return {
            "socket_timeout": _shorter(options.socket_timeout, limit),
            "socket_connect_timeout": _shorter(options.socket_connect_timeout, limit),
            "decode_responses": True,
            "encoding_errors": "surrogateescape",
            "health_check_interval": 0,
            "client_name": None,
            "protocol": 2,
            "retry": Retry(NoBackoff(), 0),
        }

    def _like_the_pool(self, limit: float | None) -> Any:
        # Without the pool's way of following a server's maintenance: it needs RESP3, and handlers that are the pool's own.
        kind = self._pool.connection_class
        given = {name: value for name, value in self._pool.connection_kwargs.items() if "maint" not in name}
        return kind(**{**given, **_accepted(kind, self._usual(limit))})

    def _own(self, limit: float | None) -> Any:
        address, options = self.address, self.options
        given = self._usual(limit)
        given["db"] = address.db
        if address.credential_provider is not None:
            given["credential_provider"] = address.credential_provider
        else:
            given["username"], given["password"] = address.username, address.password
        if address.kind == "unix":
            unix: Any = redis.connection.UnixDomainSocketConnection  # abstract in redis-py's annotations, not in its code
            return unix(path=address.path, **_accepted(unix, given))
        given["host"], given["port"] = self._master()
        given["socket_keepalive"] = options.socket_keepalive
        given["socket_keepalive_options"] = options.socket_keepalive_options
        if address.tls is not None:
            return redis.connection.SSLConnection(**_accepted(redis.connection.SSLConnection, given), **address.tls)
        return redis.connection.Connection(**_accepted(redis.connection.Connection, given))

    def _master(self) -> tuple[str, int]:
        if self.address.kind == "tcp":
            return self.address.nodes[0]
        return self._ask_sentinels() if self.address.kind == "sentinel" else self._ask_cluster()

    def _ask_sentinels(self) -> tuple[str, int]:
        from redis.sentinel import MasterNotFoundError, Sentinel

        if not self.options.master_name:
            raise BadInput("a bullmq+sentinel:// URL needs broker_transport_options = {'master_name': …}")
        timeouts = {"socket_timeout": self.options.socket_timeout, "socket_connect_timeout": self.options.socket_connect_timeout}
        # Given by name, or redis-py would let a Sentinel that does not answer hang us as soon as there are other arguments.
        greeting: dict[str, Any] = {**timeouts, "retry": Retry(NoBackoff(), 0)}
        if self.address.tls is not None:
            greeting.update({"ssl": True, **self.address.tls})
        greeting.update(self.options.sentinel_kwargs or {})
        sentinel = Sentinel(
            list(self.address.nodes), min_other_sentinels=self.options.min_other_sentinels, sentinel_kwargs=greeting, **timeouts
        )
        try:
            host, port = sentinel.discover_master(self.options.master_name)
        except MasterNotFoundError as error:
            # redis-py before 7 shows all it connects with.
            text = str(error)
            for name in ("password", "ssl_password"):
                if greeting.get(name):
                    text = text.replace(str(greeting[name]), "**")
            raise MasterNotFoundError(text) from None
        finally:
            for client in sentinel.sentinels:
                client.close()
        return str(host), int(port)

    def _ask_cluster(self) -> tuple[str, int]:
        """The node that holds the slot of the prefix' hash tag: all keys have it."""
        if re.match(r"[^{]*\{[^}]+\}", self.options.prefix) is None:
            raise BadInput(f"on Redis Cluster the prefix must be a hash tag like '{{bull}}', not {self.options.prefix!r}")
        from redis.crc import key_slot

        slot = key_slot(self.options.prefix.encode())
        error: Exception | None = None
        for host, port in self.address.nodes:
            wire = Wire(self._node(host, port).connection)
            try:
                for first, last, node, *_ in wire.call("CLUSTER", "SLOTS"):
                    if first <= slot <= last:
                        return str(node[0] or host), int(node[1])
            except (redis.RedisError, OSError) as reason:
                error = reason
            finally:
                wire.close()
        raise RedisConnectionError(f"no node of {self.address.where} knows slot {slot}: {error}")

    def _node(self, host: str, port: int) -> Locator:
        address = self.address
        node = Address("tcp", ((host, port),), "", 0, address.username, address.password, address.tls, address.credential_provider)
        return Locator(node, self.options)


def _introduce(connection: Any, name: str | None, where: str) -> None:
    """Tells the server the connection's name. Where it may not be told, that is no reason to do without the server."""
    if not name:
        return
    connection.send_command("CLIENT", "SETNAME", name, check_health=False)
    try:
        connection.read_response()
    except ResponseError as error:
        if where not in _nameless:
            _nameless.add(where)
            logger.info("connections to Redis at %s have no name: %s", where, error)


#: Servers that forbid it, so that it is said once.
_nameless: set[str] = set()


def _shorter(one: float | None, other: float | None) -> float | None:
    return one if other is None else other if one is None else min(one, other)


def _accepted(kind: type, given: Mapping[str, Any]) -> dict[str, Any]:
    """Without what this class of this redis-py does not know: `protocol` came with 5.0, some time limits to unix sockets later still."""
    known = _arguments_of(kind)
    # That there is no time limit has to be said: redis-py 8 has one of its own.
    said = ("socket_timeout", "socket_connect_timeout")
    return {name: value for name, value in given.items() if name in known and (value is not None or name in said)}


@cache
def _arguments_of(kind: type) -> frozenset[str]:
    return frozenset(name for one in kind.__mro__ for name in inspect.signature(one.__init__).parameters)  # type: ignore[misc]
