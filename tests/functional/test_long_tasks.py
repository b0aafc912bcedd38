"""A task of many times its lock's duration runs once, in every pool: while it blocks what it runs in, while the worker stops, while Redis
is away."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from celery import Celery
from jobs import Job
from servers import Server
from worker import Worker

WorkerOf = Callable[..., Worker]
JobOf = Callable[[str], Job]

POOLS = ["prefork", "solo", "threads", "gevent", "eventlet"]
#: With these a job whose lock is not renewed runs again within three seconds; a machine may be busy for more than one.
SHORT = {"lock_duration": 2.0, "stalled_interval": 0.5}


@pytest.mark.parametrize("pool", POOLS)
def test_a_task_that_blocks_its_event_loop_runs_once(
    server: Server, worker: WorkerOf, job: JobOf, queue_name: str, tmp_path: Path, pool: str
) -> None:
    # Two workers: the second one would take what the first one lost.
    for _ in range(2):
        worker(pool=pool, concurrency=1, app="blocking", options=SHORT)
    at = tmp_path / "at"
    with Celery("sender", broker=server.url) as app:
        result = app.send_task("blocking.compute", kwargs={"at": str(at), "seconds": 5.0}, queue=queue_name)
    one = job(result.id).wait_for("completed", "failed")
    assert one.state == "completed", one
    assert one.attempts_started == 1
    assert one.history.count("active") == 1
    assert len(Path(f"{at}.runs").read_text().splitlines()) == 1


@pytest.mark.parametrize("pool", ["solo", "gevent"])
def test_an_interpreter_held_for_twenty_seconds(
    server: Server, worker: WorkerOf, job: JobOf, queue_name: str, tmp_path: Path, pool: str
) -> None:
    """With the usual lock of thirty seconds."""
    for _ in range(2):
        worker(pool=pool, concurrency=1, app="blocking", options={"lock_duration": 30.0, "stalled_interval": 1.0})
    at = tmp_path / "at"
    with Celery("sender", broker=server.url) as app:
        result = app.send_task("blocking.hold_interpreter", kwargs={"at": str(at), "seconds": 20.0}, queue=queue_name)
    one = job(result.id).wait_for("completed", "failed", timeout=40)
    assert one.state == "completed", one
    assert one.attempts_started == 1
    assert len(Path(f"{at}.runs").read_text().splitlines()) == 1


@pytest.mark.parametrize("pool", POOLS)
def test_a_worker_that_stops_keeps_its_locks_until_the_task_is_done(
    server: Server, worker: WorkerOf, job: JobOf, queue_name: str, tmp_path: Path, pool: str
) -> None:
    stopping = worker(pool=pool, concurrency=1, app="blocking", options=SHORT)
    at = tmp_path / "at"
    with Celery("sender", broker=server.url) as app:
        result = app.send_task("blocking.compute", kwargs={"at": str(at), "seconds": 4.0}, queue=queue_name)
    one = job(result.id).wait_for("active")
    worker(pool="threads", concurrency=1, app="blocking", options=SHORT)
    stopping.signal(signal.SIGTERM)
    stopping.wait()
    one.wait_for("completed", "failed")
    assert one.state == "completed", one
    assert one.attempts_started == 1


@pytest.mark.parametrize("pool", ["solo"])
def test_a_loop_that_was_busy_for_long_takes_no_answer_for_lost(
    server: Server, worker: WorkerOf, job: JobOf, queue_name: str, tmp_path: Path, pool: str
) -> None:
    """Longer than a server may be silent, and longer than a blocking read."""
    options = {"socket_timeout": 0.5, "drain_delay": 0.2}
    one = worker(pool=pool, concurrency=1, app="blocking", options=options, settings={"worker_prefetch_multiplier": 3})
    with Celery("sender", broker=server.url) as app:
        sent = [app.send_task("blocking.compute", kwargs={"at": str(tmp_path / "at"), "seconds": 1.5}, queue=queue_name) for _ in range(5)]
    for result in sent:
        done = job(result.id).wait_for("completed", "failed")
        assert done.state == "completed", done
        assert done.attempts_started == 1
    assert "Connection to broker lost" not in one.log
    assert "got no answer" not in one.log


@pytest.mark.parametrize("pool", ["prefork", "threads", "gevent"])
def test_a_task_goes_on_while_redis_is_away_for_longer_than_its_lock(worker: WorkerOf, queue_name: str, tmp_path: Path, pool: str) -> None:
    with Server(appendonly=True) as server:
        one = worker(on=server, pool=pool, concurrency=1, options=SHORT)
        at = tmp_path / "at"
        with Celery("sender", broker=server.url) as app:
            result = app.send_task("hold.late", kwargs={"at": str(at), "value": 7}, queue=queue_name)
        with server.client() as client:
            job = Job(client, queue_name, result.id).wait_for("active")
            job.wait_until(lambda _: Path(f"{at}.runs").exists(), "the task to begin")
        server.restart(between=lambda: Path(f"{at}.away").touch())
        with server.client() as client:
            job = Job(client, queue_name, result.id)
            # The lock, which expired while the server was away or just after, is held again by the worker that runs the task.
            job.wait_until(lambda job: job.is_locked and job.state == "active", "the lock to be held again")
            Path(f"{at}.go").touch()
            job.wait_for("completed")
            assert job.returnvalue == 7
            assert job.attempts_started == 1
        assert len(Path(f"{at}.runs").read_text().splitlines()) == 1
        assert one.process is not None
        assert one.process.poll() is None


def test_a_retry_after_the_lock_has_expired_is_the_same_job(
    server: Server, worker: WorkerOf, job: JobOf, queue_name: str, tmp_path: Path
) -> None:  # fmt: skip
    """As long as nobody else has the job."""
    worker(concurrency=1, options={"lock_duration": 30.0, "stalled_interval": 60.0})
    at = tmp_path / "at"
    with Celery("sender", broker=server.url) as app:
        one = job(app.send_task("again_after_gate", args=[str(at)], queue=queue_name).id)
    one.wait_until(lambda _: Path(f"{at}.runs").exists(), "the task to begin")
    one.client.delete(f"{one.key}:lock")
    Path(f"{at}.go").touch()
    one.wait_for("completed")
    assert one.returnvalue == "second"
    assert one.attempts_made == 2


@pytest.mark.parametrize("pool", ["gevent", "eventlet"])
def test_locks_are_kept_while_nothing_can_be_logged(
    server: Server, worker: WorkerOf, job: JobOf, queue_name: str, tmp_path: Path, pool: str
) -> None:
    """The lock that keeps the lines of the log apart belongs to the event loop: another thread that waits for it is not woken."""
    one = worker(pool=pool, concurrency=2, options={"lock_duration": 1.0, "stalled_interval": 60.0})
    at, log = tmp_path / "at", tmp_path / "log"
    with Celery("sender", broker=server.url) as app:
        kept, lost = (job(app.send_task(task, args=[str(path)], queue=queue_name).id) for task, path in (("hold", at), ("hold_log", log)))
    kept.wait_until(lambda _: Path(f"{at}.runs").exists() and Path(f"{log}.runs").exists(), "the tasks to begin")
    kept.client.set(f"{lost.key}:lock", "somebody else's")  # there is something to be said of this
    until = time.monotonic() + 2.5
    kept.wait_until(lambda job: job.is_locked and time.monotonic() > until, "the lock to be kept for longer than it lasts")
    kept.client.delete(f"{lost.key}:lock")
    for path in (at, log):
        Path(f"{path}.go").touch()
    kept.wait_for("completed")
    lost.wait_for("completed")
    lost.wait_until(lambda _: f"could not renew lock for job {lost.id}" in one.log, "the loss to be logged")
