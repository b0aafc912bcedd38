"""Deduplication, asked for by either side, with Celery's and with Node's workers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import redis
from celery import Celery
from interop_tasks import hold, value
from node_driver import Node
from waiting import wait_until

Serve = Callable[[str], Any]


def finished(node: Node, queue: str, job_id: str) -> Any:
    return node.call("waitUntilFinished", queue=queue, jobId=job_id, ttl=15000)


def add(node: Node, queue: str, data: Any, **opts: Any) -> str:
    return str(node.call("add", queue=queue, name="value", data=[data], opts=opts)["id"])


def test_while_the_first_lives_others_are_dropped(node: Node, queue_name: str, serve: Serve) -> None:
    dedup = {"id": "one"}
    node.call("queueEvents", queue=queue_name)
    first = add(node, queue_name, 1, deduplication=dedup)
    assert add(node, queue_name, 2, deduplication=dedup) == first
    event = node.wait_for_event(queue_name, "deduplicated", jobId=first)
    assert event["args"]["deduplicationId"] == "one"

    serve(queue_name)
    assert finished(node, queue_name, first) == 1
    node.wait_for_state(queue_name, first, "completed")

    # Celery's worker has freed the id.
    second = add(node, queue_name, 3, deduplication=dedup)
    assert second != first
    assert finished(node, queue_name, second) == 3


def test_the_id_is_free_again_after_a_failure_in_celery(node: Node, queue_name: str, serve: Serve, redis_client: redis.Redis) -> None:
    serve(queue_name)
    opts = {"deduplication": {"id": "one"}, "attempts": 2}
    job_id = node.call("add", queue=queue_name, name="fail", data={}, opts=opts)["id"]
    node.wait_for_state(queue_name, job_id, "failed")
    assert node.queue_call(queue_name, "getDeduplicationJobId", "one") is None


def test_a_time_to_live_outlives_the_job(node: Node, queue_name: str, serve: Serve, redis_client: redis.Redis) -> None:
    serve(queue_name)
    dedup = {"id": "window", "ttl": 60_000}
    first = add(node, queue_name, 1, deduplication=dedup)
    assert finished(node, queue_name, first) == 1
    node.wait_for_state(queue_name, first, "completed")
    assert add(node, queue_name, 2, deduplication=dedup) == first
    assert redis_client.pttl(f"bull:{queue_name}:de:window") > 0


def test_the_last_one_of_those_that_came_meanwhile_runs_afterwards(
    node: Node, queue_name: str, serve: Serve, redis_client: redis.Redis
) -> None:
    """keepLastIfActive: what Node's worker does when the owner ends, Celery's does too."""
    serve(queue_name)
    key = f"{queue_name}:hold"
    dedup = {"id": "last", "keepLastIfActive": True}
    node.call("queueEvents", queue=queue_name)
    node.call("add", queue=queue_name, name="hold", data={"key": key, "result": 1}, opts={"deduplication": dedup})
    wait_until(lambda: redis_client.llen(f"{key}:running"), what="the first to run")
    for n in (2, 3):
        add(node, queue_name, n, deduplication=dedup)
    redis_client.rpush(f"{key}:gate", 1)

    def results() -> list[Any]:
        found = [e["args"]["returnvalue"] for e in node.call("events", queue=queue_name) if e["event"] == "completed"]
        assert len(found) == 2
        return found

    assert wait_until(results, what="two to complete") == [1, 3]
    assert node.call("getJobCounts", queue=queue_name)["completed"] == 2


# -- asked for by Celery


def test_apply_async_may_ask_for_it(node: Node, queue_name: str, celery_app: Celery, serve: Serve) -> None:
    node.call("queueEvents", queue=queue_name)
    wish = {"deduplication": {"id": "one"}}
    first = value.apply_async((1,), queue=queue_name, bullmq=wish)
    dropped = value.apply_async((2,), queue=queue_name, bullmq=wish)
    event = node.wait_for_event(queue_name, "deduplicated", jobId=first.id)
    assert event["args"] == {"jobId": first.id, "deduplicationId": "one", "deduplicatedJobId": dropped.id}
    assert node.queue_call(queue_name, "getDeduplicationJobId", "one") == first.id
    # Node's producer meets the same rule.
    assert add(node, queue_name, 3, deduplication={"id": "one"}) == first.id
    serve(queue_name)
    assert finished(node, queue_name, first.id) == 1
    node.wait_for_state(queue_name, first.id, "completed")
    assert node.call("getJobCounts", queue=queue_name)["completed"] == 1
    again = value.apply_async((4,), queue=queue_name, bullmq=wish)
    assert finished(node, queue_name, again.id) == 4


def test_a_debounced_task_is_the_last_one(node: Node, queue_name: str, celery_app: Celery, redis_client: redis.Redis) -> None:
    node.call("queueEvents", queue=queue_name)
    wish = {"deduplication": {"id": "late", "ttl": 300, "extend": True, "replace": True}, "delay": 300}
    sent = [value.apply_async((n,), queue=queue_name, bullmq=wish) for n in range(3)]
    assert node.call("getJobCounts", queue=queue_name)["delayed"] == 1
    for one in sent[:2]:
        assert node.wait_for_event(queue_name, "removed", jobId=one.id)["args"]["prev"] == "delayed"
    node.call("worker", queue=queue_name)
    assert finished(node, queue_name, sent[2].id) == {"args": [2], "kwargs": {}}
    assert len(node.call("runs", queue=queue_name)) == 1


def test_node_runs_the_last_task_of_those_that_celery_sent_meanwhile(node: Node, queue_name: str, celery_app: Celery, serve: Serve) -> None:
    wish = {"deduplication": {"id": "last", "keepLastIfActive": True}}
    node.call("worker", queue=queue_name, behaviours={"hold": {"hold": queue_name}})
    hold.apply_async(kwargs={"key": "unused"}, queue=queue_name, bullmq=wish)
    wait_until(lambda: node.call("runs", queue=queue_name), what="the first to run")
    for n in (2, 3):
        sent = value.apply_async(kwargs={"value": n}, queue=queue_name, bullmq=wish)
    node.call("release", gate=queue_name)

    def second() -> Any:
        runs = node.call("runs", queue=queue_name)
        assert len(runs) == 2
        return runs[1]

    run = wait_until(second, what="the second run")
    assert (run["name"], run["data"], run["jobId"]) == ("value", {"value": 3}, sent.id)
