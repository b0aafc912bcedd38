"""What one side sends is what the other side's code is called with: contract 3 and 4, on both majors of BullMQ."""

from __future__ import annotations

import base64
import json
import pickle
import uuid
from collections.abc import Callable
from typing import Any

import pytest
import redis
from celery import Celery
from interop_tasks import seen, two, value
from node_driver import Node, NodeError
from waiting import wait_until

Serve = Callable[[str], Any]

NODE_DATA = {
    "an object": ({"to": "ä@b.c", "n": 1}, [], {"to": "ä@b.c", "n": 1}),
    "an empty object": ({}, [], {}),
    "args and kwargs": ({"args": [1, {"a": None}], "kwargs": {"x": [2]}}, [1, {"a": None}], {"x": [2]}),
    "args alone": ({"args": [1, 2]}, [1, 2], {}),
    "kwargs alone": ({"kwargs": {"x": 1}}, [], {"x": 1}),
    "args and something else": ({"args": [1], "other": 2}, [], {"args": [1], "other": 2}),
    "args that are no list": ({"args": "text"}, [], {"args": "text"}),
    "an array": ([1, "two", None, {"three": 3}], [1, "two", None, {"three": 3}], {}),
    "an empty array": ([], [], {}),
    "null": (None, [], {}),
    "a text": ("hello \U0001f600", ["hello \U0001f600"], {}),
    "an empty text": ("", [""], {}),
    "a number": (1.5, [1.5], {}),
    "zero": (0, [0], {}),
    "false": (False, [False], {}),
    "deep": ({"a": {"b": [{"c": [[[]]]}]}}, [], {"a": {"b": [{"c": [[[]]]}]}}),
}


def finished(node: Node, queue: str, job_id: str) -> Any:
    return node.call("waitUntilFinished", queue=queue, jobId=job_id, ttl=15000)


def test_the_data_of_a_node_job_is_the_arguments_of_the_task(node: Node, queue_name: str, serve: Serve) -> None:
    serve(queue_name)
    jobs = node.call("addBulk", queue=queue_name, jobs=[{"name": "seen", "data": data} for data, _, _ in NODE_DATA.values()])
    for job, (case, (_, args, kwargs)) in zip(jobs, NODE_DATA.items(), strict=True):
        result = finished(node, queue_name, job["id"])
        assert (result["args"], result["kwargs"]) == (args, kwargs), case
        assert (result["task"], result["id"]) == ("seen", f"{queue_name}:{job['id']}"), case


def test_a_node_job_without_data_calls_without_arguments(node: Node, queue_name: str, serve: Serve) -> None:
    serve(queue_name)
    job = node.queue_call(queue_name, "add", "seen")  # JSON.stringify(undefined): BullMQ stores {}
    result = finished(node, queue_name, job["id"])
    assert (result["args"], result["kwargs"]) == ([], {})


CELERY_CALLS: dict[str, tuple[tuple[Any, ...], dict[str, Any], Any]] = {
    "keywords": ((), {"to": "ä@b.c", "n": 1}, {"to": "ä@b.c", "n": 1}),
    "nothing": ((), {}, {}),
    "positional": ((1, "two"), {}, {"args": [1, "two"], "kwargs": {}}),
    "both": ((None,), {"x": {"y": [1.5]}}, {"args": [None], "kwargs": {"x": {"y": [1.5]}}}),
    "keywords named args": ((), {"args": [1]}, {"args": [1]}),
    "text": (('\U0001f600 \x00 "',), {}, {"args": ['\U0001f600 \x00 "'], "kwargs": {}}),
    "numbers": ((0, -1, 1e300, 2**53 - 1), {}, {"args": [0, -1, 1e300, 2**53 - 1], "kwargs": {}}),
}


