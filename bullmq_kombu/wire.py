"""One connection to Redis, and the wait for any of several. Knows no key, no script and no queue.

A `Wire` sends commands and reads answers, one after the other. It opens its connection when it is first used, and again after it broke;
what a server says that cannot serve us now is an error like those of the network, since time may mend it.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
import select
import selectors
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from typing import Any

import redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from bullmq_kombu import native
from bullmq_kombu.shared import borrow, plain

try:
    import hiredis
except ImportError:
    hiredis = None

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
ELSEWHERE = frozenset({"MOVED", "READONLY", "MASTERDOWN", "UNBLOCKED"})


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


_until: ContextVar[float] = ContextVar("bullmq_kombu_until", default=math.inf)


@contextlib.contextmanager
def within(seconds: float | None) -> Iterator[None]:
    """No wire waits longer in here, to be connected or to be answered; None for as long as its options say."""
    if seconds is None:
        yield
        return
    before = _until.set(time.monotonic() + seconds)
    try:
        yield
    finally:
        _until.reset(before)


def is_hurried() -> bool:
    """Whether that is so here."""
    return _until.get() != math.inf


def _left() -> float | None:
    until = _until.get()
    # A time limit of 0 would mean something else to a socket.
    return None if until == math.inf else max(until - time.monotonic(), 0.001)


class Wire:
    """One connection, opened when first used and again after it broke. For one thread at a time."""

    __slots__ = ("_connection", "_descriptor", "_on_close", "_opener", "_pid", "fresh", "hurried", "limit", "name")

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
        #: Whether it was opened `within` less time than the options give: its connection waits no longer for any answer.
        self.hurried = False

    def open(self) -> Any:
        """The connected redis-py connection."""
        connection = self._connection
        if connection is None:
            left = _left()
            limit = self.limit if left is None or (self.limit is not None and self.limit < left) else left
            connection = self._opener(self.name, limit)
            self.hurried = left is not None and getattr(connection, "socket_timeout", None) == left
            self._connection = connection
            self._descriptor = connection._sock.fileno()
            self.fresh = True
        return connection

    def send(self, *command: Any) -> None:
        connection = self.open()
        self._send(connection, _packed(connection, command))

    def send_many(self, commands: Iterable[tuple[Any, ...]]) -> None:
        """In one go; each has an answer of its own."""
        connection = self.open()
        self._send(connection, [b"".join(part for command in commands for part in _packed(connection, command))])

    def _send(self, connection: Any, packed: Any) -> None:
        try:
            connection.send_packed_command(packed, check_health=False)
        except BaseException:
            self.close()
            raise

    def read(self) -> Any:
        connection = self._connection
        if connection is None:
            raise RedisConnectionError("the connection was closed before its answer came")
        left = _left()
        if left is not None and not self.wait_readable(left):
            self.close()
            raise RedisTimeoutError("Redis has not answered in the time that there was")
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


class Borrowed(Wire):
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


def _packed(connection: Any, command: tuple[Any, ...]) -> Any:
    try:
        return _pack(connection, command)
    except UnicodeEncodeError:
        # An id or a text of somebody else's that is no UTF-8 goes back as it came.
        return _pack(connection, tuple(_as_bytes(part) for part in command))


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
        self._woken = False

    def wake(self) -> None:
        if not self._woken:
            self._woken = True
            with contextlib.suppress(OSError):
                self._writer.send(b"\0")

    def drain(self) -> None:
        """Before looking at what one was woken for: until this returns, nobody need wake anew."""
        with contextlib.suppress(OSError):
            while len(self._reader.recv(4096)) == 4096:
                pass
        self._woken = False

    def fileno(self) -> int:
        return self._reader.fileno()

    def close(self) -> None:
        self._reader.close()
        self._writer.close()

    __del__ = close
