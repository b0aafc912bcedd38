"""Remote control, events and what workers tell each other: as with any other broker, and without a trace among BullMQ's queues."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import celery
import pytest
import redis
from celery import Celery
from conftest import JobOf, WorkerOf, sender
from jobs import Job, jobs_of
from servers import Server
from waiting import wait_until
from worker import Worker

Call = Callable[..., Any]

POOLS = ("prefork", "threads", "gevent", "eventlet")
#: gevent's takes the number of running tasks for its size before Celery 5.7; a pool of threads has the size it was made with.
RESIZABLE = ("prefork", "gevent", "eventlet") if celery.VERSION >= (5, 7) else ("prefork", "eventlet")
#: A thread cannot be ended; a gevent's greenlet can since Celery 5.5.
TERMINATING = ("prefork", "gevent", "eventlet") if celery.VERSION >= (5, 5) else ("prefork", "eventlet")


@pytest.fixture(scope="module", params=POOLS)
def one(request: pytest.FixtureRequest, server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    """A worker with a queue of its own, for tests that leave it as it was."""
    with Worker(server, tmp_path_factory.mktemp("control"), [f"control-{request.param}"], pool=request.param) as worker:
        with sender(server) as app:  # a pool of greenlets listens a moment after it has said that it is ready
            wait_until(lambda: app.control.inspect([worker.name], timeout=1.0).ping(), what="remote control to work")
        yield worker
    worker.show()


@pytest.fixture
def call(app: Celery, one: Worker) -> Call:
    """`call(command, …)`: the worker's answer."""

    def do(command: str, **arguments: Any) -> Any:
        replies = app.control.broadcast(command, arguments, reply=True, destination=[one.name], timeout=10.0, limit=1)
        assert replies, one.log[-2000:]
        return replies[0][one.name]

    return do


# -- one worker ----------------------------------------------------------------------------------------------------------------


def test_ping(call: Call) -> None:
    assert call("ping") == {"ok": "pong"}


def test_stats(call: Call, one: Worker) -> None:
    stats = call("stats")
    assert stats["pid"] == one.pid
    assert stats["broker"]["transport"] == "bullmq"
    assert "password" not in stats["broker"]
    assert stats["prefetch_count"] == 8


def test_active_and_reserved(app: Celery, call: Call, one: Worker, redis_client: redis.Redis, tmp_path: Path) -> None:
    queue = f"control-{one.pool}"
    held = [app.send_task("hold", args=[str(tmp_path / f"it-{n}")], queue=queue).id for n in range(2)]
    wait_until(lambda: {task["id"] for task in call("active")} == set(held), what="both to be active")
    if one.pool in ("prefork", "threads"):  # a greenlet pool that is full takes no more
        third = app.send_task("hold", args=[str(tmp_path / "it-0")], queue=queue).id
        wait_until(lambda: third in [task["id"] for task in call("reserved")], what="the third to be reserved")
    for n in range(2):
        (tmp_path / f"it-{n}.go").touch()
    wait_until(lambda: jobs_of(redis_client, queue, "active") == [], what="all to be done")


def test_queues(call: Call, app: Celery, job: JobOf, one: Worker, queue_name: str) -> None:
    """A queue is consumed when asked for and no longer when not; what waits then stays."""

    def consumed() -> list[str]:
        return [queue["name"] for queue in call("active_queues")]

    # In the greenlet pools Celery does what it has promised at the end of a turn.
    assert "ok" in call("add_consumer", queue=queue_name)
    wait_until(lambda: queue_name in consumed(), what="the queue to be consumed")
    assert job(app.send_task("echo", args=["there"], queue=queue_name).id).wait_for("completed").returnvalue == "there"
    assert "ok" in call("cancel_consumer", queue=queue_name)
    wait_until(lambda: queue_name not in consumed(), what="the queue to be left")
    left = job(app.send_task("echo", queue=queue_name).id)
    Job(left.client, f"control-{one.pool}", app.send_task("echo", queue=f"control-{one.pool}").id).wait_for("completed")
    assert left.state == "waiting"


