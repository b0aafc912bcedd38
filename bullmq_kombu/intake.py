"""What comes in for one channel: takes jobs and messages as room allows, and knows what to wait for.

The server's work and the consumer's overlap: the next jobs are asked for before the ones in hand are used up, and the ends of those
that are done travel with the question. In an event loop a question waits a moment where there is work in hand, so that it carries more
than one end.

Knows neither what a job is made into nor what a consumer does with it.
"""

from __future__ import annotations

import base64
import contextlib
import logging
import math
import time
from collections import deque
from collections.abc import Callable

from redis.exceptions import BusyLoadingError, NoPermissionError

from bullmq_kombu.connection import Server
from bullmq_kombu.delivery import LOST, Delivery, Flight
from bullmq_kombu.fanout import Fanout
from bullmq_kombu.keys import KombuKeys
from bullmq_kombu.leases import Leases
from bullmq_kombu.options import Options
from bullmq_kombu.patience import reconnect_delay_s
from bullmq_kombu.poller import Poller
from bullmq_kombu.presence import Presence
from bullmq_kombu.scripts import BATCH, QueueState
from bullmq_kombu.transient import Pushed, TransientQueues
from bullmq_kombu.wire import ServerNotReady, Waker, Wire, wait_any

logger = logging.getLogger(__name__)

#: A server that says one of these is well enough to speak; it is asked again later, and the connection may stay.
_REFUSED = (ServerNotReady, BusyLoadingError, NoPermissionError)

#: The most that one call takes when prefetching is unlimited, or when nothing has to be acknowledged.
UNLIMITED_TAKE = 100
#: Where nobody has said so, as many are asked for as are used up in about this time, s: others consume the same queue.
BURST_WITHIN_S = 0.1
#: How long an event loop waits for more ends to send before it asks for the next job, while it has others to start, s.
GATHER_S = 0.005


