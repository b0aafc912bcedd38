"""`remove`, `remove_unprocessed_children`, `requeue`, `promote`, `change_*`, `release_deduplication` and the looking scripts.

That they do what Node does is proved in tests/conformance; here is what is ours, and what Node cannot show.
"""

from __future__ import annotations

import json
from typing import Any

import pytest
from one_queue import NOW, Queue, stored

from bullmq_kombu import admin_scripts

CHILDREN = '{"children":true}'


def child_of(parent: Queue, job_id: str) -> str:
    link = json.dumps({"id": job_id, "queueKey": parent.base[:-1]}, separators=(",", ":"))
    return json.dumps({"parentKey": parent.key(job_id), "parent": link})


def flow(queue: Queue, other: Queue) -> None:
    """`top` here waits for `middle` there, which waits for `leaf` here."""
    middle = json.dumps({**json.loads(child_of(queue, "top")), "children": True})
    queue.add(queue.job("top", more=CHILDREN), other.job("middle", more=middle), queue.job("leaf", more=child_of(other, "middle")))
    queue.events()
    other.events()


def test_remove_takes_the_whole_tree_through_all_queues(queue: Queue, other: Queue) -> None:
    flow(queue, other)
    assert admin_scripts.remove(queue.server, queue.base, "top", children=True) == 1

    assert set(queue.without_meta()) == {"id", "marker"}
    assert set(other.without_meta()) <= {"id", "marker"}
    assert "removed jobId top prev wait" in queue.events()


def test_remove_is_refused_while_a_descendant_is_worked_on(queue: Queue, other: Queue) -> None:
    flow(queue, other)
    assert [taken.id for taken in queue.take()] == ["leaf"]
    before = queue.picture(), other.picture()

    assert admin_scripts.remove(queue.server, queue.base, "top", children=True) == 0
    assert (queue.picture(), other.picture()) == before


def test_remove_without_its_children_leaves_them(queue: Queue, other: Queue) -> None:
    flow(queue, other)
    assert admin_scripts.remove(queue.server, queue.base, "top", children=False) == 1
    assert queue.value("top") is None
    assert other.value("waiting-children") == {"middle": NOW}


def test_what_a_scheduler_does_next_is_not_removed(queue: Queue) -> None:
    queue.set("repeat", "ZADD", NOW, "s")
    queue.add(queue.job(f"repeat:s:{NOW}"))
    assert admin_scripts.remove(queue.server, queue.base, f"repeat:s:{NOW}", children=True) == -8
    assert queue.value("wait") == [f"repeat:s:{NOW}"]


def test_unprocessed_children_go_but_those_in_hand(queue: Queue, other: Queue) -> None:
    queue.add(
        queue.job("top", more=CHILDREN), other.job("running", more=child_of(queue, "top")), other.job("idle", more=child_of(queue, "top"))
    )
    assert [taken.id for taken in other.take()] == ["running"]
    admin_scripts.remove_unprocessed_children(queue.server, queue.base, "top")

    assert queue.value("top:dependencies") == {other.key("running")}
    assert other.value("idle") is None
    assert queue.value("waiting-children") == {"top": NOW}


@pytest.mark.parametrize(("policy", "kept_in"), [("{}", "processed"), ('{"idof":true}', "failed"), ('{"fpof":true}', "unsuccessful")])
def test_a_child_that_is_retried_is_waited_for_again(queue: Queue, other: Queue, policy: str, kept_in: str) -> None:
    link: dict[str, Any] = {"id": "top", "queueKey": queue.base[:-1], **json.loads(policy)}
    more = json.dumps({"parentKey": queue.key("top"), "parent": json.dumps(link)})
    queue.add(queue.job("top", more=CHILDREN), other.job("c", more=more), other.job("d", more=child_of(queue, "top")))
    other.take(2)
    state = "completed" if kept_in == "processed" else "failed"
    other.end(other.ending(state, "c", "1"))
    assert list(queue.value(f"top:{kept_in}")) == [other.key("c")]

    code = admin_scripts.requeue(other.server, other.base, "c", state, lifo=False, reset_made=False, reset_started=False)
    assert code == 1
    assert queue.value(f"top:{kept_in}") is None
    assert queue.value("top:dependencies") == {other.key("c"), other.key("d")}


