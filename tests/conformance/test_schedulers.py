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
