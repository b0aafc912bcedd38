"""Named scenarios of administration: what is done to jobs and queues by hand, compared as everything else is."""

from __future__ import annotations

from typing import Any

import pytest
from comparison import Comparison, add

STATES = ("waiting", "active", "delayed", "prioritized", "completed", "failed", "waiting-children")


def fill(both: Comparison, *, age_ms: int = 1000, locked: bool = True) -> dict[str, str]:
    """A job in every state; its id by state."""
    ids = {}
    add(both, deduplication={"id": "done"})
    (ids["completed"],) = both.do("take", "t:1")
    both.later(age_ms)
    both.do("complete", ids["completed"], "t:1", {"v": 1})
    add(both, data={"n": 2})
    (ids["failed"],) = both.do("take", "t:1")
    both.do("fail", ids["failed"], "t:1", "boom")
    both.later(age_ms)
    add(both, deduplication={"id": "running"})
    (ids["active"],) = both.do("take", "t:1")
    if not locked:
        both.lose_lock(ids["active"])
    ids["waiting"] = add(both, deduplication={"id": "waits"})
    ids["delayed"] = add(both, delay=1_000_000, priority=2)
    ids["prioritized"] = add(both, priority=7)
    both.later(age_ms)
    return ids


@pytest.mark.parametrize("state", [state for state in STATES if state != "waiting-children"])
def test_state_and_removal(both: Comparison, state: str) -> None:
    ids = fill(both)
    assert both.do("state", ids[state]) == state
    both.do("log", ids[state], "a line")
    removed = both.do("remove", ids[state])
    assert removed is (state != "active")
    both.compare()
    assert both.do("state", ids[state]) == ("unknown" if removed else state)


def test_removal_of_what_is_not_there_and_of_an_unlocked_active_job(both: Comparison) -> None:
    ids = fill(both, locked=False)
    assert both.do("remove", "nobody") is True
    assert both.do("remove", ids["active"]) is True
    both.compare()


def test_counts_and_ranges(both: Comparison) -> None:
    fill(both)
    for _ in range(5):
        add(both)
    both.do("counts")
    both.do("counts_per_priority", [0, 1, 7])
    for state in STATES:
        for start, end in ((0, -1), (0, 0), (1, 2), (0, 100), (3, 3), (7, 9)):
            both.do("ids", state, start, end, True)
            both.do("ids", state, start, end, False)
    both.do("pause")
    both.do("counts")
    both.do("counts_per_priority", [0, 7])
    both.compare()


def test_pause_and_resume(both: Comparison) -> None:
    fill(both)
    for verb in ("pause", "pause", "resume", "resume"):
        both.do(verb)
        both.compare()


@pytest.mark.parametrize("delayed", [True, False])
@pytest.mark.parametrize("paused", [True, False])
def test_drain(both: Comparison, delayed: bool, paused: bool) -> None:
    fill(both)
    if paused:
        both.do("pause")
    both.do("drain", delayed)
    both.compare()


@pytest.mark.parametrize("state", [state for state in STATES if state != "waiting-children"])
@pytest.mark.parametrize(("grace", "limit"), [(0, 0), (0, 1), (1500, 0), (10_000_000, 0)])
def test_clean(both: Comparison, state: str, grace: int, limit: int) -> None:
    fill(both, locked=False)
    fill(both, locked=state != "active")
    both.do("clean", grace, limit, state)
    both.compare()


def test_clean_leaves_what_is_being_worked_on(both: Comparison) -> None:
    fill(both)
    assert both.do("clean", 0, 0, "active") == []
    both.compare()


def test_obliterate(both: Comparison) -> None:
    fill(both)
    both.do("set_global_concurrency", 4)
    assert both.do("obliterate", False).code == 0
    both.compare()
    both.do("obliterate", True)
    _, ours = both.pictures()
    # Node leaves deduplication keys behind and the locks of those that worked; nothing is left here.
    assert [key for key in ours.keys if not key.endswith(":lock")] == []


def test_promote(both: Comparison) -> None:
    ids = fill(both)
    both.do("promote", ids["delayed"])
    both.compare()
    assert both.do("promote", ids["waiting"]).code == -3
    plain = add(both, delay=5000)
    both.do("pause")
    both.do("promote", plain)
    both.compare()


@pytest.mark.parametrize("lifo", [True, False])
@pytest.mark.parametrize("resets", [(False, False), (True, False), (False, True), (True, True)])
@pytest.mark.parametrize("state", ["completed", "failed"])
def test_retry(both: Comparison, lifo: bool, resets: tuple[bool, bool], state: str) -> None:
    for _ in range(2):
        job_id = add(both, lifo=lifo, attempts=2, delay=5)
        both.later(5)
        both.do("take", "t:1")
        both.do(
            "complete" if state == "completed" else "fail", job_id, "t:1", "x", **({} if state == "completed" else {"unrecoverable": True})
        )
    add(both)
    both.do("retry", "1", state, *resets)
    both.compare()
    assert both.do("retry", "1", state).code == -3
    both.do("take", "t:2", 4)
    both.compare()


