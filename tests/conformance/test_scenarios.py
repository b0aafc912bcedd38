"""Named scenarios, about one for each row of the protocol: what they name is what they are about, and everything else is compared too."""

from __future__ import annotations

from typing import Any

import pytest
from comparison import START_MS, Comparison, add

# -- adding ----------------------------------------------------------------------------------------------------------------------


def test_add_plain(both: Comparison) -> None:
    assert [add(both), add(both, data=[1, "ä"]), add(both, data="text")] == ["1", "2", "3"]
    both.compare()


def test_add_with_every_option_that_is_kept(both: Comparison) -> None:
    add(
        both,
        attempts=3,
        backoff={"type": "exponential", "delay": 100},
        removeOnComplete=5,
        removeOnFail={"age": 10, "count": 3},
        keepLogs=3,
    )
    add(both, backoff=50, stackTraceLimit=2, sizeLimit=1000, lifo=True, failParentOnFailure=True)
    add(both, removeOnComplete=True, removeOnFail=False, jobId="a-b", telemetry={"metadata": "m", "omitContext": True})
    add(both, timestamp=START_MS - 5)
    both.compare()


def test_add_lifo_goes_before_the_others(both: Comparison) -> None:
    ids = [add(both), add(both, lifo=True), add(both)]
    assert both.do("take", "t:1", 3) == [ids[1], ids[0], ids[2]]
    both.compare()


def test_add_prioritized(both: Comparison) -> None:
    ids = [add(both, priority=5), add(both, priority=1), add(both, priority=5), add(both), add(both, priority=2_097_151)]
    both.compare()
    assert both.do("take", "t:1", 5) == [ids[3], ids[1], ids[0], ids[2], ids[4]]
    both.compare()


def test_add_delayed(both: Comparison) -> None:
    for delay in (5000, 5000, 10, 5000):
        add(both, delay=delay)
    add(both, delay=100, priority=3)
    add(both, delay=50, timestamp=START_MS + 1000)
    both.compare()


def test_add_with_the_id_of_another(both: Comparison) -> None:
    assert add(both, jobId="same") == add(both, jobId="same", data={"b": 2}, delay=7) == "same"
    both.compare()


def test_add_bulk(both: Comparison) -> None:
    jobs = [
        {"name": "a", "data": {}, "opts": {}},
        {"name": "b", "data": {}, "opts": {"delay": 3}},
        {"name": "c", "data": {}, "opts": {"lifo": True}},
    ]
    both.do("add_bulk", jobs)
    both.compare()


def test_add_while_paused(both: Comparison) -> None:
    add(both)
    both.do("pause")
    for opts in ({}, {"lifo": True}, {"priority": 2}, {"delay": 5}):
        add(both, **opts)
    both.compare()
    assert both.do("take", "t:1") == []
    both.do("resume")
    both.compare()
    assert len(both.do("take", "t:1", 4)) == 4
    both.compare()


def test_add_to_a_parent(both: Comparison) -> None:
    parent = add(both, jobId="parent")
    add(both, parent={"id": parent, "queue": f"bull:{both.queue}"}, failParentOnFailure=True)
    both.compare()
    assert both.do("add", "n", {}, {"parent": {"id": "nobody", "queue": f"bull:{both.queue}"}}).code == -5
    both.compare()


# -- deduplication ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "deduplication",
    [
        {"id": "d"}, {"id": "d", "ttl": 60_000}, {"id": "d", "ttl": 60_000, "extend": True}, {"id": "d", "replace": True},
        {"id": "d", "ttl": 60_000, "replace": True}, {"id": "d", "ttl": 60_000, "extend": True, "replace": True},
        {"id": "d", "keepLastIfActive": True}, {"id": "d", "keepLastIfActive": True, "ttl": 60_000},
    ],
    ids=lambda value: "-".join(name for name in value if name != "id") or "simple",
)  # fmt: skip
@pytest.mark.parametrize("delay", [0, 9000])
def test_deduplication(both: Comparison, deduplication: dict[str, Any], delay: int) -> None:
    for number in range(3):
        add(both, data={"n": number}, deduplication=deduplication, delay=delay)
        both.later(10)
        both.compare()
    both.later(10_000)
    for job_id in both.do("take", "t:1", 5):
        add(both, data={"n": 9}, deduplication=deduplication, delay=delay, priority=4)
        both.compare()
        both.do("complete", job_id, "t:1", 1)
    both.compare()
    for job_id in both.do("take", "t:2", 5):
        both.do("fail", job_id, "t:2", "no")
    both.compare()


def test_a_deduplication_id_is_freed_by_hand(both: Comparison) -> None:
    add(both, deduplication={"id": "d"})
    assert both.do("remove_deduplication_key", "d") is True
    assert both.do("remove_deduplication_key", "d") is False
    add(both, deduplication={"id": "d"})
    both.compare()


# -- taking ----------------------------------------------------------------------------------------------------------------------


def test_take_promotes_what_is_due(both: Comparison) -> None:
    for opts in ({"delay": 10}, {"delay": 20, "priority": 3}, {"delay": 30}, {"delay": 500}):
        add(both, **opts)
    both.later(30)
    assert both.do("take", "t:1", 5) == ["1", "3", "2"]
    both.compare()


def test_take_from_an_empty_queue(both: Comparison) -> None:
    assert both.do("take", "t:1") == []
    both.compare()


def test_global_concurrency(both: Comparison) -> None:
    both.do("set_global_concurrency", 1)
    first, second = add(both), add(both)
    assert both.do("take", "t:1", 2) == [first]
    both.compare()
    assert both.do("complete", first, "t:1", None, True) == second
    both.compare()
    both.do("set_global_concurrency", None)
    both.compare()


