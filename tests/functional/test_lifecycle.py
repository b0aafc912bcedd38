"""What becomes of jobs when their worker stops, in order or not, or loses its connections."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import celery
import pytest
import redis
from celery import Celery
from celery.app.defaults import NAMESPACES
from conftest import JobOf, WorkerOf, sender
from jobs import Job, jobs_of
from servers import Server
from test_prefetch import most_held
from waiting import wait_until
from worker import Worker

POOLS = ("prefork", "solo", "threads", "gevent", "eventlet")
LATE = pytest.mark.parametrize("is_late", [False, True], ids=["early", "late"])
#: One at a time, three more in hand.
ONE_OF_FOUR: dict[str, Any] = {"concurrency": 1, "settings": {"worker_prefetch_multiplier": 4}}


def name_of(task: str, is_late: bool) -> str:
    return f"{task}.late" if is_late else task


def runs(at: Path) -> int:
    record = Path(f"{at}.runs")
    return len(record.read_text().splitlines()) if record.exists() else 0


def go(at: Path) -> None:
    Path(f"{at}.go").touch()


def reprocess(job: Job) -> None:
    """What a dashboard's retry button does to a finished job."""
    with job.client.pipeline() as pipe:
        pipe.zrem(f"{job.base}failed", job.id)
        pipe.hdel(job.key, "finishedOn", "processedOn", "failedReason", "returnvalue")
        pipe.lpush(f"{job.base}wait", job.id)
        pipe.zadd(f"{job.base}marker", {"0": 0})
        pipe.xadd(f"{job.base}events", {"event": "waiting", "jobId": job.id, "prev": "failed"})
        pipe.execute()


class Held:
    """One job that runs until told otherwise, and some behind it."""

    def __init__(self, app: Celery, job: JobOf, queue: str, at: Path, *, is_late: bool, others: int) -> None:
        self.app = app
        self.at = at
        self.is_late = is_late
        self.first = job(app.send_task(name_of("hold", is_late), args=[str(at)], kwargs={"value": "held"}, queue=queue).id)
        self.others = [job(app.send_task(name_of("echo", is_late), args=[n], queue=queue).id) for n in range(others)]
        self.jobs = [self.first, *self.others]
        self.queue = queue

    @property
    def waiting(self) -> list[str]:
        """The ids in the order they would be taken."""
        return list(reversed(jobs_of(self.first.client, self.queue, "wait")))

    def is_at_work(self, in_hand: int, worker: Worker) -> None:
        """The first runs and its worker knows, `in_hand` jobs are active."""
        wait_until(lambda: runs(self.at) == 1, what="the task to run")
        wait_until(lambda: len(jobs_of(self.first.client, self.queue, "active")) == in_hand, what=f"{in_hand} jobs to be active")
        if not self.is_late:
            self.first.wait_until(lambda one: "defa" in one.hash, "the promise of an early acknowledgement")
        elif worker.pool == "prefork":  # where another process runs it
            wait_until(lambda: self._knows(worker), what="the worker to know that the task runs")

    def _knows(self, worker: Worker) -> bool:
        (active,) = (self.app.control.inspect([worker.name], timeout=5.0, limit=1).active() or {"": []}).values()
        return any(one["time_start"] for one in active)


# -- the host is gone ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pool", ["prefork", "solo", "threads"])
def test_host_lost(app: Celery, worker: WorkerOf, job: JobOf, queue_name: str, tmp_path: Path, pool: str) -> None:
    """Late: it runs again. Early: it is failed, visibly, and never run twice; retried by a person it runs as any other. What was in hand
    and not begun runs in both cases."""
    at = [tmp_path / "early", tmp_path / "late"]
    early, late = (Held(app, job, queue_name, at[is_late], is_late=is_late, others=0).first for is_late in (False, True))
    behind = job(app.send_task("echo", args=["behind"], queue=queue_name).id)
    lost = worker(pool=pool, concurrency=2)
    # The solo pool runs one at a time: there the late one is in hand, not begun.
    wait_until(lambda: [runs(one) for one in at] == [1, pool != "solo"], what="the tasks to run")
    for one in (early, late, behind):
        one.wait_for("active")
    early.wait_until(lambda one: "defa" in one.hash, "the promise of an early acknowledgement")
    lost.kill()
    for one in at:
        go(one)
    worker(pool=pool)
    early.wait_for("failed")
    assert early.reason == "worker lost after acknowledging early"
    assert runs(at[0]) == 1
    assert early.history[:6] == ["added", "waiting", "active", "waiting", "stalled", "active"]
    assert "defa" not in early.hash
    late.wait_for("completed")
    assert late.returnvalue == "held"
    assert runs(at[1]) == (1 if pool == "solo" else 2)
    assert late.history == ["added", "waiting", "active", "waiting", "stalled", "active", "completed"]
    assert behind.wait_for("completed").returnvalue == "behind"
    reprocess(early)
    early.wait_for("completed")
    assert early.returnvalue == "held"
    assert runs(at[0]) == 2


