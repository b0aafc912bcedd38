"""Attempts and back-off are the producer's wish, whoever works: set by Node they bind the Celery worker, set by Celery a processor."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import redis
from celery import Celery
from interop_tasks import fail, fail_until
from node_driver import Node, NodeError
from waiting import wait_until

Serve = Callable[[str], Any]

LATE_MS = 5000
"""By how much a machine under load may be late; BullMQ's own promotion of delayed jobs is exact to the millisecond, machines are not."""


def finished(node: Node, queue: str, job_id: str) -> Any:
    return node.call("waitUntilFinished", queue=queue, jobId=job_id, ttl=20000)


def events_of(node: Node, queue: str, job_id: str) -> list[dict[str, Any]]:
    return [event for event in node.call("events", queue=queue) if event["args"].get("jobId") == job_id]


def at(event: dict[str, Any]) -> int:
    """When it was, ms: the id of an event begins with its time."""
    return int(event["id"].split("-")[0])


def assert_waits(node: Node, queue: str, job_id: str, wished: list[tuple[int, int]]) -> None:
    """Each back-off is within its bounds. The worker reads the clock for it after `active` and before `delayed`."""
    events = [event for event in events_of(node, queue, job_id) if event["event"] in ("active", "delayed")]
    active, delayed = events[0:-1:2], events[1::2]
    assert [event["event"] for event in delayed] == ["delayed"] * len(wished)
    for before, event, (low, high) in zip(active, delayed, wished, strict=True):
        due = int(event["args"]["delay"])  # text in BullMQ 5.60
        assert due - at(before) >= low
        assert due - at(event) <= high


BACKOFFS: dict[str, tuple[Any, list[tuple[int, int]]]] = {
    "a number": (60, [(60, 60), (60, 60)]),
    "fixed": ({"type": "fixed", "delay": 60}, [(60, 60), (60, 60)]),
    "exponential": ({"type": "exponential", "delay": 60}, [(60, 60), (120, 120)]),
    "fixed with jitter": ({"type": "fixed", "delay": 200, "jitter": 0.5}, [(100, 200), (100, 200)]),
    "exponential with jitter": ({"type": "exponential", "delay": 150, "jitter": 0.9}, [(15, 150), (30, 300)]),
}


@pytest.mark.parametrize("task", ["fail_until", "fail_until.late"])
def test_a_celery_worker_honours_the_back_off_of_node(node: Node, queue_name: str, serve: Serve, task: str) -> None:
    serve(queue_name)
    node.call("queueEvents", queue=queue_name)
    ids = {}
    for case, (backoff, _) in BACKOFFS.items():
        key = f"{queue_name}:{case}"
        opts = {"attempts": 5, "backoff": backoff}
        ids[case] = node.call("add", queue=queue_name, name=task, data={"key": key, "times": 2}, opts=opts)["id"]
    for case, job_id in ids.items():
        assert finished(node, queue_name, job_id) == {"attempt": 3}, case
        job = node.wait_for_state(queue_name, job_id, "completed")
        assert (job["attemptsMade"], job["attemptsStarted"], job["delay"]) == (3, 3, 0), case
        # What the attempts before failed with stays, as it does in Node.
        assert (job["failedReason"], len(job["stacktrace"])) == ("ValueError: not yet 2", 2), case
        wait_until(lambda job_id=job_id: events_of(node, queue_name, job_id)[-1]["event"] == "completed")
        assert_waits(node, queue_name, job_id, BACKOFFS[case][1])


def test_a_job_waits_as_long_as_its_back_off_says(node: Node, queue_name: str, serve: Serve) -> None:
    serve(queue_name)
    node.call("queueEvents", queue=queue_name)
    opts = {"attempts": 3, "backoff": {"type": "exponential", "delay": 200}}
    job_id = node.call("add", queue=queue_name, name="fail_until", data={"key": f"{queue_name}:n", "times": 2}, opts=opts)["id"]
    finished(node, queue_name, job_id)
    node.wait_for_event(queue_name, "completed", jobId=job_id)
    started = [at(event) for event in events_of(node, queue_name, job_id) if event["event"] == "active"]
    gaps = [after - before for before, after in pairwise(started)]
    assert 199 <= gaps[0] <= 200 + LATE_MS  # what is due within the next millisecond is due
    assert 399 <= gaps[1] <= 400 + LATE_MS


