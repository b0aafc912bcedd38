"""A redis-py client or pool of the user's, shared: the option `connection`.

Short commands borrow its connections and give them back; whoever blocks, or waits for an answer, gets a connection of its own, made like
the pool's. Nothing of the user's is ever closed. However the pool decodes answers, and whichever protocol it speaks, ours come as text.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from redis.connection import SSLConnection, UnixDomainSocketConnection

from bullmq_kombu.address import DEFAULT_HOST, DEFAULT_PORT, Address
from bullmq_kombu.errors import BadInput


def pool_of(shared: Any) -> Any:
    """The pool of a client, or the pool that was given."""
    pool = getattr(shared, "connection_pool", shared)
    if not (hasattr(pool, "get_connection") and hasattr(pool, "connection_kwargs") and hasattr(pool, "connection_class")):
        raise BadInput(f"the option 'connection' is a redis-py client or connection pool of one server, not {type(shared).__name__}")
    if hasattr(pool.connection_class, "_read_response_from_socket") or "asyncio" in type(pool).__module__:
        raise BadInput("the option 'connection' cannot be an asyncio client")
    return pool


def address_of_pool(pool: Any) -> Address:
    """Where the pool's connections lead."""
    given: Mapping[str, Any] = pool.connection_kwargs
    db, user, password = int(given.get("db") or 0), given.get("username"), given.get("password")
    provider = given.get("credential_provider")
    manager = getattr(pool, "sentinel_manager", None)
    if manager is not None:
        nodes = [one.connection_pool.connection_kwargs for one in manager.sentinels]
        return Address("sentinel", tuple(_node(one) for one in nodes), "", db, user, password, None, provider)
    if issubclass(pool.connection_class, UnixDomainSocketConnection):
        return Address("unix", (), str(given.get("path")), db, user, password, None, provider)
    tls: dict[str, Any] | None = {} if issubclass(pool.connection_class, SSLConnection) else None
    return Address("tcp", (_node(given),), "", db, user, password, tls, provider)


def _node(given: Mapping[str, Any]) -> tuple[str, int]:
    return str(given.get("host") or DEFAULT_HOST), int(given.get("port") or DEFAULT_PORT)


def borrow(pool: Any) -> Any:
    """A connection of the pool's, connected; `pool.release` must follow."""
    try:
        return pool.get_connection()
    except TypeError:
        return pool.get_connection("_")  # redis-py before 5.3 wants a name


def plain(answer: Any) -> Any:
    """An answer as RESP2 and text: maps and sets are flat lists, numbers with a fraction are text."""
    if isinstance(answer, bytes):
        return answer.decode("utf-8", "surrogateescape")
    if isinstance(answer, (list, tuple, set, frozenset)):
        return [plain(one) for one in answer]
    if isinstance(answer, dict):
        return [plain(one) for pair in answer.items() for one in pair]
    if isinstance(answer, bool):
        return int(answer)
    if isinstance(answer, float):
        return repr(answer)
    return answer