@pytest.mark.parametrize("pool", ["solo", "threads"])
def test_the_task_is_what_ends_its_worker(app: Celery, worker: WorkerOf, job: JobOf, queue_name: str, tmp_path: Path, pool: str) -> None:
    """At once, in the worker's own process: by then the promise is on its way."""
    for n in range(3):
        lost = worker(pool=pool, concurrency=1, options={"stalled_interval": 60.0})
        sent = job(app.send_task("die", args=[str(tmp_path / str(n))], queue=queue_name).id)
        wait_until(lambda lost=lost: lost.process.poll() is not None, what="the worker to be killed")
        assert runs(tmp_path / str(n)) == 1
        sent.wait_until(lambda one: "defa" in one.hash, "the promise of an early acknowledgement")


@pytest.mark.parametrize("pool", ["solo", "threads"])
@pytest.mark.parametrize("what", ["nothing", "scripts", "connections"])
def test_promised_where_redis_has_lost(
    app: Celery, redis_client: redis.Redis, worker: WorkerOf, job: JobOf, queue_name: str, tmp_path: Path, pool: str, what: str
) -> None:  # fmt: skip
    """The scripts, or the connections, after the first promises."""
    worker(pool=pool, concurrency=1)
    for one in [job(app.send_task("echo", args=[n], queue=queue_name).id) for n in range(40)]:
        one.wait_for("completed")
    if what == "scripts":
        redis_client.script_flush()
    elif what == "connections":
        redis_client.client_kill_filter(_type="normal", skipme=True)
    at = tmp_path / "it"
    held = Held(app, job, queue_name, at, is_late=False, others=3)
    held.first.wait_until(lambda one: "defa" in one.hash, "the promise of an early acknowledgement")
    go(at)
    for one in held.jobs:
        one.wait_for("completed")
        assert "defa" not in one.hash


def test_host_lost_again_and_again(app: Celery, worker: WorkerOf, job: JobOf, queue_name: str, tmp_path: Path) -> None:
    """BullMQ's stalled rule: a job that takes its worker down twice is not tried a third time."""
    at = tmp_path / "it"
    held = Held(app, job, queue_name, at, is_late=True, others=0)
    for run in (1, 2):
        lost = worker()
        wait_until(lambda run=run: runs(at) == run, what=f"run {run}")
        lost.kill()
    worker()
    held.first.wait_for("failed")
    assert held.first.reason == "job stalled more than allowable limit"
    assert runs(at) == 2


@pytest.mark.parametrize("pool", ["solo", "threads"])
def test_task_that_takes_its_worker_down_at_once(
    app: Celery, worker: WorkerOf, job: JobOf, queue_name: str, tmp_path: Path, pool: str
) -> None:
    """Acknowledged early means at most once, even where the task's first act is the end of the whole worker."""
    one = job(app.send_task("die", args=[str(tmp_path / "it")], queue=queue_name).id)
    worker(pool=pool, wait=False).wait()
    assert runs(tmp_path / "it") == 1
    worker(pool=pool)
    one.wait_for("failed")
    assert one.reason == "worker lost after acknowledging early"
    assert runs(tmp_path / "it") == 1