def test_attempts_used_up_are_said_in_events(node: Node, queue_name: str, serve: Serve) -> None:
    serve(queue_name)
    node.call("queueEvents", queue=queue_name)
    job_id = node.call("add", queue=queue_name, name="fail", data={"message": "boom"}, opts={"attempts": 3})["id"]
    with pytest.raises(NodeError, match="ValueError: boom"):
        finished(node, queue_name, job_id)
    job = node.wait_for_state(queue_name, job_id, "failed")
    assert (job["attemptsMade"], job["attemptsStarted"], len(job["stacktrace"])) == (3, 3, 3)
    exhausted = node.wait_for_event(queue_name, "retries-exhausted", jobId=job_id)
    assert exhausted["args"]["attemptsMade"] == "3"
    seen = [event["event"] for event in events_of(node, queue_name, job_id)]
    assert seen == ["added", "waiting", "active", "waiting", "active", "waiting", "active", "failed", "retries-exhausted"]
    waiting = [event["args"].get("prev") for event in events_of(node, queue_name, job_id) if event["event"] == "waiting"]
    assert waiting == [None, "active", "active"]
    failed = node.wait_for_event(queue_name, "failed", jobId=job_id)
    assert failed["args"] == {"jobId": job_id, "failedReason": "ValueError: boom", "prev": "active"}


def test_the_stack_traces_are_cut_as_the_producer_wished(node: Node, queue_name: str, serve: Serve) -> None:
    serve(queue_name)
    wishes = {0: 0, 1: 1, 2: 2}
    for limit, kept in wishes.items():
        opts = {"attempts": 3, "stackTraceLimit": limit}
        job_id = node.call("add", queue=queue_name, name="fail", data={}, opts=opts)["id"]
        job = node.wait_for_state(queue_name, job_id, "failed")
        assert len(job["stacktrace"]) == kept


def test_a_back_off_that_only_a_node_worker_knows_fails_the_job(node: Node, queue_name: str, serve: Serve) -> None:
    """A custom strategy is a function in the producer's house; without it BullMQ's worker cannot go on either."""
    serve(queue_name)
    opts = {"attempts": 3, "backoff": {"type": "ours", "delay": 10}}
    job_id = node.call("add", queue=queue_name, name="fail", data={"message": "boom"}, opts=opts)["id"]
    job = node.wait_for_state(queue_name, job_id, "failed")
    assert job["failedReason"].startswith("ValueError: boom (Unknown backoff strategy ours.")
    assert job["attemptsMade"] == 1


@pytest.mark.parametrize("case", ["fixed", "exponential"])
def test_a_node_worker_honours_the_back_off_of_celery(node: Node, queue_name: str, celery_app: Celery, case: str) -> None:
    backoff, waits = BACKOFFS[case]
    node.call("queueEvents", queue=queue_name)
    sent = fail_until.apply_async(("unused", 2), queue=queue_name, bullmq={"attempts": 3, "backoff": backoff})
    node.call("worker", queue=queue_name, default={"throwTimes": 2, "message": "not yet", "then": {"return": "done"}})
    assert finished(node, queue_name, sent.id) == "done"
    job = node.wait_for_state(queue_name, sent.id, "completed")
    assert (job["attemptsMade"], job["opts"]["attempts"], job["opts"]["backoff"]) == (3, 3, backoff)
    assert_waits(node, queue_name, sent.id, waits)


def test_celery_may_wish_attempts_of_celery(queue_name: str, node: Node, celery_app: Celery, serve: Serve) -> None:
    serve(queue_name)
    sent = fail_until.apply_async((f"{queue_name}:n", 1), queue=queue_name, bullmq={"attempts": 2, "backoff": 20})
    assert finished(node, queue_name, sent.id) == {"attempt": 2}


def test_without_a_wish_there_is_one_attempt(node: Node, queue_name: str, celery_app: Celery) -> None:
    node.call("worker", queue=queue_name, default={"throw": "no"})
    sent = fail.apply_async(queue=queue_name)
    with pytest.raises(NodeError, match="no"):
        finished(node, queue_name, sent.id)
    assert node.wait_for_state(queue_name, sent.id, "failed")["attemptsMade"] == 1


# -- a failed job, retried by hand


@pytest.mark.parametrize("task", ["fail_until", "fail_until.late"], ids=["early", "late"])
def test_a_job_failed_in_celery_can_be_retried_from_node(
    node: Node, queue_name: str, serve: Serve, redis_client: redis.Redis, task: str
) -> None:
    serve(queue_name)
    node.call("queueEvents", queue=queue_name)
    job_id = node.call("add", queue=queue_name, name=task, data={"key": f"{queue_name}:n", "times": 1})["id"]
    node.wait_for_state(queue_name, job_id, "failed")
    assert redis_client.hget(f"bull:{queue_name}:{job_id}", "defa") is None

    node.job_call(queue_name, job_id, "retry", "failed")

    node.wait_for_event(queue_name, "waiting", jobId=job_id, prev="failed")
    job = node.wait_for_state(queue_name, job_id, "completed")
    assert job["returnvalue"] == {"attempt": 2}
    assert (job["attemptsMade"], job["attemptsStarted"], job["failedReason"]) == (2, 2, None)