class Intake:
    """`room()` says how many jobs the channel may hold beyond those it has counted (None: any number), `holding()` how many it holds."""

    def __init__(
        self, server: Server, options: Options, leases: Leases, keys: KombuKeys, transient: TransientQueues,
        room: Callable[[], int | None], holding: Callable[[], int], on_settled: Callable[[Delivery], None],
    ) -> None:  # fmt: skip
        self._server = server
        self._options = options
        self._leases = leases
        self._keys = keys
        self._transient = transient
        self._room = room
        self._holding = holding
        self._on_settled = on_settled
        self.fanout = Fanout(server, keys)
        self._presence = Presence(server)
        self.waker = Waker()
        self.no_ack: set[str] = set()
        self._ready: deque[tuple[str, Delivery | Pushed]] = deque()
        self._jobs: Poller | None = None
        self._lists: Poller | None = None
        self._queue_of: dict[str, str] = {}
        self._flight: Flight | None = None
        self._flight_wire: Wire | None = None
        #: Whether no limit was asked for, as by `worker_prefetch_multiplier = 0`.
        self.takes_all = False
        #: How many to take next where nothing was said, and when (monotonic) the last came.
        self._burst = 1
        self._landed_at = 0.0
        #: Whether the flight was sent by an idle loop, which had been woken for it.
        self._asked_when_woken = False
        self._room_since: float | None = None
        #: With how many jobs in hand a loop that waits for more ends is to be woken; otherwise with any number.
        self._wake_at = math.inf
        #: How often in a row the server has refused, and until when (monotonic) it is left alone for that.
        self._refusals = 0
        self._resting_until = 0.0

    # -- which queues ------------------------------------------------------------------------------------------------------

    def add_jobs(self, queue: str, base: str) -> None:
        """From now on jobs of this BullMQ queue come in."""
        self._queue_of[base] = queue
        if self._jobs is None:
            self._jobs = Poller(self._server, None, self._options.drain_delay)
        if base not in self._jobs.bases:
            self._jobs.add(base)
            self._leases.watch(base)
        self._show()

    def add_list(self, queue: str) -> None:
        """From now on messages of this queue that Celery made for itself come in."""
        base = self._keys.marker(queue)
        self._queue_of[base] = queue
        if self._lists is None:
            self._lists = Poller(self._server, self._options.client_name, self._options.drain_delay, suffix="")
        self._lists.add(base)

    def remove(self, queue: str) -> None:
        """Nothing of this queue comes in any more; what had and was not delivered goes back."""
        try:
            self._land()  # what is on its way comes after what is here, and has to go back first
        finally:
            self._forget(queue)
        self.put_back(queue)

    def _forget(self, queue: str) -> None:
        self.no_ack.discard(queue)
        self.fanout.unsubscribe(queue)
        for base in [base for base, name in self._queue_of.items() if name == queue]:
            del self._queue_of[base]
            if self._lists is not None and base in self._lists.bases:
                self._lists.remove(base)
            if self._jobs is not None and base in self._jobs.bases:
                with contextlib.suppress(*LOST):
                    if self._jobs.has_come:
                        self._jobs.read()
                    if self._jobs.is_hot(base):
                        self._wake_others(base)  # a marker may be taken that nobody here will follow
                self._jobs.remove(base)
                self._leases.unwatch(base)
                self._show()

    def _show(self) -> None:
        """The first queue's name is that of the connection that waits for all; the others' are shown by connections that do nothing."""
        jobs = self._jobs
        if jobs is None:
            return
        names = [self._client_name(queue) for base, queue in self._queue_of.items() if base in jobs.bases]
        if names:
            jobs.rename(names[0])
        self._presence.show(set(names[1:]))

    def _client_name(self, queue: str) -> str:
        """As BullMQ names the blocking connection of a worker, so that Node's `getWorkers` lists it."""
        name = f"{self._options.prefix}:{base64.b64encode(queue.encode()).decode()}"
        worker = "".join(self._leases.worker_name.split())
        return f"{name}:w:{worker}" if worker else name

    # -- what has come -----------------------------------------------------------------------------------------------------

    def has_room(self) -> None:
        """From another thread: a job has ended."""
        if self._holding() <= self._wake_at:
            self.waker.wake()

    def next(self) -> tuple[str, Delivery | Pushed] | None:
        """The oldest of what waits here for delivery, with its queue."""
        if not self._ready:
            return None
        # Before this one is taken out: it is in hand, whether or not its consumer has it yet.
        if len(self._ready) > 1 and self._flight is None:
            wanted = self._wanted()
            room = self._room()
            if wanted > 1 and (room is None or 2 * wanted >= room):
                self._ask(wanted)
        return self._ready.popleft() if self._ready else None

    def put_back(self, queue: str | None = None) -> None:
        """What was taken and not delivered goes back, the last taken first, so that the order stays."""
        kept: deque[tuple[str, Delivery | Pushed]] = deque()
        for name, one in reversed(self._ready):
            if queue is not None and name != queue:
                kept.appendleft((name, one))
            elif isinstance(one, Delivery):
                one.release()
            elif not one.broadcast:
                self._transient.put_back(one)
        self._ready = kept

    # -- taking ------------------------------------------------------------------------------------------------------------

    def _wanted(self) -> int:
        """How many jobs may be asked for now."""
        room = self._room()
        if room is None:
            if self.takes_all:
                return UNLIMITED_TAKE
            return self._burst if time.monotonic() - self._landed_at < BURST_WITHIN_S else 1
        return room - len(self._ready) - (self._flight.wanted if self._flight is not None else 0)

    def fetch(self) -> bool:
        """Takes what is there and may be held, and waits for the answer; True if anything came."""
        before = len(self._ready)
        self._leases.speak()
        try:
            self._fetch_lists()
            if self._flight is not None or self._ask(self._wanted()):
                self._land()
        except _REFUSED as error:
            self._rest(error)
        return len(self._ready) > before

    def pursue(self, holding: int, has_unstarted: bool) -> float | None:
        """For an event loop: asks, and leaves the answer to `on_readable`. `holding` jobs are in hand; `has_unstarted`: some not begun.
        Returns in how many seconds to come back where it waits for more ends to send; None where there is nothing to come back for."""
        try:
            return self._pursue(holding, has_unstarted)
        except _REFUSED as error:
            self._rest(error)
            return self._rest_left()

    def _pursue(self, holding: int, has_unstarted: bool) -> float | None:
        if self._refusals and self._rest_left() > 0:
            return self._rest_left()
        self._fetch_lists()
        if self._flight is not None and self._flight_wire is not None and self._flight.is_overdue:
            # Either the loop was busy for long, with a task in its own thread, or nobody is at the other end and nothing says so.
            if self._flight_wire.is_open and not wait_any([self._flight_wire.fileno()], 0):
                self._flight_wire.close()
            self._land()
        if self._flight is not None and (self._flight.has_landed or self._asked_when_woken):
            self._land()  # there is nothing to do meanwhile: the shortest way
        wanted = self._wanted() if self._flight is None else 0
        if wanted <= 0:
            self._room_since, self._wake_at = None, math.inf
            return None
        if has_unstarted and wanted < holding:
            now = time.monotonic()
            if self._room_since is None:
                self._room_since = now
            left = self._room_since + GATHER_S - now
            if left > 0:
                self._wake_at = (holding + wanted) // 2  # by then as many are wanted as are in hand
                return left
        self._room_since, self._wake_at = None, math.inf
        if self._ask(wanted) and holding == 0:
            self._land()  # the same
        return None

    def _fetch_lists(self) -> None:
        lists = self._lists
        if lists is None or (self._refusals and self._rest_left() > 0):
            return
        for base in lists.hot():
            queue = self._queue_of[base]
            wanted = UNLIMITED_TAKE if queue in self.no_ack else self._wanted()
            if wanted > 0:
                found = self._transient.pop(queue, wanted)
                self._ready.extend((queue, one) for one in found)
                lists.learned((base,), (QueueState(base, 0, 0),), len(found) >= wanted)

    def _ask(self, wanted: int) -> bool:
        """Sends the ends that wait and asks for up to `wanted` jobs, as many as one call may take. False if there is no queue to ask."""
        jobs = self._jobs
        if jobs is None or wanted <= 0 or (self._refusals and self._rest_left() > 0):
            return False
        for state in self._leases.limited():
            if state.base in self._queue_of:
                jobs.learned((state.base,), (state,), False)
        bases = jobs.hot(self._options.queue_order_strategy)
        if not bases:
            return False
        wire = self._flight_wire
        if wire is None:
            wire = self._flight_wire = self._server.wire(self._options.client_name)
        self._flight = Flight(self._leases, wire, bases, min(wanted, BATCH), self._on_settled, self.waker.wake)
        return True

    def _land(self) -> None:
        """Waits for the answer, and keeps what it brought for delivery."""
        flight, self._flight = self._flight, None
        self._asked_when_woken = False
        if flight is None:
            return
        deliveries, states = flight.land()
        full = len(deliveries) >= flight.wanted
        self._burst = min(2 * flight.wanted, UNLIMITED_TAKE) if full else 1
        self._landed_at = time.monotonic()
        if self._refusals:
            logger.info("jobs are taken again from Redis at %s", self._server.address.where)
            self._refusals = 0
        if self._jobs is not None:
            self._jobs.learned(flight.bases, states, full)
        for delivery in deliveries:
            queue = self._queue_of.get(delivery.base)
            if queue is not None:
                self._ready.append((queue, delivery))
        for delivery in reversed(deliveries):
            if delivery.base not in self._queue_of:
                delivery.release()  # cancelled meanwhile; the last one first, so that the order stays

    # -- a server that refuses ---------------------------------------------------------------------------------------------

    def _rest(self, error: Exception) -> None:
        """The server is left alone for a while. Said once, however long it lasts."""
        self._refusals += 1
        self._resting_until = time.monotonic() + reconnect_delay_s(self._refusals)
        if self._refusals == 1:
            logger.warning("no jobs are taken for now from Redis at %s: %s", self._server.address.where, error)
        self._server.look_again()
        for poller in (self._jobs, self._lists):
            if poller is not None:
                poller.stop()
                poller.heat()

    def _rest_left(self) -> float:
        return max(self._resting_until - time.monotonic(), 0.0)

    # -- waiting -----------------------------------------------------------------------------------------------------------

    @property
    def has_ready(self) -> bool:
        """Whether anything waits here for delivery."""
        return bool(self._ready)

    @property
    def has_more(self) -> bool:
        """Whether there is something to do without waiting."""
        if self._ready:
            return True
        if self._refusals and self._rest_left() > 0:
            return False
        return self._flight is None and self._jobs is not None and self._wanted() > 0 and bool(self._jobs.hot())

    def descriptors(self) -> list[int]:
        """Starts to wait for whatever may come next; what to watch meanwhile."""
        try:
            return self._descriptors()
        except _REFUSED as error:
            self._rest(error)
            return [self.waker.fileno()]

    def _descriptors(self) -> list[int]:
        rests = self._refusals > 0 and self._rest_left() > 0
        found: list[int | None] = [self.waker.fileno()]
        jobs, lists = self._jobs, self._lists
        if jobs is not None and jobs.bases and not rests:
            if self._flight is None and self._wanted() > 0 and not jobs.hot():
                jobs.wait()
            found.append(jobs.fileno())
        if lists is not None and lists.bases and not rests:
            lists.wait()
            found.append(lists.fileno())
        if self._flight_wire is not None and self._flight_wire.is_open:
            found.append(self._flight_wire.fileno())
        found += self._presence.descriptors()
        if self.fanout and (self.fanout.is_open or not rests):
            self.fanout.keep_alive()
            found.append(self.fanout.fileno())
        return [descriptor for descriptor in found if descriptor is not None]

    def on_readable(self, descriptor: int) -> None:
        """Reads what has come on one of `descriptors`."""
        try:
            self._read(descriptor)
        except _REFUSED as error:
            self._rest(error)

    def _read(self, descriptor: int) -> None:
        if descriptor == self.waker.fileno():
            self.waker.drain()
            return
        if self._presence.on_readable(descriptor):
            return
        wire = self._flight_wire
        if wire is not None and wire.is_open and wire.fileno() == descriptor:
            if self._flight is not None:
                self._land()
            else:
                wire.close()  # nothing was asked: it is the end of the connection
            return
        for poller in (self._jobs, self._lists):
            if poller is not None and poller.is_waiting and poller.fileno() == descriptor:
                base = poller.read()
                if poller is self._jobs:
                    self._on_marker(base)
                return
        if self.fanout.is_open and self.fanout.fileno() == descriptor:
            self._read_broadcasts()

    def _on_marker(self, base: str | None) -> None:
        wanted = self._wanted()
        if wanted <= 0 and base is not None:
            self._wake_others(base)  # the room is gone that there was when the wait began
        elif self._flight is None and not self._holding():
            self._asked_when_woken = self._ask(wanted)  # while the server takes, the loop comes round

    def _wake_others(self, base: str) -> None:
        self._server.call("ZADD", f"{base}marker", 0, "0")

    def _read_broadcasts(self) -> None:
        while True:
            self._ready.extend((queue, Pushed(queue, payload, broadcast=True)) for queue, payload in self.fanout.read())
            if not self.fanout.has_more():
                break

    # -- the end -----------------------------------------------------------------------------------------------------------

    def settle(self) -> None:
        """Reads what is still on its way, so that it can be put back."""
        try:
            self._land()
        except _REFUSED as error:
            self._rest(error)

    def close(self) -> None:
        for poller in (self._jobs, self._lists):
            if poller is not None:
                poller.stop()
        if self._flight_wire is not None:
            self._flight_wire.close()
        self._presence.close()
        self.fanout.close()
        self.waker.close()


def wait_timeout(left: float | None) -> float:
    """How long one wait may last: a second at most, so that what is due by the clock is not late by more."""
    return 1.0 if left is None else min(left, 1.0)