# -- shutdown ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["signal", "remote control"])
@LATE
@pytest.mark.parametrize("pool", POOLS)
def test_warm_shutdown(
    app: Celery, worker: WorkerOf, job: JobOf, queue_name: str, tmp_path: Path, pool: str, is_late: bool, how: str
) -> None:  # fmt: skip
    """Jobs not begun go back to the head of the queue in their order, the running one ends."""
    held = Held(app, job, queue_name, tmp_path / "it", is_late=is_late, others=6)
    one = worker(pool=pool, **ONE_OF_FOUR)
    held.is_at_work(4, one)
    if how == "signal":
        one.signal(signal.SIGTERM)
    else:
        if pool != "solo":  # where a running task keeps it from answering; the others may listen a moment after they have said "ready"
            wait_until(lambda: app.control.inspect([one.name], timeout=1.0, limit=1).ping(), what="remote control to work")
        app.control.shutdown([one.name])
    ids = [other.id for other in held.others]
    if pool in ("prefork", "threads"):  # elsewhere a pool with nothing free keeps the worker from hearing of it
        wait_until(lambda: held.waiting == ids, what="the jobs not begun to be back in order")
        assert held.first.state == "active"
        assert held.first.is_locked
    go(held.at)
    # Celery 5.3 exits with 1 where it was told by remote control.
    assert one.wait() == 0 or (how == "remote control" and celery.VERSION < (5, 4))
    assert held.first.state == "completed"
    assert held.first.returnvalue == "held"
    done = [other.id for other in held.others if other.state == "completed"]
    assert [ids.index(other) for other in done + held.waiting] == list(range(6))
    if pool in ("prefork", "threads"):
        assert done == []
    assert not any(other.is_locked for other in held.others)
    assert all("defa" not in other.hash and other.attempts_made == 0 for other in held.others if other.id not in done)
    assert runs(held.at) == 1


@pytest.mark.skipif("soft_shutdown_timeout" not in NAMESPACES["worker"], reason="before Celery 5.5 the running tasks fail: WorkerLostError")
@LATE
def test_cold_shutdown(app: Celery, worker: WorkerOf, job: JobOf, queue_name: str, tmp_path: Path, is_late: bool) -> None:
    """As warm, but the running task is ended: put back when it was to be acknowledged late, failed when it already was."""
    held = Held(app, job, queue_name, tmp_path / "it", is_late=is_late, others=5)
    one = worker(**ONE_OF_FOUR)
    held.is_at_work(4, one)
    one.signal(signal.SIGQUIT)
    one.wait()
    ids = [other.id for other in held.others]
    if is_late:
        # It went back first, so that it comes after the others.
        assert held.waiting == [*ids[:3], held.first.id, *ids[3:]]
        assert held.first.attempts_made == 0
    else:
        assert held.first.state == "failed"
        assert held.first.reason is not None
        assert "stopped" in held.first.reason
        assert held.waiting == ids
    assert "defa" not in held.first.hash
    assert not any(other.is_locked for other in held.jobs)
    go(held.at)
    worker()
    for other in held.others:
        other.wait_for("completed")
    if is_late:
        held.first.wait_for("completed")
    assert runs(held.at) == (2 if is_late else 1)


# -- connections ---------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def own_server() -> Iterator[Server]:
    """A server whose connections may be cut without disturbing anybody else's."""
    with Server(appendonly=True) as running:
        yield running


@pytest.fixture
def own_app(own_server: Server) -> Iterator[Celery]:
    with sender(own_server) as one:
        yield one


@pytest.fixture
def own_client(own_server: Server) -> Iterator[redis.Redis]:
    if own_server.process is None:
        own_server.start()
    with own_server.client() as client:
        yield client


def cut_all(client: redis.Redis) -> None:
    """Every connection to the server but this one."""
    mine = client.client_id()
    for one in client.client_list():
        if int(one["id"]) != mine:
            client.client_kill_filter(_id=one["id"])


