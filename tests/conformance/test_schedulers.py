"""Named scenarios of job schedulers: what is stored, and what whoever takes an iteration makes of it, compared as everything else is."""

from __future__ import annotations

from typing import Any

import pytest
from comparison import START_MS, Comparison
from sides import Refused

MINUTE = 60_000
TEMPLATE = {"name": "tick", "data": {"n": 1, "list": []}, "opts": {"attempts": 3, "backoff": 50, "removeOnComplete": 5, "keepLogs": 2}}

RULES: dict[str, dict[str, Any]] = {
    "every": {"every": MINUTE},
    "every with an offset": {"every": MINUTE, "offset": 7000},
    "every, limited": {"every": MINUTE, "limit": 3},
    "every, from a date on": {"every": MINUTE, "startDate": START_MS + 90_000},
    "every, to a date": {"every": MINUTE, "endDate": START_MS + 150_000},
    "pattern": {"pattern": "*/20 * * * * *"},
    "pattern of five fields": {"pattern": "*/5 * * * *"},
    "pattern with a zone": {"pattern": "0 30 9 * * 1-5", "tz": "America/New_York"},
    "pattern at once": {"pattern": "0 0 * * * *", "immediately": True},
    "pattern, limited": {"pattern": "*/30 * * * * *", "limit": 2},
    "pattern, from a date on": {"pattern": "*/30 * * * * *", "startDate": START_MS + 3_600_000},
    "pattern, from a date in words": {"pattern": "0 * * * *", "startDate": "2023-12-24T00:00:00.000Z", "tz": "UTC"},
    "pattern, to a date": {"pattern": "*/30 * * * * *", "endDate": START_MS + 80_000},
}


def due(both: Comparison) -> int:
    """When the scheduler is due next."""
    ((_, moment, _),) = both.do("schedulers")
    return int(moment)


def run(both: Comparison, times: int = 1) -> None:
    """The iterations are taken and completed, each when it is due."""
    for n in range(times):
        moment = due(both)
        both.at(max(moment, both.now))
        taken = both.do("take", f"t:{n}")
        both.compare()
        for job_id in taken:
            both.do("complete", job_id, f"t:{n}", n)
        both.compare()


@pytest.mark.parametrize("template", [{}, TEMPLATE, {"opts": {"priority": 3}}, {"data": "text", "opts": {"lifo": True}}], ids=repr)
@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_a_scheduler_and_its_iterations(both: Comparison, rule: dict[str, Any], template: dict[str, Any]) -> None:
    both.do("upsert_scheduler", "s", rule, template)
    both.compare()
    run(both, 4)


@pytest.mark.parametrize("rule", [RULES["every"], RULES["every with an offset"], RULES["pattern"]], ids=repr)
@pytest.mark.parametrize("late", [0, 500, 61_000, 200_000])
def test_iterations_taken_late(both: Comparison, rule: dict[str, Any], late: int) -> None:
    both.do("upsert_scheduler", "s", rule, {})
    for n in range(3):
        both.at(max(due(both), both.now) + late)
        (job_id,) = both.do("take", f"t:{n}")
        both.compare()
        both.later(late)
        both.do("complete", job_id, f"t:{n}", None)
    both.compare()


CHANGES = {
    "the same": {"every": MINUTE},
    "another period": {"every": 2 * MINUTE},
    "another offset": {"every": MINUTE, "offset": 9000},
    "a pattern": {"pattern": "0 */7 * * * *"},
}


@pytest.mark.parametrize("moment", ["waits", "delayed", "runs", "is done"])
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_changing_a_scheduler(both: Comparison, change: dict[str, Any], moment: str) -> None:
    both.do("upsert_scheduler", "s", {"every": MINUTE}, TEMPLATE)
    if moment != "waits":
        (job_id,) = both.do("take", "t:1")
        if moment == "is done":
            both.do("complete", job_id, "t:1", None)
    both.later(1500)
    both.do("upsert_scheduler", "s", change, {"name": "tock", "data": {"n": 2}})
    both.compare()
    run(both, 3)


@pytest.mark.parametrize("change", [{"pattern": "*/10 * * * * *"}, {"every": 5000}, {"pattern": "0 0 * * * *"}], ids=repr)
def test_changing_a_pattern(both: Comparison, change: dict[str, Any]) -> None:
    both.do("upsert_scheduler", "s", {"pattern": "*/10 * * * * *"}, {"opts": {"priority": 2}})
    both.later(3000)
    both.do("upsert_scheduler", "s", change, {"opts": {"priority": 2}})
    both.compare()
    both.later(20_000)
    both.do("take", "t:0")
    both.do("upsert_scheduler", "s", change, {})
    both.compare()


@pytest.mark.parametrize("moment", ["waits", "delayed", "runs"])
def test_removing_a_scheduler(both: Comparison, moment: str) -> None:
    both.do("upsert_scheduler", "s", {"every": MINUTE}, TEMPLATE)
    taken = both.do("take", "t:1") if moment != "waits" else []
    if moment == "delayed":
        both.do("complete", taken[0], "t:1", None)
    assert both.do("remove_scheduler", "s") is True
    both.compare()
    assert both.do("remove_scheduler", "s") is False
    both.do("take", "t:2")
    both.compare()


