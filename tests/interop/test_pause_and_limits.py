"""What Node sets for a whole queue binds Celery's workers: pause, global concurrency, global rate limit."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import redis
from celery import Celery
from celery_worker import CeleryWorker
from interop_tasks import value
from node_driver import VERSIONS, Node
from servers import Server
from waiting import wait_until

from bullmq_kombu import Queue

Serve = Callable[[str], Any]
NodeOf = Callable[[str], Node]


def finished(node: Node, queue: str, job_id: str) -> Any:
    return node.call("waitUntilFinished", queue=queue, jobId=job_id, ttl=15000)


def go_round(node: Node, serve: Serve, queue: str, rounds: int = 3) -> None:
    """Has the worker do jobs of another queue: it looked at all its queues meanwhile."""
    other = f"{queue}-other"
    serve(other)
    for _ in range(rounds):
        finished(node, other, node.call("add", queue=other, name="value", data=1)["id"])


def waiting(client: redis.Redis, queue: str) -> int:
    return int(client.llen(f"bull:{queue}:wait")) + int(client.llen(f"bull:{queue}:paused"))  # type: ignore[arg-type]


def test_a_queue_paused_from_node_stands_still_until_it_is_resumed(
    node: Node, queue_name: str, celery_app: Celery, serve: Serve, redis_client: redis.Redis
) -> None:
    serve(queue_name)
    finished(node, queue_name, node.call("add", queue=queue_name, name="value", data=0)["id"])
    node.queue_call(queue_name, "pause")

    ids = [node.call("add", queue=queue_name, name="value", data=1)["id"], value.apply_async((2,), queue=queue_name).id]
    ids += [value.apply_async((3,), queue=queue_name, priority=1).id, value.apply_async((4,), queue=queue_name, countdown=0.01).id]

    go_round(node, serve, queue_name)
    assert redis_client.llen(f"bull:{queue_name}:active") == 0
    assert node.call("getJobCounts", queue=queue_name)["completed"] == 1
    assert {node.call("getState", queue=queue_name, jobId=job_id) for job_id in ids} <= {"waiting", "prioritized", "delayed"}

    node.queue_call(queue_name, "resume")

    assert [finished(node, queue_name, job_id) for job_id in ids] == [1, 2, 3, 4]


def test_jobs_that_wait_when_a_queue_is_paused_keep_their_order(
    node: Node, queue_name: str, celery_app: Celery, serve_in_order: Serve, redis_client: redis.Redis
) -> None:
    key = f"{queue_name}:notes"
    for n in range(3):
        celery_app.send_task("note", (key, n), queue=queue_name)
    node.queue_call(queue_name, "pause")
    for n in range(3, 6):
        celery_app.send_task("note", (key, n), queue=queue_name)
    assert waiting(redis_client, queue_name) == 6
    serve_in_order(queue_name)
    node.queue_call(queue_name, "resume")
    wait_until(lambda: redis_client.llen(key) == 6, what="six notes")
    assert redis_client.lrange(key, 0, -1) == [str(n) for n in range(6)]


def test_nothing_is_lost_when_both_sides_send_to_a_paused_queue(node: Node, queue_name: str, celery_app: Celery, serve: Serve) -> None:
    """BullMQ 5 parks jobs in a list of its own, and its resume would overwrite what somebody else put into the other one."""
    node.queue_call(queue_name, "pause")
    sent = [value.apply_async((0,), queue=queue_name).id]
    sent.append(node.call("add", queue=queue_name, name="value", data=1)["id"])
    sent.append(value.apply_async((2,), queue=queue_name).id)
    sent.append(node.call("add", queue=queue_name, name="value", data=3)["id"])
    node.queue_call(queue_name, "resume")
    serve(queue_name)
    assert [finished(node, queue_name, job_id) for job_id in sent] == [0, 1, 2, 3]


def test_pausing_twice_loses_nothing_that_celery_sent_between(node: Node, queue_name: str, celery_app: Celery, serve: Serve) -> None:
    sent = [node.call("add", queue=queue_name, name="value", data=0)["id"]]
    node.queue_call(queue_name, "pause")
    sent.append(value.apply_async((1,), queue=queue_name).id)
    node.queue_call(queue_name, "pause")
    sent.append(value.apply_async((2,), queue=queue_name).id)
    node.queue_call(queue_name, "resume")
    serve(queue_name)
    assert [finished(node, queue_name, job_id) for job_id in sent] == [0, 1, 2]


@pytest.mark.parametrize(("pauses", "resumes"), [VERSIONS, VERSIONS[::-1]])
def test_one_major_may_pause_and_the_other_resume(
    node_of: NodeOf, queue_name: str, celery_app: Celery, serve: Serve, pauses: str, resumes: str
) -> None:
    first, second = node_of(pauses), node_of(resumes)
    first.queue_call(queue_name, "pause")
    sent = [value.apply_async((n,), queue=queue_name).id for n in range(3)]
    second.queue_call(queue_name, "resume")
    serve(queue_name)  # only now: what BullMQ 5 resumes after BullMQ 6 wakes no worker that waits, not Node's either
    assert [finished(second, queue_name, job_id) for job_id in sent] == [0, 1, 2]


@pytest.mark.parametrize("resumes", ["python", "node", "node, paused again"])
def test_a_queue_that_python_pauses_keeps_all_and_their_order(
    node: Node, queue_name: str, celery_app: Celery, serve_in_order: Serve, redis_client: redis.Redis, resumes: str
) -> None:
    """Of a queue that BullMQ 5 has opened, it puts what it had parked in the place of whatever waits."""
    key, own = f"{queue_name}:notes", Queue(queue_name, celery_app.conf.broker_url)
    for n in range(2):
        celery_app.send_task("note", (key, n), queue=queue_name)
    node.call("add", queue=queue_name, name="note", data={"key": key, "text": 2})
    own.pause()
    celery_app.send_task("note", (key, 3), queue=queue_name)
    node.call("add", queue=queue_name, name="note", data={"key": key, "text": 4})
    celery_app.send_task("note", (key, 5), queue=queue_name)
    assert waiting(redis_client, queue_name) == 6
    if resumes == "node, paused again":
        node.queue_call(queue_name, "pause")
    if resumes == "python":
        own.resume()
    else:
        node.queue_call(queue_name, "resume")
    serve_in_order(queue_name)
    wait_until(lambda: redis_client.llen(key) == 6, what="six notes")
    assert redis_client.lrange(key, 0, -1) == [str(n) for n in range(6)]


def test_what_runs_when_a_queue_is_paused_ends(
    node: Node, queue_name: str, celery_app: Celery, serve: Serve, redis_client: redis.Redis
) -> None:
    key = f"{queue_name}:hold"
    serve(queue_name)
    held = celery_app.send_task("hold", (key, "held"), queue=queue_name)
    wait_until(lambda: redis_client.llen(f"{key}:running"), what="the task to run")
    node.queue_call(queue_name, "pause")
    redis_client.rpush(f"{key}:gate", 1)
    assert finished(node, queue_name, held.id) == "held"


# -- limits


def test_a_global_concurrency_binds_celery(
    node: Node, queue_name: str, celery_app: Celery, serve: Serve, redis_client: redis.Redis
) -> None:
    """The worker has two processes; one job at a time runs, whoever set that."""
    key = f"{queue_name}:hold"
    node.queue_call(queue_name, "setGlobalConcurrency", 1)
    sent = [celery_app.send_task("hold", (key, n), queue=queue_name) for n in range(3)]
    serve(queue_name)
    for n in range(1, 4):
        wait_until(lambda n=n: redis_client.llen(f"{key}:running") == n, what=f"task {n} to run")
        go_round(node, serve, queue_name, rounds=1)
        assert (redis_client.llen(f"bull:{queue_name}:active"), redis_client.llen(f"{key}:running")) == (1, n)
        redis_client.rpush(f"{key}:gate", 1)
    assert [finished(node, queue_name, one.id) for one in sent] == [0, 1, 2]

    node.queue_call(queue_name, "removeGlobalConcurrency")
    for n in range(2):
        celery_app.send_task("hold", (key, n), queue=queue_name)
    wait_until(lambda: redis_client.llen(f"{key}:running") == 5, what="two at once")
    redis_client.rpush(f"{key}:gate", 1, 1)
    wait_until(lambda: redis_client.llen(f"bull:{queue_name}:active") == 0, what="both to end")


def test_a_global_concurrency_counts_both_sides(
    node: Node, queue_name: str, celery_app: Celery, serve: Serve, redis_client: redis.Redis
) -> None:
    node.queue_call(queue_name, "setGlobalConcurrency", 1)
    node.call("worker", queue=queue_name, default={"hold": queue_name})
    sent = value.apply_async((1,), queue=queue_name)
    wait_until(lambda: redis_client.llen(f"bull:{queue_name}:active") == 1, what="Node to hold the job")
    second = value.apply_async((2,), queue=queue_name)
    serve(queue_name)
    go_round(node, serve, queue_name, rounds=1)
    assert node.call("getState", queue=queue_name, jobId=second.id) == "waiting"
    node.call("release", gate=queue_name)
    for one in (sent, second):
        finished(node, queue_name, one.id)


def test_a_global_rate_limit_binds_celery(node: Node, queue_name: str, celery_app: Celery, serve: Serve) -> None:
    serve(queue_name)
    finished(node, queue_name, node.call("add", queue=queue_name, name="value", data=0)["id"])
    node.queue_call(queue_name, "setGlobalRateLimit", 2, 600)
    sent = [value.apply_async((n,), queue=queue_name) for n in range(5)]
    assert [finished(node, queue_name, one.id) for one in sent] == [0, 1, 2, 3, 4]
    started = sorted(node.job(queue_name, one.id)["processedOn"] for one in sent)
    assert started[2] - started[0] >= 590
    assert started[4] - started[2] >= 590
    assert started[4] - started[0] < 600 * 2 + 4000


def test_the_limiter_of_a_worker_binds_it(
    node: Node, server: Server, queue_name: str, celery_app: Celery, redis_client: redis.Redis, tmp_path: Path
) -> None:
    """The worker's own limit is BullMQ's: Node sees how long it is closed, and nobody asks again before it opens."""
    limiter = {"limiter": {"max": 2, "duration": 2.0}, "drain_delay": 30.0}
    sent = [value.apply_async((n,), queue=queue_name) for n in range(4)]
    with CeleryWorker(server, tmp_path, pool="solo", queues=[queue_name], settings={"broker_transport_options": limiter}):
        assert [finished(node, queue_name, one.id) for one in sent[:2]] == [0, 1]
        assert 0 < node.queue_call(queue_name, "getRateLimitTtl", 2) <= 2000
        assert redis_client.llen(f"bull:{queue_name}:wait") == 2
        before = scripts_run(redis_client)
        assert [finished(node, queue_name, one.id) for one in sent[2:]] == [2, 3]
    started = sorted(node.job(queue_name, one.id)["processedOn"] for one in sent)
    assert started[2] - started[0] >= 1990
    # Taking, ending and Node's looking: a poll while the queue is closed would be dozens.
    assert scripts_run(redis_client) - before < 25


def test_a_wait_for_something_due_is_no_polling(
    node: Node, server: Server, queue_name: str, celery_app: Celery, redis_client: redis.Redis, tmp_path: Path
) -> None:
    """Delayed jobs, a paused queue and a global limit: the worker sleeps until the first of them is due."""
    delayed, paused, limited = (f"{queue_name}-{what}" for what in ("delayed", "paused", "limited"))
    node.queue_call(paused, "pause")
    node.queue_call(limited, "setGlobalRateLimit", 1, 3000)
    settings = {"broker_transport_options": {"drain_delay": 30.0}}
    with CeleryWorker(server, tmp_path, pool="solo", queues=[delayed, paused, limited], settings=settings):
        first = value.apply_async((0,), queue=limited)
        finished(node, limited, first.id)
        waits = [value.apply_async((1,), queue=queue) for queue in (paused, limited)]
        called = time.time_ns() // 1_000_000
        late = value.apply_async((2,), queue=delayed, countdown=2.0)
        before = scripts_run(redis_client)
        assert finished(node, delayed, late.id) == 2
        # The job's timestamp is some ms later, and its delay as much shorter.
        assert node.job(delayed, late.id)["processedOn"] - called >= 2000
        assert finished(node, limited, waits[1].id) == 1
        assert scripts_run(redis_client) - before < 25
        assert node.job(limited, waits[1].id)["processedOn"] - node.job(limited, first.id)["processedOn"] >= 3000
    assert node.call("getState", queue=paused, jobId=waits[0].id) in ("waiting", "paused")


def scripts_run(client: redis.Redis) -> int:
    """How many there have been on this server, whoever ran them."""
    stats: Any = client.info("commandstats")
    return int(stats.get("cmdstat_evalsha", {}).get("calls", 0))
