"""From redis:// to bullmq://, as docs/migrating.md says: side by side on one database, then with Celery's own tool."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
import redis
from celery import Celery
from conftest import JobOf, WorkerOf
from jobs import jobs_of
from servers import Server
from waiting import wait_until
from worker import Worker


@pytest.fixture
def old(server: Server) -> Iterator[Celery]:
    """An app that still has its redis:// URL, on the database of the others."""
    with Celery("old", broker=server.redis_url, set_as_current=False) as one:
        yield one


def result_of(client: redis.Redis, task_id: str) -> Any:
    """What a worker of redis:// left for its senders."""
    found: Any = wait_until(lambda: client.get(f"celery-task-meta-{task_id}"), 20.0, "a result")
    return json.loads(found)["result"]


def migrate(source: str, destination: str, folder: Path, queue: str) -> str:
    """`celery migrate`; without `-a` it copies, without `-t` it never ends."""
    command = [sys.executable, "-m", "celery", "migrate", source, destination, "-a", "-t", "1", "-Q", queue]
    environment = {**os.environ, "PYTHONPATH": ""}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_side_by_side(
    app: Celery, old: Celery, server: Server, worker: WorkerOf, job: JobOf, redis_client: redis.Redis, queue_name: str
) -> None:  # fmt: skip
    """The queue has the same name in both worlds; each worker takes its own, hears its own and counts its own."""
    echo = [old.send_task("echo", args=[n], queue=queue_name).id for n in range(3)]
    sent = job(app.send_task("echo", args=["new"], queue=queue_name).id)
    new = worker(pool="solo")
    sent.wait_for("completed")
    assert redis_client.llen(queue_name) == 3
    result = {"result_backend": server.redis_url}
    theirs = worker(pool="solo", url=server.redis_url, settings=result, options={})
    left = job(app.send_task("hold", args=["nowhere"], queue=f"{queue_name}-nobody").id)
    for n, task_id in enumerate(echo):
        assert result_of(redis_client, task_id) == n
    assert left.state is None  # it is another queue's
    assert old.control.inspect([new.name], timeout=1.0).ping() is None
    assert app.control.inspect([theirs.name], timeout=1.0).ping() is None
    assert old.control.inspect([theirs.name], timeout=5.0, limit=1).ping() is not None
    assert app.control.inspect([new.name], timeout=5.0, limit=1).ping() is not None
    assert jobs_of(redis_client, queue_name, "completed") == [sent.id]
    assert new.log.count("received") == 1
    assert theirs.log.count("received") == 3


def test_waiting_messages_are_moved(
    server: Server, old: Celery, worker: WorkerOf, job: JobOf, redis_client: redis.Redis, queue_name: str, tmp_path: Path
) -> None:  # fmt: skip
    """Each once, with its id, arguments, headers, priority and eta; nothing of it is left behind."""
    plain = [old.send_task("seen", args=[n], kwargs={"n": n}, queue=queue_name) for n in range(5)]
    urgent = old.send_task("seen", queue=queue_name, priority=6)
    later = old.send_task("seen", queue=queue_name, eta=datetime.now(timezone.utc) + timedelta(hours=1))
    theirs = old.send_task("header", args=["tenant"], headers={"tenant": "blue"}, queue=queue_name)
    assert redis_client.llen(queue_name) + redis_client.llen(f"{queue_name}\x06\x166") == 8
    out = migrate(server.redis_url, server.url, tmp_path, queue_name)
    assert "Migrating task 8/" in out
    assert not [key for key in redis_client.keys(f"*{queue_name}*") if not key.startswith(("bull:", "_kombu"))]
    assert redis_client.hlen("unacked") == 0
    assert sorted(jobs_of(redis_client, queue_name, "wait")) == sorted(each.id for each in (*plain, theirs))
    assert job(urgent.id).state == "prioritized"
    assert job(urgent.id).hash["priority"] == "6"
    assert job(later.id).state == "delayed"
    assert 3_500_000 < int(job(later.id).hash["delay"]) <= 3_600_000
    worker(pool="solo")
    for n, each in enumerate(plain):
        found = job(each.id).wait_for("completed").returnvalue
        assert found == {"id": each.id, "args": [n], "kwargs": {"n": n}, "retries": 0}
    job(urgent.id).wait_for("completed")
    assert job(theirs.id).wait_for("completed").returnvalue == "blue"
    assert "Migrating" not in migrate(server.redis_url, server.url, tmp_path, queue_name)


