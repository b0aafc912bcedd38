"""Named scenarios of the corners: ids that are taken, deduplication gone stale, rate limits of workers, metrics, children removed."""

from __future__ import annotations

from typing import Any

import pytest
from comparison import Comparison, MakeComparison, add
from sides import WorkerOptions


def parent_of(both: Comparison, job_id: str) -> dict[str, Any]:
    return {"id": job_id, "queue": f"bull:{both.queue}"}


# -- ids that are taken (protocol 3.6) -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ended", [False, True])
def test_a_job_without_a_parent_gets_one(both: Comparison, ended: bool) -> None:
    add(both, jobId="same")
    if ended:
        both.do("take", "t:1")
        both.do("complete", "same", "t:1", {"v": 1})
    add(both, jobId="parent")
    add(both, jobId="same", parent=parent_of(both, "parent"))
    both.compare()
    add(both, jobId="same", parent=parent_of(both, "parent"))
    both.compare()


def test_a_job_with_a_living_parent_gets_no_other(both: Comparison) -> None:
    for job_id in ("one", "other"):
        add(both, jobId=job_id)
    add(both, jobId="same", parent=parent_of(both, "one"))
    assert both.do("add", "n", {}, {"jobId": "same", "parent": parent_of(both, "other")}).code == -7
    both.compare()


def test_a_job_whose_parent_is_gone_gets_another(both: Comparison) -> None:
    for job_id in ("one", "other"):
        add(both, jobId=job_id)
    add(both, jobId="same", parent=parent_of(both, "one"))
    both.do("remove", "one", False)
    if both.version == "v5":  # it refuses; ours is as 6
        assert both.ours.add(both.queue, "n", {}, {"jobId": "same", "parent": parent_of(both, "other")}) == "same"
        return
    add(both, jobId="same", parent=parent_of(both, "other"))
    both.compare()


# -- deduplication (3.7) ---------------------------------------------------------------------------------------------------------


def test_a_deduplication_id_whose_owner_is_gone_is_free(both: Comparison) -> None:
    add(both, deduplication={"id": "d"})
    for client in (both.node_client, both.our_client):
        client.delete(f"bull:{both.queue}:1", f"bull:{both.queue}:wait")
    if both.version == "v5":  # it drops the job for one that is not there; ours is as 6
        assert both.ours.add(both.queue, "n", {}, {"deduplication": {"id": "d"}}) == "2"
        return
    assert add(both, deduplication={"id": "d"}) == "2"
    both.compare()


@pytest.mark.parametrize("delay", [0, 50, 9000])
def test_reschedule(both: Comparison, delay: int) -> None:
    opts = {"deduplication": {"id": "d", "reschedule": True}}
    add(both, delay=500, **opts)
    both.later(100)
    if both.version == "v5":  # it knows nothing of this; ours is as 6
        assert both.ours.add(both.queue, "n", {}, {"delay": delay, **opts}) == "1"
        return
    assert add(both, delay=delay, **opts) == "1"
    both.compare()
    both.later(10_000)
    both.do("take", "t:1", 2)
    both.do("add", "n", {}, {"delay": delay, **opts})
    both.compare()


def test_what_was_kept_for_the_end_goes_with_the_owner(both: Comparison) -> None:
    opts = {"deduplication": {"id": "d", "keepLastIfActive": True}}
    add(both, **opts)
    both.do("take", "t:1")
    add(both, data={"n": 2}, **opts)
    both.lose_lock("1")
    both.do("remove", "1")
    both.compare()


# -- workers (4.2, 5.2, 5.4, 13) -------------------------------------------------------------------------------------------------


def test_the_rate_limit_of_a_worker(make_comparison: MakeComparison) -> None:
    both = make_comparison(WorkerOptions(limiter={"max": 2, "duration": 500_000}))
    for _ in range(5):
        add(both)
    assert both.do("take", "t:1", 5) == ["1", "2"]
    both.compare()
    both.do("complete", "1", "t:1", 1, True)
    both.compare()
    both.do("set_global_rate_limit", (3, 400_000))
    assert both.do("take", "t:2", 5) == ["3"]
    both.compare()
    both.do("remove_rate_limit_key")
    both.do("rate_limit", 500_000)
    assert both.do("take", "t:3") == []
    both.compare()


def test_a_rate_limit_without_a_maximum_limits_nothing(both: Comparison) -> None:
    add(both)
    both.do("rate_limit", 500_000)
    assert both.do("take", "t:1") == ["1"]
    both.compare()


