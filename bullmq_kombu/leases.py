"""The jobs in hand: their locks are kept, and how they end is sent, many at a time.

A `Delivery` is one job from the moment it was taken until its end is in Redis. `Leases` holds all deliveries of this process for one
server and prefix, whichever channel took them: channels come and go with the connection, running tasks do not.

Ends are collected and sent together, with the call that takes the next jobs where there is one, else by the thread that also renews the
locks: at most SEND_WITHIN_S after the first of them, at most `scripts.BATCH` at once. Each is guarded by its own token, so that sending
one again after a lost answer changes nothing. Until Redis has answered, the lock goes on being renewed.

Knows neither Kombu nor Celery.
"""

from __future__ import annotations

import atexit
import json
import logging
import math
import os
import threading
import time
import uuid
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from bullmq_kombu import native, scripts
from bullmq_kombu.address import Address
from bullmq_kombu.attempts import Keep
from bullmq_kombu.connection import Server
from bullmq_kombu.delivery import LOST, Delivery, Flight, now_ms
from bullmq_kombu.errors import job_error, shown
from bullmq_kombu.options import Options
from bullmq_kombu.promises import Promises
from bullmq_kombu.scripts import Ending, Worker

logger = native.Logger(logging.getLogger(__name__))

#: The end of a job that nothing else carries is sent at the latest after this time.
SEND_WITHIN_S = 0.01
#: Pause after an error of the server, so that an outage costs some calls a second.
AFTER_ERROR_S = 0.5
#: For how many texts of options it is remembered what they keep.
KEPT_REMEMBERED = 512
#: How long the end of the interpreter waits for a call that is on its way.
LEAVE_WITHIN_S = 5.0
#: How often in a `stalled_interval` a worker asks at most whether it is time for the check: Redis lets one through, whoever makes it.
CHECKS_PER_INTERVAL = 4
#: Redis expires the mark of the last check a little after its time, s.
AFTER_EXPIRY_S = 0.005
#: How long a queue that a task found limited is left alone before Redis has said for how long it is.
UNTIL_TOLD_S = 0.1


