"""One job in hand, and one call on its way that brings some.

A `Delivery` is a job from the moment it was taken until its end is in Redis; it says how it ends, by BullMQ's rules, and leaves the sending
to its leases. A `Flight` is a call whose answer is read later. Knows neither Kombu nor Celery.
"""

from __future__ import annotations

import contextlib
import json
import random
import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

from bullmq_kombu import native, scripts
from bullmq_kombu.attempts import add_trace, backoff_ms, has_attempt_left, keep_of
from bullmq_kombu.job_options import read_stored
from bullmq_kombu.scripts import Ending, Taken
from bullmq_kombu.wire import ServerNotReady, Wire

if TYPE_CHECKING:
    from bullmq_kombu.leases import Leases

#: What it means that Redis is away, or not well.
LOST = (RedisConnectionError, RedisTimeoutError, OSError, RedisError)


def now_ms() -> int:
    """The clock of this process, as BullMQ's scripts want it."""
    return time.time_ns() // 1_000_000


class Delivery:
    """One job in hand. `base`, `id`, `token` guard its end; `fields` is the hash as it was before the activation."""

    __slots__ = (
        "__weakref__", "_leases", "_on_settled", "base", "began", "fields", "handed", "id", "managed", "reason", "renewed",
        "settled", "started", "tag", "token",
    )  # fmt: skip

    def __init__(self, leases: Leases, taken: Taken, token: str, renewed: float, on_settled: Callable[[Delivery], None]) -> None:
        self.base, self.id, self.fields = taken
        self.token = token
        self.renewed = renewed
        self.tag = f"{token}:{taken.id}"
        #: Somebody (Celery's request) says how it ends; an acknowledgement alone does not.
        self.managed = False
        #: What stands for it in a pool that cannot be stopped from beginning with it.
        self.handed: Any = None
        self.started = False
        #: When the work began (monotonic, s); None before.
        self.began: float | None = None
        self.settled = False
        #: Why it will be rejected, where that is known before.
        self.reason: str | None = None
        self._leases = leases
        self._on_settled = on_settled

    @property
    def opts(self) -> Any:
        return read_stored(self.fields.get("opts", "{}"))

    @property
    def attempts_made(self) -> int:
        return _number(self.fields.get("attemptsMade") or self.fields.get("atm"))

    def start(self, *, at_most_once: bool, here: bool = False) -> None:
        """The work begins, unless the job has been given back. `at_most_once`: should this process die, the job is failed instead of run
        again. `here`: the work may be what ends this process, so the promise is sent before."""
        if here and self.lose_if_lost():
            return
        with _beginning:
            if self.settled:
                return
            self.started = True
        self.began = time.monotonic()
        if at_most_once:
            if here:
                self._leases.promise(self)
            else:
                self._leases.note_promise(self)

    def seconds(self) -> float | None:
        """How long the work has been going on; None where it has not begun."""
        return None if self.began is None else time.monotonic() - self.began

    def complete(self, returnvalue: str = "null", log: str | None = None, *, silent: bool = False) -> None:
        """`returnvalue` is JSON; `log` a line for the job's log. `silent`: this is no end of the task, or none that it tells."""
        leases, text = self._leases, self.fields.get("opts", "{}")
        keep = leases.kept.get(text)
        if keep is None:
            keep = leases.remember_kept(text, keep_of(self.opts.get("removeOnComplete"), leases.options.remove_on_complete))
        more = self._leases.more(None if log is None else _readable(log), silent=silent)
        self._settle(Ending("completed", self.base, self.id, self.token, returnvalue, "", *keep, "", more))

    def fail(self, reason: str, trace: str = "", *, final: bool = False, silent: bool = False, custom_backoff: Any = None) -> None:
        """Another attempt if the job has one left and it is not `final`, else failed. `trace` is the stack trace as text; `silent` as
        with `complete`."""
        opts, made, reason = self.opts, self.attempts_made, _readable(reason)
        stack = add_trace(self.fields.get("stacktrace"), trace, opts.get("stackTraceLimit"))
        if not final and has_attempt_left(opts, made):
            try:
                delay = backoff_ms(opts.get("backoff"), made + 1, random.random(), custom_backoff)
            except (ValueError, TypeError, OverflowError) as error:
                reason, delay = f"{reason} ({error})", -1
            if delay >= 0:
                more = json.dumps({"lifo": True}) if opts.get("lifo") else ""
                self._settle(Ending("retry", self.base, self.id, self.token, reason, stack, "", "", "", delay, more))
                return
        keep = keep_of(opts.get("removeOnFail"), self._leases.options.remove_on_fail)
        attempts = _number(opts.get("attempts"))
        self._settle(Ending("failed", self.base, self.id, self.token, reason, stack, *keep, attempts, self._leases.more(silent=silent)))

    def release(self) -> None:
        """Back to the head of the queue; no attempt is counted."""
        self._settle(Ending("release", self.base, self.id, self.token))

    def return_unstarted(self) -> None:
        """Back to the head of the queue, unless the work has begun."""
        with _beginning:
            if not self.started:
                self.release()

    def forget_unstarted(self) -> bool:
        """Somebody else has it. Whether the work had not begun, and now never will."""
        with _beginning:
            if not self.started:
                self.forget()
            return not self.started

    def lose_if_lost(self) -> bool:
        """Before the work begins: whether it must not, as somebody else has the job by now."""
        return self.settled or (self._leases.has_lost(self) and self.forget_unstarted())

    def limit(self) -> None:
        """Back to the head of the queue, which this process leaves alone for as long as its rate limit says; no attempt is counted."""
        self._settle(Ending("limit", self.base, self.id, self.token))

    def forget(self) -> None:
        """Something else has taken care of it."""
        self._settle(None)

    def tell(self) -> None:
        """Its end is in Redis: whoever waits for room may have it now."""
        self._on_settled(self)

    def _settle(self, ending: Ending | None) -> None:
        if self.settled:
            return
        self.settled = True
        if ending is None:
            self._leases.drop(self)
        else:
            self._leases.note(self, ending)
        self._on_settled(self)