def in_old_queue(client: redis.Redis, queue: str) -> int:
    """How many messages wait: Kombu has a list for each range of priorities."""
    lists = [queue, *[f"{queue}\x06\x16{priority}" for priority in (3, 6, 9)]]
    return sum(int(client.llen(name)) for name in lists)  # type: ignore[arg-type]


def in_hand(old: Celery, worker: Worker) -> dict[str, list[str]]:
    """The ids that the worker has, by what it does with them."""
    inspect = old.control.inspect([worker.name], timeout=10.0, limit=1)
    answers = {"active": inspect.active(), "reserved": inspect.reserved(), "scheduled": inspect.scheduled()}
    return {
        name: [one.get("request", one)["id"] for one in found[worker.name]]
        for name, found in answers.items()
        if found and found[worker.name]
    }


def test_a_system_at_work_is_moved(
    app: Celery, old: Celery, server: Server, worker: WorkerOf, redis_client: redis.Redis, queue_name: str, tmp_path: Path
) -> None:  # fmt: skip
    """The old worker ends what it has in hand, an eta too; what waits for it is moved. Each task runs once."""
    sent: dict[str, Path] = {}

    def send(by: Celery, name: str, *, is_free: bool = True, **options: Any) -> str:
        at = tmp_path / f"task-{len(sent)}"
        if is_free:
            at.with_suffix(".go").touch()
        task_id = str(by.send_task(name, args=[str(at), "old" if by is old else "new"], queue=queue_name, **options).id)
        sent[task_id] = at
        return task_id

    settings = {"result_backend": server.redis_url, "worker_prefetch_multiplier": 1}
    leaving = worker(pool="threads", concurrency=1, url=server.redis_url, settings=settings)
    later = send(old, "hold", countdown=4)  # about as long as moving the others takes
    wait_until(lambda: later in in_hand(old, leaving).get("scheduled", []), what="the old worker to hold the eta")
    held = send(old, "hold.late", is_free=False)
    wait_until(lambda: in_hand(old, leaving).get("active") == [held], what="the old worker to be busy")
    waiting = [send(old, "hold"), send(old, "hold", priority=6), send(old, "hold.late")]

    worker(pool="solo", settings={"result_backend": server.redis_url})
    for _ in range(2):
        send(app, "hold")
    assert "Migrating task 3/" in migrate(server.redis_url, server.url, tmp_path, queue_name)
    for task_id in waiting:
        assert result_of(redis_client, task_id) == "old"

    assert in_old_queue(redis_client, queue_name) == 0
    assert redis_client.hlen("unacked") == 2
    found = in_hand(old, leaving)
    assert found.pop("active") == [held]
    assert [*found.values()] == [[later]]  # scheduled, or reserved when its time has come
    sent[held].with_suffix(".go").touch()
    wait_until(lambda: not in_hand(old, leaving) and redis_client.hlen("unacked") == 0, what="the old worker to have nothing")
    leaving.signal(signal.SIGTERM)
    assert leaving.wait() == 0

    for task_id in sent:
        result_of(redis_client, task_id)
    assert in_old_queue(redis_client, queue_name) == 0
    assert [len(at.with_suffix(".runs").read_text().splitlines()) for at in sent.values()] == [1] * 7
    assert {task_id for task_id in sent if task_id in jobs_of(redis_client, queue_name, "completed")} == {*sent} - {held, later}


def test_back_again(
    server: Server, app: Celery, worker: WorkerOf, redis_client: redis.Redis, queue_name: str, tmp_path: Path
) -> None:  # fmt: skip
    """The way back is the same: what waits, in its order, whatever its priority."""
    sent = [app.send_task("echo", args=[n], queue=queue_name, priority=6 if n == 2 else None).id for n in range(3)]
    assert "Migrating task 3/" in migrate(server.url, server.redis_url, tmp_path, queue_name)
    assert [jobs_of(redis_client, queue_name, place) for place in ("wait", "prioritized", "active")] == [[], [], []]
    worker(pool="solo", url=server.redis_url, settings={"result_backend": server.redis_url})
    assert [result_of(redis_client, each) for each in sent] == [0, 1, 2]
