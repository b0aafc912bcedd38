"""Redis connections from Kombu's connection info. Knows no key, no script and no queue.

An `Address` says where the server is and how to greet it. A `Wire` is one connection to it, used by one thread at a time. A `Server` is a
stack of wires for short commands, safe to share between threads, and the place to ask for wires of one's own (for blocking).

A command that fails because an idle connection had died meanwhile is sent once more on a new one; everything beyond that is the business
of the caller, who knows whether to go on waiting (a worker) or to give up (a producer).
"""

from __future__ import annotations

import contextlib
import inspect
import logging
import os
import re
import selectors
import socket
import ssl as ssl_module
import threading
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import redis
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError
from redis.retry import Retry

from bullmq_kombu.errors import BadInput
from bullmq_kombu.options import Options

try:
    import hiredis
except ImportError:
    hiredis = None

logger = logging.getLogger(__name__)

DEFAULT_HOST = "127.0.0.1"
DEFAULT_PORT = 6379
DEFAULT_SENTINEL_PORT = 26379

#: Idle wires kept for the next command; more are closed when they come back.
IDLE_WIRES = 8

_ACCEPTED = frozenset(inspect.signature(redis.connection.AbstractConnection.__init__).parameters) | {
    "host", "port", "socket_keepalive", "socket_keepalive_options", "path",
}  # fmt: skip
_TLS_SCHEMES = ("bullmqs", "rediss", "sentinels", "clusters")


@dataclass(frozen=True)
class Address:
    """Where Redis is: `kind` is tcp, unix, sentinel or cluster; `nodes` are (host, port); `tls` holds redis-py's ssl_* names or is None."""

    kind: str
    nodes: tuple[tuple[str, int], ...] = ()
    path: str = ""
    db: int = 0
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    tls: Mapping[str, Any] | None = None
    credential_provider: Any = field(default=None, repr=False)

    @property
    def where(self) -> str:
        """For messages and log lines; holds no secret."""
        nodes = self.path or ",".join(f"{host}:{port}" for host, port in self.nodes)
        return f"{self.kind}://{nodes}/{self.db}"

    @property
    def identity(self) -> tuple[Any, ...]:
        tls = tuple(sorted((name, str(value)) for name, value in self.tls.items())) if self.tls is not None else None
        return (self.kind, self.nodes, self.path, self.db, self.username, self.password, tls, id(self.credential_provider))


def address_of(client: Any) -> Address:
    """The Address a kombu.Connection means, whichever way its URL was written."""
    host = str(client.hostname or "")
    scheme = str(client.transport_cls or "bullmq")
    if "://" in host:
        return _address_of_url(host.removeprefix("bullmq+"), client)
    kind = next((kind for kind in ("sentinel", "cluster", "unix") if kind in scheme), "unix" if "socket" in scheme else "tcp")
    tls = _tls_of(client, re.split(r"[+-]", scheme)[-1] in _TLS_SCHEMES)
    virtual_host = str(client.virtual_host or "")
    if kind == "unix":
        return Address("unix", path=host, db=_db(virtual_host), username=client.userid, password=client.password)
    nodes = [(host or DEFAULT_HOST, client.port or _default_port(kind))]
    nodes += _alternate_nodes(client, kind)
    return Address(
        kind, tuple(dict.fromkeys(nodes)), db=_db(virtual_host), username=client.userid, password=client.password, tls=tls,
        credential_provider=getattr(client, "credential_provider", None),
    )  # fmt: skip


def _address_of_url(url: str, client: Any) -> Address:
    parts = urlsplit(url)
    scheme = parts.scheme
    query = {name: values[-1] for name, values in parse_qs(parts.query).items()}
    user = unquote(parts.username) if parts.username else client.userid
    password = unquote(parts.password) if parts.password else client.password
    if scheme in ("unix", "socket"):
        path = unquote(parts.path) if parts.path else unquote(parts.netloc)
        db = query.get("virtual_host", str(client.virtual_host or ""))
        return Address("unix", path=path, db=_db(db), username=user, password=password)
    kind = "sentinel" if "sentinel" in scheme else "cluster" if "cluster" in scheme else "tcp"
    tls = _tls_of(client, scheme in _TLS_SCHEMES, query)
    nodes = [(parts.hostname or DEFAULT_HOST, parts.port or _default_port(kind))]
    nodes += _alternate_nodes(client, kind)
    return Address(
        kind, tuple(dict.fromkeys(nodes)), db=_db(parts.path or str(client.virtual_host or "")), username=user, password=password, tls=tls,
        credential_provider=getattr(client, "credential_provider", None),
    )  # fmt: skip


def _alternate_nodes(client: Any, kind: str) -> list[tuple[str, int]]:
    """Sentinels and cluster nodes are asked together; for a single server the alternates are Kombu's failover."""
    if kind not in ("sentinel", "cluster"):
        return []
    found = []
    for url in client.alt or ():
        parts = urlsplit(str(url))
        found.append((parts.hostname or DEFAULT_HOST, parts.port or _default_port(kind)))
    return found


