"""How a task ended is what Node's `waitUntilFinished` gives or throws, and what the job says afterwards."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import redis
from celery import Celery
from interop_tasks import again, fail, fail_late, value
from node_driver import Node, NodeError

Serve = Callable[[str], Any]

VALUES = [
    None, True, False, 0, 1, -1.5, 1e300, 2**53 - 1, "", "text ä \U0001f600 \x00 \"'", [], [1, [2, [None]]], {},
    {"a": {"b": [1, {"c": None}]}}, "x" * 200_000, list(range(5000)),
]  # fmt: skip


def finished(node: Node, queue: str, job_id: str) -> Any:
    return node.call("waitUntilFinished", queue=queue, jobId=job_id, ttl=15000)


def test_every_json_value_a_task_returns_reaches_node(node: Node, queue_name: str, serve: Serve) -> None:
    worker = serve(queue_name)
    jobs = node.call("addBulk", queue=queue_name, jobs=[{"name": "value", "data": [one]} for one in VALUES])
    for job, one in zip(jobs, VALUES, strict=True):
        assert finished(node, queue_name, job["id"]) == one
        done = node.wait_for_state(queue_name, job["id"], "completed")
        assert (done["returnvalue"], done["attemptsMade"], done["attemptsStarted"], done["processedBy"]) == (one, 1, 1, worker.name)
        assert done["timestamp"] <= done["processedOn"] <= done["finishedOn"]
        assert done["failedReason"] is None


def test_the_value_of_a_task_that_celery_sent_reaches_node_too(node: Node, queue_name: str, celery_app: Celery, serve: Serve) -> None:
    serve(queue_name)
    sent = value.apply_async(({"n": 1},), queue=queue_name)
    assert finished(node, queue_name, sent.id) == {"n": 1}


def test_a_value_that_node_returned_is_json_in_the_job(node: Node, queue_name: str, celery_app: Celery, redis_client: redis.Redis) -> None:
    node.call("worker", queue=queue_name, default={"return": {"n": [1, None]}})
    sent = value.apply_async((1,), queue=queue_name)
    assert finished(node, queue_name, sent.id) == {"n": [1, None]}
    assert json.loads(redis_client.hget(f"bull:{queue_name}:{sent.id}", "returnvalue") or "") == {"n": [1, None]}


@pytest.mark.parametrize(
    ("made", "expected", "noted"),
    [
        ("tuple", [1, 2], False),
        ("keys", {"1": "one"}, False),
        ("object", None, True),
        ("nan", None, True),
    ],
)
def test_a_result_that_is_no_json_is_null_with_a_note(
    node: Node, queue_name: str, serve: Serve, made: str, expected: Any, noted: bool
) -> None:
    serve(queue_name)
    job = node.call("add", queue=queue_name, name="made", data=[made])
    assert finished(node, queue_name, job["id"]) == expected
    logs = node.queue_call(queue_name, "getJobLogs", job["id"])["logs"]
    assert bool(logs) == noted
    if noted:
        assert "is no JSON and was not kept" in logs[0]


def test_a_failure_is_thrown_with_its_reason(node: Node, queue_name: str, serve: Serve) -> None:
    serve(queue_name)
    cases = [
        ({"message": "no such address"}, "ValueError: no such address"),
        ({"message": "ä \U0001f600 'quoted'\nsecond line"}, "ValueError: ä \U0001f600 'quoted'\nsecond line"),
        ({"message": "missing", "kind": "KeyError"}, "KeyError: 'missing'"),
        ({"message": ""}, "ValueError"),
        ({"message": "disk", "kind": "OSError"}, "OSError: disk"),
    ]
    for data, reason in cases:
        job_id = node.call("add", queue=queue_name, name="fail", data=data)["id"]
        with pytest.raises(NodeError) as caught:
            finished(node, queue_name, job_id)
        assert caught.value.message == reason
        job = node.wait_for_state(queue_name, job_id, "failed")
        assert (job["failedReason"], job["attemptsMade"], job["returnvalue"]) == (reason, 1, None)
        (trace,) = job["stacktrace"]
        assert trace.startswith("Traceback (most recent call last):")
        assert "in fail" in trace


@pytest.mark.parametrize("task", [fail, fail_late], ids=["early", "late"])
def test_the_failure_of_a_task_that_celery_sent(node: Node, queue_name: str, celery_app: Celery, serve: Serve, task: Any) -> None:
    serve(queue_name)
    sent = task.apply_async(("boom",), queue=queue_name)
    with pytest.raises(NodeError, match=r"Error: ValueError: boom$") as caught:
        finished(node, queue_name, sent.id)
    assert caught.value.name == "Error"
    job = node.wait_for_state(queue_name, sent.id, "failed")
    assert (job["attemptsMade"], job["deferredFailure"]) == (1, None)


def test_unrecoverable_spends_no_further_attempt(node: Node, queue_name: str, serve: Serve) -> None:
    serve(queue_name)
    job = node.call("add", queue=queue_name, name="unrecoverable", data={"message": "never"}, opts={"attempts": 5, "backoff": 1000})
    with pytest.raises(NodeError, match="UnrecoverableError: never"):
        finished(node, queue_name, job["id"])
    assert node.wait_for_state(queue_name, job["id"], "failed")["attemptsMade"] == 1


def test_node_waits_through_the_retries_of_celery(node: Node, queue_name: str, serve: Serve) -> None:
    """`self.retry` carries the same job on, so whoever waits for it gets the last outcome and not the first."""
    serve(queue_name)
    node.call("queueEvents", queue=queue_name)
    job_id = node.call("add", queue=queue_name, name="again", data={"times": 2, "countdown": 0.1})["id"]

    assert finished(node, queue_name, job_id) == {"retries": 2, "id": f"{queue_name}:{job_id}"}

    job = node.wait_for_state(queue_name, job_id, "completed")
    assert (job["attemptsMade"], job["attemptsStarted"]) == (3, 3)
    assert (job["failedReason"], len(job["stacktrace"])) == ("ValueError: failure 2", 2)
    assert job["data"] == {"times": 2, "countdown": 0.1}
    events = [event["event"] for event in node.call("events", queue=queue_name) if event["args"].get("jobId") == job_id]
    assert events == ["added", "waiting", "active", "delayed", "waiting", "active", "delayed", "waiting", "active", "completed"]
    assert node.call("getJobCounts", queue=queue_name)["completed"] == 1


def test_a_task_that_celery_sent_and_retried_ends_under_its_id(node: Node, queue_name: str, celery_app: Celery, serve: Serve) -> None:
    serve(queue_name)
    sent = again.apply_async((1, 0), queue=queue_name)
    assert finished(node, queue_name, sent.id) == {"retries": 1, "id": sent.id}
    assert node.wait_for_state(queue_name, sent.id, "completed")["attemptsMade"] == 2


def test_retries_that_are_used_up_throw_the_last_error(node: Node, queue_name: str, serve: Serve) -> None:
    serve(queue_name)
    job_id = node.call("add", queue=queue_name, name="again", data={"times": 9, "countdown": 0})["id"]
    with pytest.raises(NodeError, match=r"Error: ValueError: failure 6$"):
        finished(node, queue_name, job_id)
    job = node.wait_for_state(queue_name, job_id, "failed")
    assert job["attemptsMade"] == 6
    assert len(job["stacktrace"]) == 6