def test_a_deduplication_id_is_freed_for_its_owner_only(queue: Queue) -> None:
    queue.add(queue.job("a", more='{"de":{"id":"x"}}'))
    assert admin_scripts.release_deduplication(queue.server, queue.base, "x", "b") == 0
    assert admin_scripts.release_deduplication(queue.server, queue.base, "x", "a") == 1
    assert admin_scripts.release_deduplication(queue.server, queue.base, "x") == 0


def test_a_delayed_id_without_a_job_does_not_become_one_by_being_promoted(queue: Queue) -> None:
    queue.set("delayed", "ZADD", 1, "gone")
    assert admin_scripts.promote(queue.server, queue.base, "gone") == 0
    assert queue.value("gone") is None
    assert queue.take() == []
    assert set(queue.value("failed")) == {"gone"}


def test_codes(queue: Queue) -> None:
    server, base = queue.server, queue.base
    queue.add(queue.job("a"))
    assert admin_scripts.promote(server, base, "a") == -3
    assert admin_scripts.change_delay(server, base, "a", 5, NOW) == -3
    assert admin_scripts.change_delay(server, base, "nobody", 5, NOW) == -1
    assert admin_scripts.change_priority(server, base, "nobody", 1, False) == -1
    for job_id, code in (("a", -3), ("nobody", -1)):
        assert admin_scripts.requeue(server, base, job_id, "failed", lifo=False, reset_made=False, reset_started=False) == code
    assert queue.value("a") == stored()


def test_states_and_outcomes(queue: Queue, other: Queue) -> None:
    def state(job_id: str) -> str:
        return admin_scripts.state_of(queue.server, queue.base, job_id)

    def outcome(job_id: str) -> tuple[str, str]:
        return admin_scripts.outcome_of(queue.server, queue.base, job_id)

    queue.active(queue.job("done"), queue.job("broken"), queue.job("running"))
    queue.end(queue.ending("completed", "done", '{"a":1}'), queue.ending("failed", "broken", "no"))
    queue.add(
        queue.job("a"),
        queue.job("p", priority=1),
        queue.job("d", delay=10),
        queue.job("w", more=CHILDREN),
        other.job(more=child_of(queue, "w")),
    )
    queue.set("paused", "LPUSH", "parked")
    assert {job_id: state(job_id) for job_id in ("done", "broken", "running", "a", "p", "d", "w", "parked", "nobody")} == {
        "done": "completed", "broken": "failed", "running": "active", "a": "waiting", "p": "prioritized", "d": "delayed",
        "w": "waiting-children", "parked": "waiting", "nobody": "unknown",
    }  # fmt: skip
    assert [tuple(outcome(job_id)) for job_id in ("done", "broken", "running", "nobody")] == [
        ("completed", '{"a":1}'), ("failed", "no"), ("", ""), ("missing", ""),
    ]  # fmt: skip


def test_counts_with_relics_of_older_versions(queue: Queue) -> None:
    queue.set("wait", "LPUSH", "0:0", "a", "b")  # the marker of BullMQ 4 is at the tail
    queue.set("paused", "LPUSH", "parked")
    assert admin_scripts.counts(queue.server, queue.base, ["wait", "active"]) == [3, 0]
    assert admin_scripts.priority_counts(queue.server, queue.base, [0, 1]) == [4, 0]


def test_jobs_of_a_paused_queue_are_read_in_their_order(queue: Queue) -> None:
    for job_id in ("parked-1", "parked-2", "later"):
        queue.set(job_id, "HSET", "name", job_id)
    queue.set("paused", "LPUSH", "parked-1", "ghost", "parked-2")
    queue.set("wait", "LPUSH", "later")

    def ids(start: int, end: int, oldest_first: bool) -> list[str]:
        return [found.id for found in admin_scripts.read_jobs(queue.server, queue.base, "wait", start, end, oldest_first)]

    assert ids(0, -1, True) == ["parked-1", "parked-2", "later"]
    assert ids(0, -1, False) == ["later", "parked-2", "parked-1"]
    assert ids(1, 2, True) == ["parked-2"]
    assert ids(-1, -1, True) == ["later"]
    assert ids(4, 9, True) == []
