"""A worker's host dies: the other side notices, by BullMQ's own rules, and what happens to the job is what its acknowledgement promised."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis
from celery import Celery
from celery_worker import QUICK, CeleryWorker
from node_driver import VERSIONS, Node, NodeError
from servers import Server
from waiting import wait_until

NodeOf = Callable[[str], Node]

LOST = "worker lost after acknowledging early"
NODE_QUICK = {"lockDuration": 1000, "stalledInterval": 500, "drainDelay": 1}


@pytest.fixture(params=VERSIONS)
def mortal(request: pytest.FixtureRequest, server: Server) -> Iterator[Node]:
    """A Node of this test's own, to be killed."""
    node = Node(request.param, server).start()
    yield node
    node.kill()


@pytest.fixture
def quick(server: Server, tmp_path: Path, celery_app: Celery) -> Iterator[Callable[[str], CeleryWorker]]:
    """A Celery worker of this test's own that keeps its locks for a second only."""
    started: list[CeleryWorker] = []

    def start(queue: str) -> CeleryWorker:
        settings = {"broker_transport_options": dict(QUICK)}
        worker = CeleryWorker(server, tmp_path, pool="threads", queues=[queue], settings=settings).start()
        started.append(worker)
        return worker

    yield start
    for worker in started:
        worker.kill()
        print(worker.log[-5000:])


def holding(client: redis.Redis, key: str, count: int = 1) -> None:
    wait_until(lambda: client.llen(f"{key}:running") >= count, what="the task to run")


def test_what_a_dead_node_worker_had_is_done_by_celery(
    mortal: Node, node_of: NodeOf, queue_name: str, quick: Callable[[str], CeleryWorker], redis_client: redis.Redis
) -> None:
    node = node_of(mortal.version)
    node.call("queueEvents", queue=queue_name)
    mortal.call("worker", queue=queue_name, opts=NODE_QUICK, default={"hold": "for ever"})
    job_id = node.call("add", queue=queue_name, name="value", data=["done"])["id"]
    wait_until(lambda: mortal.call("runs", queue=queue_name), what="Node to hold the job")

    mortal.kill()
    worker = quick(queue_name)

    assert node.call("waitUntilFinished", queue=queue_name, jobId=job_id, ttl=15000) == "done"
    job = node.wait_for_state(queue_name, job_id, "completed")
    assert (job["attemptsStarted"], job["attemptsMade"], job["stalledCounter"], job["processedBy"]) == (2, 1, 1, worker.name)
    node.wait_for_event(queue_name, "stalled", jobId=job_id)
    node.wait_for_event(queue_name, "waiting", jobId=job_id, prev="active")


def test_what_a_dead_celery_worker_had_late_is_done_by_node(
    node: Node, queue_name: str, quick: Callable[[str], CeleryWorker], celery_app: Celery, redis_client: redis.Redis
) -> None:
    node.call("queueEvents", queue=queue_name)
    worker = quick(queue_name)
    sent = celery_app.send_task("hold.late", (queue_name,), queue=queue_name)
    holding(redis_client, queue_name)

    worker.kill()
    node.call("worker", queue=queue_name, opts=NODE_QUICK, default={"return": "done by Node"})

    assert node.call("waitUntilFinished", queue=queue_name, jobId=sent.id, ttl=15000) == "done by Node"
    node.wait_for_event(queue_name, "stalled", jobId=sent.id)
    job = node.wait_for_state(queue_name, sent.id, "completed")
    assert (job["attemptsStarted"], job["stalledCounter"]) == (2, 1)


def test_what_a_dead_celery_worker_had_early_is_failed_by_node_and_never_run_twice(
    node: Node, queue_name: str, quick: Callable[[str], CeleryWorker], celery_app: Celery, redis_client: redis.Redis
) -> None:
    worker = quick(queue_name)
    sent = celery_app.send_task("hold", (queue_name,), queue=queue_name)
    holding(redis_client, queue_name)
    wait_until(lambda: redis_client.hget(f"bull:{queue_name}:{sent.id}", "defa") == LOST, what="the promise")

    worker.kill()
    node.call("worker", queue=queue_name, opts=NODE_QUICK, default={"return": "never"})

    with pytest.raises(NodeError, match=LOST):
        node.call("waitUntilFinished", queue=queue_name, jobId=sent.id, ttl=15000)
    job = node.wait_for_state(queue_name, sent.id, "failed")
    assert (job["failedReason"], job["deferredFailure"]) == (LOST, None)
    assert node.call("runs", queue=queue_name) == []

    # Seen in a dashboard and tried again by hand, it runs as any other.
    node.job_call(queue_name, sent.id, "retry", "failed")
    assert node.wait_for_state(queue_name, sent.id, "completed")["returnvalue"] == "never"