@pytest.mark.parametrize("task", ["fail_until", "fail_until.late"], ids=["early", "late"])
def test_a_task_that_celery_sent_and_that_failed_can_be_retried_from_node(
    node: Node, queue_name: str, celery_app: Celery, serve: Serve, task: str
) -> None:
    serve(queue_name)
    sent = celery_app.send_task(task, (f"{queue_name}:n", 1), queue=queue_name)
    node.wait_for_state(queue_name, sent.id, "failed")
    node.job_call(queue_name, sent.id, "retry", "failed")
    job = node.wait_for_state(queue_name, sent.id, "completed")
    assert (job["returnvalue"], job["attemptsMade"], job["attemptsStarted"]) == ({"attempt": 2}, 2, 2)


@pytest.mark.parametrize("task", ["fail_until", "fail_until.late"], ids=["early", "late"])
def test_a_task_that_celery_sent_and_that_failed_can_be_retried_from_node_as_if_new(
    node: Node, queue_name: str, celery_app: Celery, serve: Serve, task: str
) -> None:
    serve(queue_name)
    sent = celery_app.send_task(task, (f"{queue_name}:n", 1), queue=queue_name)
    node.wait_for_state(queue_name, sent.id, "failed")
    node.job_call(queue_name, sent.id, "retry", "failed", {"resetAttemptsMade": True, "resetAttemptsStarted": True})
    job = node.wait_for_state(queue_name, sent.id, "completed")
    assert (job["returnvalue"], job["attemptsMade"], job["attemptsStarted"]) == ({"attempt": 2}, 1, 1)


def test_a_completed_job_can_be_run_again_from_node(node: Node, queue_name: str, serve: Serve) -> None:
    serve(queue_name)
    job_id = node.call("add", queue=queue_name, name="count", data={"key": f"{queue_name}:done", "n": 7})["id"]
    assert finished(node, queue_name, job_id) == 7
    first = node.wait_for_state(queue_name, job_id, "completed")["finishedOn"]
    node.call("queueEvents", queue=queue_name)
    node.job_call(queue_name, job_id, "retry", "completed")
    node.wait_for_event(queue_name, "completed", jobId=job_id)
    job = node.wait_for_state(queue_name, job_id, "completed")
    assert (job["returnvalue"], job["attemptsMade"]) == (7, 2)
    assert job["finishedOn"] >= first


def test_all_failed_jobs_can_be_retried_at_once(node: Node, queue_name: str, serve: Serve) -> None:
    serve(queue_name)
    jobs = [{"name": "fail_until", "data": {"key": f"{queue_name}:{n}", "times": 1}} for n in range(5)]
    ids = [job["id"] for job in node.call("addBulk", queue=queue_name, jobs=jobs)]
    for job_id in ids:
        node.wait_for_state(queue_name, job_id, "failed")
    node.queue_call(queue_name, "retryJobs", {"state": "failed"})
    for job_id in ids:
        assert node.wait_for_state(queue_name, job_id, "completed")["returnvalue"] == {"attempt": 2}


def test_a_job_failed_in_node_can_be_retried_into_celery(node: Node, queue_name: str, celery_app: Celery, serve: Serve) -> None:
    worker = node.call("worker", queue=queue_name, default={"throw": "not in Node"})
    sent = celery_app.send_task("value", (5,), queue=queue_name)
    node.wait_for_state(queue_name, sent.id, "failed")
    node.call("closeWorker", worker=worker)
    serve(queue_name)
    node.job_call(queue_name, sent.id, "retry", "failed")
    assert node.wait_for_state(queue_name, sent.id, "completed")["returnvalue"] == 5


def test_an_unrecoverable_failure_is_not_retried_by_celery_either(node: Node, queue_name: str, serve: Serve) -> None:
    serve(queue_name)
    sent = node.call("add", queue=queue_name, name="unrecoverable.auto", data={"message": "never"}, opts={"attempts": 3})
    job = node.wait_for_state(queue_name, sent["id"], "failed")
    assert (job["failedReason"], job["attemptsMade"]) == ("UnrecoverableError: never", 1)
    assert "UnrecoverableError: never" in job["stacktrace"][0]
