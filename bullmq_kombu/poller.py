"""Waits for work on many queues at once, without asking again and again.

BullMQ's wake-up is a zset `marker` beside each queue. One blocking connection waits for the markers of all consumed queues; what it pops is
a hint which queue to take from. `Poller` remembers what is known: which queues may have work (hot), which are closed by a rate limit and
until when, when the next delayed job is due. It never reads a message; it does no I/O on other connections than its own.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterable
from typing import Any

from bullmq_kombu.connection import Server
from bullmq_kombu.keys import KombuKeys
from bullmq_kombu.scripts import QueueState
from bullmq_kombu.wire import Wire, wait_any

logger = logging.getLogger(__name__)

#: BullMQ's longest wait when a due time is known: another worker may have promoted the job.
LONGEST_WAIT_S = 10.0
#: BullMQ's shortest wait.
SHORTEST_WAIT_S = 0.002
#: The longest a rate limited queue is left alone, so that its delayed jobs go on being promoted.
LONGEST_CLOSED_S = 30.0
#: When there is work in one of up to ten queues, all are asked, in their turn, but not more often than this. With more queues it is more
#: rarely, as each costs the server some µs.
LOOK_EVERY_S = 0.05
#: The answer may be late by this much before the connection is taken for dead.
GRACE_S = 1.0


class Poller:
    """What is known about the work in a set of queues, each named by its marker key without "marker" (its base)."""

    def __init__(self, server: Server, name: str | None, drain_delay: float, suffix: str = "marker") -> None:
        self._server = server
        self._name = name
        self._drain_delay = drain_delay
        self._suffix = suffix
        self._never = KombuKeys(server.options.prefix).never
        self._bases: list[str] = []
        self._closed: dict[str, float] = {}
        self._due: dict[str, float] = {}
        self._wire: Wire | None = None
        self._answer_by: float | None = None
        #: Queues that may have work now.
        self._hot: set[str] = set()
        #: When (monotonic) the others may too: nobody waits for their markers meanwhile, and somebody who had popped one may be busy.
        self._look_at = 0.0

    # -- which queues ------------------------------------------------------------------------------------------------

    @property
    def bases(self) -> list[str]:
        return self._bases

    def add(self, base: str) -> None:
        if base not in self._bases:
            self._bases.append(base)
            self._hot.add(base)
            self.stop()

    def remove(self, base: str) -> None:
        if base in self._bases:
            self._bases.remove(base)
            self._hot.discard(base)
            self._closed.pop(base, None)
            self._due.pop(base, None)
            self.stop()

    def rename(self, name: str | None) -> None:
        """The CLIENT name of the connection that waits."""
        if name != self._name:
            self._name = name
            self.stop()

    # -- what is known -----------------------------------------------------------------------------------------------

    def hot(self, strategy: str = "priority") -> list[str]:
        """The queues worth asking now, in the order to ask them; asking rotates them for `round_robin`."""
        if not self._hot:
            return []
        now = time.monotonic()
        if now >= self._look_at:
            self._look_at = now + LOOK_EVERY_S * max(1.0, len(self._bases) / 10)
            self.heat()
        if self._closed:
            self._closed = {base: until for base, until in self._closed.items() if until > now}
        found = [base for base in self._bases if base in self._hot and base not in self._closed]
        if strategy == "sorted":
            found.sort()
        elif strategy == "round_robin" and len(self._bases) > 1:
            self._bases.append(self._bases.pop(0))
        return found

    def heat(self) -> None:
        """Any queue may have work."""
        self._hot.update(self._bases)

    def learned(self, asked: Iterable[str], states: Iterable[QueueState], full: bool) -> None:
        """What a take said. `full`: it got all it wanted, so the queues asked may have more."""
        told = {state.base: state for state in states}
        for base in asked:
            state = told.get(base)
            if state is None:
                continue
            if state.closed_ms > 0:
                self._closed[base] = time.monotonic() + min(state.closed_ms / 1000, LONGEST_CLOSED_S)
                self._due.pop(base, None)
                self._hot.discard(base)
                continue
            if state.due_ms > 0:
                self._due[base] = state.due_ms / 1000
            elif not full:
                self._due.pop(base, None)
            if not full:
                self._hot.discard(base)
        if full:
            self._hot.update(asked)

    # -- waiting -----------------------------------------------------------------------------------------------------

    @property
    def is_waiting(self) -> bool:
        return self._answer_by is not None

    def wait(self) -> None:
        """Starts to wait, unless it waits already. `fileno` becomes readable when there may be work."""
        if self._answer_by is not None:
            if time.monotonic() > self._answer_by and self._wire is not None and not wait_any([self._wire.fileno()], 0):
                # Nobody is at the other end any more, and nothing says so. A new connection, and the queues are asked.
                logger.info("a connection that waited for jobs got no answer from Redis at %s", self._server.address.where)
                self.stop()
                self.heat()
            return
        timeout = self._timeout()
        if not self._server.takes_fractions:
            timeout = float(math.ceil(timeout))
        shown = f"{timeout:.3f}" if self._server.takes_fractions else str(int(timeout))
        keys = [base + self._suffix for base in self._bases if base not in self._closed]
        wire = self._wire
        if wire is None:
            wire = self._wire = self._server.wire(self._name)
        if keys:
            wire.send("BZPOPMIN", *keys, shown)
        else:
            wire.send("BZPOPMIN", self._never, shown)
        self._answer_by = time.monotonic() + timeout + GRACE_S

    def _timeout(self) -> float:
        timeout = self._drain_delay
        if self._due:
            timeout = min(max(min(self._due.values()) - time.time(), SHORTEST_WAIT_S), LONGEST_WAIT_S)
        if self._closed:
            timeout = min(timeout, max(min(self._closed.values()) - time.monotonic(), SHORTEST_WAIT_S))
        return timeout

    def fileno(self) -> int | None:
        return self._wire.fileno() if self._wire is not None and self._answer_by is not None else None

    def read(self) -> str | None:
        """Reads the answer; afterwards `hot` knows. Returns the queue whose marker it has taken, if any: nobody else is woken by that."""
        assert self._wire is not None
        try:
            answer: Any = self._wire.read()
        finally:
            self._answer_by = None
        if answer is None:
            self.heat()
            return None
        key, member, score = answer
        base: str = key.removesuffix(self._suffix)
        if base not in self._bases:
            return None
        due = float(score) / 1000
        if member == "1" and due > time.time() + 0.001:
            self._due[base] = due
        else:
            self._due.pop(base, None)
            self._hot.add(base)
        return base

    @property
    def has_come(self) -> bool:
        """Whether it waits no longer, though nobody has read that."""
        return self._answer_by is not None and self._wire is not None and self._wire.is_open and bool(wait_any([self._wire.fileno()], 0))

    def is_hot(self, base: str) -> bool:
        return base in self._hot

    def stop(self) -> None:
        """Waits no longer."""
        if self._answer_by is not None:
            self.heat()  # an answer may have come that nobody will read
        self._answer_by = None
        wire, self._wire = self._wire, None
        if wire is not None:
            wire.close()