@pytest.mark.parametrize("one", RESIZABLE, indirect=True)
def test_pool_size(call: Call, app: Celery, one: Worker, redis_client: redis.Redis, tmp_path: Path) -> None:
    """Growing the pool makes room for more jobs, shrinking it for fewer."""
    queue, at = f"control-{one.pool}", tmp_path / "it"
    assert "ok" in call("pool_grow", n=1)
    wait_until(lambda: call("stats")["prefetch_count"] == 12, what="the prefetch count to grow")
    for _ in range(3):
        app.send_task("hold", args=[str(at)], queue=queue)
    wait_until(lambda: at.with_suffix(".runs").exists() and at.with_suffix(".runs").read_text().count("\n") == 3, what="three to run")
    at.with_suffix(".go").touch()
    wait_until(lambda: jobs_of(redis_client, queue, "active") == [] and call("active") == [], what="all to be done")
    wait_until(lambda: "ok" in call("pool_shrink", n=1), what="the pool to shrink")
    wait_until(lambda: call("stats")["prefetch_count"] == 8, what="the prefetch count to shrink")


@pytest.mark.parametrize("one", ["prefork", "threads"], indirect=True)  # in the greenlet pools the same code runs; it costs seconds
def test_rate_limit(call: Call, app: Celery, one: Worker, redis_client: redis.Redis) -> None:
    """A task type's rate limit holds its jobs back, not others; what is held is active and locked."""
    queue = f"control-{one.pool}"
    assert "ok" in call("rate_limit", task_name="seen", rate_limit="1/s")
    limited = [Job(redis_client, queue, app.send_task("seen", queue=queue).id) for _ in range(3)]
    Job(redis_client, queue, app.send_task("echo", queue=queue).id).wait_for("completed")
    assert limited[2].state == "active"
    assert limited[2].is_locked
    for job in limited:
        job.wait_for("completed")
    assert int(limited[2].hash["finishedOn"]) - int(limited[0].hash["finishedOn"]) >= 1500
    assert "ok" in call("rate_limit", task_name="seen", rate_limit=None)


def test_revoke_before_start(call: Call, app: Celery, one: Worker, redis_client: redis.Redis, queue_name: str) -> None:
    queue = f"control-{one.pool}"
    for name in ("echo", "echo.late"):
        task_id = f"revoked-{name}-{queue_name}"
        call("revoke", task_id=task_id)
        job = Job(redis_client, queue, app.send_task(name, task_id=task_id, queue=queue, bullmq={"attempts": 3}).id)
        job.wait_for("failed")
        assert job.reason == "TaskRevokedError: revoked"
        assert job.attempts_made == 1


@pytest.mark.parametrize("one", TERMINATING, indirect=True)
@pytest.mark.parametrize("name", ["hold", "hold.late"])
def test_terminate(call: Call, app: Celery, one: Worker, redis_client: redis.Redis, tmp_path: Path, name: str) -> None:
    queue = f"control-{one.pool}"
    job = Job(redis_client, queue, app.send_task(name, args=[str(tmp_path / "it")], queue=queue, bullmq={"attempts": 3}).id)
    wait_until(lambda: job.id in [task["id"] for task in call("active")], what="it to be active")
    call("revoke", task_id=job.id, terminate=True)
    job.wait_for("failed")
    assert job.reason == "TaskRevokedError: terminated"
    assert job.attempts_made == 1
    assert "defa" not in job.hash
    assert (tmp_path / "it.runs").read_text().count("\n") == 1
    after = Job(redis_client, queue, app.send_task("echo", args=["after"], queue=queue).id)
    assert after.wait_for("completed").returnvalue == "after"


# -- the worker as a whole -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pool", ["prefork", "solo"])
def test_shutdown(app: Celery, worker: WorkerOf, pool: str) -> None:
    one = worker(pool=pool)
    app.control.shutdown([one.name])
    one.wait()


def test_purge(server: Server, redis_client: redis.Redis, queue_name: str) -> None:
    """What waits and what is delayed goes; the queue stays."""
    with sender(server, task_default_queue=queue_name) as app:
        sent = [app.send_task("task", **options).id for options in ({}, {"priority": 3}, {"countdown": 60})]
        assert app.control.purge() == 3
        assert not any(redis_client.exists(f"bull:{queue_name}:{job_id}") for job_id in sent)
        assert redis_client.exists(f"bull:{queue_name}:meta")
        assert app.control.purge() == 0


