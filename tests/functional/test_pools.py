"""Pools that change while they run, and the ways a worker's processes start and end: each job runs once, and none is held for nobody."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
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
    """The pool grows as long as there is work, up to the limit, and shrinks when there is none; the limit counts what is held, whenever
    it is acknowledged."""
    monkeypatch.setenv("AUTOSCALE_KEEPALIVE", "1")
    ats = [tmp_path / f"it-{n}" for n in range(8)]
    names = ["hold", "hold.late"] * 4
    sent = [job(app.send_task(name, args=[str(at)], queue=queue_name).id) for name, at in zip(names, ats, strict=True)]
    one = worker(arguments=["--autoscale=4,1"], settings={"worker_prefetch_multiplier": 1})
    wait_until(lambda: sum(len(runs(at)) for at in ats) == 4, what="four to run at once")
    assert active(sent[0].client, queue_name) == 4
    for at in ats:
        go(at)
    for each in sent:
        each.wait_for("completed")
    wait_until(lambda: size_of(app, one) == 1, 20.0, "the pool to shrink")
    again = [job(app.send_task(name, args=[n], queue=queue_name).id) for n, name in enumerate(["echo", "echo.late"] * 10)]
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
    names = ["hold", "hold.late"] * 3
    sent = [job(app.send_task(name, args=[str(at)], kwargs={"value": n}, queue=queue_name).id) for n, name in enumerate(names)]
    worker(concurrency=2, settings={**limit, "worker_prefetch_multiplier": 2})
    for n, each in enumerate(sent):
        assert each.wait_for("completed").returnvalue == n
        assert each.history == ["added", "waiting", "active", "completed"]
    pids = runs(at)
    assert len(pids) == 6
    most = limit.get("worker_max_tasks_per_child", 1)  # more memory than one KiB has every process after its first task
    assert max(pids.count(pid) for pid in pids) <= most
    assert most_held(sent[0].client, queue_name) <= 4


# -- soft shutdown ---------------------------------------------------------------------------------------------------------------


@needs_soft_shutdown
def test_soft_shutdown(app: Celery, worker: WorkerOf, job: JobOf, queue_name: str, tmp_path: Path) -> None:
    """What is not done within the time given is as with a cold shutdown; what was in hand, not begun, is back in its order when the worker
    is gone, not when its locks have expired."""
    ats = {name: tmp_path / name for name in ("hold", "hold.late")}
    early, late = (job(app.send_task(name, args=[str(at)], queue=queue_name).id) for name, at in ats.items())
    behind = [job(app.send_task(name, args=[n], queue=queue_name).id) for n, name in enumerate(["echo", "echo.late"] * 3)]
    settings = {"worker_prefetch_multiplier": 3, "worker_soft_shutdown_timeout": 1.0}
    one = worker(settings=settings, options={"lock_duration": 30.0, "stalled_interval": 30.0})
    wait_until(lambda: active(early.client, queue_name) == 6, what="two to run and four more to be in hand")
    wait_until(lambda: _knows(app, one, 2), what="the worker to know that both run")
    one.signal(signal.SIGQUIT)
    wait_until(lambda: "Initiating Soft Shutdown" in one.log, what="the soft shutdown to begin")
    one.wait()
    assert early.state == "failed"
    assert late.state == "waiting"
    waiting = list(reversed(jobs_of(early.client, queue_name, "wait")))
    assert [each for each in waiting if each != late.id] == [each.id for each in behind]
    assert not any(each.is_locked for each in (early, late, *behind))
    assert [each.attempts_made for each in (late, *behind)] == [0] * 7
    assert [len(runs(at)) for at in ats.values()] == [1, 1]


def _knows(app: Celery, worker: Worker, many: int) -> bool:
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


@needs_soft_shutdown
@pytest.mark.parametrize("on_idle", [False, True])
def test_soft_shutdown_of_an_idle_worker(app: Celery, worker: WorkerOf, job: JobOf, queue_name: str, *, on_idle: bool) -> None:
    """It takes its time where it is told to, and takes no job meanwhile; what a rate limit holds back is in its order again."""
    ran, *held = [job(app.send_task("seen", queue=queue_name).id) for _ in range(3)]
    settings = {
        "task_annotations": {"seen": {"rate_limit": "1/h"}}, "worker_soft_shutdown_timeout": 1.0,
        "worker_enable_soft_shutdown_on_idle": on_idle,
    }  # fmt: skip
    one = worker(settings=settings, options={"lock_duration": 30.0, "stalled_interval": 30.0})
    ran.wait_for("completed")
    wait_until(lambda: active(ran.client, queue_name) == 2, what="two to be held back")
    wait_until(lambda: _knows(app, one, 0), what="the worker to know that none runs")
    begun = time.monotonic()
    one.signal(signal.SIGQUIT)
    if on_idle:
        wait_until(lambda: "Initiating Soft Shutdown" in one.log, what="the soft shutdown to begin")
        held.append(job(app.send_task("echo", queue=queue_name).id))
    one.wait()
    assert time.monotonic() - begun >= 1.0 or not on_idle
    assert ("Initiating Soft Shutdown" in one.log) == on_idle
    assert list(reversed(jobs_of(ran.client, queue_name, "wait"))) == [each.id for each in held]
    assert not any(each.is_locked or each.attempts_made for each in held)


# -- celery multi ----------------------------------------------------------------------------------------------------------------


class Multi:
    """`celery multi`, as an init script uses it: a worker without a terminal, known by its pid file."""

    def __init__(self, server: Server, folder: Path, queue: str) -> None:
        self._folder = folder
        self._environment = environment_of(server)
        self._worker = ["--pidfile=%n.pid", "--logfile=%n.log", "-A", "tasks", "-l", "INFO", "-Q", queue, "-c", "1"]
        self._worker += ["--without-mingle", "--without-gossip"]
        (folder / "tasks.py").write_text((APPS / "tasks.py").read_text())
        # `celery multi` parts the interpreter's path at blanks, and a checkout's may have some.
        self._python = folder / "python"
        self._python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
        self._python.chmod(0o755)

    def __call__(self, verb: str) -> None:
        run = f"import sys; sys.executable = {str(self._python)!r}; from celery.__main__ import main; main()"
        command = [sys.executable, "-c", run, "multi", verb, "one", *self._worker]
        done = subprocess.run(command, cwd=self._folder, env=self._environment, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done

    @property
    def pid(self) -> int | None:
        try:
            return int((self._folder / "one.pid").read_text())
        except FileNotFoundError:
            return None

    @property
    def log(self) -> str:
        return "".join(file.read_text() for file in self._folder.glob("*.log"))


@pytest.fixture
def multi(server: Server, tmp_path: Path, queue_name: str) -> Iterator[Multi]:
    one = Multi(server, tmp_path, queue_name)
    yield one
    # A worker in the background outlives whoever started it: here it must not, however the test went.
    if (pid := one.pid) is not None:
        os.kill(pid, signal.SIGKILL)
    print(one.log[-8000:])


def test_multi(app: Celery, multi: Multi, job: JobOf, queue_name: str) -> None:
    """A worker in the background is another one after a restart, and ends when it is stopped: nothing is lost, nothing runs twice."""
    multi("start")
    wait_until(lambda: multi.log.count(" ready.") == 1, 60.0, "it to be ready")
    first = multi.pid
    sent = [job(app.send_task("last", args=[0.1], queue=queue_name).id) for _ in range(30)]
    sent[2].wait_for("completed")
    multi("restart")
    wait_until(lambda: multi.log.count(" ready.") == 2, 60.0, "it to be back")
    assert multi.pid not in (None, first)
    sent += [job(app.send_task("last.late", args=[0.1], queue=queue_name).id) for _ in range(3)]
    for each in sent:
        each.wait_for("completed")
    multi("stop")
    wait_until(lambda: multi.pid is None, 60.0, "it to be gone")
    assert [each.attempts_made for each in sent] == [1] * len(sent)
    assert [each.history.count("completed") for each in sent] == [1] * len(sent)
