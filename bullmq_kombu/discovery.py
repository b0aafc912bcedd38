"""Which queues there are under a prefix."""

from __future__ import annotations

from typing import Any

from bullmq_kombu.connection import Server
from bullmq_kombu.keys import KombuKeys, queue_base


def queue_names(server: Server) -> list[str]:
    """Each queue has a `meta` key, as dashboards know them; those that Celery has declared may have no job yet."""
    prefix = server.options.prefix
    names = set(server.call("SMEMBERS", KombuKeys(prefix).queues))
    cursor: Any = "0"
    escaped = "".join("\\" + char if char in "*?[]\\" else char for char in prefix)
    while True:
        cursor, found = server.call("SCAN", cursor, "MATCH", f"{escaped}:*:meta", "COUNT", 1000)
        for key in found:
            name = key[len(prefix) + 1 : -len(":meta")]
            if name and ":" not in name:
                names.add(name)
        if str(cursor) == "0":
            return sorted(names)


def is_queue(server: Server, name: str) -> bool:
    """Whether `queue_names` has this one; asks for it alone."""
    prefix = server.options.prefix
    return bool(server.call("EXISTS", f"{queue_base(prefix, name)}meta") or server.call("SISMEMBER", KombuKeys(prefix).queues, name))