def test_slots_that_are_free_when_connections_are_cut_stay_free(
    own_server: Server, own_app: Celery, own_client: redis.Redis, worker: WorkerOf, queue_name: str, tmp_path: Path
) -> None:
    """Celery before 5.7 lowers the prefetch count then, and the running tasks count as before."""
    ats = [tmp_path / f"long-{n}" for n in range(3)]
    for at in ats:
        own_app.send_task("hold.late", args=[str(at)], queue=queue_name)
    one = worker(on=own_server, pool="prefork", concurrency=4, settings={"worker_prefetch_multiplier": 1})
    wait_until(lambda: sum(map(runs, ats)) == 3, what="three tasks to run")
    cut_all(own_client)
    wait_until(lambda: one.log.count("Connected to") == 2, what="the worker to connect again")
    short = own_app.send_task("echo.late", args=["short"], queue=queue_name)
    Job(own_client, queue_name, short.id).wait_for("completed", timeout=10.0)
    for at in ats:
        go(at)


@LATE
@pytest.mark.parametrize("pool", POOLS)
def test_connections_cut(
    own_server: Server, own_app: Celery, own_client: redis.Redis, worker: WorkerOf, queue_name: str, tmp_path: Path,
    pool: str, is_late: bool,
) -> None:  # fmt: skip
    """The running task runs once and its job completes; those in hand go back and run once; the worker consumes again."""
    held = Held(own_app, lambda job_id: Job(own_client, queue_name, job_id), queue_name, tmp_path / "it", is_late=is_late, others=0)
    behind = [tmp_path / f"behind-{n}" for n in range(5)]
    jobs = []
    for at in behind:
        go(at)
        sent = own_app.send_task(name_of("hold", is_late), args=[str(at)], queue=queue_name)
        jobs.append(Job(own_client, queue_name, sent.id))
    one = worker(on=own_server, pool=pool, **ONE_OF_FOUR)
    held.is_at_work(4, one)
    cut_all(own_client)
    if pool != "solo":
        wait_until(lambda: one.log.count("Connected to") == 2, what="the worker to connect again")
        # It holds no more than before: the running one and three others.
        wait_until(lambda: len(jobs_of(own_client, queue_name, "active")) == 4, what="the worker to take jobs again")
    assert held.first.state == "active"
    assert held.first.is_locked
    go(held.at)
    held.first.wait_for("completed")
    assert held.first.returnvalue == "held"
    assert held.first.history == ["added", "waiting", "active", "completed"]
    for other in jobs:
        other.wait_for("completed")
    after = Job(own_client, queue_name, own_app.send_task("echo", args=["after"], queue=queue_name).id)
    assert after.wait_for("completed").returnvalue == "after"
    assert [runs(at) for at in (held.at, *behind)] == [1] * 6
    assert jobs_of(own_client, queue_name, "active") == []
    assert most_held(own_client, queue_name) == 4


def test_connections_cut_cancels(
    own_server: Server, own_app: Celery, own_client: redis.Redis, worker: WorkerOf, queue_name: str, tmp_path: Path
) -> None:  # fmt: skip
    """With worker_cancel_long_running_tasks_on_connection_loss what is acknowledged late is ended, and goes back at once."""
    held = Held(own_app, lambda job_id: Job(own_client, queue_name, job_id), queue_name, tmp_path / "it", is_late=True, others=0)
    settings = {"worker_cancel_long_running_tasks_on_connection_loss": True}
    one = worker(on=own_server, settings=settings, options={"lock_duration": 30.0, "stalled_interval": 30.0})
    held.is_at_work(1, one)
    cut_all(own_client)
    wait_until(lambda: runs(held.at) == 2, what="it to run again")
    go(held.at)
    held.first.wait_for("completed")
    assert held.first.history == ["added", "waiting", "active", "waiting", "active", "completed"]
    assert runs(held.at) == 2


