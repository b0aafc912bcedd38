"""Pools that change while they run, and the ways a worker's processes start and end: each job runs once, and none is held for nobody."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from celery import Celery
from celery.app.defaults import NAMESPACES
from conftest import JobOf, WorkerOf
from jobs import jobs_of
from servers import Server
from test_prefetch import active, most_held
from waiting import wait_until
from worker import APPS, Worker, environment_of

START_METHODS = ["fork", "spawn"] if "pool_start_method" in NAMESPACES["worker"] else ["fork"]
"""What this Celery's prefork pool knows."""

needs_soft_shutdown = pytest.mark.skipif("soft_shutdown_timeout" not in NAMESPACES["worker"], reason="Celery 5.5 brought soft shutdown")


def runs(at: Path) -> list[str]:
    """The process ids of the runs."""
    record = Path(f"{at}.runs")
    return record.read_text().split() if record.exists() else []


def go(at: Path) -> None:
    Path(f"{at}.go").touch()


def size_of(app: Celery, worker: Worker) -> int:
    """How many processes the pool has, by its worker."""
    (stats,) = (app.control.inspect([worker.name], timeout=5.0, limit=1).stats() or {"": {"pool": {"processes": []}}}).values()
    return len(stats["pool"]["processes"])


# -- the processes of a prefork pool ---------------------------------------------------------------------------------------------


