"""What a worker holds, reserved and running, never exceeds its prefetch count: others find the rest.

A job that is held is `active`, so Redis shows how many there are; and every activation is an event, so nothing is missed between two looks.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import redis
from celery import Celery
from celery.app.defaults import NAMESPACES
from conftest import JobOf, WorkerOf
from jobs import Job, jobs_of
from waiting import wait_until

LATE = pytest.mark.parametrize("is_late", [False, True], ids=["early", "late"])
POOLS = pytest.mark.parametrize("pool", ["prefork", "solo", "threads"])


def name_of(task: str, is_late: bool) -> str:
    return f"{task}.late" if is_late else task


def slots(pool: str) -> int:
    """How many tasks the pool runs at once."""
    return 1 if pool == "solo" else 2


def most_held(client: redis.Redis, queue: str, worker: str | None = None) -> int:
    """The most jobs that were active at once, of all workers or of one, by the queue's events."""
    stream: Any = client.xrange(f"bull:{queue}:events")
    held: set[str] = set()
    most = 0
    for _, event in stream:
        job_id = event.get("jobId", "")
        if event["event"] == "active" and (worker is None or client.hget(f"bull:{queue}:{job_id}", "pb") == worker):
            held.add(job_id)
        elif event["event"] in ("completed", "failed", "waiting", "delayed"):
            held.discard(job_id)
        most = max(most, len(held))
    return most


def active(client: redis.Redis, queue: str) -> int:
    return len(jobs_of(client, queue, "active"))


@LATE
@pytest.mark.parametrize("pool", ["prefork", "threads", "gevent", "eventlet"])
def test_held(app: Celery, worker: WorkerOf, job: JobOf, queue_name: str, tmp_path: Path, pool: str, is_late: bool) -> None:
    """Two run and two are reserved, acknowledged or not; another worker takes the rest meanwhile."""
    client = job("").client
    ats = [str(tmp_path / f"it-{n}") for n in range(2)]
    held = [job(app.send_task(name_of("hold", is_late), args=[at], queue=queue_name).id) for at in ats]
    others = [job(app.send_task(name_of("echo", is_late), args=[n], queue=queue_name).id) for n in range(8)]
    first = worker(pool=pool, concurrency=2, settings={"worker_prefetch_multiplier": 2})
    wait_until(lambda: all(Path(f"{at}.runs").exists() for at in ats), what="both to run")
    wait_until(lambda: active(client, queue_name) == 4, what="four jobs to be held")
    second = worker(pool="solo", concurrency=1, settings={"worker_prefetch_multiplier": 1})
    for other in others[2:]:
        other.wait_for("completed")
        assert other.hash["pb"] == second.name
    assert active(client, queue_name) == 4
    for at in ats:
        Path(f"{at}.go").touch()
    for one in (*held, *others[:2]):
        one.wait_for("completed")
        assert one.hash["pb"] == first.name
    assert most_held(client, queue_name, first.name) == 4
    assert most_held(client, queue_name, second.name) == 1


@LATE
@POOLS
def test_many_short_tasks(app: Celery, worker: WorkerOf, job: JobOf, queue_name: str, pool: str, is_late: bool) -> None:
    sent = [job(app.send_task(name_of("echo", is_late), args=[n], queue=queue_name).id) for n in range(300)]
    one = worker(pool=pool, concurrency=slots(pool), settings={"worker_prefetch_multiplier": 3})
    client = sent[0].client
    wait_until(lambda: len(jobs_of(client, queue_name, "completed")) == 300, timeout=20.0, what="all to be done")
    assert most_held(client, queue_name, one.name) <= 3 * slots(pool)
    assert jobs_of(client, queue_name, "active") == []


@LATE
@POOLS
def test_one_at_a_time(app: Celery, worker: WorkerOf, job: JobOf, queue_name: str, pool: str, is_late: bool) -> None:
    """Prefetch 1: nothing is taken before the one in hand has ended."""
    sent = [job(app.send_task(name_of("echo", is_late), args=[n], queue=queue_name).id) for n in range(30)]
    worker(pool=pool, concurrency=1, settings={"worker_prefetch_multiplier": 1})
    for one in sent:
        one.wait_for("completed")
    assert most_held(sent[0].client, queue_name) == 1


