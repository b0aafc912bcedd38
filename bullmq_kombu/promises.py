"""The promise that a job is run at most once, on its way to Redis before the work begins.

Where tasks run in the process that would have to tell it later, the task may be what ends that process. What is written to a socket
arrives all the same, so that nobody waits for the answer; answers are read some at a time. Knows neither Kombu nor Celery.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoScriptError

from bullmq_kombu import native, scripts
from bullmq_kombu.connection import Server
from bullmq_kombu.delivery import LOST, Delivery

#: How many answers are left unread at most.
UNREAD = 16
#: Where there is no connection to be had, the next is tried after this time: other threads would wait for each.
AFTER_ERROR_S = 0.5


class Promises:
    """Those of one process. `again` is told of each that Redis may not have got."""

    def __init__(self, server: Server, again: Callable[[Delivery], None]) -> None:
        self._server = server
        self._again = again
        self._unsent: deque[Delivery] = deque()
        self._unread: deque[Delivery] = deque()
        self._wire = server.wire()
        self._lock = native.new_lock()
        self._not_before = 0.0
        #: When (monotonic) the first was sent of those of which nobody knows yet whether they arrived.
        self.since: float | None = None

    def make(self, delivery: Delivery) -> None:
        """From any thread."""
        if native.is_green():
            self._make_and_wait(delivery)  # an answer that is read later would be read by a thread with another event loop
            return
        self._unsent.append(delivery)
        with self._lock:
            if self._unsent:  # else the thread before has sent it with its own
                self._send()

    def _send(self) -> None:
        """All that threads have brought while one of them was sending."""
        some = [self._unsent.popleft() for _ in range(len(self._unsent))]
        if not self._wire.is_open:
            self._give_up()  # who was sending when it broke could not
        elif len(self._unread) + len(some) > UNREAD:
            self._read()
        self._unread.extend(some)
        try:
            if self._wire.is_open:
                scripts.commit_later(self._wire, some)
            else:
                self._first(some)
        except LOST:
            self._give_up()
        if self._unread and self.since is None:
            self.since = time.monotonic()

    def _make_and_wait(self, delivery: Delivery) -> None:
        try:
            scripts.commit(self._server, delivery.base, delivery.id, delivery.token)
        except LOST:
            self._again(delivery)

    def _first(self, some: Sequence[Delivery]) -> None:
        """The first on a connection: the server may not know the script."""
        if time.monotonic() < self._not_before:
            raise RedisConnectionError("a moment ago there was no connection")
        try:
            for delivery in some:
                scripts.commit(self._wire, delivery.base, delivery.id, delivery.token)
                self._unread.popleft()
        except LOST:
            self._not_before = time.monotonic() + AFTER_ERROR_S
            raise

    def look(self) -> None:
        """Whether those made have arrived."""
        with self._lock:
            self._read()

    def _read(self) -> None:
        unknown = []
        try:
            while self._unread:
                try:
                    self._wire.read()
                except NoScriptError:
                    unknown.append(self._unread[0])
                self._unread.popleft()
            for delivery in unknown:
                scripts.commit(self._wire, delivery.base, delivery.id, delivery.token)
        except LOST:
            self._unread.extend(unknown)
            self._give_up()
        self.since = None

    def _give_up(self) -> None:
        self._wire.close()
        while self._unread:
            self._again(self._unread.popleft())

    def after_fork(self) -> None:
        """In a child: they are its parent's."""
        self._unsent.clear()
        self._unread.clear()
        self._wire.close()
        self._lock = native.new_lock()
        self.since = None
