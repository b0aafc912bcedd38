"""What happens in a queue, as it happens: a reader of BullMQ's event stream that loses nothing when its connection does.

    with QueueEvents("mail", "bullmq://redis:6379/0") as events:
        for event in events:                      # an iterator that waits, for ever
            print(event.name, event.job_id, event.args)

        events.on("completed", callback)          # or callbacks, called by `run()` here or by `start()` in a thread
        events.start()

        events.wait_until_finished(job_id, timeout=30)

The place in the stream is kept here, by the id of the last event seen, and is that of the stream's end from the moment the object is made:
after a lost connection the stream is read on from there. Only what Redis itself has dropped by then (the stream is kept at about 10,000
events) is gone. Knows nothing of Kombu but how to read an address from its connections.
"""

from __future__ import annotations

import base64
import json
import logging
import threading
import time
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any, NamedTuple

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from bullmq_kombu import admin_scripts
from bullmq_kombu.connection import Server
from bullmq_kombu.errors import JobFailed, job_error
from bullmq_kombu.keys import queue_base
from bullmq_kombu.patience import reconnect_delay_s
from bullmq_kombu.queue import DEFAULT_URL, server_of
from bullmq_kombu.wire import Wire

logger = logging.getLogger(__name__)

#: How long Redis is asked to wait for an event; BullMQ's.
BLOCK_S = 10.0
#: How soon a reader notices that it was closed, from another thread.
SLICE_S = 0.5
#: The answer may be late by this much before the connection is taken for dead.
GRACE_S = 2.0
#: How many events are read at a time.
COUNT = 500

_LOST = (RedisConnectionError, RedisTimeoutError, OSError)
#: Answers of a server that is not, or no longer, the one to ask.
_ELSEWHERE = ("MOVED", "ASK", "CLUSTERDOWN", "READONLY", "LOADING", "MASTERDOWN", "UNBLOCKED")

#: What BullMQ's client reads from JSON or as a number; all else is text.
_JSON = {"completed": "returnvalue", "progress": "data"}
_NUMBERS = {"delayed": "delay", "cleaned": "count", "retries-exhausted": "attemptsMade"}


class Event(NamedTuple):
    """One event: its place in the stream, its name, and what BullMQ tells with it (jobId, returnvalue, failedReason, prev, …)."""

    id: str
    name: str
    args: dict[str, Any]

    @property
    def job_id(self) -> str | None:
        """The job it is about; None where it is about the queue."""
        found: str | None = self.args.get("jobId")
        return found


Listener = Callable[[Event], object]


def read_event(place: str, flat: list[str]) -> Event:
    """An entry of the stream as an Event; values that cannot be read stay text."""
    args: dict[str, Any] = dict(zip(flat[::2], flat[1::2], strict=True))
    name = args.pop("event", "")
    try:
        if name in _JSON and _JSON[name] in args:
            args[_JSON[name]] = json.loads(args[_JSON[name]])
        elif name in _NUMBERS and _NUMBERS[name] in args:
            args[_NUMBERS[name]] = int(float(args[_NUMBERS[name]]))
    except ValueError:
        pass
    return Event(place, name, args)


