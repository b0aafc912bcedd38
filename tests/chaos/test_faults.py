"""Every fault at every moment: nothing is lost, nothing is run twice, the worker works again within ten seconds, nothing leaks.

All of it with `BULLMQ_KOMBU_CHAOS=full pytest tests/chaos`; otherwise each fault meets a moment or two, and each moment several faults.
"""

from __future__ import annotations

import enum
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple

import pytest
from arena import BACK_WITHIN_S, LOCK_S, Arena
from celery.result import AsyncResult
from faults import ARENAS, KILLS_WORK, Fault, strike
from waiting import wait_until

#: How long a fault lasts that lasts at all.
LASTING_S = 1.5
#: Sockets beyond those there were before: a connection may be on its way out.
SPARE_SOCKETS = 4
#: When a task begins that is to begin in the fault.
SOON_S = 0.3
#: What a worker of two processes may hold, with four for each.
PROCESSES = 2
PREFETCHED = 4 * PROCESSES
#: A worker says what happened, not how often it has looked.
MOST_LINES = 80


class Moment(enum.Enum):
    """What the worker, or who sends to it, is doing when the fault comes."""

    IDLE = "blocks, waiting for jobs"
    TAKING = "takes one job after the other"
    RESERVED = "has jobs in hand that it has not begun"
    RUNNING = "runs a task that goes on"
    FINISHING = "has a task whose end falls into the fault"
    ACKNOWLEDGING = "has to promise meanwhile that a task is run at most once"
    RENEWING = "has to renew a lock meanwhile"
    PUBLISHING = "somebody publishes all the time"
    WAITING = "somebody waits for a result"

    @property
    def slug(self) -> str:
        return self.name.lower()


#: Which moments a fault meets where time is short.
FEW: Mapping[Fault, Sequence[Moment]] = {
    Fault.RESTART: [Moment.FINISHING, Moment.PUBLISHING],
    Fault.LOADING: [Moment.WAITING],
    Fault.KILL_CLIENTS: [Moment.TAKING],
    Fault.KILL_BLOCKED: [Moment.IDLE],
    Fault.KILL_SUBSCRIBED: [Moment.WAITING],
    Fault.PAUSE: [Moment.PUBLISHING],
    Fault.FREEZE: [Moment.RENEWING, Moment.ACKNOWLEDGING],
    Fault.SCRIPT_FLUSH: [Moment.TAKING],
    Fault.CUT: [Moment.RUNNING, Moment.PUBLISHING],
    Fault.DELAY: [Moment.FINISHING],
    Fault.TRICKLE: [Moment.TAKING],
    Fault.HALF_OPEN: [Moment.IDLE],
    Fault.DEAF: [Moment.TAKING],
    Fault.READONLY: [Moment.FINISHING],
    Fault.OOM: [Moment.PUBLISHING],
    Fault.BUSY: [Moment.RENEWING],
    Fault.DISK_FULL: [Moment.FINISHING],
    Fault.WORKER_KILL: [Moment.RUNNING, Moment.RESERVED],
    Fault.WORKER_STOP: [Moment.RENEWING],
    Fault.CHILD_KILL: [Moment.RUNNING],
    Fault.CHILD_OOM: [Moment.TAKING],
    Fault.CLOCK_AHEAD: [Moment.RENEWING],
    Fault.CLOCK_BEHIND: [Moment.TAKING],
    Fault.FAILOVER: [Moment.TAKING],
    Fault.MIGRATION: [Moment.PUBLISHING],
}
#: The child that runs out of memory has to run, and all processes are taken.
IMPOSSIBLE = (Fault.CHILD_OOM, Moment.RESERVED)
#: So many arenas do then for all faults that need none of their own.
SHARED = 3


class Place(NamedTuple):
    """Where faults are tried out one after the other: what comes has to do with a worker that has seen the others before."""

    name: str
    kind: type[Arena]


class Grounds:
    """One arena at a time, kept while the place is the same."""

    def __init__(self, factory: pytest.TempPathFactory) -> None:
        self._factory = factory
        self._stack = ExitStack()
        self._here: tuple[Place, Arena] | None = None

    def at(self, place: Place) -> Arena:
        if self._here is None or self._here[0] != place:
            self.close()
            self._here = place, self._stack.enter_context(place.kind(self._factory.mktemp(place.name)))
        return self._here[1]

    def close(self) -> None:
        self._here = None
        self._stack.close()


@pytest.fixture(scope="module")
def grounds(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Grounds]:
    found = Grounds(tmp_path_factory)
    yield found
    found.close()


