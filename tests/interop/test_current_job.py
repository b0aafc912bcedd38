"""What a task learns of its job and does to it is what a processor of Node's would, and Node sees it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import redis
from celery_worker import CeleryWorker
from node_driver import Node

import bullmq_kombu

Serve = Callable[[str], CeleryWorker]
POOLS = ("prefork", "solo", "threads", "gevent", "eventlet")


def finished(node: Node, queue: str, job_id: str) -> Any:
    return node.call("waitUntilFinished", queue=queue, jobId=job_id, ttl=15000)


@pytest.fixture
def serve_in(celery_workers: Callable[[str], CeleryWorker], queue_name: str) -> Any:
    """`serve_in(pool)`: a worker of that pool consumes the queue."""
    serving: list[CeleryWorker] = []

    def serve(pool: str) -> CeleryWorker:
        worker = celery_workers(pool)
        worker.consume(queue_name)
        serving.append(worker)
        return worker

    yield serve
    for worker in serving:
        worker.cancel(queue_name)
        print(worker.log[-5000:])


def test_a_task_knows_its_job(node: Node, queue_name: str, serve: Serve) -> None:
    worker = serve(queue_name)
    opts = {
        "attempts": 3, "backoff": {"type": "fixed", "delay": 10}, "priority": 7, "keepLogs": 5, "delay": 20, "timestamp": 1700000000000,
        "deduplication": {"id": "only"}, "removeOnFail": True,
    }  # fmt: skip
    sent = node.call("add", queue=queue_name, name="job.about", data={"a": [1]}, opts=opts)
    told = finished(node, queue_name, sent["id"])
    assert told["id"] == sent["id"]
    assert (told["name"], told["queue_name"], told["prefix"]) == ("job.about", queue_name, "bull")
    assert told["task_id"] == f"{queue_name}:{sent['id']}"
    assert {name: told["opts"].get(name) for name in opts} == opts
    assert (told["timestamp"], told["priority"], told["delay"]) == (1700000000000, 7, 0)
    assert (told["attempts_made"], told["attempts_started"]) == (0, 1)
    assert (told["deduplication_id"], told["parent"], told["parent_key"], told["repeat_job_key"]) == ("only", None, None, None)
    assert told["data"] == {"a": [1]}
    assert told["token"]
    assert told["token"] == told["lock"]
    assert node.job(queue_name, sent["id"])["processedBy"] == worker.name


@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("node", ["v6"], indirect=True)
def test_progress_logs_and_data_reach_node(pool: str, node: Node, queue_name: str, serve_in: Callable[[str], CeleryWorker]) -> None:
    serve_in(pool)
    node.call("queueEvents", queue=queue_name)
    values = [10, {"page": 3, "of": "ä"}, "nearly", True]
    data = {"progress": values, "lines": ["one", "two", "three ü"], "data": {"step": 2}}
    sent = node.call("add", queue=queue_name, name="job.tell", data=data, opts={"keepLogs": 2})
    assert finished(node, queue_name, sent["id"]) == {"counts": [1, 2, 2], "data": {"step": 2}}
    job = node.job(queue_name, sent["id"])
    assert (job["progress"], job["data"]) == (True, {"step": 2})
    assert node.queue_call(queue_name, "getJobLogs", sent["id"]) == {"logs": ["two", "three ü"], "count": 2}
    seen = [one["args"]["data"] for one in node.call("events", queue=queue_name) if one["event"] == "progress"]
    assert seen == values


def test_progress_and_logs_as_node_writes_them(node: Node, queue_name: str, serve: Serve, redis_client: redis.Redis) -> None:
    told = {"progress": [1, {"a": "ü"}], "log": ["a", "b", "c"], "updateData": {"x": None}}
    node.call("worker", queue=queue_name, default=told)
    theirs = node.call("add", queue=queue_name, name="theirs", data={}, opts={"keepLogs": 2})["id"]
    finished(node, queue_name, theirs)
    other = f"{queue_name}-celery"
    serve(other)
    ours = node.call(
        "add", queue=other, name="job.tell", data={"progress": told["progress"], "lines": told["log"], "data": told["updateData"]},
        opts={"keepLogs": 2},
    )["id"]  # fmt: skip
    finished(node, other, ours)
    assert redis_client.lrange(f"bull:{other}:{ours}:logs", 0, -1) == redis_client.lrange(f"bull:{queue_name}:{theirs}:logs", 0, -1)
    for field in ("progress", "data"):
        assert redis_client.hget(f"bull:{other}:{ours}", field) == redis_client.hget(f"bull:{queue_name}:{theirs}", field)


@pytest.mark.parametrize("node", ["v6"], indirect=True)
def test_a_task_called_by_a_task_has_the_same_job(node: Node, queue_name: str, serve: Serve) -> None:
    serve(queue_name)
    sent = node.call("add", queue=queue_name, name="job.inner", data={})
    assert finished(node, queue_name, sent["id"]) == sent["id"]


def test_outside_a_task_there_is_no_job() -> None:
    with pytest.raises(bullmq_kombu.BullMQError, match="for a running task"):
        bullmq_kombu.current_job()


@pytest.mark.parametrize("name", ["job.gather", "job.gather.late"])
@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("node", ["v6"], indirect=True)
def test_waiting_for_children_frees_the_worker(
    pool: str, name: str, node: Node, queue_name: str, serve_in: Callable[[str], CeleryWorker], redis_client: redis.Redis
) -> None:
    children = f"{queue_name}-children"
    serve_in(pool)
    node.call("queueEvents", queue=queue_name)
    data = {"queue": children, "children": 3, "key": f"{queue_name}:times"}
    sent = node.call("add", queue=queue_name, name=name, data=data, opts={"attempts": 2, "priority": 1})["id"]
    node.wait_for_state(queue_name, sent, "waiting-children")
    assert redis_client.hget(f"bull:{queue_name}:{sent}", "defa") is None
    assert redis_client.exists(f"bull:{queue_name}:{sent}:lock") == 0
    assert redis_client.lrange(f"bull:{queue_name}:active", 0, -1) == []
    node.call("worker", queue=children, default={"return": 5})
    assert finished(node, queue_name, sent) == {"values": [5, 5, 5], "started": 2, "made": 0}
    events = [one["event"] for one in node.call("events", queue=queue_name)]
    assert [one for one in events if one not in ("added", "delayed", "drained")] == [
        "waiting", "active", "waiting-children", "waiting", "active", "completed",
    ]  # fmt: skip


def test_a_child_that_fails_its_parent_fails_the_waiting_task(node: Node, queue_name: str, serve: Serve) -> None:
    children = f"{queue_name}-children"
    serve(queue_name)
    data = {"queue": children, "children": 1, "key": f"{queue_name}:times"}
    sent = node.call("add", queue=queue_name, name="job.gather", data=data)["id"]
    node.wait_for_state(queue_name, sent, "waiting-children")
    child = node.queue_call(children, "getJobs", ["waiting"])[0]
    assert child["parent"]["id"] == sent
    node.call("worker", queue=children, default={"throw": "no"})
    node.wait_for_state(children, child["id"], "failed")
    # without a policy the parent waits on, for the child to be retried
    assert node.call("getState", queue=queue_name, jobId=sent) == "waiting-children"


@pytest.mark.parametrize("pool", ["prefork", "threads"])
@pytest.mark.parametrize("node", ["v6"], indirect=True)
def test_a_rate_limited_task_is_put_back_and_the_queue_left_alone(
    pool: str, node: Node, queue_name: str, serve_in: Callable[[str], CeleryWorker]
) -> None:
    serve_in(pool)
    sent = node.call("add", queue=queue_name, name="job.limited", data={"key": f"{queue_name}:limit", "ms": 700}, opts={"attempts": 1})[
        "id"
    ]
    result = finished(node, queue_name, sent)
    assert (result["made"], result["started"]) == (0, 2)
    assert 0.65 < result["waited"] < 2.5


def test_the_parent_of_a_child_is_told(node: Node, queue_name: str, serve: Serve) -> None:
    serve(queue_name)
    flow = {
        "name": "parent", "queueName": f"{queue_name}-p",
        "children": [{"name": "job.about", "queueName": queue_name, "data": {}, "opts": {"failParentOnFailure": True}}],
    }  # fmt: skip
    made = node.call("flowAdd", flow=flow)
    told = finished(node, queue_name, made["children"][0]["job"]["id"])
    parent = made["job"]["id"]
    assert told["parent"] == {"id": parent, "queueKey": f"bull:{queue_name}-p", "fpof": True}
    assert told["parent_key"] == f"bull:{queue_name}-p:{parent}"
    assert told["opts"]["failParentOnFailure"] is True