@pytest.mark.skipif("disable_prefetch" not in NAMESPACES["worker"], reason="Celery 5.6 brought worker_disable_prefetch")
@LATE
@pytest.mark.parametrize("pool", ["prefork", "threads"])  # solo has no second slot
def test_no_prefetch(
    app: Celery, worker: WorkerOf, job: JobOf, queue_name: str, tmp_path: Path, pool: str, is_late: bool
) -> None:  # fmt: skip
    """Celery's worker_disable_prefetch: only what can run at once."""
    at = str(tmp_path / "it")
    held = job(app.send_task(name_of("hold", is_late), args=[at], queue=queue_name).id)
    others = [job(app.send_task(name_of("echo", is_late), args=[n], queue=queue_name).id) for n in range(5)]
    worker(pool=pool, concurrency=2, settings={"worker_disable_prefetch": True})
    for other in others:
        other.wait_for("completed")
    assert held.state == "active"
    assert most_held(held.client, queue_name) <= 2
    Path(f"{at}.go").touch()
    held.wait_for("completed")


@LATE
@POOLS
def test_tasks_that_have_waited_for_their_time(
    app: Celery, worker: WorkerOf, job: JobOf, queue_name: str, tmp_path: Path, pool: str, is_late: bool
) -> None:  # fmt: skip
    """Celery would hold one more for each whose eta it has to wait for; here it has come."""
    ats = [tmp_path / f"it-{n}" for n in range(4)]
    sent = [job(app.send_task(name_of("hold", is_late), args=[str(at)], queue=queue_name, countdown=1).id) for at in ats]
    worker(pool=pool, concurrency=1, settings={"worker_prefetch_multiplier": 1})
    client = sent[0].client
    for number in range(1, len(ats) + 1):
        wait_until(lambda: sum(Path(f"{at}.runs").exists() for at in ats) == number, what="the next to run")  # noqa: B023
        time.sleep(0.2)
        assert active(client, queue_name) == 1
        for at in ats:
            if Path(f"{at}.runs").exists():
                Path(f"{at}.go").touch()
    for one in sent:
        one.wait_for("completed")
    assert most_held(client, queue_name) == 1


@LATE
@POOLS
def test_unlimited(app: Celery, worker: WorkerOf, job: JobOf, queue_name: str, tmp_path: Path, pool: str, is_late: bool) -> None:
    """worker_prefetch_multiplier = 0: all there is."""
    at = str(tmp_path / "it")
    held = job(app.send_task(name_of("hold", is_late), args=[at], queue=queue_name).id)
    for n in range(150):
        app.send_task(name_of("echo", is_late), args=[n], queue=queue_name)
    worker(pool=pool, concurrency=1, settings={"worker_prefetch_multiplier": 0})
    wait_until(lambda: active(held.client, queue_name) == 151, what="all to be held")
    Path(f"{at}.go").touch()
    wait_until(lambda: active(held.client, queue_name) == 0, what="all to be done", timeout=20)


def test_two_queues_share_the_count(app: Celery, worker: WorkerOf, redis_client: redis.Redis, queue_name: str, tmp_path: Path) -> None:
    queues = [queue_name, f"{queue_name}-2"]
    ats = [str(tmp_path / f"it-{n}") for n in range(6)]
    sent = [Job(redis_client, queues[n % 2], app.send_task("hold", args=[at], queue=queues[n % 2]).id) for n, at in enumerate(ats)]
    worker(*queues, concurrency=1, settings={"worker_prefetch_multiplier": 3})
    wait_until(lambda: sum(active(redis_client, queue) for queue in queues) == 3, what="three jobs to be held")
    for at in ats:
        Path(f"{at}.go").touch()
    for one in sent:
        one.wait_for("completed")