def test_retry_of_a_prioritized_job(both: Comparison) -> None:
    add(both, priority=3)
    both.do("take", "t:1")
    both.do("fail", "1", "t:1", "no")
    add(both, priority=1)
    both.do("retry", "1", "failed")
    if both.version == "v6":
        both.compare()
        return
    # BullMQ 5 forgets the priority; ours is that of 6
    _, ours = both.pictures()
    assert list(ours.keys[f"bull:{both.queue}:prioritized"]) == ["2", "1"]


@pytest.mark.parametrize("state", ["completed", "failed"])
def test_retry_jobs(both: Comparison, state: str) -> None:
    for number in range(4):
        job_id = add(both)
        both.do("take", "t:1")
        both.do("complete" if state == "completed" else "fail", job_id, "t:1", number if state == "completed" else "no")
        both.later(100)
    add(both)
    both.do("retry_jobs", state, 2, both.now - 150)
    both.compare()
    both.do("retry_jobs", state, 1000, both.now)
    both.compare()


def test_promote_jobs_without_priorities(both: Comparison) -> None:
    for delay in (500, 100, 300):
        add(both, delay=delay)
    both.do("promote_jobs")
    node, ours = both.pictures()
    # Node leaves the old delay in the hash, which changes nothing; else the same
    for picture in (node, ours):
        for job_id in "123":
            picture.keys[f"bull:{both.queue}:{job_id}"].pop("delay")
    assert node.keys == ours.keys


def test_retried_and_promoted_in_bulk_keep_their_priority(both: Comparison) -> None:
    """Ours, not upstream's (protocol 16.12): Node puts them all into `wait`."""
    for priority in (5, 2):
        add(both, priority=priority, delay=1000)
    both.do("promote_jobs")
    _, ours = both.pictures()
    assert list(ours.keys[f"bull:{both.queue}:prioritized"]) == ["2", "1"]
    assert f"bull:{both.queue}:wait" not in ours.keys


@pytest.mark.parametrize("lifo", [True, False])
@pytest.mark.parametrize("priority", [0, 1, 7])
def test_change_priority(both: Comparison, priority: int, lifo: bool) -> None:
    ids = fill(both)
    add(both, priority=priority)
    for state in STATES[:-1]:
        both.do("change_priority", ids[state], priority, lifo)
        both.compare()
    both.do("pause")
    both.do("change_priority", ids["waiting"], priority, lifo)
    both.do("change_priority", ids["prioritized"], 0, lifo)
    both.compare()
    assert both.do("change_priority", "nobody", 1, lifo).code == 0


def test_change_delay(both: Comparison) -> None:
    ids = fill(both)
    both.do("change_delay", ids["delayed"], 50)
    both.compare()
    both.do("change_delay", ids["delayed"], 5_000_000)
    both.compare()
    assert both.do("change_delay", ids["waiting"], 5).code == -3


@pytest.mark.parametrize("value", [50, {"half": True}, "text", [1], True], ids=repr)
def test_progress_and_data(both: Comparison, value: Any) -> None:
    ids = fill(both)
    both.do("update_progress", ids["active"], value)
    both.do("update_data", ids["waiting"], value)
    both.compare()


def test_logs(both: Comparison) -> None:
    kept = add(both, keepLogs=2)
    free = add(both)
    for number in range(4):
        both.do("log", kept, f"line {number}")
        both.do("log", free, f"line {number}")
    both.compare()
    for start, end in ((0, -1), (0, 1), (1, 2)):
        both.do("logs", free, start, end, True)
        both.do("logs", free, start, end, False)
    both.do("clear_logs", free, 1)
    both.do("clear_logs", kept, 0)
    both.compare()


def test_removal_of_a_child_frees_the_parent(both: Comparison) -> None:
    parent = add(both)
    for _ in range(2):
        add(both, parent={"id": parent, "queue": f"bull:{both.queue}"})
    both.do("remove", "2")
    both.compare()
    both.do("remove", "3")
    both.compare()


@pytest.mark.parametrize("children", [True, False])
def test_removal_of_a_parent(both: Comparison, children: bool) -> None:
    parent = add(both, lifo=True)
    for _ in range(3):
        add(both, lifo=True, parent={"id": parent, "queue": f"bull:{both.queue}"}, ignoreDependencyOnFailure=True)
    both.do("take", "t:1", 2)
    both.do("complete", "4", "t:1", 1)
    both.do("fail", "3", "t:1", "no")
    both.do("log", "2", "x")
    both.compare()
    assert both.do("remove", parent, children) is True
    both.compare()


def test_a_parent_is_not_removed_while_a_child_is_worked_on(both: Comparison) -> None:
    parent = add(both)
    add(both, lifo=True, parent={"id": parent, "queue": f"bull:{both.queue}"})
    both.do("take", "t:1")
    assert both.do("remove", parent) is False
    both.compare()
    assert both.do("remove", parent, False) is True
    both.compare()