def cases() -> list[Any]:
    is_full = os.environ.get("BULLMQ_KOMBU_CHAOS") == "full"
    found: list[tuple[Place, Fault, Moment]] = []
    for number, fault in enumerate(Fault):
        is_shared = not is_full and fault not in ARENAS
        place = Place(f"shared-{number % SHARED}" if is_shared else fault.slug, ARENAS.get(fault, Arena))
        found += [(place, fault, moment) for moment in (Moment if is_full else FEW[fault]) if (fault, moment) != IMPOSSIBLE]
    found.sort(key=lambda case: case[0].name)
    return [pytest.param(place, fault, moment, id=f"{fault.slug}-{moment.slug}@{place.name}") for place, fault, moment in found]


@pytest.mark.parametrize(("place", "fault", "moment"), cases())
def test_nothing_is_lost_and_nothing_runs_twice(grounds: Grounds, place: Place, fault: Fault, moment: Moment) -> None:
    arena = grounds.at(place)
    try:
        try_out(arena, fault, moment)
    except BaseException:
        # Whatever state it is in now, the next one is not to suffer for it.
        arena.worker.show()
        grounds.close()
        raise


def try_out(arena: Arena, fault: Fault, moment: Moment) -> None:
    lines, sockets = len(arena.worker.log.splitlines()), sockets_in_use(arena)
    same = arena.worker

    SCENES[moment](arena, fault)

    # Whatever it was: the worker works again, and nothing is left of it.
    with arena.app() as app:
        after = arena.send(app, held=False)
        assert arena.wait_for_state(after.id, "completed") == "completed"
        wait_until(lambda: not arena.leftovers(), BACK_WITHIN_S, f"nothing to be left over: {arena.leftovers()}")
        assert arena.ping(app) == {"ok": "pong"}
    if arena.worker is same:
        assert arena.worker.process is not None
        assert arena.worker.process.poll() is None
        wait_until(lambda: arena.connections() <= sockets + SPARE_SOCKETS, BACK_WITHIN_S, "no socket to be left open")
        said = arena.worker.log.splitlines()[lines:]
        told = [line for line in said if "received" not in line and "succeeded" not in line]
        assert len(told) < MOST_LINES, "\n".join(told)


def sockets_in_use(arena: Arena) -> int:
    """How many the worker has when all that it makes at need are made."""
    with arena.app() as app:
        assert arena.wait_for_state(arena.send(app, held=False).id, "completed") == "completed"
        arena.ping(app)
    return arena.connections()


def idle(arena: Arena, fault: Fault) -> None:
    def blocks() -> bool:
        with arena.server.client() as client:
            return any(one["cmd"] == "bzpopmin" for one in client.client_list())

    wait_until(blocks, what="the worker to be idle")
    with strike(fault, arena, LASTING_S):
        pass
    with arena.app() as app:
        arena.wait_for_run(arena.send(app, held=False).id)


def taking(arena: Arena, fault: Fault) -> None:
    with arena.app() as app:
        sent = [arena.send(app, held=False).id for _ in range(60)]
        wait_until(lambda: sum(arena.runs(one) for one in sent) >= 5, what="the worker to be busy")
        with strike(fault, arena, LASTING_S):
            pass
    for one in sent:
        arena.wait_for_state(one, "completed", *(["failed"] if fault is Fault.CHILD_KILL else []), timeout=3 * BACK_WITHIN_S)
    twice = [one for one in sent if arena.runs(one) != 1]
    # What was running when the worker was killed, or was done so shortly before that Redis had not been told; a killed child's task fails.
    if fault in KILLS_WORK:
        assert all(arena.runs(one) == 2 for one in twice)
        assert len(twice) <= PREFETCHED
    else:
        assert not twice


def _one_task(arena: Arena, fault: Fault, during: Callable[[str], None], lasting: float) -> None:
    with arena.app() as app:
        task = arena.send(app, held=True, value="value")
        arena.wait_for_run(task.id)
        with strike(fault, arena, lasting):
            during(task.id)
        arena.let_go(task.id)
        if fault is Fault.CHILD_KILL:
            # Whether it was done before its process was killed, only they know.
            arena.wait_for_state(task.id, "failed", "completed", timeout=2 * BACK_WITHIN_S)
            assert arena.runs(task.id) == 1
            return
        arena.wait_for_state(task.id, "completed", timeout=2 * BACK_WITHIN_S)
        assert arena.runs(task.id) == (2 if fault in KILLS_WORK else 1)
        assert task.get(timeout=BACK_WITHIN_S) == "value"


