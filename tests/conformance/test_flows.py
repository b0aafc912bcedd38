"""Named scenarios of flows: what is stored, and what the end of a child does to its parent, compared as everything else is."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
from comparison import Comparison
from sides import Refused

POLICIES = ("failParentOnFailure", "continueParentOnFailure", "ignoreDependencyOnFailure", "removeDependencyOnFailure", None)
CHILDREN = "children"
PARENTS = "parents"


@contextlib.contextmanager
def in_queue(both: Comparison, queue: str) -> Iterator[None]:
    """What is done inside is done to another queue."""
    before, both.queue = both.queue, queue
    try:
        yield
    finally:
        both.queue = before


def do(both: Comparison, queue: str, verb: str, *args: Any, **named: Any) -> Any:
    with in_queue(both, queue):
        return both.do(verb, *args, **named)


def child(job_id: str, queue: str = CHILDREN, *children: Any, **opts: Any) -> dict[str, Any]:
    node: dict[str, Any] = {"name": "c", "queueName": queue, "data": {"of": job_id}, "opts": {"jobId": job_id, **opts}}
    return {**node, "children": list(children)} if children else node


def family(both: Comparison, *children: Any, **opts: Any) -> None:
    """A parent `p` in a queue of its own with these children."""
    ids = do(both, PARENTS, "add_flow", child("p", PARENTS, *children, **opts))
    assert ids[0] == "p"


def end_child(both: Comparison, policy: str | None, job_id: str = "c1", **opts: Any) -> None:
    """The child fails for good."""
    taken = do(both, CHILDREN, "take", "t:c")
    assert taken == [job_id]
    do(both, CHILDREN, "fail", job_id, "t:c", "no luck")


def test_a_tree_over_queues_and_prefixes(both: Comparison) -> None:
    tree = child(
        "root", "q1",
        child("a", "q2", child("a1", "q3", priority=3), child("a2", "q3", delay=500, attempts=2)),
        {**child("b", "q2"), "prefix": "other"},
        child("c", "q1", lifo=True, failParentOnFailure=True, removeOnComplete=5, keepLogs=3),
        priority=2,
    )  # fmt: skip
    assert both.do("add_flow", tree) == ["root", "a", "a1", "a2", "b", "c"]
    both.compare()


def test_a_flow_under_an_existing_parent(both: Comparison) -> None:
    both.do("add", "n", {}, {"jobId": "there"})
    tree = child("root", "q2", child("a", "q3"), parent={"id": "there", "queue": f"bull:{both.queue}"}, ignoreDependencyOnFailure=True)
    both.do("add_flow", tree)
    both.compare()


def test_children_complete(both: Comparison) -> None:
    family(both, child("c1"), child("c2", priority=1))
    for job_id in ("c1", "c2"):
        both.compare()
        assert do(both, CHILDREN, "take", "t:c") == [job_id]
        do(both, CHILDREN, "complete", job_id, "t:c", {"by": job_id})
    both.compare()
    assert do(both, PARENTS, "take", "t:p") == ["p"]
    do(both, PARENTS, "complete", "p", "t:p", 1)
    both.compare()


@pytest.mark.parametrize("opts", [{"delay": 700}, {"priority": 4}, {"lifo": True}, {"delay": 700, "priority": 4}], ids=repr)
@pytest.mark.parametrize("policy", ["failParentOnFailure", "ignoreDependencyOnFailure", "completes"])
def test_how_a_parent_goes_on(both: Comparison, opts: dict[str, Any], policy: str) -> None:
    do(both, PARENTS, "add", "n", {}, {})
    do(both, PARENTS, "add", "n", {}, {"priority": 4})
    family(both, child("c1", **({} if policy == "completes" else {policy: True})), **opts)
    if policy == "completes":
        do(both, CHILDREN, "take", "t:c")
        do(both, CHILDREN, "complete", "c1", "t:c", None)
    else:
        end_child(both, policy)
    both.compare()
    both.later(1000)
    do(both, PARENTS, "take", "t:p", 5)
    both.compare()


@pytest.mark.parametrize("keep", [True, False], ids=["kept", "removed"])
@pytest.mark.parametrize("siblings", [0, 1])
@pytest.mark.parametrize("policy", POLICIES)
def test_a_child_fails_while_its_parent_waits(both: Comparison, policy: str | None, siblings: int, keep: bool) -> None:
    others = [child(f"s{n}") for n in range(siblings)]
    opts = {**({policy: True} if policy else {}), **({} if keep else {"removeOnFail": True})}
    family(both, child("c1", **opts), *others)
    end_child(both, policy)
    both.compare()
    for n in range(siblings):
        do(both, CHILDREN, "take", "t:s")
        do(both, CHILDREN, "complete", f"s{n}", "t:s", n)
        both.compare()
    do(both, PARENTS, "take", "t:p")
    both.compare()
    do(both, PARENTS, "complete", "p", "t:p", 1)
    both.compare()


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("state", ["active", "waiting", "delayed", "prioritized", "completed", "failed"])
def test_a_child_fails_while_its_parent_is_somewhere_else(both: Comparison, policy: str | None, state: str) -> None:
    opts = {"delayed": {"delay": 9000}, "prioritized": {"priority": 2}}.get(state, {})
    do(both, PARENTS, "add", "n", {}, {"jobId": "p", **opts})
    if state in ("active", "completed", "failed"):
        assert do(both, PARENTS, "take", "t:p") == ["p"]
    if state == "completed":
        do(both, PARENTS, "complete", "p", "t:p", 1)
    if state == "failed":
        do(both, PARENTS, "fail", "p", "t:p", "first")
    given = {"jobId": "c1", "parent": {"id": "p", "queue": f"bull:{PARENTS}"}, **({policy: True} if policy else {})}
    do(both, CHILDREN, "add", "c", {}, given)
    both.compare()
    end_child(both, policy)
    both.compare()
    if state == "active":
        do(both, PARENTS, "complete", "p", "t:p", 1)
    else:
        do(both, PARENTS, "take", "t:p")
    both.compare()


def test_a_failure_climbs_through_three_generations(both: Comparison) -> None:
    tree = child("g", "grand", child("p", PARENTS, child("c1", failParentOnFailure=True), failParentOnFailure=True), attempts=3)
    both.do("add_flow", tree)
    end_child(both, "failParentOnFailure")
    both.compare()
    assert do(both, PARENTS, "take", "t:p") == ["p"]
    both.compare()
    assert do(both, "grand", "take", "t:g") == ["g"]
    both.compare()
    assert do(both, "grand", "state", "g") == "failed"


def test_a_parent_that_is_gone(both: Comparison) -> None:
    missing = {"id": "nobody", "queue": f"bull:{PARENTS}"}
    assert do(both, CHILDREN, "add", "c", {}, {"parent": missing}) == Refused(-5)
    both.compare()


def test_waiting_for_children_by_hand(both: Comparison) -> None:
    do(both, PARENTS, "add", "n", {}, {"jobId": "p", "priority": 1})
    do(both, PARENTS, "take", "t:1")
    assert do(both, PARENTS, "wait_children", "p", "t:1") is False
    for n in range(2):
        do(both, CHILDREN, "add", "c", {}, {"jobId": f"c{n}", "parent": {"id": "p", "queue": f"bull:{PARENTS}"}})
    assert do(both, PARENTS, "wait_children", "p", "t:other") == Refused(-6)
    both.compare()
    assert do(both, PARENTS, "wait_children", "p", "t:1") is True
    both.compare()
    for n in range(2):
        do(both, CHILDREN, "take", "t:c")
        do(both, CHILDREN, "complete", f"c{n}", "t:c", n)
    both.compare()
    assert do(both, PARENTS, "take", "t:2") == ["p"]
    both.compare()


def test_waiting_for_a_child_that_has_failed(both: Comparison) -> None:
    do(both, PARENTS, "add", "n", {}, {"jobId": "p"})
    do(both, PARENTS, "take", "t:1")
    do(both, CHILDREN, "add", "c", {}, {"jobId": "c1", "parent": {"id": "p", "queue": f"bull:{PARENTS}"}, "failParentOnFailure": True})
    end_child(both, "failParentOnFailure")
    assert do(both, PARENTS, "wait_children", "p", "t:1") == Refused(-9)
    both.compare()
    # the next attempt is not made: the failed child decides
    do(both, PARENTS, "fail", "p", "t:1", "whatever")
    both.compare()


def test_jobs_of_one_queue_stand_in_the_order_of_their_level(both: Comparison) -> None:
    queue = both.queue
    flow = child(
        "r", queue, child("a", queue, child("a1", queue, child("a11", queue)), child("a2", queue)), child("b", queue, child("b1", queue))
    )
    both.do("add_flow", flow)
    both.compare()


@pytest.mark.parametrize("priority", [0, 1])
def test_a_second_child_fails_while_its_parent_is_delayed(both: Comparison, priority: int) -> None:
    family(both, *(child(f"c{n}", failParentOnFailure=True) for n in (1, 2)), child("c3"), delay=10, priority=priority)
    for job_id in ("c1", "c2"):
        end_child(both, "failParentOnFailure", job_id)
        both.compare()
    do(both, PARENTS, "take", "t:p")
    both.compare()


@pytest.mark.parametrize("keep", [1, {"age": 1}], ids=["count", "age"])
def test_a_parent_freed_by_retention_is_told_of_before_the_end_that_freed_it(both: Comparison, keep: Any) -> None:
    """A failed child without a policy holds its parent up until it is removed, be it by the retention of another job."""
    family(both, child("c1"))
    end_child(both, None)
    both.later(2000)
    do(both, CHILDREN, "add", "n", {}, {"jobId": "other", "removeOnFail": keep})
    do(both, CHILDREN, "take", "t:c")
    do(both, CHILDREN, "fail", "other", "t:c", "no luck either")
    both.compare()
    assert do(both, PARENTS, "take", "t:p") == ["p"]
    both.compare()