class QueueEvents:
    """Reads the events of one queue. `connection` and `prefix` are as `Queue`'s.

    :param last_event_id: read what came after this event; without it what comes from now on. "0-0" for all that there is.
    """

    def __init__(self, name: str, connection: Any = DEFAULT_URL, *, prefix: str | None = None, last_event_id: str | None = None) -> None:
        self.server, self._is_own = server_of(connection, prefix)
        self.name = name
        self.prefix = prefix if prefix is not None else self.server.options.prefix
        self.base = queue_base(self.prefix, name)
        self._listeners: dict[str, list[Listener]] = {}
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None
        self._reader = _Reader(self, last_event_id if last_event_id is not None else self._end())

    def __repr__(self) -> str:
        return f"<QueueEvents {self.prefix}:{self.name} at {self.server.address.where}>"

    def __enter__(self) -> QueueEvents:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    @property
    def last_event_id(self) -> str:
        """The last event that was given out, to go on from there another time."""
        return self._reader.place

    # -- reading

    def read(self, timeout: float | None = None) -> list[Event]:
        """The next events, at least one; none after `timeout` seconds, or when this is closed. Reconnects as long as it takes."""
        return self._reader.read(timeout)

    def __iter__(self) -> Iterator[Event]:
        """Every event, for ever: until this is closed."""
        while not self._closing.is_set():
            yield from self.read()

    # -- callbacks

    def on(self, name: str, listener: Listener) -> None:
        """`listener` is called with every event of this name, or of any for "*"."""
        self._listeners.setdefault(name, []).append(listener)

    def off(self, name: str, listener: Listener) -> None:
        """No longer."""
        listeners = self._listeners.get(name, [])
        if listener in listeners:
            listeners.remove(listener)

    def run(self) -> None:
        """Calls the listeners, in this thread, until this is closed. What a listener raises is logged."""
        for event in self:
            for listener in [*self._listeners.get(event.name, ()), *self._listeners.get("*", ())]:
                try:
                    listener(event)
                except Exception:
                    logger.exception("a listener of %r failed for %s", self, event)

    def start(self) -> None:
        """As `run`, in a thread of its own that ends with the process."""
        if self._thread is None:
            self._thread = threading.Thread(target=self.run, name=f"bullmq events of {self.name}", daemon=True)
            self._thread.start()

    def close(self) -> None:
        """Ends every read and wait; the thread of `start` has ended when this returns, unless it is what calls it."""
        self._closing.set()
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join()
        self._reader.leave()
        if self._is_own:
            self.server.close()

    # -- waiting for one job

    def wait_until_finished(self, job_id: str, timeout: float | None = None, name: str = "") -> Any:
        """The job's return value, as soon as there is one; JobFailed with its reason; TimeoutError after `timeout` seconds.

        May be called by many threads, each with a connection of its own, whatever else reads here. JobMissing where there is no such job.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        reader = _Reader(self, "")
        try:
            reader.place = reader.again(self._end, deadline)
            while True:
                # After the place was noted, and again after each wait: the event may be of before, or Redis may have dropped it.
                state, text = reader.again(lambda: admin_scripts.outcome_of(self.server, self.base, job_id), deadline)
                if state:
                    return _outcome(state, text, job_id)
                left = BLOCK_S if deadline is None else min(deadline - time.monotonic(), BLOCK_S)
                until = time.monotonic() + left
                while (left := until - time.monotonic()) > 0:
                    events = [event for event in reader.read(left) if event.job_id == job_id]
                    for event in events:
                        if event.name == "completed":
                            return event.args.get("returnvalue")
                        if event.name == "failed":
                            raise JobFailed(event.args.get("failedReason", ""))
                    if any(event.name == "removed" for event in events):
                        break
                    self._check_open()
                if deadline is not None and time.monotonic() >= deadline:
                    raise TimeoutError(
                        f"Job wait {name} timed out before finishing, no finish notification arrived after {timeout:g} s (id={job_id})"
                    )
        finally:
            reader.close()

    def _check_open(self) -> None:
        if self._closing.is_set():
            raise RedisConnectionError(f"{self!r} was closed")

    def _end(self) -> str:
        """The place of the last event there is."""
        last = self.server.call("XREVRANGE", f"{self.base}events", "+", "-", "COUNT", 1)
        return str(last[0][0]) if last else "0-0"


def _outcome(state: str, text: str, job_id: str) -> Any:
    if state == "completed":
        try:
            return json.loads(text)
        except ValueError:
            return text
    if state == "failed":
        raise JobFailed(text)
    raise job_error(-1, "isFinished", job_id)


class _Reader:
    """One place in the stream, and the connection that waits there. For one thread at a time."""

    def __init__(self, owner: QueueEvents, place: str) -> None:
        self.place = place
        self._owner = owner
        self._key = f"{owner.base}events"
        self._wire: Wire | None = None
        self._asked_until: float | None = None
        self._failures = 0
        self._reading = threading.Lock()

    def read(self, timeout: float | None) -> list[Event]:
        deadline = None if timeout is None else time.monotonic() + timeout
        with self._reading:
            while not self._owner._closing.is_set():
                events: list[Event] | None = self.again(lambda: self._wait(deadline), deadline)
                if events is not None:
                    return events
                if deadline is not None and time.monotonic() >= deadline:
                    break
        return []

    def leave(self) -> None:
        """Closes the connection, once nobody reads any more: the owner is closed already."""
        if self._reading.acquire(timeout=SLICE_S + GRACE_S):
            self.close()
            self._reading.release()

    def _wait(self, deadline: float | None) -> list[Event] | None:
        """The events that come within a slice of time."""
        wire = self._wire
        if wire is None:
            # As BullMQ names it: `getQueueEvents` counts readers by this.
            name = f"{self._owner.prefix}:{base64.b64encode(self._owner.name.encode()).decode()}:qe"
            wire = self._wire = self._owner.server.wire(name)
        now = time.monotonic()
        if self._asked_until is None:
            wire.send("XREAD", "COUNT", COUNT, "BLOCK", int(BLOCK_S * 1000), "STREAMS", self._key, self.place)
            self._asked_until = now + BLOCK_S + GRACE_S
        elif now > self._asked_until:
            raise RedisConnectionError(f"no answer from Redis at {self._owner.server.address.where}")
        if not wire.wait_readable(SLICE_S if deadline is None else max(min(deadline - now, SLICE_S), 0.0)):
            return None
        try:
            answer = wire.read()
        finally:
            self._asked_until = None
        self._failures = 0
        if not answer:
            return None
        events = [read_event(place, flat) for place, flat in answer[0][1]]
        self.place = events[-1].id
        return events

    def again(self, ask: Callable[[], Any], deadline: float | None) -> Any:
        """What `ask` answers, however often the connection is lost meanwhile; what it raises once the deadline has passed."""
        while True:
            try:
                return ask()
            except (*_LOST, ResponseError) as error:
                if isinstance(error, ResponseError) and not isinstance(error, _LOST) and not str(error).startswith(_ELSEWHERE):
                    raise
                self.close()
                self._owner.server.look_again()
                if deadline is not None and time.monotonic() >= deadline:
                    raise
                self._failures += 1
                pause = reconnect_delay_s(self._failures)
                if deadline is not None:
                    pause = min(pause, max(deadline - time.monotonic(), 0.0))
                if self._owner._closing.wait(pause):
                    raise

    def close(self) -> None:
        self._asked_until = None
        wire, self._wire = self._wire, None
        if wire is not None:
            wire.close()


__all__ = ["Event", "QueueEvents", "Server", "read_event"]