def test_an_iteration_that_is_tried_again_makes_no_second_next(both: Comparison) -> None:
    both.do("upsert_scheduler", "s", {"every": MINUTE}, {"opts": {"attempts": 3}})
    for attempt in range(3):
        (job_id,) = both.do("take", f"t:{attempt}")
        both.do("fail", job_id, f"t:{attempt}", "no")
        both.compare()


def test_the_iteration_of_a_scheduler_cannot_be_removed(both: Comparison) -> None:
    job_id = both.do("upsert_scheduler", "s", {"every": MINUTE}, {})
    assert both.do("remove", job_id).code == -8
    both.do("drain", True)
    both.compare()


@pytest.mark.parametrize(
    "rule",
    [
        {}, {"every": 1000, "pattern": "* * * * *"}, {"pattern": "* * * * *", "immediately": True, "startDate": START_MS},
        {"pattern": "99 * * * *"}, {"pattern": "* * * * * * *"},
    ],
    ids=repr,
)  # fmt: skip
def test_rules_that_are_refused(both: Comparison, rule: dict[str, Any]) -> None:
    assert both.do("upsert_scheduler", "s", rule, {}) == Refused(0)
    both.compare()


def test_the_last_iteration_of_a_limited_scheduler_can_be_asked_to_go_when_it_is_gone(both: Comparison) -> None:
    both.do("upsert_scheduler", "s", {"every": MINUTE, "limit": 1}, {})
    (job_id,) = both.do("take", "t:1")
    both.do("complete", job_id, "t:1", None)
    assert both.do("remove", job_id).code == -8
    both.later(1000)
    both.do("clean", 0, 0, "completed")
    assert both.do("remove", job_id) is True
    both.compare()


def test_an_iteration_among_several_jobs_taken_at_once(both: Comparison) -> None:
    """Node makes the next iteration before it takes another job, we afterwards: the order of the events is all that differs."""
    both.do("upsert_scheduler", "s", {"every": MINUTE}, {})
    both.do("add", "n", {}, {})
    assert len(both.do("take", "t:1", 2)) == 2
    node, ours = both.pictures()
    events = f"bull:{both.queue}:events"
    assert sorted(map(repr, node.keys.pop(events))) == sorted(map(repr, ours.keys.pop(events)))
    assert node.keys == ours.keys


def test_a_pattern_changed_after_its_iteration_was_done_early(both: Comparison) -> None:
    """Ours, not upstream's: Node writes over the job that is done, which is then completed and delayed at once."""
    rule = {"pattern": "0 * * * * *"}
    early = both.do("upsert_scheduler", "s", rule, {})
    both.do("promote", early)
    both.do("take", "t:1")
    both.do("complete", early, "t:1", 7)
    both.compare()
    moment = due(both)

    made = both.ours.upsert_scheduler(both.queue, "s", rule, {"data": {"n": 2}})

    _, ours = both.pictures()
    assert made == f"repeat:s:{moment}"
    assert list(ours.keys[f"bull:{both.queue}:completed"]) == [early]
    assert list(ours.keys[f"bull:{both.queue}:delayed"]) == [made]
    assert ours.keys[f"bull:{both.queue}:{early}"]["returnvalue"] == 7
    assert (ours.keys[f"bull:{both.queue}:{made}"]["data"], due_of(both, ours)) == ({"n": 2}, moment)


def due_of(both: Comparison, picture: Any) -> int:
    return int(picture.keys[f"bull:{both.queue}:repeat"]["s"])


@pytest.mark.parametrize("late", [False, True])
def test_drain_beside_a_scheduler(both: Comparison, late: bool) -> None:
    """Ours, not upstream's (protocol 16.12): Node's takes as many ids off the list as it removes, the wrong ones."""
    both.do("add", "n", {}, {"jobId": "before"})
    current = both.do("upsert_scheduler", "s", {"every": MINUTE}, {})
    for job_id in ("after", "last"):
        both.do("add", "n", {}, {"jobId": job_id})
    assert both.ours.drain(both.queue, late) is None
    _, ours = both.pictures()
    assert list(ours.keys[f"bull:{both.queue}:wait"]) == [current]
    assert not {f"bull:{both.queue}:{job_id}" for job_id in ("before", "after", "last")} & set(ours.keys)
    assert both.ours.take(both.queue, "t:1") == [current]


def test_a_scheduler_changed_in_a_paused_queue(both: Comparison) -> None:
    """Ours, not upstream's (protocol 1.4, H5): BullMQ 6 looks in the wrong list and makes a second iteration."""
    current = both.do("upsert_scheduler", "s", {"every": MINUTE}, {})
    both.do("pause")
    assert both.ours.upsert_scheduler(both.queue, "s", {"every": MINUTE}, {"data": {"n": 2}}) == current
    _, ours = both.pictures()
    assert list(ours.keys[f"bull:{both.queue}:wait"]) == [current]
    assert f"bull:{both.queue}:delayed" not in ours.keys