def _default_port(kind: str) -> int:
    return DEFAULT_SENTINEL_PORT if kind == "sentinel" else DEFAULT_PORT


def _db(virtual_host: str) -> int:
    text = virtual_host.strip("/")
    if not text:
        return 0
    try:
        return int(text)
    except ValueError:
        raise BadInput(f"the part of the broker URL after the host is a Redis database number, not {text!r}") from None


def _tls_of(client: Any, by_scheme: bool, query: Mapping[str, str] | None = None) -> Mapping[str, Any] | None:
    given = client.ssl
    if not by_scheme and not given:
        return None
    tls: dict[str, Any] = {"ssl_cert_reqs": ssl_module.CERT_REQUIRED, "ssl_check_hostname": True}
    found = {name: value for name, value in (query or {}).items() if name.startswith("ssl_")}
    if isinstance(given, Mapping):
        found.update(given)
    tls.update(found)
    reqs = tls["ssl_cert_reqs"]
    if isinstance(reqs, str):
        reqs = {"none": ssl_module.CERT_NONE, "optional": ssl_module.CERT_OPTIONAL, "required": ssl_module.CERT_REQUIRED}.get(
            reqs.lower().removeprefix("cert_"), ssl_module.CERT_REQUIRED
        )
    tls["ssl_cert_reqs"] = reqs
    if reqs == ssl_module.CERT_NONE:
        tls["ssl_check_hostname"] = False
    return tls


class Wire:
    """One connection, opened when first used and again after it broke. For one thread at a time."""

    __slots__ = ("_connection", "_descriptor", "_on_close", "_opener", "_pid", "fresh", "name")

    def __init__(self, opener: Callable[[str | None], Any], name: str | None = None, on_close: Callable[[int], None] | None = None) -> None:
        self._opener = opener
        self._on_close = on_close
        self._connection: Any = None
        self._descriptor = -1
        self._pid = os.getpid()
        self.name = name
        #: Whether the connection has answered nothing yet: an error then is not that of an idle connection that had died.
        self.fresh = True

    def open(self) -> Any:
        """The connected redis-py connection."""
        connection = self._connection
        if connection is None:
            connection = self._opener(self.name)
            connection.connect()
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
            answer = connection.read_response()
        except ResponseError:
            self.fresh = False
            raise
        except BaseException:
            self.close()
            raise
        self.fresh = False
        return answer

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
        """Whether an answer can be read within `timeout` seconds."""
        # Answers that came together are read together: the second is in redis-py's buffer, or TLS's, and the socket has nothing to tell.
        try:
            if self.open().can_read(timeout=0):
                return True
        except BaseException:
            self.close()
            raise
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
        with contextlib.suppress(Exception):
            connection.disconnect()


def _pack(connection: Any, command: tuple[Any, ...]) -> Any:
    """The command as bytes. hiredis does it in one step; redis-py looks at each argument before it asks hiredis."""
    if hiredis is not None:
        return [hiredis.pack_command(command)]
    return connection.pack_command(*command)


def _as_bytes(part: Any) -> Any:
    return part.encode("utf-8", "surrogateescape") if isinstance(part, str) else part


def wait_any(descriptors: list[int], timeout: float | None) -> list[int]:
    """Those of the descriptors that become readable within `timeout` seconds (None: whenever). Works under gevent and eventlet."""
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


class Server:
    """Short commands to one Redis, from any thread, and wires of one's own."""

    def __init__(self, address: Address, options: Options) -> None:
        self.address = address
        self.options = options
        self._idle: deque[Wire] = deque()
        self._pid = os.getpid()
        self._locator = _Locator(address, options)
        self.closed = False
        #: Told which descriptor is about to be closed: the next connection, anybody's, mostly gets the same number.
        self.on_close: Callable[[int], None] | None = None

    def wire(self, name: str | None = None) -> Wire:
        """A wire of the caller's own; `name` is its CLIENT name."""
        return Wire(self._open, name, self.on_close)

    def call(self, *command: Any) -> Any:
        """One command and its answer. Sent once more where the connection used had died since its last answer."""
        wire = self.lend()
        try:
            try:
                return wire.call(*command)
            except (RedisConnectionError, RedisTimeoutError, OSError) as error:
                if wire.fresh or isinstance(error, RedisTimeoutError):
                    raise
                self._locator.moved()
                return wire.call(*command)
        except ResponseError as error:
            if self.address.kind == "cluster" and str(error).startswith(("MOVED", "ASK", "CLUSTERDOWN", "READONLY")):
                wire.close()
                self._locator.moved()
                return wire.call(*command)
            if str(error).startswith("READONLY"):
                wire.close()
                self._locator.moved()
            raise
        finally:
            self.give_back(wire)

    def lend(self) -> Wire:
        """A wire for a short while; `give_back` must follow."""
        if self._pid != os.getpid():
            self._pid = os.getpid()
            inherited, self._idle = self._idle, deque()
            for wire in inherited:
                wire.close()
        try:
            return self._idle.pop()
        except IndexError:
            return self.wire(self.options.client_name)

    def give_back(self, wire: Wire) -> None:
        """Takes a lent wire back; nothing may be on its way on it."""
        if self.closed or len(self._idle) >= IDLE_WIRES or not wire.is_open:
            wire.close()
        else:
            self._idle.append(wire)

    def look_again(self) -> None:
        """A wire broke: where the master is has to be asked again before the next one is opened."""
        self._locator.moved()

    def _open(self, name: str | None) -> Any:
        return self._locator.connection(name)

    def close(self) -> None:
        """Closes the idle wires; those on loan close when they come back."""
        self.closed = True
        while self._idle:
            self._idle.pop().close()


