"""Redis connections. Knows no key, no script and no queue.

A `Wire` is one connection, used by one thread at a time. A `Server` is a stack of wires for short commands, safe to share between threads,
and the place to ask for wires of one's own (for blocking).

A command that fails because an idle connection had died meanwhile is sent once more on a new one; everything beyond that is the business
of the caller, who knows whether to go on waiting (a worker) or to give up (a producer).
"""

from __future__ import annotations

import contextlib
import inspect
import logging
import math
import os
import re
import select
import selectors
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError
from redis.retry import Retry

from bullmq_kombu import native
from bullmq_kombu.address import DEFAULT_PORT as DEFAULT_PORT
from bullmq_kombu.address import Address as Address
from bullmq_kombu.address import address_of as address_of
from bullmq_kombu.errors import BadInput
from bullmq_kombu.options import Options
from bullmq_kombu.patience import Patience
from bullmq_kombu.server_check import check_once, facts_of
from bullmq_kombu.shared import address_of_pool, borrow, plain, pool_of

try:
    import hiredis
except ImportError:
    hiredis = None

logger = logging.getLogger(__name__)

#: Idle wires kept for the next command; more are closed when they come back.
IDLE_WIRES = 8

#: What a server answers while it can do nothing for us, and may later or elsewhere.
_NOT_NOW = {
    "BUSY": "it is busy with a script",
    "MASTERDOWN": "it is a replica that has lost its master",
    "CLUSTERDOWN": "its cluster is down",
    "TRYAGAIN": "its cluster is moving keys",
    "ASK": "its cluster is moving keys",
    "MOVED": "another node of its cluster has the keys",
    "UNBLOCKED": "it has become a replica",
    "MISCONF": "it cannot write to its disk",
    "NOREPLICAS": "it has too few replicas",
    "OOM": "it is out of memory",
    "READONLY": "it is a replica",
}
#: redis-py takes the code off the text of some errors; of which depends on its release.
_NOT_NOW_CLASSES = {
    getattr(redis.exceptions, name): code
    for name, code in (
        ("MasterDownError", "MASTERDOWN"), ("ClusterDownError", "CLUSTERDOWN"), ("TryAgainError", "TRYAGAIN"), ("AskError", "ASK"),
        ("MovedError", "MOVED"), ("OutOfMemoryError", "OOM"), ("ReadOnlyError", "READONLY"),
    )
    if hasattr(redis.exceptions, name)
}  # fmt: skip
#: Before Redis 7 the errors of a script's commands come inside another.
_IN_SCRIPT = re.compile(r"^ERR Error running script .*?: -?([A-Z]+) ", re.DOTALL)
#: Of these, those that say we are at the wrong place.
_ELSEWHERE = frozenset({"MOVED", "READONLY", "MASTERDOWN", "UNBLOCKED"})


class ServerNotReady(RedisConnectionError):
    """The server answers, and can do nothing for us now. `code` is its word for that."""

    code = ""


def _as_not_ready(error: ResponseError) -> ServerNotReady | None:
    """The error as one that time may mend, or None."""
    text = str(error)
    code = _NOT_NOW_CLASSES.get(type(error)) or text.partition(" ")[0]
    if code not in _NOT_NOW:
        inner = _IN_SCRIPT.match(text)
        if inner is None or inner.group(1) not in _NOT_NOW:
            return None
        code = inner.group(1)
    found = ServerNotReady(f"Redis cannot serve this now, {_NOT_NOW[code]}: {code} {text.removeprefix(code).lstrip()}")
    found.code = code
    return found