def test_metrics_by_the_minute(make_comparison: MakeComparison) -> None:
    both = make_comparison(WorkerOptions(metrics=4))
    for pause in (0, 1000, 60_000, 0, 180_000, 61_000, 600_000, 0):
        both.later(pause)
        for verb, value in (("complete", 1), ("fail", "no")):
            job_id = add(both)
            both.do("take", "t:1")
            both.do(verb, job_id, "t:1", value)
        both.compare()
    both.do("metrics", "completed")
    both.do("metrics", "failed")


@pytest.mark.parametrize("keep", [{"count": 1}, {"age": 5}, {"count": 0}], ids=repr)
@pytest.mark.parametrize("own", [None, False, True, 2], ids=repr)
def test_the_retention_of_a_worker_and_of_its_jobs(make_comparison: MakeComparison, keep: dict[str, int], own: Any) -> None:
    both = make_comparison(WorkerOptions(remove_on_complete=keep, remove_on_fail=keep))
    for _ in range(3):
        for verb, value in (("complete", 1), ("fail", "no")):
            job_id = add(both, **({} if own is None else {"removeOnComplete": own, "removeOnFail": own}))
            both.do("take", "t:1")
            both.do(verb, job_id, "t:1", value)
            both.later(3000)
    both.compare()


def test_more_stalls_may_be_allowed(make_comparison: MakeComparison) -> None:
    both = make_comparison(WorkerOptions(max_stalled_count=2))
    add(both)
    for number in range(3):
        both.do("take", f"t:{number}")
        both.recover()
        both.lose_lock("1")
        both.recover()
        both.compare()
    both.do("take", "t:9")
    both.compare()
    assert both.do("state", "1") == "failed"


# -- time (3.3, 4.2) -------------------------------------------------------------------------------------------------------------


def test_more_jobs_in_one_millisecond_than_have_an_order(both: Comparison) -> None:
    add(both, delay=10)
    for client in (both.node_client, both.our_client):
        client.zadd(f"bull:{both.queue}:delayed", {"1": (both.now + 10) * 4096 + 4094})
    for _ in range(3):
        add(both, delay=10)
    both.compare()


def test_what_is_due_is_promoted_also_where_nothing_may_start(both: Comparison) -> None:
    for opts in ({"delay": 10}, {"delay": 20, "priority": 4}):
        add(both, **opts)
    both.do("pause")
    both.later(50)
    assert both.do("take", "t:1", 2) == []
    both.compare()
    both.do("resume")
    both.do("set_global_concurrency", 1)
    add(both, delay=10)
    assert both.do("take", "t:2", 2) == ["1"]
    both.later(50)
    assert both.do("take", "t:3", 2) == []
    both.compare()


# -- defects of upstream that are not copied (16.12) -----------------------------------------------------------------------------


def test_a_stalled_prioritized_job_keeps_its_priority(both: Comparison) -> None:
    for priority in (2, 2, 1):
        add(both, priority=priority)
    assert both.do("take", "t:1", 2) == ["3", "1"]
    both.lose_lock("1")
    for _ in range(2):
        both.recover()
    node, ours = both.pictures()
    assert node.keys[f"bull:{both.queue}:wait"] == ["1"]
    assert f"bull:{both.queue}:wait" not in ours.keys
    assert list(ours.keys[f"bull:{both.queue}:prioritized"]) == ["1", "2"]
    assert both.ours.take(both.queue, "t:2", 2) == ["1", "2"]


def test_an_id_without_a_job_is_never_active(both: Comparison) -> None:
    add(both)
    for client in (both.node_client, both.our_client):
        client.delete(f"bull:{both.queue}:1")
    assert both.ours.take(both.queue, "t:1") == []
    assert not both.our_client.exists(f"bull:{both.queue}:1:lock", f"bull:{both.queue}:wait", f"bull:{both.queue}:active")


def test_retry_jobs_keeps_the_priority(both: Comparison) -> None:
    for priority in (5, 2):
        add(both, priority=priority)
    for job_id in both.do("take", "t:1", 2):
        both.do("fail", job_id, "t:1", "no")
    both.ours.retry_jobs(both.queue, "failed", 1000, both.now)
    _, ours = both.pictures()
    assert list(ours.keys[f"bull:{both.queue}:prioritized"]) == ["2", "1"]
    assert f"bull:{both.queue}:wait" not in ours.keys


@pytest.mark.parametrize("times", [1, 2])
def test_rescheduled_in_the_same_millisecond(both: Comparison, times: int) -> None:
    opts = {"delay": 10, "deduplication": {"id": "d", "reschedule": True}}
    add(both, delay=10)
    add(both, **opts)
    if both.version == "v5":  # it knows nothing of this
        return
    for _ in range(times):
        add(both, **opts)
        both.compare()