class _Locator:
    """Makes redis-py connections to where the master is now."""

    def __init__(self, address: Address, options: Options) -> None:
        self.address = address
        self.options = options
        self._master: tuple[str, int] | None = None
        self._lock = threading.Lock()

    def connection(self, name: str | None) -> Any:
        address, options = self.address, self.options
        given: dict[str, Any] = {
            "db": address.db if address.kind != "cluster" else 0,
            "username": address.username,
            "password": address.password,
            "socket_timeout": options.socket_timeout,
            "socket_connect_timeout": options.socket_connect_timeout,
            "decode_responses": True,
            "encoding_errors": "surrogateescape",
            "health_check_interval": 0,
            "client_name": name,
            "protocol": 2,
            "retry": Retry(NoBackoff(), 0),
        }
        if address.credential_provider is not None:
            given["credential_provider"] = address.credential_provider
            given.pop("username")
            given.pop("password")
        if address.kind == "unix":
            unix: Any = redis.connection.UnixDomainSocketConnection  # abstract in redis-py's annotations, not in its code
            return unix(path=address.path, **_accepted(given))
        given["host"], given["port"] = self.master()
        given["socket_keepalive"] = options.socket_keepalive
        given["socket_keepalive_options"] = options.socket_keepalive_options
        if address.tls is not None:
            return redis.connection.SSLConnection(**_accepted(given), **address.tls)
        return redis.connection.Connection(**_accepted(given))

    def master(self) -> tuple[str, int]:
        if self.address.kind == "tcp":
            return self.address.nodes[0]
        with self._lock:
            if self._master is None:
                self._master = self._ask_sentinels() if self.address.kind == "sentinel" else self._ask_cluster()
            return self._master

    def moved(self) -> None:
        """What is known of the master may be wrong."""
        with self._lock:
            self._master = None

    def _ask_sentinels(self) -> tuple[str, int]:
        from redis.sentinel import Sentinel

        if not self.options.master_name:
            raise BadInput("a bullmq+sentinel:// URL needs broker_transport_options = {'master_name': …}")
        sentinel = Sentinel(
            list(self.address.nodes),
            min_other_sentinels=self.options.min_other_sentinels,
            sentinel_kwargs=dict(self.options.sentinel_kwargs or {}) or None,
            socket_timeout=self.options.socket_timeout,
            socket_connect_timeout=self.options.socket_connect_timeout,
        )
        try:
            host, port = sentinel.discover_master(self.options.master_name)
        finally:
            for client in sentinel.sentinels:
                client.close()
        return str(host), int(port)

    def _ask_cluster(self) -> tuple[str, int]:
        """The node that holds the slot of the prefix' hash tag: all keys have it."""
        tag = re.match(r"[^{]*\{([^}]+)\}", self.options.prefix)
        if tag is None:
            raise BadInput(f"on Redis Cluster the prefix must be a hash tag like '{{bull}}', not {self.options.prefix!r}")
        from redis.crc import key_slot

        slot = key_slot(self.options.prefix.encode())
        error: Exception | None = None
        for host, port in self.address.nodes:
            wire = Wire(lambda name, host=host, port=port: self._node(host, port))  # type: ignore[misc]
            try:
                for first, last, node, *_ in wire.call("CLUSTER", "SLOTS"):
                    if first <= slot <= last:
                        return str(node[0] or host), int(node[1])
            except (redis.RedisError, OSError) as reason:
                error = reason
            finally:
                wire.close()
        raise RedisConnectionError(f"no node of {self.address.where} knows slot {slot}: {error}")

    def _node(self, host: str, port: int) -> Any:
        node = Address("tcp", ((host, port),), username=self.address.username, password=self.address.password, tls=self.address.tls)
        return _Locator(node, self.options).connection(None)


def _accepted(given: Mapping[str, Any]) -> dict[str, Any]:
    """Without what this redis-py does not know (`protocol` came with 5.0)."""
    return {name: value for name, value in given.items() if name in _ACCEPTED and value is not None}
