"""BullMQ's formulas: the wait before the next attempt, what is kept of finished jobs, the stack traces."""

from __future__ import annotations

import json
import math
import sys
from typing import Any

import pytest

from bullmq_kombu.attempts import KEEP_ALL, Keep, add_trace, backoff_ms, has_attempt_left, keep_of

# -- retention


@pytest.mark.parametrize(
    ("option", "kept"),
    [
        (True, Keep(0)),
        (False, KEEP_ALL),
        (0, Keep(0)),
        (5, Keep(5)),
        (-1, KEEP_ALL),
        ({}, KEEP_ALL),
        ({"count": 3}, Keep(3)),
        ({"count": 0}, Keep(0)),
        ({"age": 60}, Keep(-1, 60)),
        ({"age": 0}, Keep(-1, 0)),
        ({"age": 60, "count": 3, "limit": 7}, Keep(3, 60, 7)),
        ({"age": None, "count": None}, KEEP_ALL),
        ({"count": sys.maxsize}, KEEP_ALL),
        ({"count": 1e300}, KEEP_ALL),
        (10**18, KEEP_ALL),
        ({"count": 10**400, "age": 10**400}, KEEP_ALL),
        ({"count": 2**53}, Keep(2**53)),
        ({"count": -9}, KEEP_ALL),
        ({"count": "7", "age": "60", "limit": "8"}, Keep(7, 60, 8)),
        ({"age": 10, "limit": 2.5}, Keep(-1, 10, 2)),
        ({"age": 10, "limit": 10**18}, Keep(-1, 10, 2**53)),
        ({"age": 10, "limit": 0.5}, Keep(-1, 10)),
        ({"age": 10, "limit": 0}, Keep(-1, 10)),
        ({"age": 10, "limit": -1}, Keep(-1, 10)),
    ],
)
def test_the_jobs_own_policy(option: Any, kept: Keep) -> None:
    assert keep_of(option) == kept
    assert keep_of(option, {"count": 99}) == kept, "it wins over the worker's"


@pytest.mark.parametrize(("default", "kept"), [(None, KEEP_ALL), ({"age": 9}, Keep(-1, 9)), (True, Keep(0)), (4, Keep(4))])
def test_without_one_the_workers(default: Any, kept: Keep) -> None:
    assert keep_of(None, default) == kept


@pytest.mark.parametrize(
    "option",
    [
        "x", "5", [], [1], {"count": "x"}, {"age": "x"}, {"age": [1]}, {"limit": {}}, {"count": True}, 1.5, 1e400, "1e400", math.nan,
        {"count": math.nan, "age": math.nan, "limit": math.nan}, {"limit": True}, {"limit": "nan"}, {"age": True}, {"count": []},
    ],
)  # fmt: skip
def test_a_policy_that_is_none_keeps_what_it_does_not_limit(option: Any) -> None:
    """Node's clients store what they are given, and a job must end whatever it brought along."""
    kept = keep_of(option)

    assert isinstance(kept.count, int)
    assert not isinstance(kept.count, bool)
    assert kept.count != 0
    for part in (kept.age, kept.limit):
        assert part == "" or isinstance(part, (int, float))


# -- the wait before the next attempt


@pytest.mark.parametrize("backoff", [None, 0, {}, False])
def test_without_a_backoff_the_next_attempt_is_at_once(backoff: Any) -> None:
    assert backoff_ms(backoff, 1, 0.5) == 0


def test_a_number_is_a_fixed_wait() -> None:
    assert [backoff_ms(1500, attempt, 0.5) for attempt in (1, 2, 9)] == [1500] * 3


def test_fixed() -> None:
    assert [backoff_ms({"type": "fixed", "delay": 1000}, attempt, 0.5) for attempt in (1, 2, 9)] == [1000] * 3
    assert backoff_ms({"type": "fixed"}, 1, 0.5) == 0


@pytest.mark.parametrize(("attempt", "wait"), [(1, 1000), (2, 2000), (3, 4000), (4, 8000), (11, 1_024_000)])
def test_exponential(attempt: int, wait: int) -> None:
    assert backoff_ms({"type": "exponential", "delay": 1000}, attempt, 0.5) == wait


@pytest.mark.parametrize(("delay", "wait"), [(0.5, 1), (0.4, 0), (1.5, 2), (2.5, 3)])
def test_exponential_rounds_a_half_up(delay: float, wait: int) -> None:
    assert backoff_ms({"type": "exponential", "delay": delay}, 1, 0.0) == wait


@pytest.mark.parametrize(
    ("kind", "jitter", "random", "wait"),
    [
        ("fixed", 0.5, 0.0, 500),
        ("fixed", 0.5, 0.5, 750),
        ("fixed", 0.5, 0.9999, 999),
        ("fixed", 1, 0.0, 0),
        ("fixed", 1, 0.25, 250),
        ("fixed", 0, 0.25, 1000),
        ("exponential", 0.5, 0.0, 2000),
        ("exponential", 0.5, 0.5, 3000),
        ("exponential", 1, 0.5, 2000),
    ],
)
def test_jitter_takes_up_to_its_part_off(kind: str, jitter: float, random: float, wait: int) -> None:
    assert backoff_ms({"type": kind, "delay": 1000, "jitter": jitter}, 3, random) == wait


def test_a_kind_of_the_users_own() -> None:
    asked = []

    def strategy(attempt: int, kind: str) -> float:
        asked.append((attempt, kind))
        return 12.9

    assert backoff_ms({"type": "mine", "delay": 5}, 2, 0.5, strategy) == 12
    assert asked == [(2, "mine")]


def test_a_kind_that_nobody_knows_is_an_error() -> None:
    with pytest.raises(ValueError, match="Unknown backoff strategy mine"):
        backoff_ms({"type": "mine", "delay": 5}, 1, 0.5)


@pytest.mark.parametrize(
    ("opts", "made", "left"),
    [
        ({}, 0, False), ({"attempts": 0}, 0, False), ({"attempts": 1}, 0, False), ({"attempts": 2}, 0, True), ({"attempts": 2}, 1, False),
        ({"attempts": 3}, 1, True), ({"attempts": None}, 0, False), ({"attempts": "3"}, 0, True), ({"attempts": "x"}, 0, False),
        ({"attempts": [3]}, 0, False), ({"attempts": 2.5}, 1, True), ({"attempts": float("inf")}, 9, True),
    ],
)  # fmt: skip
def test_whether_an_attempt_is_left(opts: dict[str, Any], made: int, left: bool) -> None:
    assert has_attempt_left(opts, made) is left


# -- stack traces


@pytest.mark.parametrize(
    ("previous", "limit", "traces"),
    [
        (None, None, ["new"]),
        ("", None, ["new"]),
        ('["a","b"]', None, ["a", "b", "new"]),
        ('["a","b"]', 2, ["b", "new"]),
        ('["a","b"]', 10, ["a", "b", "new"]),
        ('["a"]', 0, []),
        ("no JSON", None, ["new"]),
        ('{"a":1}', None, ["new"]),
        ("[" * 100_000, None, ["new"]),
        ('["a"]', "5", ["a", "new"]),
        ('["a"]', None, ["a", "new"]),
    ],
)
def test_a_trace_joins_those_before(previous: str | None, limit: Any, traces: list[str]) -> None:
    assert json.loads(add_trace(previous, "new", limit)) == traces


def test_no_trace_adds_nothing() -> None:
    assert add_trace('["a"]', "", None) == '["a"]'
    assert add_trace(None, "", None) == "[]"
