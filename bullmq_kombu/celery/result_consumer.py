"""Waits for results: what Celery's workers store comes by PUB/SUB, what Node's jobs do shows in their queue's event stream.

The channel brings the result itself. The event stream, read with XREAD, only tells that something has happened in a queue; what it means
to the tasks waited for is then looked up, in one call, and not more often than LOOK_EVERY_S however busy the queue is. A subscription that
the server had not yet seen when the result was stored, or one that was lost, is made good by such a look too.

One thread at a time waits on the sockets; others wait for it, as one answer may be theirs. Nothing is read or sent but under the lock.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any

from celery import states
from celery.backends.asynchronous import BaseResultConsumer
from celery.result import ResultSet
from kombu.utils.encoding import bytes_to_str

from bullmq_kombu.wire import Waker, Wire, wait_any, within

logger = logging.getLogger(__name__)

#: A task of Celery's mostly answers sooner, and then the jobs need not be looked at.
FIRST_LOOK_S = 0.02
#: However much happens in a queue, its jobs are not looked at more often.
LOOK_EVERY_S = 0.02
#: And looking takes at most this part of the time.
LOOK_SHARE = 0.05
#: Without any news, connections are tried, and jobs looked at, this often.
HEALTH_S = 25.0
#: The longest one XREAD waits.
BLOCK_S = 5.0
#: Pause after an error of the connection.
AFTER_ERROR_S = 0.5

#: How much longer than it was asked to wait a call may take to be answered: a `get(timeout=0)` wants an answer too.
GRACE_S = 0.3

#: Of a task: the text of its result that was published, its meta that was looked up, or why that cannot be read.
Heard = tuple[str, str | dict[str, Any] | Exception]


class ResultConsumer(BaseResultConsumer):
    """All that one backend waits for."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._connection_errors = self.backend.connection_errors
        self._reset()

    def _reset(self) -> None:
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._news = threading.Condition(self._lock)
        #: The thread that listens for all of them, and what it has heard and not told yet.
        self._listener: int | None = None
        self._heard: deque[Heard] = deque()
        self._waker: Waker | None = None
        #: Tasks waited for, and of each what was last heard, so that nothing is told twice.
        self._watched: dict[str, Any] = {}
        self._channels: Wire | None = None
        self._subscribed: set[str] = set()
        #: Tasks that came or went since the server was last told.
        self._changed: set[str] = set()
        self._unconfirmed = 0
        self._ping_by: float | None = None
        self._stream: Wire | None = None
        self._awaited: set[str] = set()
        self._look_at = 0.0
        #: Before this time it is not looked again.
        self._look_not_before = 0.0
        self._next_ping = 0.0
        #: By the promise that is waited for: how long the look before the wait took (s), and the tasks.
        self._waits: dict[int, tuple[float, list[str]]] = {}
        #: Tasks of which something was heard that cannot be read: it is for those to know who wait for them.
        self._unreadable: dict[str, Exception] = {}

    def _check_fork(self) -> None:
        if self._pid != os.getpid():
            inherited = (self._channels, self._stream)
            self._reset()
            for wire in inherited:
                if wire is not None:
                    wire.close()

    def on_after_fork(self) -> None:
        self._check_fork()
        super().on_after_fork()

    # -- what to wait for ------------------------------------------------------------------------------------------------

    def start(self, initial_task_id: str, **kwargs: Any) -> None:
        self.consume_from(initial_task_id)

    def consume_from(self, task_id: str) -> None:
        self._check_fork()
        task_id = bytes_to_str(task_id)
        if task_id in self._watched:
            return
        self._unreadable.pop(task_id, None)
        look_at = max(time.monotonic() + FIRST_LOOK_S, self._look_not_before)
        self._look_at = min(self._look_at, look_at) if self._watched else look_at
        self._watched[task_id] = None
        self._changed.add(task_id)
        # No wait is in place here, as nobody has said for how long: a connection is made, and a busy listener told, by who waits.
        self._tell_channels_if_free()
        waker = self._waker
        if waker is not None:
            waker.wake()

    def cancel_for(self, task_id: str) -> None:
        # Also called when a result is garbage collected, anywhere, even while this thread holds the lock: so nothing is sent. The channel
        # is left when the next message is sent or read.
        task_id = bytes_to_str(task_id)
        self._unreadable.pop(task_id, None)
        if self._watched.pop(task_id, self) is not self:
            self._changed.add(task_id)

    def _give_up(self, task_id: str, error: Exception) -> None:
        """It is looked for no more: what cannot be read now would not be the next time either."""
        for waiting in self.backend._pending_results:
            waiting.pop(task_id, None)
        self.cancel_for(task_id)
        self._unreadable[task_id] = error

    def stop(self) -> None:
        with self._lock:
            self._drop()

    # -- waiting ------------------------------------------------------------------------------------------------------------

    def on_wait_for_pending(self, result: Any, timeout: Any = None, **kwargs: Any) -> None:
        began = time.monotonic()
        tasks = list(_tasks_of(result))
        try:
            with _within(timeout):
                metas = list(result._iter_meta(**kwargs))
            for meta in metas:
                if meta is not None:
                    self.on_state_change(meta, None)
                    if meta["status"] in (states.SUCCESS, states.FAILURE):
                        self._drop_buffered(meta.get("task_id"))
            self._tell_channels_if_free()
        except self._connection_errors as error:
            # Who waits goes on waiting; it is looked again when Redis is back.
            logger.debug("waiting for results begins while Redis is away: %s", error)
        except Exception:
            for one in tasks:
                self.backend.remove_pending_result(one)
            raise
        self._waits[id(result.on_ready)] = time.monotonic() - began, [bytes_to_str(one.id) for one in tasks]

    def _drop_buffered(self, task_id: Any) -> None:
        """A result that nobody waits for was put aside for who may ask; this one has just been given."""
        pending = self.backend._pending_messages
        try:
            buffered = pending.pop(task_id)
        except KeyError:
            return
        pending.total -= len(buffered)

    def on_state_change(self, meta: dict[str, Any], message: Any) -> None:
        super().on_state_change(meta, message)
        if meta["status"] in states.READY_STATES:
            self.cancel_for(meta["task_id"])

    def drain_events_until(self, p: Any, timeout: float | None = None, on_interval: Any = None) -> Iterator[None]:
        """As Celery's, but no single wait goes beyond the deadline."""
        spent, tasks = self._waits.pop(id(p), (0.0, []))
        until, interval = None, 1.0
        if timeout is not None:
            # Celery 5.3 takes 0 for "for ever".
            timeout = max(timeout - spent, 0.001)
            until = time.monotonic() + timeout
            interval = min(max(timeout / 10, 0.02), 1.0)

        def wait(timeout: float) -> None:
            # Celery 5.3 waits before it looks whether there is anything to wait for.
            if not p.ready:
                left = None if until is None else max(until - time.monotonic(), 0.0)
                self.drain_events(timeout if left is None else min(1.0, left), left)
                if self._unreadable:
                    for task_id in self._unreadable.keys() & tasks:
                        raise self._unreadable[task_id]

        result: Iterator[None] = self.drainer.drain_events_until(p, timeout=timeout, interval=interval, on_interval=on_interval, wait=wait)
        return result

    def drain_events(self, timeout: float | None = None, left: float | None = None) -> None:
        """Returns when something was heard, or after `timeout` seconds. `left`: how long who asks goes on waiting at most."""
        self._check_fork()
        timeout = 1.0 if timeout is None else timeout
        me = threading.get_ident()
        if not self._lock.acquire(timeout=timeout + GRACE_S):
            return  # by the listener, whose call Redis does not answer
        try:
            is_nested = self._listener == me  # what it tells has callbacks, and one of them waits for another result
            if self._listener is not None and not is_nested:
                self._news.wait(timeout)
                return
            self._listener = me
        finally:
            self._lock.release()
        try:
            if not self._heard:
                with _within(left):
                    self._heard.extend(self._listen(time.monotonic() + timeout))
        except self._connection_errors as error:
            logger.debug("waiting for results goes on with a new connection: %s", error)
            with self._lock:
                self._drop()
            time.sleep(min(AFTER_ERROR_S, timeout))
        finally:
            try:
                self._tell()
            finally:
                with self._lock:
                    self._listener = me if is_nested else None
                    self._news.notify_all()
                    self._tell_channels()

    def _tell(self) -> None:
        """Outside the lock: what is told may have callbacks that wait for other results. No error keeps the others back."""
        failed: Exception | None = None
        while self._heard:
            task_id, what = self._heard.popleft()
            try:
                meta = self._meta_in(what)
                token = _token(meta)
            except Exception as error:
                if task_id in self._watched:
                    self._give_up(task_id, error)
                continue
            if task_id in self._watched and (token is None or self._watched[task_id] != token):
                self._watched[task_id] = token
                try:
                    self.on_state_change(meta, what if isinstance(what, str) else None)
                except Exception as error:
                    failed = error
        if failed is not None:
            raise failed

    def _meta_in(self, what: str | dict[str, Any] | Exception) -> dict[str, Any]:
        if isinstance(what, Exception):
            raise what
        meta: dict[str, Any] = self.backend.decode_result(what.encode("utf-8", "surrogateescape")) if isinstance(what, str) else what
        return meta

    def _listen(self, until: float) -> list[Heard]:
        while True:
            with self._lock:
                waker = self._waker
                if waker is None:
                    waker = self._waker = Waker()
                self._subscribe()
                heard = self._read_channels()
                now = time.monotonic()
                if not heard:
                    self._try_connection(now)
                    if self._watched and now >= self._look_at and not self._unconfirmed:
                        heard = self._look(now)
                if heard or now >= until:
                    return heard
                descriptors = [waker.fileno()]
                for wire in (self._channels, self._stream if self._awaited else None):
                    if wire is not None and wire.is_open:
                        descriptors.append(wire.fileno())
            wait = min(until, self._look_at if self._watched and not self._unconfirmed else until) - now
            ready = wait_any(descriptors, max(wait, 0.0))
            with self._lock:
                if waker.fileno() in ready:
                    waker.drain()
                if self._awaited and self._stream is not None and self._stream.is_open and self._stream.fileno() in ready:
                    self._read_stream()

    # -- the channels ----------------------------------------------------------------------------------------------------------

    def _subscribe(self) -> None:
        """Brings the server's list of our channels up to date."""
        wire = self._channels
        if wire is None or not wire.is_open:
            self._subscribed = set()
            self._changed.update(self._watched)
            self._unconfirmed = 0
            self._ping_by = None
            wire = self._channels = self.backend.server.wire()
            wire.open()
        changed = [self._changed.pop() for _ in range(len(self._changed))]
        new = [one for one in changed if one in self._watched and one not in self._subscribed]
        old = [one for one in changed if one not in self._watched and one in self._subscribed]
        channel = self.backend.results.channel
        if new:
            wire.send("SUBSCRIBE", *map(channel, new))
            self._unconfirmed += len(new)
            self._subscribed.update(new)
        if old:
            wire.send("UNSUBSCRIBE", *map(channel, old))
            self._subscribed.difference_update(old)

    def _tell_channels(self) -> None:
        if self._changed and self._channels is not None and self._channels.is_open:
            try:
                self._subscribe()
            except self._connection_errors:
                self._drop()

    def _tell_channels_if_free(self) -> None:
        if self._lock.acquire(blocking=False):
            try:
                self._tell_channels()
            finally:
                self._lock.release()

    def _read_channels(self) -> list[Heard]:
        heard: list[Heard] = []
        wire = self._channels
        while wire is not None and wire.wait_readable(0):
            answer = wire.read()
            kind = answer if isinstance(answer, str) else answer[0]
            if kind == "subscribe":
                self._unconfirmed -= 1
            elif kind in ("pong", "PONG"):
                self._ping_by = None
            elif kind == "message":
                heard.append((answer[1].removeprefix(self.backend.results.channel("")), answer[2]))
        return heard

    def _try_connection(self, now: float) -> None:
        """A connection that died unseen would leave us waiting for ever."""
        assert self._channels is not None
        if self._ping_by is not None:
            if now > self._ping_by:
                raise TimeoutError(f"no answer from Redis at {self.backend.server.address.where}")
        elif now >= self._next_ping:
            self._channels.send("PING")
            self._ping_by = now + HEALTH_S / 2
            self._next_ping = now + HEALTH_S

    # -- the jobs ----------------------------------------------------------------------------------------------------------------

    def _look(self, now: float) -> list[Heard]:
        """What is known of the tasks now; then waits for their queues' next events."""
        self._look_at = now + HEALTH_S  # before: a task that comes meanwhile wants it sooner
        known, ends = self.backend.look_up(list(self._watched), ends=True)
        took = time.monotonic() - now
        self._look_not_before = now + max(LOOK_EVERY_S, took / LOOK_SHARE)
        self._await(ends)
        heard: list[Heard] = []
        for one in known:
            try:
                meta = self.backend.meta_of(one)
            except Exception as error:
                heard.append((one.task_id, error))
            else:
                if meta["status"] != states.PENDING:
                    heard.append((one.task_id, meta))
        return heard

    def _await(self, ends: dict[str, str]) -> None:
        """Waits for events later than `ends`, one of each queue."""
        wire = self._stream
        if wire is not None and wire.is_open and self._awaited:
            # It waits already. Any event there is news to those who wait for it since.
            if set(ends) <= self._awaited:
                return
            wire.close()
        self._awaited = set(ends)
        if not ends:
            return
        if wire is None:
            wire = self._stream = self.backend.server.wire()
        keys = [self.backend.results.events_key(queue) for queue in ends]
        wire.send("XREAD", "COUNT", 1, "BLOCK", int(BLOCK_S * 1000), "STREAMS", *keys, *ends.values())

    def _read_stream(self) -> None:
        wire = self._stream
        assert wire is not None
        wire.read()
        self._awaited = set()
        # Without news it is looked all the same: that is how the next wait begins.
        self._look_at = min(self._look_at, max(self._look_not_before, time.monotonic()))

    def _drop(self) -> None:
        """Begins anew after an error of the connection."""
        for wire in (self._channels, self._stream):
            if wire is not None:
                wire.close()
        self._awaited = set()
        self._look_at = max(time.monotonic(), self._look_not_before)


def _within(timeout: float | None) -> AbstractContextManager[None]:
    return within(None if timeout is None else max(timeout, 0.0) + GRACE_S)


def _tasks_of(result: Any) -> Iterator[Any]:
    """The results of single tasks that a result, which may be that of a group, waits for."""
    if isinstance(result, ResultSet):
        for one in result.results:
            yield from _tasks_of(one)
    else:
        yield result


def _token(meta: dict[str, Any]) -> Any:
    """Equal for two reports of the same thing, so that nothing is told twice; None for an end, which is always told."""
    return None if meta["status"] in states.READY_STATES else (meta["status"], repr(meta["result"]))