def reserved(arena: Arena, fault: Fault) -> None:
    """What nobody had begun runs once, whatever becomes of the worker."""
    with arena.app() as app:
        blocking = [arena.send(app, held=True).id for _ in range(PROCESSES)]
        for one in blocking:
            arena.wait_for_run(one)
        behind = [arena.send(app, held=False).id for _ in range(4)]
        wait_until(lambda: arena.in_hand() == len(blocking) + len(behind), what="all to be in hand")
        with strike(fault, arena, LASTING_S):
            pass
    for one in blocking:
        arena.let_go(one)
    for one in behind:
        arena.wait_for_state(one, "completed", timeout=2 * BACK_WITHIN_S)
    for one in blocking:
        arena.wait_for_state(one, "completed", *(["failed"] if fault is Fault.CHILD_KILL else []), timeout=2 * BACK_WITHIN_S)
    assert [arena.runs(one) for one in behind] == [1] * len(behind)


def acknowledging(arena: Arena, fault: Fault) -> None:
    """The tasks begin while the fault lasts, if they can; each runs once, however late that can be told to Redis."""
    with arena.app() as app:
        sent = [arena.send(app, held=False, early=True, countdown=SOON_S).id for _ in range(4)]
        with strike(fault, arena, LASTING_S):
            pass
    for one in sent:
        arena.wait_for_state(one, "completed", timeout=3 * BACK_WITHIN_S)
    assert [arena.runs(one) for one in sent] == [1] * len(sent)


def running(arena: Arena, fault: Fault) -> None:
    _one_task(arena, fault, lambda task_id: None, LASTING_S)


def finishing(arena: Arena, fault: Fault) -> None:
    _one_task(arena, fault, arena.let_go, LASTING_S)


def renewing(arena: Arena, fault: Fault) -> None:
    _one_task(arena, fault, lambda task_id: None, LOCK_S + 1.0)


def publishing(arena: Arena, fault: Fault) -> None:
    sent: list[str] = []
    enough, failed = threading.Event(), []

    def publish() -> None:
        try:
            with arena.app() as app:
                while not enough.is_set() or len(sent) < 20:
                    sent.append(arena.send(app, held=False).id)
                    enough.wait(0.02)
        except Exception as error:
            failed.append(error)

    publisher = threading.Thread(target=publish)
    publisher.start()
    try:
        wait_until(lambda: len(sent) > 5 or failed, what="some messages to be published")
        before = len(sent)
        with strike(fault, arena, LASTING_S):
            pass
        wait_until(lambda: len(sent) > before + 5 or failed, 2 * BACK_WITHIN_S, "publishing to go on")
    finally:
        enough.set()
        publisher.join()
    assert not failed
    for one in sent:
        arena.wait_for_state(one, "completed", *(["failed"] if fault is Fault.CHILD_KILL else []), timeout=2 * BACK_WITHIN_S)
    # What had been published when its answer was lost is recognised.
    with arena.server.client() as client:
        kept = client.zcard(f"{arena.base}completed") + client.zcard(f"{arena.base}failed")
        assert kept >= len(sent)
    if fault not in KILLS_WORK:
        assert [one for one in sent if arena.runs(one) != 1] == []


def waiting(arena: Arena, fault: Fault) -> None:
    heard: list[Any] = []

    def wait(task: AsyncResult) -> None:
        try:
            heard.append(task.get(timeout=4 * BACK_WITHIN_S))
        except Exception as error:
            heard.append(error)

    with arena.app() as app:
        task = arena.send(app, held=True, value="heard")
        arena.wait_for_run(task.id)
        waiter = threading.Thread(target=wait, args=(task,))
        waiter.start()
        with arena.server.client() as client:
            wait_until(lambda: client.pubsub_channels(f"*{task.id}*"), what="somebody to wait for the result")
        with strike(fault, arena, LASTING_S):
            pass
        arena.let_go(task.id)
        waiter.join()
    if fault is not Fault.CHILD_KILL:
        assert heard == ["heard"]
    else:
        assert len(heard) == 1


SCENES: dict[Moment, Callable[[Arena, Fault], None]] = {
    Moment.IDLE: idle,
    Moment.TAKING: taking,
    Moment.RESERVED: reserved,
    Moment.RUNNING: running,
    Moment.FINISHING: finishing,
    Moment.ACKNOWLEDGING: acknowledging,
    Moment.RENEWING: renewing,
    Moment.PUBLISHING: publishing,
    Moment.WAITING: waiting,
}
