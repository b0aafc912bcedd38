"""Families of jobs across the languages: Celery tasks and Node processors as parents and children of each other."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis
from celery import Celery, chain
from celery_worker import CeleryWorker
from interop_tasks import children as children_task
from interop_tasks import fail, value
from kombu import Connection
from node_driver import Node
from servers import Server
from waiting import wait_until

from bullmq_kombu import FlowProducer
from bullmq_kombu.errors import BadInput, ParentConflict, ParentMissing
from bullmq_kombu.flows import JobNode

Serve = Callable[[str], CeleryWorker]
SIDES = ("celery", "node")


@pytest.fixture
def flows(celery_app: Celery) -> Iterator[FlowProducer]:
    with FlowProducer(celery_app) as producer:
        yield producer


class Work:
    """Starts a worker of one side on a queue."""

    def __init__(self, node: Node, serve: Serve) -> None:
        self._node = node
        self._serve = serve

    def __call__(self, side: str, queue: str) -> None:
        if side == "celery":
            self._serve(queue)
        else:
            self._node.call("worker", queue=queue, behaviours={"fail": {"throw": "no such address"}, "parent": {"childrenValues": True}})


@pytest.fixture
def work(node: Node, serve: Serve) -> Work:
    return Work(node, serve)


def finished(node: Node, queue: str, job_id: str) -> Any:
    return node.call("waitUntilFinished", queue=queue, jobId=job_id, ttl=15000)


def test_node_runs_a_flow_added_here(node: Node, queue_name: str, flows: FlowProducer, work: Work) -> None:
    leaves = f"{queue_name}-leaves"
    for queue in (queue_name, leaves):
        work("node", queue)
    added = flows.add({
        "name": "parent", "queueName": queue_name, "data": {"a": 1}, "opts": {"attempts": 2}, "children": [
            {"name": "leaf", "queue_name": leaves, "data": {"n": 1}},
            {"name": "parent", "queueName": queue_name, "children": [{"name": "leaf", "queueName": leaves, "data": [2]}]},
        ],
    })  # fmt: skip
    values = finished(node, queue_name, added.job.id)
    first, second = (child.job for child in added.children)
    inner = added.children[1].children[0].job
    assert values == {first.key: {"n": 1}, second.key: {inner.key: [2]}}
    assert added.job.get_children_values() == values
    assert added.job.get_dependencies_count() == {"processed": 2, "unprocessed": 0, "ignored": 0, "failed": 0}


@pytest.mark.parametrize("parent_side", SIDES)
@pytest.mark.parametrize("child_side", SIDES)
def test_a_family_of_both_sides(parent_side: str, child_side: str, node: Node, queue_name: str, flows: FlowProducer, work: Work) -> None:
    leaves = f"{queue_name}-leaves"
    work(parent_side, queue_name)
    work(child_side, leaves)
    added = flows.add({
        "name": "parent" if parent_side == "node" else "job.children", "queueName": queue_name, "data": {},
        "children": [
            {"name": "value", "queueName": leaves, "data": {"value": {"x": 1}}},
            value.s([1, 2]).set(queue=leaves),
        ],
    })  # fmt: skip
    result = finished(node, queue_name, added.job.id)
    # Node's processor answers with the data, Celery's task with its argument
    expected: list[Any] = [{"value": {"x": 1}}, {"args": [[1, 2]], "kwargs": {}}] if child_side == "node" else [{"x": 1}, [1, 2]]
    keys = [child.job.key for child in added.children]
    assert (result["values"] if parent_side == "celery" else result) == dict(zip(keys, expected, strict=True))


#: policy -> (state of the parent, its failedReason or what it sees ignored)
POLICIES = {
    "failParentOnFailure": "failed",
    "continueParentOnFailure": "completed",
    "ignoreDependencyOnFailure": "completed",
    "removeDependencyOnFailure": "completed",
    None: "waiting-children",
}


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("sides", [("celery", "celery"), ("celery", "node"), ("node", "celery")], ids="-child-of-".join)
def test_what_a_failed_child_means(
    sides: tuple[str, str], policy: str | None, node: Node, queue_name: str, flows: FlowProducer, work: Work
) -> None:
    child_side, parent_side = sides
    leaves = f"{queue_name}-leaves"
    work(child_side, leaves)
    work(parent_side, queue_name)
    added = flows.add({
        "name": "job.children", "queueName": queue_name, "children": [
            {"name": "fail", "queueName": leaves, "data": {}, "opts": {policy: True} if policy else {}},
        ],
    })  # fmt: skip
    bad = added.children[0].job
    node.wait_for_state(leaves, bad.id, "failed")
    found = node.wait_for_state(queue_name, added.job.id, POLICIES[policy])
    if policy == "failParentOnFailure":
        assert found["failedReason"] == f"child {bad.key} failed"
        assert added.job.get_failed_children() == [bad.key]
    elif policy is not None and parent_side == "celery":
        reason = "ValueError: no such address" if child_side == "celery" else "no such address"
        ignored = {} if policy == "removeDependencyOnFailure" else {bad.key: reason}
        assert found["returnvalue"]["ignored"] == ignored
        assert found["returnvalue"]["values"] == {}


def test_a_failed_child_retried_from_a_dashboard_releases_its_parent(
    node: Node, queue_name: str, flows: FlowProducer, serve: Serve
) -> None:
    leaves = f"{queue_name}-leaves"
    serve(leaves)
    serve(queue_name)
    added = flows.add({
        "name": "job.children", "queueName": queue_name,
        "children": [{"name": "fail_until", "queueName": leaves, "data": {"key": f"{queue_name}:n", "times": 1}}],
    })  # fmt: skip
    bad = added.children[0].job
    node.wait_for_state(leaves, bad.id, "failed")
    node.job_call(leaves, bad.id, "retry", "failed")
    assert finished(node, queue_name, added.job.id)["values"] == {bad.key: {"attempt": 2}}


def test_tasks_as_nodes_keep_what_celery_needs(
    node: Node, queue_name: str, flows: FlowProducer, serve: Serve, redis_client: redis.Redis
) -> None:
    leaves = f"{queue_name}-leaves"
    serve(queue_name)
    link = f"{queue_name}:linked"
    from interop_tasks import note

    child = value.s(5).set(queue=leaves, priority=3, countdown=0.2, link=note.si(link, "linked").set(queue=queue_name))
    added = flows.add({"signature": children_task.s().set(queue=queue_name, task_id=f"parent-{secrets.token_hex(4)}"), "children": [child]})
    leaf = node.job(leaves, added.children[0].job.id)
    assert (leaf["name"], leaf["priority"], leaf["data"]) == ("value", 3, {"args": [5], "kwargs": {}})
    assert 0 < leaf["delay"] <= 200
    assert leaf["parent"] == {"id": added.job.id, "queueKey": f"bull:{queue_name}"}
    # as any message of Celery, kept for a day
    assert leaf["opts"]["removeOnComplete"] == {"age": 86400, "count": 1000}
    serve(leaves)
    assert finished(node, queue_name, added.job.id)["values"] == {added.children[0].job.key: 5}
    wait_until(lambda: redis_client.lrange(link, 0, -1) == ['"linked"'], what="the callback")


def test_a_task_under_an_id_that_is_taken_gets_another(node: Node, queue_name: str, flows: FlowProducer, celery_app: Celery) -> None:
    sent = value.apply_async((1,), queue=queue_name)
    leaves = f"{queue_name}-leaves"
    added = flows.add({"signature": value.s(2).set(queue=queue_name, task_id=sent.id), "children": [value.s(3).set(queue=leaves)]})
    assert added.job.id != sent.id
    assert node.call("getState", queue=queue_name, jobId=added.job.id) == "waiting-children"
    assert node.job(leaves, added.children[0].job.id)["parent"]["id"] == added.job.id


def test_a_message_can_be_a_child(node: Node, queue_name: str, serve: Serve, celery_app: Celery) -> None:
    parents = f"{queue_name}-parents"
    made = node.call(
        "flowAdd", flow={"name": "parent", "queueName": parents, "children": [{"name": "value", "queueName": queue_name, "data": [1]}]}
    )
    parent = made["job"]["id"]
    sent = fail.apply_async(
        kwargs={"message": "late"},
        queue=queue_name,
        bullmq={"parent": {"id": parent, "queue": f"bull:{parents}"}, "failParentOnFailure": True},
    )
    serve(queue_name)
    node.call("worker", queue=parents)
    found = node.wait_for_state(parents, parent, "failed")
    assert found["failedReason"] == f"child bull:{queue_name}:{sent.id} failed"


@pytest.mark.parametrize("adder", SIDES)
def test_reading_a_flow(adder: str, node: Node, queue_name: str, flows: FlowProducer) -> None:
    leaves = f"{queue_name}-leaves"
    flow = {
        "name": "root", "queueName": queue_name, "children": [
            {"name": f"child{n}", "queueName": leaves, "children": [{"name": "leaf", "queueName": leaves, "prefix": "other"}]}
            for n in range(3)
        ],
    }  # fmt: skip
    root = node.call("flowAdd", flow=flow)["job"]["id"] if adder == "node" else flows.add(flow).job.id
    theirs = node.call("flowCall", method="getFlow", args=[{"id": root, "queueName": queue_name}])
    ours = flows.get_flow(root, queue_name)
    assert ours is not None

    def of_node(found: dict[str, Any]) -> Any:
        return found["job"]["id"], sorted(of_node(one) for one in found.get("children") or ())

    def of_ours(found: JobNode) -> Any:
        return found.job.id, sorted(of_ours(one) for one in found.children)

    assert of_ours(ours) == of_node(theirs)
    assert len(ours.children) == 3
    flat = flows.get_flow(root, queue_name, depth=2, max_children=2)
    assert flat is not None
    assert [len(one.children) for one in flat.children] == [0, 0]
    assert flows.get_flow("nobody", queue_name) is None


def test_defaults_for_the_jobs_of_a_queue(node: Node, queue_name: str, flows: FlowProducer) -> None:
    options = {"queuesOptions": {queue_name: {"defaultJobOptions": {"attempts": 4, "removeOnComplete": True}}}}
    flow = {"name": "p", "queueName": queue_name, "children": [{"name": "c", "queueName": queue_name, "opts": {"attempts": 2}}]}
    added = flows.add(flow, options)
    theirs = node.call("flowAdd", flow=flow, opts=options)
    for mine, other in ((added.job, theirs), (added.children[0].job, theirs["children"][0])):
        opts = node.job(queue_name, mine.id)["opts"]
        expected = node.job(queue_name, other["job"]["id"])["opts"]
        for one in (opts, expected):
            one.pop("parent", None)
        assert opts == expected


def test_a_refused_flow_leaves_nothing(node: Node, queue_name: str, flows: FlowProducer, redis_client: redis.Redis) -> None:
    parents = f"{queue_name}-p"
    flows.add(
        {
            "name": "p",
            "queueName": parents,
            "opts": {"jobId": "first"},
            "children": [{"name": "c", "queueName": queue_name, "opts": {"jobId": "taken"}}],
        }
    )
    before = set(redis_client.keys(f"*{queue_name}*"))
    wait = redis_client.lrange(f"bull:{queue_name}:wait", 0, -1)
    child = {"name": "c", "queueName": queue_name}
    with pytest.raises(ParentConflict):
        flows.add({"name": "p", "queueName": parents, "children": [child, {**child, "opts": {"jobId": "taken"}}, child]})
    with pytest.raises(ParentMissing):
        flows.add(
            {"name": "p", "queueName": parents, "opts": {"parent": {"id": "nobody", "queue": f"bull:{parents}"}}, "children": [child]}
        )
    assert set(redis_client.keys(f"*{queue_name}*")) == before
    assert redis_client.lrange(f"bull:{queue_name}:wait", 0, -1) == wait


@pytest.mark.parametrize(
    ("node_of_flow", "message"),
    [
        ("text", "is a dictionary or a Celery signature"),
        ({"name": "n"}, "has a 'name' and a 'queueName'"),
        ({"name": "n", "queueName": "q", "childs": []}, "did you mean 'children'"),
        ({"name": "n", "queueName": "q:q"}, "cannot contain ':'"),
        ({"name": "n", "queueName": "q", "opts": {"atempts": 1}}, "did you mean 'attempts'"),
        ({"signature": "n"}, "no Celery signature"),
        ({"signature": value.s(1), "queueName": "q"}, "the signature says it"),
        (chain(value.s(1), value.s(2)), "a chain is no single job"),
        (
            {"name": "n", "queueName": "q", "opts": {"deduplication": {"id": "d"}}, "children": [{"name": "c", "queueName": "q"}]},
            "cannot be deduplicated",
        ),
        (
            {"name": "n", "queueName": "q", "children": [{"name": "c", "queueName": "q", "opts": {"deduplication": {"id": "d"}}}]},
            "cannot be used together",
        ),
    ],
    ids=lambda value: None,
)  # fmt: skip
def test_a_wrong_flow_is_an_error_at_the_call(node_of_flow: Any, message: str, server: Server) -> None:
    with FlowProducer(Connection(server.url)) as flows, pytest.raises(BadInput, match=message):
        flows.add(node_of_flow)


@pytest.mark.parametrize("side", SIDES)
def test_a_child_is_set_free(side: str, node: Node, queue_name: str, flows: FlowProducer, redis_client: redis.Redis) -> None:
    leaves = f"{queue_name}-leaves"
    added = flows.add({
        "name": "root", "queueName": queue_name, "children": [{"name": f"leaf{n}", "queueName": leaves} for n in range(2)],
    })  # fmt: skip
    for child in added.children:
        assert node.job(queue_name, added.job.id) is not None
        if side == "node":
            assert node.job_call(leaves, child.job.id, "removeChildDependency") is True
        else:
            assert child.job.refresh().remove_child_dependency() is True
            assert child.job.remove_child_dependency() is False
        assert child.job.refresh().parent_key is None
    node.wait_for_state(queue_name, added.job.id, "waiting")
    assert added.job.get_dependencies_count()["unprocessed"] == 0
    assert {node.job(leaves, child.job.id)["name"] for child in added.children} == {"leaf0", "leaf1"}