@pytest.mark.parametrize("task", ["again_after_gate", "replace_after_gate"])
@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_retry_that_cannot_be_published(
    own_server: Server, own_app: Celery, own_client: redis.Redis, worker: WorkerOf, queue_name: str, tmp_path: Path, pool: str, task: str
) -> None:  # fmt: skip
    """Redis is away when a task asks for another run. Once it answers: put back where acknowledged late, failed with that reason if not."""
    sent = {}
    for is_late in (False, True):
        at = tmp_path / f"it-{is_late}"
        sent[is_late] = Job(own_client, queue_name, own_app.send_task(name_of(task, is_late), kwargs={"at": str(at)}, queue=queue_name).id)
    one = worker(on=own_server, pool=pool, options={"lock_duration": 20.0})
    wait_until(lambda: all(runs(tmp_path / f"it-{is_late}") == 1 for is_late in sent), what="both to run")

    def ask() -> None:
        for is_late in sent:
            go(tmp_path / f"it-{is_late}")
        wait_until(lambda: one.log.count("reject requeue=False") == 2, what="both to be refused", timeout=20)

    own_server.restart(between=ask)
    sent[False].wait_for("failed")
    assert sent[False].reason is not None
    assert "could not be published" in sent[False].reason
    sent[True].wait_for("completed")
    assert sent[True].returnvalue == "second"
    assert sent[True].history == ["added", "waiting", "active", "waiting", "active", "completed"]
    assert runs(tmp_path / "it-False") == 1


def test_redis_away_for_longer_than_the_locks(
    own_server: Server, own_app: Celery, own_client: redis.Redis, worker: WorkerOf, queue_name: str, tmp_path: Path
) -> None:
    """What runs goes on and ends as if nothing had been."""
    jobs = {}
    for is_late in (False, True):
        at = tmp_path / f"it-{is_late}"
        sent = own_app.send_task(name_of("hold", is_late), args=[str(at)], kwargs={"value": "held"}, queue=queue_name)
        jobs[is_late] = Job(own_client, queue_name, sent.id)
    worker(on=own_server)
    wait_until(lambda: all(runs(tmp_path / f"it-{is_late}") == 1 for is_late in jobs), what="both to run")
    jobs[False].wait_until(lambda one: "defa" in one.hash, "the promise of an early acknowledgement")
    own_server.restart(between=lambda: wait_until(_after(1.5), what="the locks to expire"))
    for is_late in jobs:
        go(tmp_path / f"it-{is_late}")
    for is_late, job in jobs.items():
        job.wait_for("completed")
        assert job.returnvalue == "held"
        assert runs(tmp_path / f"it-{is_late}") == 1


def _after(seconds: float) -> Any:
    import time

    until = time.monotonic() + seconds
    return lambda: time.monotonic() > until


@LATE
@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_what_was_taken_over_while_the_worker_was_stopped_is_not_run_by_it_too(
    pool: str, server: Server, worker: WorkerOf, job: JobOf, queue_name: str, tmp_path: Path, *, is_late: bool
) -> None:
    """It was reserved, its locks have expired, and another worker has done it."""
    quick = {"lock_duration": 2.0, "stalled_interval": 0.5}
    running, reserved, last = tmp_path / "running", [tmp_path / f"reserved-{n}" for n in range(3)], tmp_path / "last"
    for at in (*reserved, last):
        go(at)
    with sender(server) as app:
        first = job(app.send_task("hold.late", args=[str(running)], queue=queue_name).id)
        behind = [job(app.send_task(name_of("hold", is_late), args=[str(at)], queue=queue_name).id) for at in reserved]
        stopped = worker(queue_name, f"{queue_name}-own", pool=pool, options=quick, **ONE_OF_FOUR)
        wait_until(lambda: runs(running) == 1, what="the task to run")
        wait_until(lambda: len(jobs_of(first.client, queue_name, "active")) == 4, what="three to be in hand")
        os.killpg(stopped.pid, signal.SIGSTOP)
        try:
            other = worker(pool="threads", concurrency=2, options=quick)
            for one in behind:
                one.wait_for("completed")
        finally:
            os.killpg(stopped.pid, signal.SIGCONT)
        go(running)
        first.wait_for("completed")
        own = Job(first.client, f"{queue_name}-own", app.send_task("hold", args=[str(last)], queue=f"{queue_name}-own").id)
        own.wait_for("completed")
        reserved_now = app.control.inspect(destination=[stopped.name], timeout=5).reserved()
        assert reserved_now == {stopped.name: []}
    # Whether on a busy machine the other one ran any twice is not the question here.
    assert {pid for at in reserved for pid in Path(f"{at}.runs").read_text().split()} == {str(other.pid)}
    assert {one.hash["pb"] for one in behind} == {other.name}