def test_neighbours(tmp_path: Path, queue_name: str) -> None:
    """Mingle finds the other worker and takes over what it has revoked; gossip notices when it comes and goes."""
    with contextlib.ExitStack() as stack:
        own = stack.enter_context(Server())
        app = stack.enter_context(sender(own))
        first = stack.enter_context(Worker(own, tmp_path, [queue_name], neighbours=True, arguments=["-l", "DEBUG"]))
        app.control.revoke("never", destination=[first.name], reply=True, timeout=10.0, limit=1)
        second = stack.enter_context(Worker(own, tmp_path, [queue_name], neighbours=True))
        assert "mingle: sync with 1 nodes" in second.log
        assert app.control.inspect([second.name], timeout=10.0, limit=1).revoked() == {second.name: ["never"]}
        wait_until(lambda: f"{second.name} joined the party" in first.log, what="gossip to notice the other one")
        second.stop()
        wait_until(lambda: f"{second.name} left" in first.log, what="gossip to notice the end")


def test_events(server: Server, app: Celery, worker: WorkerOf, job: JobOf, queue_name: str) -> None:
    """What `celery events` and Flower listen to."""
    seen: list[dict[str, Any]] = []
    ready, over = threading.Event(), threading.Event()

    def types(kind: str, **fields: Any) -> list[str]:
        return [event["type"] for event in list(seen) if event["type"].startswith(kind) and fields.items() <= event.items()]

    def listen() -> None:
        with sender(server) as listening, listening.connection_for_read() as connection:
            receiver = listening.events.Receiver(connection, handlers={"*": seen.append})
            with receiver.consumer_context() as (consuming, _, _):
                ready.set()
                while not over.is_set():
                    with contextlib.suppress(TimeoutError):
                        consuming.drain_events(timeout=0.2)

    listener = threading.Thread(target=listen)
    listener.start()
    try:
        assert ready.wait(10)
        one = worker(arguments=["-E"])
        sent = app.send_task("echo", queue=queue_name).id
        failed = app.send_task("boom", queue=queue_name).id
        wait_until(lambda: "task-succeeded" in types("task", uuid=sent), what="the event of the success")
        wait_until(lambda: "task-failed" in types("task", uuid=failed), what="the event of the failure")
        wait_until(lambda: "worker-heartbeat" in types("worker", hostname=one.name), what="a heartbeat")
        one.stop()
        wait_until(lambda: "worker-offline" in types("worker", hostname=one.name), what="the event of the worker's end")
    finally:
        over.set()
        listener.join(20)
    assert job(sent).state == "completed"
    assert types("task", uuid=sent) == ["task-received", "task-started", "task-succeeded"]
    assert types("worker", hostname=one.name)[0] == "worker-online"


# -- what is left in Redis -----------------------------------------------------------------------------------------------------


def test_nothing_of_it_is_a_bullmq_queue(queue_name: str, tmp_path: Path) -> None:
    """Queues Celery makes for itself have no `meta`, and whatever they leave behind expires."""
    with Server() as own, own.client() as client, sender(own) as app:
        with Worker(own, tmp_path, [queue_name], neighbours=True, arguments=["-E"]) as one:
            assert app.control.inspect([one.name], timeout=10.0, limit=1).ping()
            while_running: Any = client.keys("*")
        after: Any = client.keys("*")
        metas = [key for key in {*while_running, *after} if key.endswith(":meta")]
        assert metas == [f"bull:{queue_name}:meta"]
        assert not any(key.startswith("_kombu") for key in {*while_running, *after})
        for key in after:
            if key.startswith(f"bull:{queue_name}:"):
                continue
            if key == "bull::kombu:queues":
                assert client.smembers(key) == {queue_name}
            elif "bindings:" in key:
                # A binding is one field of a table; that of a durable queue stays.
                fields: Any = client.hgetall(key)
                assert all(int(until) > 0 or queue_name in binding for binding, until in fields.items()), key
            elif client.type(key) != "string" or "queue:" in key:  # counters may stay
                assert client.pttl(key) > 0, key


def test_reply_to_somebody_who_is_gone(server: Server, redis_client: redis.Redis, one: Worker) -> None:
    """It goes into a list that expires, not into a queue, also when somebody was there before."""
    with sender(server) as app:
        assert app.control.inspect([one.name], timeout=10.0, limit=1).ping()
        for _ in range(3):
            app.control.broadcast("ping", destination=[one.name], reply=True, timeout=0.0)
        # No limit: Kombu counts late replies towards it.
        wait_until(lambda: app.control.inspect([one.name], timeout=1.0).ping(), what="an answer")
    for key in redis_client.scan_iter("bull:*reply*"):
        assert "::kombu:" in key
        assert redis_client.pttl(key) > 0, key