class Leases:
    """All deliveries of this process for one server and prefix."""

    def __init__(self, address: Address, options: Options) -> None:
        self.address = address
        self.options = options
        #: Written to `processedBy`; the worker's host name where there is a worker.
        self.worker_name = ""
        #: Told of every end when it is decided; for metrics.
        self.observers: list[Callable[[Delivery, Ending], None]] = []
        self._server = Server(address, options)
        self._others_server = Server(address, options)
        self._promises = Promises(self._others_server, self.note_promise)
        self._held: dict[str, Delivery] = {}
        self._endings: deque[tuple[Delivery, Ending]] = deque()
        self._consumed: dict[str, int] = {}
        #: Queues that a task found limited, and until when (monotonic).
        self._limited: dict[str, float] = {}
        #: Running jobs whose channel is gone; they still count against what may be held.
        self.adrift: set[Delivery] = set()
        #: Jobs whose end is on its way by a call that takes none: Redis may not know yet that there is room for others.
        self.telling: set[Delivery] = set()
        #: Calls that have not landed.
        self.flights: set[Flight] = set()
        #: Ends that were refused because the lock had expired: it is tried to take it again.
        self._unlocked: deque[tuple[Delivery, Ending]] = deque()
        self._locked_again: set[str] = set()
        #: Tokens of calls whose answer was lost, with the queues asked and until when (monotonic) they are looked for.
        self._astray: dict[str, tuple[Sequence[str], float]] = {}
        self._next_recall = 0.0
        self._worker_id = _new_id()
        self._fetches = 0
        #: What is kept of completed jobs, by the text of their options, which most jobs of a queue share.
        self.kept: dict[str, Keep] = {}
        self._lock = native.new_lock()
        #: Whether the thread runs, or is about to.
        self._keeps = False
        #: The interpreter ends.
        self._leaving = False
        self._bell = native.Bell()
        self._sending_since: float | None = None
        self._dozing = False
        self._next_recovery = 0.0
        self._lock_ms = options.lock_ms
        self._limiter = (options.limiter_max, options.limiter_ms)
        self._more_memo = json.dumps({"metrics": options.metrics_points}) if options.metrics_points else ""

    # -- taking ------------------------------------------------------------------------------------------------------

    def worker(self) -> Worker:
        """For one call that takes: its token is new."""
        self._fetches += 1
        return Worker(f"{self._worker_id}:{self._fetches}", self._lock_ms, self.worker_name, *self._limiter)

    def take(
        self, server: Server, bases: Sequence[str], wanted: int, on_settled: Callable[[Delivery], None]
    ) -> tuple[list[Delivery], list[scripts.QueueState]]:
        """Sends the ends that wait and takes up to `wanted` jobs, in one call."""
        flight = Flight(self, server.lend(), bases, wanted, on_settled)
        try:
            return flight.land()
        finally:
            server.give_back(flight.wire)

    def limited(self) -> list[scripts.QueueState]:
        """The queues that are to be left alone because a task found them limited."""
        if not self._limited:
            return []
        now = time.monotonic()
        found = []
        for base, until in list(self._limited.items()):
            if until > now:
                found.append(scripts.QueueState(base, math.ceil((until - now) * 1000), 0))
            elif self._limited.get(base) == until:
                self._limited.pop(base, None)
        return found

    def hold(self, deliveries: Sequence[Delivery]) -> None:
        """Their locks are renewed from now on."""
        for delivery in deliveries:
            self._held[delivery.tag] = delivery
        if deliveries:
            self._ensure_thread()

    # -- ending ------------------------------------------------------------------------------------------------------

    def more(self, log: str | None = None, *, silent: bool = False) -> str:
        if log is None and not silent:
            return self._more_memo
        more = json.loads(self._more_memo) if self._more_memo else {}
        if log is not None:
            more["log"] = log
        if silent:
            more["silent"] = True
        return json.dumps(more)

    def note(self, delivery: Delivery, ending: Ending) -> None:
        """Sends `ending` soon."""
        if ending.what == "limit":
            # Known before it is sent: the job, back in its queue, could be asked for while the answer is still on its way.
            self._limited.setdefault(delivery.base, time.monotonic() + UNTIL_TOLD_S)
        for observe in self.observers:
            observe(delivery, ending)
        self._endings.append((delivery, ending))
        if self._sending_since is None:
            self._arm()

    def promise(self, delivery: Delivery) -> None:
        """Sends at once that the job is run at most once: the work may end this process."""
        self._promises.make(delivery)
        if self._dozing:
            self._bell.ring()

    def note_promise(self, delivery: Delivery) -> None:
        """Sends the same soon."""
        self.note(delivery, Ending("commit", delivery.base, delivery.id, delivery.token))

    def remember_kept(self, stored_options: str, keep: Keep) -> Keep:
        if len(self.kept) >= KEPT_REMEMBERED:
            self.kept.clear()
        self.kept[stored_options] = keep
        return keep

    def has_begun(self, tag: str) -> bool:
        """Whether the delivery of this tag is in hand and its work has begun."""
        delivery = self._held.get(tag)
        return delivery is not None and delivery.started

    def speak(self) -> None:
        """For the thread of an event loop, now and then: says what the thread that keeps the locks could not."""
        logger.speak()

    def drop(self, delivery: Delivery) -> None:
        self._held.pop(delivery.tag, None)

    @property
    def has_endings(self) -> bool:
        return bool(self._endings)

    def send(self, server: Server | None = None) -> None:
        """Sends every end that waits. Raises what Redis raises; then they wait on."""
        while self._endings or self._unlocked:
            if self._unlocked:
                self._lock_again(server or self._server)
            pending = self.pending()
            if not pending:
                continue
            told = {delivery for delivery, ending in pending if ending.what != "commit"}
            self.telling |= told
            try:
                codes, _, _ = scripts.finish(server or self._server, [ending for _, ending in pending], now_ms())
            except BaseException:
                self.wait_on(pending)
                raise
            finally:
                self.telling -= told
            self.sent(pending, codes)
            for delivery in told:
                delivery.tell()

    def has_lost(self, delivery: Delivery) -> bool:
        """Whether somebody else has the job by now. Redis is asked only where the lock may have expired, as when this process was stopped
        for long; where it does not answer nobody else can have got it either. From any thread but the one that keeps the locks, whose
        connections may belong to another event loop."""
        now = time.monotonic()
        if now - delivery.renewed < self.options.lock_duration:
            return False
        try:
            lost = bool(scripts.extend(self._others_server, (delivery,), self._lock_ms))
        except LOST:
            return False
        if not lost:
            delivery.renewed = now
        return lost

    def wait_on(self, pending: Sequence[tuple[Delivery, Ending]]) -> None:
        """They could not be sent, or nobody knows: they go first the next time."""
        if pending:
            self._endings.extendleft(reversed(pending))
            self._arm()

    def pending(self) -> list[tuple[Delivery, Ending]]:
        """Takes out the ends to send next; `sent` or `wait_on` must follow."""
        pending: list[tuple[Delivery, Ending]] = []
        self._sending_since = None
        endings = self._endings
        while endings and len(pending) < scripts.BATCH:
            try:
                one = endings.popleft()
            except IndexError:
                break
            if one[1].what == "commit" and one[0].settled:
                continue  # it ended before the promise could be of use
            pending.append(one)
        if endings:
            self._arm()
        return pending

    def sent(self, pending: Sequence[tuple[Delivery, Ending]], codes: Sequence[int]) -> None:
        for (delivery, ending), code in zip(pending, codes, strict=True):
            if ending.what == "commit":
                continue
            if code in (-4, -9) and ending.what == "completed":
                # As in BullMQ, a parent that returns before its children are done has failed, for good where one of them has.
                error = job_error(code, "moveToFinished", delivery.id)
                delivery.settled = False
                delivery.fail(str(error), final=code == -9)
                continue
            if code == -2 and delivery.tag not in self._locked_again:
                self._unlocked.append((delivery, ending))
                self._arm()
                continue
            self._locked_again.discard(delivery.tag)
            self._held.pop(delivery.tag, None)
            if code > 0:
                self._limited[delivery.base] = time.monotonic() + code / 1000
            elif ending.what == "limit":
                self._limited.pop(delivery.base, None)
            elif code not in (0, -1, -2, -6):
                logger.say(logging.WARNING, "job not %s: %s", ending.what, shown(job_error(code, ending.what, delivery.id)))

    def _lock_again(self, server: Server) -> None:
        """The locks have expired, in an outage perhaps: where nobody else has the jobs, they still end as they did here."""
        batch: list[tuple[Delivery, Ending]] = []
        while self._unlocked and len(batch) < scripts.BATCH:
            try:
                batch.append(self._unlocked.popleft())
            except IndexError:
                break  # another thread sends too
        try:
            lost = set(scripts.extend(server, [delivery for delivery, _ in batch], self.options.lock_ms))
        except BaseException:
            self._unlocked.extendleft(reversed(batch))
            self._arm()
            raise
        for index, (delivery, ending) in enumerate(batch):
            if index in lost:
                self._held.pop(delivery.tag, None)
            else:
                self._locked_again.add(delivery.tag)
                self._endings.append((delivery, ending))

    def astray(self, token: str, bases: Sequence[str]) -> None:
        """The answer to a call that takes jobs is lost: those that it has taken, or takes yet, are put back."""
        self._astray[token] = (tuple(bases), time.monotonic() + self.options.lock_duration)
        self._next_recall = 0.0
        self._ensure_thread()
        self._bell.ring()

    def _arm(self) -> None:
        self._sending_since = time.monotonic()
        self._ensure_thread()
        if self._dozing:
            self._bell.ring()

    # -- queues whose stalled jobs are ours to recover -----------------------------------------------------------------

    def watch(self, base: str) -> None:
        """While a queue is consumed, its stalled jobs are looked for."""
        with self._lock:
            self._consumed[base] = self._consumed.get(base, 0) + 1
        self._next_recovery = 0.0
        self._ensure_thread()
        self._bell.ring()

    def unwatch(self, base: str) -> None:
        with self._lock:
            left = self._consumed.get(base, 0) - 1
            if left > 0:
                self._consumed[base] = left
            else:
                self._consumed.pop(base, None)
        self._bell.ring()

    # -- the thread ----------------------------------------------------------------------------------------------------

    def _ensure_thread(self) -> None:
        # None begins while the interpreter ends, which Python 3.12 would refuse.
        if not self._keeps and not self._leaving and self._claim():
            native.start_thread(self._keep, "bullmq-leases")

    def _claim(self) -> bool:
        """Whether the thread is the caller's to start."""
        with self._lock:
            claimed, self._keeps = not self._keeps, True
            return claimed

    def _keep(self) -> None:
        failing = False
        while not self._leaving and (self._held or self._endings or self._consumed or self._astray):
            try:
                pause = self._turn()
                if failing:
                    logger.say(logging.INFO, "Redis answers again at %s", self._server.address.where)
                failing = False
            except LOST as error:
                if not failing:
                    logger.say(logging.WARNING, "locks and results wait for Redis at %s: %s", self._server.address.where, error)
                failing = True
                pause = AFTER_ERROR_S
            except Exception as error:
                logger.say(logging.ERROR, "unexpected error while keeping jobs", error=error)
                failing = True
                pause = AFTER_ERROR_S
            self._dozing = True
            if failing or not self._is_sending:
                self._bell.wait(pause)
            self._dozing = False
            if self._is_sending and not failing:
                # Give the next take the chance to carry them.
                time.sleep(SEND_WITHIN_S)
        self._server.close()
        self._server.closed = False
        self._keeps = False
        if not self._leaving and (self._held or self._endings or self._consumed or self._astray):
            self._ensure_thread()  # added while this one was on its way out

    def _turn(self) -> float:
        """Does what is due; returns for how long nothing will be (seconds)."""
        now = time.monotonic()
        period = self.options.renew_after
        due = [delivery for delivery in list(self._held.values()) if now - delivery.renewed >= period]
        if due:
            self._renew(due, now)
        for flight in [one for one in list(self.flights) if now - one.renewed >= period]:
            if native.is_green():
                # Its connection belongs to another thread's loop. The jobs are kept for whoever reads the answer there.
                scripts.recall(self._server, flight.bases, [flight.token], self.options.lock_ms)
                flight.renewed = now
            else:
                flight.land_unasked()
        if self._astray and now >= self._next_recall:
            self._recall(now, self._server)
        for since, send in ((self._promises.since, self._promises.look), (self._sending_since, self.send)):
            if since is not None and time.monotonic() - since >= SEND_WITHIN_S:
                send()
        # Not only while jobs are held: nobody wakes this thread when the first ones are taken.
        pause = period / 2
        if self._consumed:
            if now >= self._next_recovery:
                self._next_recovery = now + self._recover()
            pause = min(pause, max(self._next_recovery - now, 0.0))
        return 0.0 if self._is_sending else pause

    @property
    def _is_sending(self) -> bool:
        """Whether something was sent, or is to be, that this thread looks after."""
        return self._sending_since is not None or self._promises.since is not None

    def _renew(self, due: Sequence[Delivery], now: float) -> None:
        for at in range(0, len(due), scripts.BATCH):
            batch = due[at : at + scripts.BATCH]
            lost = set(scripts.extend(self._server, batch, self.options.lock_ms))
            for index, delivery in enumerate(batch):
                if index in lost and not delivery.settled and delivery.tag in self._held:
                    # Finished elsewhere, or taken over after a stall: it is not begun here, or its end will be refused by the token.
                    logger.say(logging.WARNING, "could not renew lock for job %s", shown(delivery.id))
                    if not delivery.forget_unstarted():
                        delivery.renewed = now + 3600
                else:
                    delivery.renewed = now

    def recall(self) -> None:
        """Puts back what was taken by calls whose answer was lost. From any thread but the one that keeps the locks."""
        self._recall(time.monotonic(), self._others_server)

    def _recall(self, now: float, server: Server) -> None:
        astray = dict(self._astray)
        bases = sorted({base for found, _ in astray.values() for base in found})
        for base, job_id, fields in scripts.recall(server, bases, list(astray)):
            text = "job %s of %s was taken by a call whose answer was lost, and waits again"
            logger.say(logging.INFO, text, shown(job_id), base.rstrip(":"))
            self._astray.pop(fields["token"], None)
        # A server that hung, or a slow network, may yet carry out what was sent.
        self._next_recall = now + self.options.renew_after
        for token, (_, until) in astray.items():
            if now > until:
                self._astray.pop(token, None)

    def _recover(self) -> float:
        """The stalled check, where it is time for one. Returns when to ask again (seconds)."""
        with self._lock:
            bases = list(self._consumed)
        options = self.options
        moved, again = scripts.recover(self._server, bases, now_ms(), options.max_stalled_count, options.stalled_ms)
        for base, job_id in moved:
            logger.say(logging.WARNING, "job %s of %s stalled and waits again", shown(job_id), base.rstrip(":"))
        # When it is time, and not before, but for queues whose checks are due at many different times.
        return max(again / 1000, options.stalled_interval / CHECKS_PER_INTERVAL) + AFTER_EXPIRY_S

    def after_fork(self) -> None:
        """In a child: nothing here is its own."""
        self._held.clear()
        self._endings.clear()
        self._consumed.clear()
        self.adrift.clear()
        self.telling.clear()
        self.flights.clear()
        self._unlocked.clear()
        self._locked_again.clear()
        self._astray.clear()
        self._promises.after_fork()
        self._lock = native.new_lock()
        self._bell = native.Bell()
        self._keeps = False
        self._sending_since = None
        self._worker_id = _new_id()

    def leave(self) -> None:
        """Ends the thread: one that is still there while the interpreter goes, with an event loop of its own perhaps, would crash it."""
        self._leaving = True
        self._bell.ring()
        until = time.monotonic() + LEAVE_WITHIN_S
        while self._keeps and time.monotonic() < until:
            time.sleep(0.001)

    def held(self) -> list[Delivery]:
        return list(self._held.values())


