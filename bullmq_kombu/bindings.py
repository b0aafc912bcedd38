"""Which queues an exchange leads to, kept in Redis for all processes.

A binding is the JSON list [routing key, pattern, queue]. It stays for ever, or as long as its queue does where Celery made the queue for
itself. Knows nothing of jobs.
"""

from __future__ import annotations

import json

from bullmq_kombu.connection import Server
from bullmq_kombu.keys import KombuKeys

Binding = tuple[str, str, str]

#: How long it is kept that an exchange is a broadcast, when nobody says so again, ms.
FANOUT_KEPT_MS = 24 * 3_600_000


class Bindings:
    """The binding tables of one prefix. A binding is (routing key, pattern, queue)."""

    def __init__(self, server: Server, keys: KombuKeys) -> None:
        self._server = server
        self._keys = keys

    def add(self, exchange: str, binding: Binding, expires_at: int = 0) -> None:
        """`expires_at` is in ms; 0 for never."""
        self._server.call("HSET", self._keys.bindings(exchange), pack(binding), expires_at)

    def remove(self, exchange: str, binding: Binding) -> None:
        self._server.call("HDEL", self._keys.bindings(exchange), pack(binding))

    def of(self, exchange: str, now: int) -> list[Binding]:
        """All bindings of the exchange; those of queues that have expired are taken out."""
        flat = self._server.call("HGETALL", self._keys.bindings(exchange))
        found, gone = [], []
        for packed, expires_at in zip(flat[::2], flat[1::2], strict=True):
            routing_key, pattern, queue = json.loads(packed)
            # The time was told by another process, whose clock may be another; whether the queue has expired, Redis knows.
            if 0 < int(expires_at) < now and not self._server.call("EXISTS", f"{self._keys.base}queue:{queue}"):
                gone.append(packed)
            else:
                found.append((routing_key, pattern, queue))
        if gone:
            self._server.call("HDEL", self._keys.bindings(exchange), *gone)
        return found

    def remove_exchange(self, exchange: str) -> None:
        self._server.call("DEL", self._keys.bindings(exchange))
        self._server.call("SREM", self._keys.fanouts, exchange)

    def is_fanout(self, exchange: str) -> None:
        """Tells other processes that the exchange is a broadcast; to be told again while it is used."""
        self._server.call("SADD", self._keys.fanouts, exchange)
        self._server.call("PEXPIRE", self._keys.fanouts, FANOUT_KEPT_MS)

    def has_fanout(self, exchange: str) -> bool:
        return bool(self._server.call("SISMEMBER", self._keys.fanouts, exchange))


def pack(binding: Binding) -> str:
    return json.dumps([*binding])