def test_celery_brings_back_what_a_dead_celery_worker_had(
    node_of: NodeOf, queue_name: str, quick: Callable[[str], CeleryWorker], celery_app: Celery, redis_client: redis.Redis
) -> None:
    node = node_of("v6")
    node.call("queueEvents", queue=queue_name)
    first = quick(queue_name)
    late = celery_app.send_task("hold.late", (queue_name, "late"), queue=queue_name)
    early = celery_app.send_task("hold", (queue_name, "early"), queue=queue_name)
    holding(redis_client, queue_name, 2)
    wait_until(lambda: redis_client.hget(f"bull:{queue_name}:{early.id}", "defa") == LOST, what="the promise")

    first.kill()
    quick(queue_name)

    with pytest.raises(NodeError, match=LOST):
        node.call("waitUntilFinished", queue=queue_name, jobId=early.id, ttl=15000)
    holding(redis_client, queue_name, 3)
    redis_client.rpush(f"{queue_name}:gate", 1)
    assert node.call("waitUntilFinished", queue=queue_name, jobId=late.id, ttl=15000) == "late"
    assert redis_client.llen(f"{queue_name}:running") == 3


def test_a_failure_that_node_has_put_off_is_celerys_to_tell(
    node: Node, queue_name: str, serve: Callable[[str], CeleryWorker], redis_client: redis.Redis
) -> None:
    """A job that took its worker down too often: Node's check says so in the job, and the next worker fails it without running it."""
    opts = {"attempts": 5, "backoff": 1000}
    job_id = node.call("add", queue=queue_name, name="note", data={"key": f"{queue_name}:ran", "text": 1}, opts=opts)["id"]
    redis_client.hset(f"bull:{queue_name}:{job_id}", "defa", "job stalled more than allowable limit")
    node.call("queueEvents", queue=queue_name)

    serve(queue_name)

    with pytest.raises(NodeError, match="job stalled more than allowable limit"):
        node.call("waitUntilFinished", queue=queue_name, jobId=job_id, ttl=15000)
    job = node.wait_for_state(queue_name, job_id, "failed")
    assert (job["failedReason"], job["deferredFailure"]) == ("job stalled more than allowable limit", None)
    assert (job["attemptsMade"], job["attemptsStarted"]) == (1, 1)
    assert redis_client.exists(f"{queue_name}:ran") == 0
    node.wait_for_event(queue_name, "active", jobId=job_id)
    node.wait_for_event(queue_name, "failed", jobId=job_id)


def test_a_job_that_stalls_too_often_is_failed_whoever_looks(
    mortal: Node, node_of: NodeOf, queue_name: str, quick: Callable[[str], CeleryWorker], redis_client: redis.Redis
) -> None:
    node = node_of(mortal.version)
    mortal.call("worker", queue=queue_name, opts=NODE_QUICK, default={"hold": "for ever"})
    job_id = node.call("add", queue=queue_name, name="value", data=["done"])["id"]
    wait_until(lambda: mortal.call("runs", queue=queue_name), what="Node to hold the job")
    redis_client.hset(f"bull:{queue_name}:{job_id}", "stc", 1)  # it has lost a worker before

    mortal.kill()
    quick(queue_name)

    job = node.wait_for_state(queue_name, job_id, "failed", timeout=15)
    assert (job["failedReason"], job["stalledCounter"], job["returnvalue"]) == ("job stalled more than allowable limit", 2, None)


def test_a_celery_worker_that_lives_keeps_its_job_from_nodes_check(
    node: Node, queue_name: str, quick: Callable[[str], CeleryWorker], celery_app: Celery, redis_client: redis.Redis
) -> None:
    """Longer than the lock, with a Node worker looking for stalled jobs all the while."""
    quick(queue_name)
    sent = celery_app.send_task("hold.late", (queue_name, "kept"), queue=queue_name)
    holding(redis_client, queue_name)
    node.call("queueEvents", queue=queue_name)
    node.call("worker", queue=queue_name, opts={**NODE_QUICK, "stalledInterval": 200}, default={"return": "stolen"})

    checks: set[str | None] = set()

    def looked_often() -> bool:
        checks.add(redis_client.get(f"bull:{queue_name}:stalled-check"))
        return len(checks) >= 12  # more than two seconds: the lock is for one

    wait_until(looked_often, what="a dozen checks for stalled jobs")
    redis_client.rpush(f"{queue_name}:gate", 1)

    assert node.call("waitUntilFinished", queue=queue_name, jobId=sent.id, ttl=15000) == "kept"
    assert node.job(queue_name, sent.id)["attemptsStarted"] == 1
    assert [event for event in node.call("events", queue=queue_name) if event["event"] == "stalled"] == []