class Wire:
    """One connection, opened when first used and again after it broke. For one thread at a time."""

    __slots__ = ("_connection", "_descriptor", "_on_close", "_opener", "_pid", "fresh", "limit", "name")

    def __init__(
        self, opener: Callable[[str | None, float | None], Any], name: str | None = None, on_close: Callable[[int], None] | None = None
    ) -> None:
        self._opener = opener
        self._on_close = on_close
        self._connection: Any = None
        self._descriptor = -1
        self._pid = os.getpid()
        self.name = name
        #: Whether the connection has answered nothing yet: an error then is not that of an idle connection that had died.
        self.fresh = True
        #: The longest that opening it, or one answer, may take where it is less than the options say (s).
        self.limit: float | None = None

    def open(self) -> Any:
        """The connected redis-py connection."""
        connection = self._connection
        if connection is None:
            connection = self._opener(self.name, self.limit)
            self._connection = connection
            self._descriptor = connection._sock.fileno()
            self.fresh = True
        return connection

    def send(self, *command: Any) -> None:
        connection = self.open()
        try:
            packed = _pack(connection, command)
        except UnicodeEncodeError:
            # An id or a text of somebody else's that is no UTF-8 goes back as it came.
            packed = _pack(connection, tuple(_as_bytes(part) for part in command))
        try:
            connection.send_packed_command(packed, check_health=False)
        except BaseException:
            self.close()
            raise

    def read(self) -> Any:
        connection = self._connection
        if connection is None:
            raise RedisConnectionError("the connection was closed before its answer came")
        try:
            answer = self._answer(connection)
        except ResponseError as error:
            self.fresh = False
            not_ready = _as_not_ready(error)
            if not_ready is None:
                raise
            # Not closed for every code's sake, but the next one may lead to where the server is ready.
            self.close()
            raise not_ready from None
        except BaseException:
            self.close()
            raise
        self.fresh = False
        return answer

    def _answer(self, connection: Any) -> Any:
        return connection.read_response()

    def call(self, *command: Any) -> Any:
        self.send(*command)
        return self.read()

    @property
    def is_open(self) -> bool:
        return self._connection is not None

    def fileno(self) -> int:
        descriptor: int = self.open()._sock.fileno()
        return descriptor

    def wait_readable(self, timeout: float | None) -> bool:
        """Whether an answer (or the end of the connection) can be read within `timeout` seconds."""
        # Answers that came together are read together: the second is in redis-py's buffer, or TLS's, and the socket has nothing to tell.
        if self.open().can_read(timeout=0):
            return True
        return timeout != 0 and wait_any([self.fileno()], timeout) != []

    def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is None:
            return
        if self._pid != os.getpid():
            # A forked child shares the socket with its parent: it may let go of it, not shut it down.
            sock = getattr(connection, "_sock", None)
            connection._sock = None
            if sock is not None:
                with contextlib.suppress(OSError):
                    os.close(sock.detach())
            return
        if self._on_close is not None:
            self._on_close(self._descriptor)
        self._disconnect(connection)

    def _disconnect(self, connection: Any) -> None:
        with contextlib.suppress(Exception):
            connection.disconnect()


class _Borrowed(Wire):
    """A connection of somebody else's pool, for one command."""

    __slots__ = ("_pool",)

    def __init__(self, pool: Any) -> None:
        super().__init__(lambda name, limit: borrow(pool))
        self._pool = pool

    def _answer(self, connection: Any) -> Any:
        return plain(connection.read_response(disable_decoding=True))

    def _disconnect(self, connection: Any) -> None:
        super()._disconnect(connection)
        self.give_back(connection)

    def give_back(self, connection: Any) -> None:
        with contextlib.suppress(Exception):
            self._pool.release(connection)

    def let_go(self) -> None:
        """The connection goes back as it is."""
        connection, self._connection = self._connection, None
        if connection is not None:
            self.give_back(connection)


def _pack(connection: Any, command: tuple[Any, ...]) -> Any:
    """The command as bytes. hiredis does it in one step; redis-py looks at each argument before it asks hiredis."""
    if hiredis is not None:
        return [hiredis.pack_command(command)]
    return connection.pack_command(*command)


def _as_bytes(part: Any) -> Any:
    return part.encode("utf-8", "surrogateescape") if isinstance(part, str) else part


_poll = getattr(select, "poll", None)


def wait_any(descriptors: list[int], timeout: float | None) -> list[int]:
    """Those of the descriptors that become readable within `timeout` seconds (None: whenever). Works under gevent and eventlet."""
    if _poll is not None and not native.is_green():
        # A selector would be made, and a descriptor with it, for one wait.
        poll = _poll()
        for descriptor in descriptors:
            poll.register(descriptor, native.POLLIN)
        return [found for found, _ in poll.poll(None if timeout is None else math.ceil(max(timeout, 0.0) * 1000))]
    with selectors.DefaultSelector() as selector:
        for descriptor in descriptors:
            selector.register(descriptor, selectors.EVENT_READ)
        return [key.fd for key, _ in selector.select(timeout)]


class Waker:
    """Makes a wait end from another thread."""

    def __init__(self) -> None:
        self._reader, self._writer = socket.socketpair()
        self._reader.setblocking(False)
        self._writer.setblocking(False)

    def wake(self) -> None:
        with contextlib.suppress(OSError):
            self._writer.send(b"\0")

    def drain(self) -> None:
        with contextlib.suppress(OSError):
            while len(self._reader.recv(4096)) == 4096:
                pass

    def fileno(self) -> int:
        return self._reader.fileno()

    def close(self) -> None:
        self._reader.close()
        self._writer.close()

    __del__ = close