#: Beginning a job and giving it back exclude each other.
_beginning = native.new_rlock()


def _readable(text: str) -> str:
    """As UTF-8, with what has no place in it spelled out: a file name in a message, for example."""
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()


def _number(value: Any) -> int:
    try:
        return int(value or 0)
    except (TypeError, ValueError, OverflowError):
        return 0


class Flight:
    """One call on its way that sends the ends that wait and takes up to `wanted` jobs; `land` brings its answer.

    Whoever asked may be busy for long before it lands, with a task in a pool that runs in its own thread for example. The jobs are active
    meanwhile: so the leases land a flight themselves when its locks would have to be renewed.
    """

    __slots__ = (
        "_answer", "_bases", "_error", "_landed", "_landing", "_leases", "_on_landed", "_on_settled", "_pending", "_worker", "renewed",
        "wanted", "wire",
    )  # fmt: skip

    def __init__(
        self, leases: Leases, wire: Wire, bases: Sequence[str], wanted: int, on_settled: Callable[[Delivery], None],
        on_landed: Callable[[], None] | None = None,
    ) -> None:  # fmt: skip
        self.wire = wire
        self.wanted = wanted
        self._leases = leases
        self._bases = bases
        self._on_settled = on_settled
        self._on_landed = on_landed
        self._landing = threading.Lock()
        self._landed: tuple[list[Delivery], list[scripts.QueueState]] | None = None
        self._error: BaseException | None = None
        self.renewed = time.monotonic()
        self._worker = leases.worker()
        self._pending = leases.pending()
        try:
            if self._pending:
                endings = [ending for _, ending in self._pending]
                self._answer = scripts.finish_later(wire, endings, now_ms(), bases, wanted, self._worker)
            else:
                self._answer = scripts.take_later(wire, bases, now_ms(), wanted, self._worker)
        except BaseException as error:
            self._lose_answer(error)
            raise
        leases.flights.add(self)

    @property
    def bases(self) -> Sequence[str]:
        return self._bases

    @property
    def token(self) -> str:
        """Of the jobs it takes."""
        return self._worker.token

    @property
    def is_overdue(self) -> bool:
        """Whether an answer that has not come so far is not going to."""
        limit = self._leases.options.socket_timeout
        return limit is not None and not self.has_landed and time.monotonic() - self.renewed > limit

    @property
    def has_landed(self) -> bool:
        return self._landed is not None or self._error is not None

    def land_unasked(self) -> None:
        """Lands it for whoever sent it, and says so."""
        with contextlib.suppress(*LOST):  # they will be told when they land it themselves
            self.land()
        if self._on_landed is not None:
            self._on_landed()

    def land(self) -> tuple[list[Delivery], list[scripts.QueueState]]:
        """The jobs taken, and what is known of the queues now. Where the answer is lost, the ends are sent again later, and the jobs that
        were taken by it are put back. Another call gets the same, or the same error."""
        with self._landing:
            if self._error is not None:
                raise self._error
            if self._landed is None:
                self._leases.flights.discard(self)
                try:
                    self._landed = self._read()
                except BaseException as error:
                    self._error = error
                    raise
            return self._landed

    def _read(self) -> tuple[list[Delivery], list[scripts.QueueState]]:
        leases = self._leases
        try:
            answer = self._answer.answer()
        except BaseException as error:
            self._lose_answer(error)
            raise
        if self._pending:
            codes, taken, states = scripts.finish_answer(self._bases, answer)
            leases.sent(self._pending, codes)
        else:
            _, taken, states = scripts.finish_answer(self._bases, [(), *answer])
        token, renewed, on_settled = self._worker.token, self.renewed, self._on_settled
        deliveries = [Delivery(leases, one, token, renewed, on_settled) for one in taken]
        leases.hold(deliveries)
        return deliveries, states

    def _lose_answer(self, error: BaseException) -> None:
        """The ends are sent again, and what was taken is put back: by and by where the server is away; at once where this process is told
        to end while it waits, as event loops do it, so that what was taken before goes back after it."""
        self._leases.wait_on(self._pending)
        if isinstance(error, ServerNotReady):
            return  # it has done nothing
        self._leases.astray(self.token, self._bases)
        if not isinstance(error, Exception):
            with contextlib.suppress(*LOST):
                self._leases.recall()
