"""Which job is next: delay, priority and lifo mean the same whoever sends and whoever works."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import pytest
import redis
from celery import Celery
from interop_tasks import note, value
from kombu.exceptions import OperationalError
from node_driver import Node
from waiting import wait_until

from bullmq_kombu.errors import BadInput

Serve = Callable[[str], Any]

LATE_MS = 5000
"""By how much a loaded machine may be late."""


def lines(client: redis.Redis, key: str, count: int) -> list[Any]:
    """What `note` wrote, once there are so many."""
    wait_until(lambda: client.llen(key) >= count, what=f"{count} lines")
    return [json.loads(line) for line in client.lrange(key, 0, -1)]


def node_notes(node: Node, queue: str, key: str, wishes: list[tuple[str, dict[str, Any]]]) -> None:
    jobs = [{"name": "note", "data": {"key": key, "text": text}, "opts": opts} for text, opts in wishes]
    node.call("addBulk", queue=queue, jobs=jobs)


def names_run_by_node(node: Node, queue: str, count: int) -> list[Any]:
    wait_until(lambda: len([run for run in node.call("runs", queue=queue) if run["finished"]]) == count, what=f"{count} runs")
    return [run["data"]["text"] for run in node.call("runs", queue=queue)]


PRIORITIES = [("c", 3), ("a", 1), ("none", 0), ("high", 2097151), ("b", 2), ("a again", 1), ("none again", 0)]
BY_PRIORITY = ["none", "none again", "a", "a again", "b", "c", "high"]


def test_celery_takes_nodes_jobs_by_priority(node: Node, queue_name: str, serve_in_order: Serve, redis_client: redis.Redis) -> None:
    key = f"{queue_name}:notes"
    node_notes(node, queue_name, key, [(text, {"priority": priority}) for text, priority in PRIORITIES])
    serve_in_order(queue_name)
    assert lines(redis_client, key, len(PRIORITIES)) == BY_PRIORITY


def test_node_takes_celerys_jobs_by_priority(node: Node, queue_name: str, celery_app: Celery) -> None:
    for text, priority in PRIORITIES:
        note.apply_async(kwargs={"key": "unused", "text": text}, queue=queue_name, priority=priority)
    assert node.queue_call(queue_name, "getCountsPerPriority", [0, 1, 2, 3, 2097151]) == {"0": 2, "1": 2, "2": 1, "3": 1, "2097151": 1}
    node.call("worker", queue=queue_name, opts={"concurrency": 1})
    assert names_run_by_node(node, queue_name, len(PRIORITIES)) == BY_PRIORITY


def test_a_priority_given_as_a_job_option_is_the_same(node: Node, queue_name: str, celery_app: Celery) -> None:
    sent = note.apply_async(kwargs={"key": "", "text": ""}, queue=queue_name, bullmq={"priority": 9})
    job = node.job(queue_name, sent.id)
    assert (job["priority"], node.call("getState", queue=queue_name, jobId=sent.id)) == (9, "prioritized")


@pytest.mark.parametrize("priority", [2097152, -1])
def test_a_priority_that_bullmq_refuses_is_an_error_at_the_call(queue_name: str, celery_app: Celery, priority: int) -> None:
    with pytest.raises((BadInput, OperationalError), match="Priority should be between 0 and 2097151"):
        value.apply_async((1,), queue=queue_name, priority=priority)


LIFO = [("first", {}), ("second", {}), ("third", {"lifo": True}), ("fourth", {"lifo": True}), ("fifth", {})]
BY_LIFO = ["fourth", "third", "first", "second", "fifth"]


def test_celery_takes_nodes_jobs_in_lifo_order(node: Node, queue_name: str, serve_in_order: Serve, redis_client: redis.Redis) -> None:
    key = f"{queue_name}:notes"
    node_notes(node, queue_name, key, LIFO)
    serve_in_order(queue_name)
    assert lines(redis_client, key, len(LIFO)) == BY_LIFO


def test_node_takes_celerys_jobs_in_lifo_order(node: Node, queue_name: str, celery_app: Celery) -> None:
    for text, wish in LIFO:
        note.apply_async(kwargs={"key": "unused", "text": text}, queue=queue_name, bullmq=wish)
    node.call("worker", queue=queue_name, opts={"concurrency": 1})
    assert names_run_by_node(node, queue_name, len(LIFO)) == BY_LIFO


def test_a_retried_job_with_lifo_is_the_next_one(node: Node, queue_name: str, serve_in_order: Serve, redis_client: redis.Redis) -> None:
    opts = {"attempts": 2, "lifo": True}
    node_notes(node, queue_name, f"{queue_name}:notes", [("first", {}), ("second", {})])
    again = node.call("add", queue=queue_name, name="fail_until", data={"key": f"{queue_name}:n", "times": 1}, opts=opts)["id"]
    node.call("queueEvents", queue=queue_name)
    serve_in_order(queue_name)
    lines(redis_client, f"{queue_name}:notes", 2)
    node.wait_for_event(queue_name, "completed", jobId=again)
    active = [event["args"]["jobId"] for event in node.call("events", queue=queue_name) if event["event"] == "active"]
    # The worker had taken one job more when the first attempt failed, or none.
    assert active.index(again) == 0
    assert [job_id for job_id in active if job_id != again] == ["1", "2"]
    assert active.count(again) == 2
    assert active[-1] != again


# -- delay


def test_a_delayed_job_of_node_runs_in_celery_when_it_is_due(node: Node, queue_name: str, serve: Serve) -> None:
    serve(queue_name)
    node.call("queueEvents", queue=queue_name)
    job_id = node.call("add", queue=queue_name, name="value", data=1, opts={"delay": 400})["id"]
    assert node.call("getState", queue=queue_name, jobId=job_id) == "delayed"
    assert node.call("waitUntilFinished", queue=queue_name, jobId=job_id, ttl=10000) == 1
    job = node.wait_for_state(queue_name, job_id, "completed")
    assert 399 <= job["processedOn"] - job["timestamp"] <= 400 + LATE_MS
    assert (job["delay"], job["opts"]["delay"]) == (0, 400)
    events = [event["event"] for event in node.call("events", queue=queue_name)]
    assert events[:4] == ["added", "delayed", "waiting", "active"]


@pytest.mark.parametrize("wish", [{"countdown": 0.4}, {"bullmq": {"delay": 400}}], ids=["countdown", "delay"])
def test_a_countdown_is_a_delayed_job_for_node(node: Node, queue_name: str, celery_app: Celery, wish: dict[str, Any]) -> None:
    node.call("worker", queue=queue_name)
    sent = value.apply_async((1,), queue=queue_name, **wish)
    job = node.job(queue_name, sent.id)
    assert node.call("getState", queue=queue_name, jobId=sent.id) == "delayed"
    assert 300 <= job["delay"] <= 400
    node.call("waitUntilFinished", queue=queue_name, jobId=sent.id, ttl=10000)
    (run,) = node.call("runs", queue=queue_name)
    assert 399 <= run["started"] - job["timestamp"] <= 400 + LATE_MS


def test_an_eta_far_away_stays_in_redis(node: Node, queue_name: str, celery_app: Celery, serve: Serve, redis_client: redis.Redis) -> None:
    serve(queue_name)
    sent = value.apply_async((1,), queue=queue_name, countdown=3600)
    node.call("waitUntilFinished", queue=queue_name, jobId=value.apply_async((2,), queue=queue_name).id, ttl=10000)
    assert node.call("getState", queue=queue_name, jobId=sent.id) == "delayed"
    due = redis_client.zscore(f"bull:{queue_name}:delayed", sent.id)
    assert abs(due / 4096 - (time.time() + 3600) * 1000) < 60_000  # type: ignore[operator]

    node.job_call(queue_name, sent.id, "promote")

    # Celery's own header still says when; what the dashboard says wins.
    assert node.call("waitUntilFinished", queue=queue_name, jobId=sent.id, ttl=10000) == 1


def test_a_delayed_job_keeps_its_priority(node: Node, queue_name: str, serve_in_order: Serve, redis_client: redis.Redis) -> None:
    key = f"{queue_name}:notes"
    node_notes(
        node, queue_name, key, [("later", {"delay": 1, "priority": 2}), ("soon", {"delay": 1, "priority": 1}), ("now", {"delay": 1})]
    )
    wait_until(lambda: time.time() * 1000 > node.job(queue_name, "3")["timestamp"] + 10, what="all to be due")
    serve_in_order(queue_name)
    assert lines(redis_client, key, 3) == ["now", "soon", "later"]


def test_delayed_jobs_of_one_moment_keep_their_order(node: Node, queue_name: str, serve_in_order: Serve, redis_client: redis.Redis) -> None:
    key = f"{queue_name}:notes"
    now = int(time.time() * 1000)
    node_notes(node, queue_name, key, [(str(n), {"delay": 50, "timestamp": now}) for n in range(20)])
    serve_in_order(queue_name)
    assert lines(redis_client, key, 20) == [str(n) for n in range(20)]


def test_the_priority_of_a_waiting_task_can_be_changed_from_node(
    node: Node, queue_name: str, celery_app: Celery, serve_in_order: Serve, redis_client: redis.Redis
) -> None:
    key = f"{queue_name}:notes"
    last = note.apply_async(kwargs={"key": key, "text": "was first"}, queue=queue_name)
    note.apply_async(kwargs={"key": key, "text": "was second"}, queue=queue_name)
    node.job_call(queue_name, last.id, "changePriority", {"priority": 5})
    serve_in_order(queue_name)
    assert lines(redis_client, key, 2) == ["was second", "was first"]