def test_global_rate_limit(both: Comparison) -> None:
    both.do("set_global_rate_limit", (2, 500_000))
    for _ in range(3):
        add(both)
    assert both.do("take", "t:1", 3) == ["1", "2"]
    assert both.do("rate_limit_ttl", None) is True
    both.compare()
    assert both.do("remove_rate_limit_key") is True
    assert both.do("take", "t:1", 3) == ["3"]
    both.do("set_global_rate_limit", None)
    both.compare()


# -- finishing -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [None, 0, "text", {"a": [1, None]}, []], ids=repr)
def test_complete(both: Comparison, value: Any) -> None:
    add(both)
    both.do("take", "t:1")
    both.later(7)
    both.do("complete", "1", "t:1", value)
    both.compare()


def test_complete_and_fetch_the_next(both: Comparison) -> None:
    for _ in range(3):
        add(both)
    add(both, delay=50)
    both.do("take", "t:1")
    for job_id in ("1", "2", "3"):
        both.do("complete", job_id, "t:1", 1, True)
        both.compare()
    both.later(50)
    assert both.do("take", "t:1") == ["4"]
    both.do("complete", "4", "t:1", 1, True)
    both.compare()


def test_fail_for_good(both: Comparison) -> None:
    add(both)
    both.do("take", "t:1")
    both.later(7)
    both.do("fail", "1", "t:1", "boom")
    both.compare()


def test_fail_unrecoverably_with_attempts_left(both: Comparison) -> None:
    add(both, attempts=3)
    both.do("take", "t:1")
    both.do("fail", "1", "t:1", "never", unrecoverable=True)
    both.compare()


@pytest.mark.parametrize("keep", [True, False, 0, 2, {"age": 5}, {"count": 2}, {"age": 5, "count": 3}, {"age": 5, "limit": 1}], ids=repr)
def test_retention(both: Comparison, keep: Any) -> None:
    for number in range(5):
        add(both, removeOnComplete=keep, removeOnFail=keep, deduplication={"id": f"d{number}"})
        (job_id,) = both.do("take", "t:1")
        both.do("complete", job_id, "t:1", number)
        add(both, removeOnComplete=keep, removeOnFail=keep)
        (job_id,) = both.do("take", "t:1")
        both.do("fail", job_id, "t:1", "no")
        both.later(2500)
    both.compare()


def test_the_end_is_guarded_by_the_lock(both: Comparison) -> None:
    add(both)
    both.do("take", "t:1")
    assert both.do("complete", "1", "t:2", 1).code == -6
    assert both.do("fail", "1", "t:2", "no").code == -6
    both.compare()
    both.lose_lock("1")
    assert both.do("complete", "1", "t:1", 1).code == -2
    both.compare()


def test_the_end_of_a_job_that_is_gone(both: Comparison) -> None:
    add(both)
    both.do("take", "t:1")
    both.lose_lock("1")
    assert both.do("remove", "1") is True
    assert both.do("complete", "1", "t:1", 1).code == -1
    both.compare()


def test_complete_with_children_pending(both: Comparison) -> None:
    parent = add(both, jobId="parent")
    both.do("take", "t:1")
    add(both, parent={"id": parent, "queue": f"bull:{both.queue}"})
    assert both.do("complete", parent, "t:1", 1).code == -4
    both.compare()


# -- retries ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backoff", [None, 40, {"type": "fixed", "delay": 40}, {"type": "exponential", "delay": 40}], ids=repr)
@pytest.mark.parametrize("opts", [{}, {"lifo": True}, {"priority": 2}, {"stackTraceLimit": 1}, {"stackTraceLimit": 0}], ids=repr)
def test_retries(both: Comparison, backoff: Any, opts: dict[str, Any]) -> None:
    add(both, attempts=4, **({} if backoff is None else {"backoff": backoff}), **opts)
    add(both)
    for attempt in range(4):
        both.do("take", f"t:{attempt}", 2)
        both.do("fail", "1", f"t:{attempt}", f"no {attempt}", fetch_next=attempt % 2 == 1)
        both.compare()
        both.later(1000)
        both.do("complete", "2", f"t:{attempt}", 1)
    both.compare()


def test_moved_to_delayed_and_put_back_by_the_processor(both: Comparison) -> None:
    for opts in ({}, {"priority": 3}, {}):
        add(both, **opts)
    both.do("take", "t:1", 3)
    both.do("delay", "1", "t:1", both.now + 500)
    both.do("put_back", "2", "t:1")
    both.do("put_back", "3", "t:1")
    both.compare()
    both.later(500)
    assert both.do("take", "t:2", 3) == ["3", "1", "2"]
    both.compare()


# -- stalls ----------------------------------------------------------------------------------------------------------------------


def test_stalled_twice_is_failed_by_the_next_worker(both: Comparison) -> None:
    add(both, attempts=5)
    for token in ("t:1", "t:2"):
        both.do("take", token)
        both.recover()
        both.compare()
        both.lose_lock("1")
        both.recover()
        both.compare()
    assert both.do("take", "t:3") == ["1"]
    both.compare()
    assert both.do("state", "1") == "failed"


def test_a_renewed_lock_is_no_stall(both: Comparison) -> None:
    add(both)
    both.do("take", "t:1")
    both.recover()
    assert both.do("extend", "1", "t:1") is True
    assert both.do("extend", "1", "t:2") is False
    both.compare()
    both.recover()
    both.recover()
    both.compare()


def test_one_check_in_an_interval(both: Comparison) -> None:
    add(both)
    both.do("take", "t:1")
    both.do("recover")
    both.lose_lock("1")
    both.do("recover")
    both.compare()