def test_autoscale(
    app: Celery, worker: WorkerOf, job: JobOf, queue_name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    """The pool grows as long as there is work, up to the limit, and shrinks when there is none; the limit counts what is held."""
    monkeypatch.setenv("AUTOSCALE_KEEPALIVE", "1")
    ats = [tmp_path / f"it-{n}" for n in range(8)]
    sent = [job(app.send_task("hold", args=[str(at)], queue=queue_name).id) for at in ats]
    one = worker(arguments=["--autoscale=4,1"], settings={"worker_prefetch_multiplier": 1})
    wait_until(lambda: sum(len(runs(at)) for at in ats) == 4, what="four to run at once")
    assert active(sent[0].client, queue_name) == 4
    for at in ats:
        go(at)
    for each in sent:
        each.wait_for("completed")
    wait_until(lambda: size_of(app, one) == 1, 20.0, "the pool to shrink")
    again = [job(app.send_task("echo", args=[n], queue=queue_name).id) for n in range(20)]
    for each in again:
        each.wait_for("completed")
    assert [len(runs(at)) for at in ats] == [1] * 8
    assert [each.attempts_started for each in (*sent, *again)] == [1] * 28
    assert most_held(sent[0].client, queue_name) <= 4


@pytest.mark.parametrize(
    "limit", [{"worker_max_tasks_per_child": 2}, {"worker_max_memory_per_child": 1}], ids=["max_tasks_per_child", "max_memory_per_child"]
)
def test_processes_are_replaced(
    app: Celery, worker: WorkerOf, job: JobOf, queue_name: str, tmp_path: Path, limit: dict[str, int]
) -> None:  # fmt: skip
    """A process that has had its share ends after a task, before the next: nothing is lost with it, nothing runs twice."""
    at = tmp_path / "it"
    go(at)
    names = ["hold", "hold.late"] * 4
    sent = [job(app.send_task(name, args=[str(at)], kwargs={"value": n}, queue=queue_name).id) for n, name in enumerate(names)]
    worker(concurrency=2, settings={**limit, "worker_prefetch_multiplier": 2})
    for n, each in enumerate(sent):
        assert each.wait_for("completed").returnvalue == n
        assert each.history == ["added", "waiting", "active", "completed"]
    pids = runs(at)
    assert len(pids) == 8
    most = limit.get("worker_max_tasks_per_child", 1)  # more memory than one KiB has every process after its first task
    assert max(pids.count(pid) for pid in pids) <= most
    assert most_held(sent[0].client, queue_name) <= 4


@pytest.mark.parametrize("method", START_METHODS)
def test_start_method(app: Celery, worker: WorkerOf, job: JobOf, queue_name: str, tmp_path: Path, method: str) -> None:
    """A process that is not its worker's fork tells BullMQ the same: values, failures, further runs, and what becomes of a lost process."""
    settings = {"worker_pool_start_method": method} if len(START_METHODS) > 1 else {}
    at = tmp_path / "it"
    echo = job(app.send_task("echo", args=[{"a": 1}], queue=queue_name).id)
    late = job(app.send_task("echo.late", args=["late"], queue=queue_name).id)
    boom = job(app.send_task("boom", queue=queue_name).id)
    again = job(app.send_task("again", args=[2], kwargs={"countdown": 0}, queue=queue_name).id)
    lost = job(app.send_task("die_requeued.late", args=[str(at)], queue=queue_name).id)
    worker(concurrency=2, settings=settings)
    assert echo.wait_for("completed").returnvalue == {"a": 1}
    assert late.wait_for("completed").returnvalue == "late"
    assert boom.wait_for("failed").reason == "ValueError: the message"
    assert again.wait_for("completed").returnvalue["retries"] == 2
    assert lost.wait_for("completed").returnvalue == "alive"
    assert len(runs(at)) == 2


# -- soft shutdown ---------------------------------------------------------------------------------------------------------------


@needs_soft_shutdown
@pytest.mark.parametrize("is_late", [False, True], ids=["early", "late"])
def test_soft_shutdown(app: Celery, worker: WorkerOf, job: JobOf, queue_name: str, tmp_path: Path, is_late: bool) -> None:
    """What is not done within the time given is as with a cold shutdown; what was in hand, not begun, is back in its order when the worker
    is gone, not when its locks have expired."""
    suffix, at = ".late" if is_late else "", tmp_path / "it"
    running = job(app.send_task(f"hold{suffix}", args=[str(at)], queue=queue_name).id)
    behind = [job(app.send_task(f"echo{suffix}", args=[n], queue=queue_name).id) for n in range(5)]
    settings = {"worker_prefetch_multiplier": 4, "worker_soft_shutdown_timeout": 1.5}
    one = worker(concurrency=1, settings=settings, options={"lock_duration": 30.0, "stalled_interval": 30.0})
    wait_until(lambda: len(runs(at)) == 1, what="it to run")
    wait_until(lambda: active(running.client, queue_name) == 4, what="three more to be in hand")
    wait_until(lambda: _knows(app, one), what="the worker to know that the task runs")
    one.signal(signal.SIGQUIT)
    wait_until(lambda: "Initiating Soft Shutdown" in one.log, what="the soft shutdown to begin")
    one.wait()
    assert running.state == ("waiting" if is_late else "failed")
    waiting = list(reversed(jobs_of(running.client, queue_name, "wait")))
    assert [each for each in waiting if each != running.id] == [each.id for each in behind]
    assert not any(each.is_locked for each in (running, *behind))
    assert [each.attempts_made for each in behind] == [0] * 5
    go(at)
    worker(concurrency=1)
    for each in (*behind, *([running] if is_late else [])):
        each.wait_for("completed")
    assert len(runs(at)) == 1 + is_late


def _knows(app: Celery, worker: Worker, many: int = 1) -> bool:
    """Whether the worker has heard from its pool that so many tasks have begun."""
    (active,) = (app.control.inspect([worker.name], timeout=5.0, limit=1).active() or {"": []}).values()
    return sum(bool(one["time_start"]) for one in active) == many


@needs_soft_shutdown
@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_soft_shutdown_leaves_time(app: Celery, worker: WorkerOf, job: JobOf, queue_name: str, tmp_path: Path, pool: str) -> None:
    """A task that ends within the time given ends as any other: with a value, a failure, or another run."""
    names = [f"{name}{suffix}" for name in ("hold", "boom_after_gate", "again_after_gate") for suffix in ("", ".late")]
    ats = [tmp_path / name for name in names]
    sent = [job(app.send_task(name, kwargs={"at": str(at)}, queue=queue_name).id) for name, at in zip(names, ats, strict=True)]
    settings = {"worker_prefetch_multiplier": 1, "worker_soft_shutdown_timeout": 2.5}
    one = worker(pool=pool, concurrency=6, settings=settings, options={"lock_duration": 30.0, "stalled_interval": 30.0})
    wait_until(lambda: _knows(app, one, 6), what="the worker to know that all run")
    one.signal(signal.SIGQUIT)
    wait_until(lambda: "Initiating Soft Shutdown" in one.log, what="the soft shutdown to begin")
    for at in ats:
        go(at)
    one.wait()
    for hold, boom, again in (sent[0::2], sent[1::2]):
        assert (hold.state, boom.state, again.state) == ("completed", "failed", "waiting")
        assert boom.reason == "ValueError: the message"
        assert [each.attempts_started for each in (hold, boom, again)] == [1] * 3
    assert [len(runs(at)) for at in ats] == [1] * 6


# -- celery multi ----------------------------------------------------------------------------------------------------------------


class Multi:
    """`celery multi`, as an init script uses it: workers without a terminal, known by their pid files."""

    def __init__(self, server: Server, folder: Path, queue: str) -> None:
        self._folder = folder
        self._environment = environment_of(server)
        self._nodes = ["one", "two"]
        self._files = ["--pidfile=%n.pid", "--logfile=%n.log"]
        self._worker = ["-A", "tasks", "-l", "INFO", "-Q", queue, "-c", "1", "--without-mingle", "--without-gossip"]
        (folder / "tasks.py").write_text((APPS / "tasks.py").read_text())

    def __call__(self, verb: str) -> str:
        command = [sys.executable, "-m", "celery", "multi", verb, *self._nodes, *self._files, *self._worker]
        done = subprocess.run(command, cwd=self._folder, env=self._environment, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done
        return done.stdout

    @property
    def pids(self) -> dict[str, int]:
        files = sorted(self._folder.glob("*.pid"))
        return {file.stem: int(file.read_text()) for file in files}

    @property
    def log(self) -> str:
        return "".join(file.read_text() for file in sorted(self._folder.glob("*.log")))


@pytest.fixture
def multi(server: Server, tmp_path: Path, queue_name: str) -> Iterator[Multi]:
    one = Multi(server, tmp_path, queue_name)
    yield one
    # Workers in the background outlive whoever started them: here they must not, however the test went.
    one("kill")
    print(one.log[-8000:])


def test_multi(app: Celery, multi: Multi, job: JobOf, queue_name: str) -> None:
    """Workers in the background take their part, and stop in order: what they have not begun waits, nothing runs twice."""
    multi("start")
    wait_until(lambda: multi.log.count(" ready.") == 2, 30.0, "both to be ready")
    assert sorted(multi.pids) == ["one", "two"]
    sent = [job(app.send_task("last", args=[0.3], queue=queue_name).id) for _ in range(100)]
    for each in sent[:4]:
        each.wait_for("completed")
    multi("stopwait")
    assert multi.pids == {}
    states = [each.state for each in sent]
    assert set(states) == {"completed", "waiting"}
    done = [each for each in sent if each.state == "completed"]
    assert {each.hash["pb"].split("@")[0] for each in done} == {"one", "two"}
    assert [each.attempts_made for each in done] == [1] * len(done)
    assert not any(each.is_locked for each in sent)