def test_the_arguments_of_a_task_are_the_data_of_a_node_job(node: Node, queue_name: str, celery_app: Celery) -> None:
    node.call("worker", queue=queue_name)
    for case, (args, kwargs, data) in CELERY_CALLS.items():
        sent = seen.apply_async(args, kwargs, queue=queue_name)
        assert finished(node, queue_name, sent.id) == data, case
        (run,) = node.call("runs", queue=queue_name, jobId=sent.id)
        assert (run["name"], run["data"]) == ("seen", data), case


def test_what_celery_sends_reaches_celery_as_it_was(queue_name: str, node_of: Callable[[str], Node], serve: Serve) -> None:
    serve(queue_name)
    for case, (args, kwargs, _) in CELERY_CALLS.items():
        sent = seen.apply_async(args, kwargs, queue=queue_name)
        result = finished(node_of("v6"), queue_name, sent.id)
        assert (result["args"], result["kwargs"], result["id"]) == (list(args), kwargs, sent.id), case


@pytest.mark.parametrize(
    ("serializer", "kind", "compression"),
    [
        ("pickle", "application/x-python-serialize", None),
        ("json", "application/json", "gzip"),
        ("pickle", "application/x-python-serialize", "gzip"),
    ],
)
def test_a_body_that_is_no_json_says_what_it_is(
    node: Node, queue_name: str, celery_app: Celery, serializer: str, kind: str, compression: str | None
) -> None:
    node.call("worker", queue=queue_name)
    sent = seen.apply_async((1,), {"x": 2}, queue=queue_name, serializer=serializer, compression=compression)

    data = finished(node, queue_name, sent.id)

    assert set(data) == {"body", "contentType", "contentEncoding"}
    assert data["contentType"] == kind
    raw = base64.b64decode(data["body"])
    if compression is None:
        assert data["contentEncoding"] is None
        assert pickle.loads(raw)[:2] == [(1,), {"x": 2}] or pickle.loads(raw)[:2] == ((1,), {"x": 2})
    else:
        assert data["contentEncoding"] == "application/x-gzip"


def test_a_number_that_json_has_not_goes_as_a_body(node: Node, queue_name: str, celery_app: Celery) -> None:
    node.call("worker", queue=queue_name)
    sent = value.apply_async((float("nan"),), queue=queue_name)
    data = finished(node, queue_name, sent.id)
    assert data["contentType"] == "application/json"
    assert b"NaN" in base64.b64decode(data["body"])


# -- ids


def test_a_task_id_is_the_job_id(node: Node, queue_name: str, celery_app: Celery) -> None:
    node.call("worker", queue=queue_name)
    for task_id in (str(uuid.uuid4()), "invoice-17", "01", "a b/ü", "-x"):
        seen.apply_async(task_id=task_id, queue=queue_name)
        assert finished(node, queue_name, task_id) == {}
        assert node.job(queue_name, task_id)["id"] == task_id


@pytest.mark.parametrize("task_id", ["12", "0", "-5", "a:b", "a:b:c", "0:1"])
def test_a_task_id_that_bullmq_refuses_stays_with_celery(
    node: Node, queue_name: str, serve: Serve, redis_client: redis.Redis, task_id: str
) -> None:
    seen.apply_async(task_id=task_id, queue=queue_name)
    (job,) = node.queue_call(queue_name, "getWaiting")
    assert str(uuid.UUID(job["id"])) == job["id"]
    assert json.loads(redis_client.hget(f"bull:{queue_name}:{job['id']}", "celery") or "")["i"] == task_id

    serve(queue_name)

    assert finished(node, queue_name, job["id"])["id"] == task_id


def test_a_job_id_of_nodes_own_is_the_task_id(node: Node, queue_name: str, serve: Serve) -> None:
    serve(queue_name)
    for job_id in ("mine", "1.5", "1e3", "a:b:c", "ü x"):
        job = node.call("add", queue=queue_name, name="seen", data={}, opts={"jobId": job_id})
        assert job["id"] == job_id
        assert finished(node, queue_name, job_id)["id"] == job_id
    node.call("add", queue=queue_name, name="seen", data={}, opts={"jobId": "01"})
    assert finished(node, queue_name, "01")["id"] == f"{queue_name}:01"