#: What of a connection's options is the leases' own.
_THEIR_OPTIONS = (
    "prefix", "lock_duration", "lock_renew_time", "stalled_interval", "max_stalled_count", "limiter", "metrics", "remove_on_complete",
    "remove_on_fail", "socket_timeout", "socket_connect_timeout", "max_connections", "client_name",
)  # fmt: skip

_all: weakref.WeakValueDictionary[tuple[Any, ...], Leases] = weakref.WeakValueDictionary()
_all_lock = threading.Lock()


def leases_of(address: Address, options: Options) -> Leases:
    """The leases of this process for this server and these options; the same object for everybody who uses them."""
    identity = (*address.identity, id(options.connection), *(repr(getattr(options, name)) for name in _THEIR_OPTIONS))
    with _all_lock:
        found = _all.get(identity)
        if found is None:
            found = _all[identity] = Leases(address, options)
        return found


def all_leases() -> list[Leases]:
    return list(_all.values())


def _settle_at_exit() -> None:
    """The interpreter ends: what was not started goes back, what has ended is sent."""
    for leases in all_leases():
        leases.leave()
        for delivery in reversed(list(leases.held())):
            if not delivery.started:
                delivery.release()
        # The other connections are the thread's.
        server = Server(leases.address, leases.options)
        try:
            leases.send(server)
        except (*LOST, RuntimeError) as error:
            # RuntimeError: gevent looks up addresses in threads, and Python 3.12 begins none any more.
            logger.say(logging.WARNING, "ends of jobs were not sent to Redis at exit: %s", error)
        finally:
            server.close()
    logger.speak()


atexit.register(_settle_at_exit)


def _forget_all() -> None:
    for leases in all_leases():
        leases.after_fork()


os.register_at_fork(after_in_child=_forget_all)


def _new_id() -> str:
    """What the tokens of one process begin with. That they are ours shows in Redis: results.py tells Celery's workers from Node's by it."""
    return f"kombu-{uuid.uuid4()}"