class Server:
    """Short commands to one Redis, from any thread, and wires of one's own. `fails_fast`: for producers, see patience.py. `others`: where
    to turn while there is no connection to be had at `address`."""

    def __init__(self, address: Address, options: Options, *, fails_fast: bool = False, others: Sequence[Address] = ()) -> None:
        self._pool = pool_of(options.connection) if options.connection is not None else None
        self.address = address if self._pool is None else address_of_pool(self._pool)
        self.options = options
        self._idle: deque[Wire] = deque()
        self._pid = os.getpid()
        self._places = self._all_places()
        self._locator = _Locator(self.address, options, self._pool)
        self._locators = [self._locator, *(_Locator(other, options) for other in others)]
        self._patience: Patience | None = None
        if fails_fast:
            self._patience = Patience(self.address.identity, self.address.where, options.max_retries_per_request)
        self.closed = False
        #: Told which descriptor is about to be closed: the next connection, anybody's, mostly gets the same number.
        self.on_close: Callable[[int], None] | None = None

    def wire(self, name: str | None = None) -> Wire:
        """A wire of the caller's own; `name` is its CLIENT name."""
        return Wire(self._connection, name, self.on_close)

    def _connection(self, name: str | None, limit: float | None = None) -> Any:
        now = self._locator
        try:
            return now.connection(name, limit)
        except (RedisConnectionError, RedisTimeoutError, OSError):
            for other in self._locators:
                if other is not now:
                    with contextlib.suppress(RedisConnectionError, RedisTimeoutError, OSError):
                        connection = other.connection(name, limit)
                        self._locator, self.address = other, other.address
                        return connection
            raise

    def check(self) -> None:
        """Whether the server answers, and, once for each, whether it is one to work with."""
        self.call("PING")
        check_once(self.address.identity, self.address.where, self.call, skip=self.options.skip_version_check)

    @property
    def takes_fractions(self) -> bool:
        """Whether a blocking command may wait for a fraction of a second."""
        return facts_of(self.address.identity).takes_fractions

    def call(self, *command: Any) -> Any:
        """One command and its answer. Sent once more where the connection used had died since its last answer."""
        patience = self._patience
        if patience is None:
            return self._call(command, None)
        left = patience.left()
        began = time.monotonic()
        try:
            answer = self._call(command, patience.budget if left is None else left)
        except (RedisConnectionError, RedisTimeoutError, OSError) as error:
            patience.failed(time.monotonic() - began, error)
            if isinstance(error, ServerNotReady):
                time.sleep(patience.breath_s())
            raise
        if left is not None:
            patience.over()
            self.look_again()  # a connection opened in a hurry stays in one
        return answer

    def _call(self, command: tuple[Any, ...], limit: float | None) -> Any:
        wire = self.lend()
        wire.limit = limit
        try:
            try:
                return wire.call(*command)
            except ServerNotReady as error:
                if error.code not in _ELSEWHERE or self.address.kind == "tcp":
                    raise
            except (RedisConnectionError, OSError) as error:
                # What follows a timeout is the caller's to decide: the command may have been executed.
                if wire.fresh or isinstance(error, TimeoutError):
                    raise
            self.look_again()
            return wire.call(*command)
        except ServerNotReady:
            self.look_again()
            raise
        finally:
            self.give_back(wire)

    def look_again(self) -> None:
        """A wire broke: those that are idle may lead to a server that is gone, or no longer the right one."""
        while self._idle:
            try:
                self._idle.pop().close()
            except IndexError:
                return

    def lend(self) -> Wire:
        """A wire for a short while; `give_back` must follow."""
        if self._pid != os.getpid():
            self._pid = os.getpid()
            inherited, self._idle = self._idle, deque()
            for wire in inherited:
                wire.close()
            self._places = self._all_places()
        if self._places is not None and not self._places.acquire(blocking=False):
            raise RedisConnectionError(f"Too many connections: all {self.options.max_connections} (max_connections) are in use")
        if self._pool is not None:
            return _Borrowed(self._pool)
        try:
            return self._idle.pop()
        except IndexError:
            return Wire(self._connection, self.options.client_name)

    def _all_places(self) -> threading.Semaphore | None:
        limit = self.options.max_connections
        return threading.Semaphore(limit) if limit else None

    def give_back(self, wire: Wire) -> None:
        """Takes a lent wire back; nothing may be on its way on it."""
        if isinstance(wire, _Borrowed):
            wire.let_go()
        elif self.closed or len(self._idle) >= IDLE_WIRES or not wire.is_open:
            wire.close()
        else:
            self._idle.append(wire)
        if self._places is not None:
            self._places.release()

    def close(self) -> None:
        """Closes the idle wires; those on loan close when they come back."""
        self.closed = True
        self.look_again()


class _Locator:
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

    def _node(self, host: str, port: int) -> _Locator:
        address = self.address
        node = Address("tcp", ((host, port),), "", 0, address.username, address.password, address.tls, address.credential_provider)
        return _Locator(node, self.options)


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
