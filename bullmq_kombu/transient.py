"""Queues that Celery makes for itself: remote control, replies, events, rpc results.

Each is a set of messages that expires unless somebody goes on using it, and never a BullMQ queue: nothing for a dashboard to show. Other
processes know it by a key that expires with it. A consumer is woken as BullMQ's workers are, by a marker, so that one blocking
connection can wait for many. Knows no job.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from typing import NamedTuple

from bullmq_kombu import scripts
from bullmq_kombu.bindings import FANOUT_KEPT_MS, Binding, Bindings, pack
from bullmq_kombu.connection import Server
from bullmq_kombu.keys import KombuKeys
from bullmq_kombu.wire import ServerNotReady

#: How long such a queue is kept when nobody uses it and it does not say for how long, ms.
KEPT_MS = 24 * 3_600_000
#: How long a message to a queue that nobody has declared is kept, ms: the reply to somebody who is gone.
UNDECLARED_KEPT_MS = 300_000
#: How long it is remembered that a queue is, or is not, of this kind, s.
KNOWN_FOR_S = 60.0
#: Of how many queues that is remembered before those of which it is no longer known are forgotten.
KNOWN_AT_MOST = 1000
#: The same for the queues of jobs that a broadcast exchange leads to, s.
BOUND_FOR_S = 1.0
#: When it is tried again to keep them where the server could not be written to, s.
AFTER_REFUSAL_S = 1.0


class Pushed(NamedTuple):
    """A message of such a queue, or of a broadcast; it is no job."""

    queue: str
    payload: str
    broadcast: bool = False


class TransientQueues:
    """Those that one connection has declared, and what it knows of others."""

    def __init__(self, server: Server, keys: KombuKeys, bindings: Bindings) -> None:
        self._server = server
        self._keys = keys
        self._bindings = bindings
        #: Declared here: for how long each is kept, ms.
        self._kept: dict[str, int] = {}
        self._bound: dict[str, list[tuple[str, Binding]]] = {}
        #: Bound to a broadcast: (exchange, routing key). Nothing of them is in Redis.
        self.broadcasts: dict[str, tuple[str, str]] = {}
        self._known: dict[str, tuple[bool, float]] = {}
        self._bound_to: dict[str, tuple[list[str], float]] = {}
        #: When (monotonic) those declared here have to be declared again.
        self._touch_at = math.inf

    def __contains__(self, queue: str) -> bool:
        """Whether the queue was declared on this connection."""
        return queue in self._kept

    def declare(self, queue: str, now: int, kept_ms: int | None = None) -> None:
        self._kept[queue] = kept_ms or KEPT_MS
        self._touch_at = min(self._touch_at, time.monotonic() + self._kept[queue] / 3000)
        scripts.run(self._server, "declare", (self._keys.base,), (now, queue, self._kept[queue], 0))

    def queues_of(self, exchange: str, now: int) -> list[str]:
        """The queues of jobs bound to a broadcast exchange. Remembered for a second: every event that a worker sends asks."""
        known = self._bound_to.get(exchange)
        if known is None or known[1] < time.monotonic():
            queues = [queue for _, _, queue in self._bindings.of(exchange, now)]
            known = self._bound_to[exchange] = (queues, time.monotonic() + BOUND_FOR_S)
        return known[0]

    def forget_bindings(self, exchange: str) -> None:
        """A binding of the exchange was made or removed here."""
        self._bound_to.pop(exchange, None)

    def bind(self, queue: str, exchange: str, binding: Binding, now: int) -> None:
        self._bindings.add(exchange, binding, now + self._kept[queue])
        self._bound.setdefault(queue, []).append((exchange, binding))

    def is_one(self, queue: str) -> bool:
        """Whether the queue is of this kind, declared here or in another process."""
        if queue in self._kept:
            return True
        known = self._known.get(queue)
        if known is not None and (known[1] == 0.0 or known[1] > time.monotonic()):
            return known[0]
        found = bool(self._server.call("EXISTS", f"{self._keys.base}queue:{queue}"))
        if len(self._known) >= KNOWN_AT_MOST:
            # Every `celery inspect` has a queue of its own for the answers.
            now = time.monotonic()
            self._known = {name: one for name, one in self._known.items() if one[1] == 0.0 or one[1] > now}
        self._known[queue] = (found, time.monotonic() + KNOWN_FOR_S)
        return found

    def is_jobs(self, queue: str) -> bool:
        """Whether the queue is known to be one of jobs."""
        return self._known.get(queue) == (False, 0.0)

    def is_none(self, queue: str) -> None:
        """The queue was declared as one of jobs."""
        self._known[queue] = (False, 0.0)

    def push(self, queue: str, payload: str, priority: int = 0, *, first: bool = False) -> None:
        """Puts a message at the end of those of its priority (lower ones come before), or at their head."""
        scripts.run(self._server, "push", (self._keys.base,), (queue, payload, priority, UNDECLARED_KEPT_MS, "1" if first else ""))

    def put_back(self, pushed: Pushed) -> None:
        """To the head, as if it had not been taken."""
        try:
            priority = int(json.loads(pushed.payload)["properties"].get("priority") or 0)
        except (ValueError, KeyError, TypeError, AttributeError):
            priority = 0  # somebody else's text: whoever opens it says so
        self.push(pushed.queue, pushed.payload, priority, first=True)

    def pop(self, queue: str, count: int) -> list[Pushed]:
        """The next messages, at most `count`."""
        return [Pushed(queue, payload) for payload in scripts.run(self._server, "pop", (self._keys.base,), (queue, count))]

    def size(self, queue: str) -> int:
        return int(self._server.call("ZCARD", self._keys.messages(queue)))

    def purge(self, queue: str) -> int:
        size = self.size(queue)
        self._server.call("DEL", self._keys.messages(queue), self._keys.marker(queue))
        return size

    def drop(self, queue: str) -> None:
        """The queue and its bindings are gone, if it was declared here."""
        if self._kept.pop(queue, None) is None:
            return
        self._known.pop(queue, None)
        self.broadcasts.pop(queue, None)
        for exchange, binding in self._bound.pop(queue, ()):
            self._bindings.remove(exchange, binding)
        self._server.call("DEL", self._keys.messages(queue), self._keys.marker(queue), f"{self._keys.base}queue:{queue}")

    def touch(self, now: int) -> None:
        """Those declared here stay: to be called now and then while they are used. Costs a command each third of the shortest expiry."""
        if time.monotonic() < self._touch_at:
            return
        kept = {queue: kept for queue, kept in self._kept.items() if queue not in self.broadcasts}
        self._touch_at = time.monotonic() + min((FANOUT_KEPT_MS, *kept.values())) / 3000
        try:
            self._touch(kept, now)
        except ServerNotReady:
            self._touch_at = time.monotonic() + AFTER_REFUSAL_S  # there is time left, and nothing else is wrong with the connection

    def _touch(self, kept: Mapping[str, int], now: int) -> None:
        for exchange in {exchange for exchange, _ in self.broadcasts.values()}:
            self._bindings.is_fanout(exchange)
        if not kept:
            return
        args: list[str | int] = [now]
        for queue, kept_ms in kept.items():
            bound = self._bound.get(queue, [])
            args += (queue, kept_ms, len(bound))
            for exchange, binding in bound:
                args += (exchange, pack(binding))
        scripts.run(self._server, "declare", (self._keys.base,), args)