def test_the_user_may_choose_the_job_id(node: Node, queue_name: str, celery_app: Celery, serve: Serve) -> None:
    first = seen.apply_async((1,), queue=queue_name, bullmq={"jobId": "chosen"})
    node.call("queueEvents", queue=queue_name)
    seen.apply_async((2,), queue=queue_name, bullmq={"jobId": "chosen"})
    node.wait_for_event(queue_name, "duplicated", jobId="chosen")
    serve(queue_name)
    assert finished(node, queue_name, "chosen") == {"task": "seen", "id": first.id, "args": [1], "kwargs": {}}


def test_a_second_message_with_the_id_of_a_waiting_job_is_a_second_job(
    node: Node, queue_name: str, celery_app: Celery, serve: Serve
) -> None:
    for n in (1, 2):
        seen.apply_async((n,), task_id="twice", queue=queue_name)
    waiting = node.queue_call(queue_name, "getWaiting")
    assert len(waiting) == 2
    assert "twice" in [job["id"] for job in waiting]
    serve(queue_name)
    results = [finished(node, queue_name, job["id"]) for job in waiting]
    assert sorted(result["args"][0] for result in results) == [1, 2]
    assert [result["id"] for result in results] == ["twice", "twice"]


def test_a_message_with_the_id_of_a_finished_job_replaces_it(node: Node, queue_name: str, celery_app: Celery, serve: Serve) -> None:
    serve(queue_name)
    for n in (1, 2):
        seen.apply_async((n,), task_id="anew", queue=queue_name)
        assert finished(node, queue_name, "anew")["args"] == [n]
        node.wait_for_state(queue_name, "anew", "completed")
    assert node.call("getJobCounts", queue=queue_name)["completed"] == 1


# -- what cannot be run


def test_a_job_that_cannot_be_run_fails_with_its_reason(node: Node, queue_name: str, serve: Serve, redis_client: redis.Redis) -> None:
    serve(queue_name)
    cases = [
        ("nobody.knows.this", {}, "NotRegistered: nobody.knows.this"),
        ("two", {"unknown": 1}, "TypeError: "),
        ("two", [1, 2, 3], "TypeError: "),
        ("two", None, "TypeError: "),
    ]
    for name, data, reason in cases:
        job = node.call("add", queue=queue_name, name=name, data=data)
        with pytest.raises(NodeError) as caught:
            finished(node, queue_name, job["id"])
        assert caught.value.message.startswith(reason), name
        job = node.wait_for_state(queue_name, job["id"], "failed")
        assert job["failedReason"] == caught.value.message
    # The worker goes on.
    assert finished(node, queue_name, node.call("add", queue=queue_name, name="two", data=[1, 2])["id"]) == [1, 2]


def test_data_that_is_no_json_fails_the_job(node: Node, queue_name: str, serve: Serve, redis_client: redis.Redis) -> None:
    job = node.call("add", queue=queue_name, name="value", data=1)
    redis_client.hset(f"bull:{queue_name}:{job['id']}", "data", "{broken")
    serve(queue_name)

    def reason() -> str | None:
        return redis_client.hget(f"bull:{queue_name}:{job['id']}", "failedReason")

    assert wait_until(reason, what="the job to fail").startswith("ValueError: the data of this job is not JSON")  # type: ignore[union-attr]
    assert node.call("getState", queue=queue_name, jobId=job["id"]) == "failed"


def test_positional_arguments_reach_celery_from_node(node: Node, queue_name: str, serve: Serve) -> None:
    serve(queue_name)
    job = node.call("add", queue=queue_name, name=two.name, data={"a": 1})
    assert finished(node, queue_name, job["id"]) == [1, None]
