"""A queue served by Celery tells the same story as one served by Node: its event stream, its states, its counts, its workers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import redis
from celery import Celery
from celery_worker import CeleryWorker
from interop_tasks import fail, value
from node_driver import Node
from servers import Server
from waiting import wait_until

Serve = Callable[[str], Any]

JOBS: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("value", {"value": {"n": 1}}, {}),
    ("fail", {"message": "boom"}, {}),
    ("fail", {"message": "boom"}, {"attempts": 2}),
    ("fail", {"message": "boom"}, {"attempts": 2, "backoff": 30}),
    ("value", {"value": [1]}, {"delay": 40}),
    ("value", {"value": None}, {"priority": 4}),
    ("value", {"value": "x"}, {"removeOnComplete": True}),
    ("fail", {"message": "boom"}, {"removeOnFail": True}),
    ("value", {"value": 1}, {"lifo": True}),
]
"""Name, data, options: what can happen to a job that a worker takes."""

AS_NODE_DOES = {"value": {"return": None}, "fail": {"throw": "boom"}}


def story(node: Node, queue: str, count: int) -> list[list[dict[str, Any]]]:
    """For each job the events of its life, once all have ended; what a worker chooses itself is left out."""

    def all_ended() -> list[dict[str, Any]]:
        events: list[dict[str, Any]] = node.call("events", queue=queue)
        ends = [e for e in events if e["event"] in ("completed", "failed")]
        assert len(ends) == count
        assert any(e["event"] == "drained" for e in events)
        return events

    events = wait_until(all_ended, what="all jobs to end, and the queue to be drained")
    lives: dict[str, list[dict[str, Any]]] = {}
    for event in events:
        if "jobId" in event["args"]:
            args = {k: v for k, v in event["args"].items() if k not in ("delay", "returnvalue", "failedReason")}
            lives.setdefault(event["args"]["jobId"], []).append({"event": event["event"], **args})
    return [lives[job_id] for job_id in sorted(lives, key=int)]


def test_the_events_of_each_job_are_those_a_node_worker_would_cause(node: Node, queue_name: str, serve: Serve) -> None:
    stories = []
    for side in ("celery", "node"):
        queue = f"{queue_name}-{side}"
        node.call("queueEvents", queue=queue)
        if side == "node":
            node.call("worker", queue=queue, behaviours=AS_NODE_DOES)
        else:
            serve(queue)
        for name, data, opts in JOBS:  # one after the other, so that the numbers agree
            node.call("add", queue=queue, name=name, data=data, opts=opts)
        stories.append(story(node, queue, len(JOBS)))
    by_celery, by_node = stories
    for (name, _, opts), ours, theirs in zip(JOBS, by_celery, by_node, strict=True):
        assert ours == theirs, (name, opts)


def test_the_events_carry_what_listeners_read(node: Node, queue_name: str, celery_app: Celery, serve: Serve) -> None:
    serve(queue_name)
    node.call("queueEvents", queue=queue_name)
    done = value.apply_async(({"n": [1, None]},), queue=queue_name)
    failed = fail.apply_async(("boom",), queue=queue_name)
    later = value.apply_async((1,), queue=queue_name, countdown=0.05)
    for sent, name, args in [
        (done, "added", {"name": "value"}),
        (done, "waiting", {}),
        (done, "active", {"prev": "waiting"}),
        (done, "completed", {"returnvalue": {"n": [1, None]}, "prev": "active"}),
        (failed, "failed", {"failedReason": "ValueError: boom", "prev": "active"}),
        (failed, "retries-exhausted", {"attemptsMade": "1"}),
        (later, "waiting", {"prev": "delayed"}),
    ]:
        assert node.wait_for_event(queue_name, name, jobId=sent.id)["args"] == {"jobId": sent.id, **args}
    delayed = node.wait_for_event(queue_name, "delayed", jobId=later.id)["args"]
    job = node.job(queue_name, later.id)
    due = int(delayed["delay"])  # text in BullMQ 5.60
    assert due == job["timestamp"] + job["opts"].get("delay", due - job["timestamp"])
    node.wait_for_event(queue_name, "drained")


def test_a_drained_queue_is_said_to_be_once(node: Node, queue_name: str, celery_app: Celery, serve: Serve) -> None:
    node.call("queueEvents", queue=queue_name)
    sent = [value.apply_async((n,), queue=queue_name) for n in range(20)]
    serve(queue_name)
    for one in sent:
        node.wait_for_event(queue_name, "completed", jobId=one.id)
    node.wait_for_event(queue_name, "drained")
    events = [event["event"] for event in node.call("events", queue=queue_name)]
    assert events.index("drained") > max(i for i, event in enumerate(events) if event == "active")
    assert events.count("drained") <= 2  # each of two processes may end last, in calls of their own


def test_a_job_replaced_by_one_of_the_same_id_is_said_to_be_removed(node: Node, queue_name: str, celery_app: Celery, serve: Serve) -> None:
    serve(queue_name)
    value.apply_async((1,), task_id="again", queue=queue_name)
    node.wait_for_state(queue_name, "again", "completed")
    node.call("queueEvents", queue=queue_name)
    value.apply_async((2,), task_id="again", queue=queue_name)
    assert node.wait_for_event(queue_name, "removed", jobId="again")["args"]["prev"] == "completed"


# -- states and counts


def test_counts_and_states_agree_with_what_celery_does(
    node: Node, queue_name: str, celery_app: Celery, serve: Serve, redis_client: redis.Redis
) -> None:
    def counts() -> dict[str, int]:
        found = node.call("getJobCounts", queue=queue_name)
        return {state: n for state, n in found.items() if n}

    def state(job_id: str) -> str:
        return str(node.call("getState", queue=queue_name, jobId=job_id))

    key = f"{queue_name}:hold"
    plain = [celery_app.send_task("hold", (key, n), queue=queue_name) for n in range(3)]
    first = celery_app.send_task("value", (1,), queue=queue_name, priority=3)
    later = celery_app.send_task("value", (1,), queue=queue_name, countdown=3600)
    assert counts() == {"waiting": 3, "prioritized": 1, "delayed": 1}
    assert [state(sent.id) for sent in (*plain, first, later)] == ["waiting", "waiting", "waiting", "prioritized", "delayed"]
    with celery_app.connection_for_read() as connection:
        assert connection.SimpleQueue(queue_name).qsize() == 4  # what a worker could take now

    worker = serve(queue_name)
    wait_until(lambda: redis_client.llen(f"{key}:running") == 2, what="two tasks to run")
    wait_until(lambda: counts() == {"active": 2, "waiting": 1, "prioritized": 1, "delayed": 1}, what="two to be active")
    active = node.queue_call(queue_name, "getActive")
    assert {job["id"] for job in active} == {plain[0].id, plain[1].id}
    for job in active:
        assert (job["processedBy"], job["attemptsStarted"], job["attemptsMade"]) == (worker.name, 1, 0)
        assert redis_client.pttl(f"bull:{queue_name}:{job['id']}:lock") > 0
        assert node.call("getState", queue=queue_name, jobId=job["id"]) == "active"

    redis_client.rpush(f"{key}:gate", 1, 1, 1)
    wait_until(lambda: counts() == {"completed": 4, "delayed": 1}, what="all to end")
    assert node.queue_call(queue_name, "getJobCountByTypes", "completed") == 4
    assert {job["id"] for job in node.queue_call(queue_name, "getCompleted")} == {*[sent.id for sent in plain], first.id}
    assert not list(redis_client.scan_iter(f"bull:{queue_name}:*:lock"))

    node.job_call(queue_name, later.id, "remove")
    assert counts() == {"completed": 4}


def test_a_job_that_celery_runs_cannot_be_removed_from_node(
    node: Node, queue_name: str, celery_app: Celery, serve: Serve, redis_client: redis.Redis
) -> None:
    key = f"{queue_name}:hold"
    sent = celery_app.send_task("hold", (key, "held"), queue=queue_name)
    serve(queue_name)
    wait_until(lambda: redis_client.llen(f"{key}:running"), what="the task to run")
    assert node.queue_call(queue_name, "remove", sent.id) == 0
    redis_client.rpush(f"{key}:gate", 1)
    assert node.wait_for_state(queue_name, sent.id, "completed")["returnvalue"] == "held"


def test_node_lists_the_celery_worker(node: Node, queue_name: str, server: Server, tmp_path: Path) -> None:
    with CeleryWorker(server, tmp_path, pool="solo", queues=[queue_name]) as worker:
        (one,) = wait_until(lambda: node.queue_call(queue_name, "getWorkers"), what="the worker to be listed")
        assert one["name"] == queue_name
        assert one["rawname"].endswith(f":w:{worker.name}")
        assert node.queue_call(queue_name, "getWorkersCount") == 1
    assert node.queue_call(queue_name, "getWorkersCount") == 0
