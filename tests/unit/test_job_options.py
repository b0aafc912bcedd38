"""BullMQ's job options: every rule that its clients check, and how each option is spelled in the job hash."""

from __future__ import annotations

import json
from typing import Any

import pytest

from bullmq_kombu.errors import BadInput
from bullmq_kombu.job_options import (
    KNOWN,
    MAX_PRIORITY,
    JobOptions,
    check_job_id,
    check_job_options,
    check_size,
    is_own_id,
    make_job_options,
    public_options,
    read_stored,
    with_parent,
)


def stored(options: dict[str, Any], defaults: dict[str, Any] | None = None) -> Any:
    return json.loads(make_job_options(options, defaults).stored)


# -- how they are stored


def test_without_options_the_attempts_are_stored_alone() -> None:
    assert make_job_options({}) == JobOptions(stored='{"attempts":0}')


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"attempts": 3}, {"attempts": 3}),
        ({"backoff": 1000}, {"backoff": {"type": "fixed", "delay": 1000}}),
        (
            {"backoff": {"type": "exponential", "delay": 50, "jitter": 0.5}},
            {"backoff": {"type": "exponential", "delay": 50, "jitter": 0.5}},
        ),
        ({"delay": 5}, {"delay": 5}),
        ({"lifo": True}, {"lifo": True}),
        ({"priority": 7}, {"priority": 7}),
        ({"jobId": "own"}, {"jobId": "own"}),
        ({"timestamp": 1_795_491_304_286}, {"timestamp": 1_795_491_304_286}),
        (
            {"removeOnComplete": True, "removeOnFail": {"age": 3600, "count": 9}},
            {"removeOnComplete": True, "removeOnFail": {"age": 3600, "count": 9}},
        ),
        ({"removeOnComplete": False}, {"removeOnComplete": False}),
        ({"deduplication": {"id": "x", "ttl": 5}}, {"de": {"id": "x", "ttl": 5}}),
        ({"keepLogs": 3}, {"kl": 3}),
        ({"failParentOnFailure": True}, {"fpof": True}),
        ({"continueParentOnFailure": True}, {"cpof": True}),
        ({"ignoreDependencyOnFailure": True}, {"idof": True}),
        ({"removeDependencyOnFailure": True}, {"rdof": True}),
        ({"parent": {"id": "p", "queue": "bull:q"}}, {"parent": {"id": "p", "queue": "bull:q"}}),
        ({"telemetry": {"metadata": "{}", "omitContext": True}}, {"tm": "{}", "omc": True}),
        ({"telemetry": {"metadata": "", "omitContext": False}}, {}),
        ({"stackTraceLimit": 0, "sizeLimit": 10}, {"stackTraceLimit": 0, "sizeLimit": 10}),
        ({"delay": None, "jobId": None, "backoff": None}, {}),
    ],
)
def test_each_option_is_spelled_as_bullmq_does(given: dict[str, Any], expected: dict[str, Any]) -> None:
    assert stored(given) == {"attempts": 0, **expected}


def test_every_known_option_can_be_given() -> None:
    """A new name in KNOWN has to be tried here."""
    values: dict[str, Any] = {
        "attempts": 1, "backoff": 1, "deduplication": {"id": "x"}, "delay": 1, "jobId": "x", "keepLogs": 1, "lifo": True, "priority": 1,
        "removeOnComplete": 1, "removeOnFail": 1, "sizeLimit": 1, "stackTraceLimit": 1, "timestamp": 1, "telemetry": {},
        "parent": {"id": "p", "queue": "bull:q"}, "failParentOnFailure": True, "continueParentOnFailure": True,
        "ignoreDependencyOnFailure": True, "removeDependencyOnFailure": True,
    }  # fmt: skip
    assert set(values) == KNOWN
    for name, value in values.items():
        check_job_options({name: value})


def test_what_is_given_wins_over_the_defaults() -> None:
    defaults = {"removeOnComplete": 1000, "attempts": 2}

    assert stored({"attempts": 5}, defaults) == {"attempts": 5, "removeOnComplete": 1000}
    assert stored({"removeOnComplete": None}, defaults) == {"attempts": 2, "removeOnComplete": 1000}, "None says nothing"
    assert stored({"removeOnComplete": False}, defaults) == {"attempts": 2, "removeOnComplete": False}


def test_what_the_add_script_has_to_know() -> None:
    options = make_job_options({
        "jobId": "own", "delay": 5.5, "priority": 3, "timestamp": 7, "sizeLimit": 9, "lifo": True, "parent": {"id": "p", "queue": "bull:q"},
        "failParentOnFailure": True,
    })  # fmt: skip

    assert (options.job_id, options.delay, options.priority, options.timestamp, options.size_limit) == ("own", 5, 3, 7, 9)
    assert options.more == {"lifo": True, "parentKey": "bull:q:p", "parent": '{"id":"p","queueKey":"bull:q","fpof":true}'}
    assert make_job_options({"deduplication": {"id": "x", "ttl": 5}}).more == {"de": {"id": "x", "ttl": 5}}


def test_a_parent_can_be_added_later() -> None:
    options = with_parent(make_job_options({"continueParentOnFailure": True, "lifo": True}), "p", "bull:q")

    assert json.loads(options.stored)["parent"] == {"id": "p", "queue": "bull:q"}
    assert options.more == {"lifo": True, "parentKey": "bull:q:p", "parent": '{"id":"p","queueKey":"bull:q","cpof":true}'}
    with pytest.raises(BadInput, match="together"):
        with_parent(make_job_options({"deduplication": {"id": "x"}}), "p", "bull:q")


def test_stored_options_have_their_public_names_again() -> None:
    given = {
        "attempts": 3, "backoff": {"type": "fixed", "delay": 5}, "deduplication": {"id": "x"}, "keepLogs": 4,
        "failParentOnFailure": True, "telemetry": {"metadata": "m", "omitContext": True},
    }  # fmt: skip
    assert public_options(stored(given)) == given
    assert public_options({"somebody's": 1}) == {"somebody's": 1}


@pytest.mark.parametrize("text", ["", "no JSON", "[]", "7", "null", "[" * 100_000])
def test_stored_options_that_are_none_are_read_as_none(text: str) -> None:
    assert read_stored(text) == {}


# -- what is refused


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("atempts", "attempts"),
        ("backOff", "backoff"),
        ("removeOnCompleted", "removeOnComplete"),
        ("jobid", "jobId"),
        ("keep_logs", "keepLogs"),
    ],
)
def test_an_unknown_option_is_refused_with_the_nearest_name(name: str, near: str) -> None:
    with pytest.raises(BadInput, match=f"unknown job option '{name}': did you mean '{near}'"):
        check_job_options({name: 1})


def test_an_option_like_no_other_is_refused_with_all_names() -> None:
    with pytest.raises(BadInput, match="known are attempts, backoff, "):
        check_job_options({"zzz": 1})


def test_the_option_that_bullmq_6_dropped_is_refused() -> None:
    with pytest.raises(BadInput, match="unknown job option 'debounce'"):
        check_job_options({"debounce": {"id": "x"}})


WRONG = [
    ("attempts", "3"), ("attempts", 1.5), ("attempts", True), ("attempts", -1), ("delay", "5"), ("delay", -1), ("delay", True),
    ("delay", float("nan")), ("delay", float("inf")), ("timestamp", "now"), ("lifo", 1), ("lifo", "yes"), ("keepLogs", -1),
    ("keepLogs", 1.5), ("sizeLimit", "1kb"), ("stackTraceLimit", -2), ("failParentOnFailure", "true"), ("jobId", 12), ("jobId", ""),
    ("backoff", "fixed"), ("backoff", True), ("backoff", {}), ("backoff", {"delay": 5}), ("backoff", {"type": 1}),
    ("backoff", {"type": "fixed", "delay": "5"}), ("backoff", {"type": "fixed", "delay": -5}), ("backoff", -5),
    ("backoff", {"type": "fixed", "delay": 5, "jitter": 1.1}), ("backoff", {"type": "fixed", "delay": 5, "jitter": "x"}),
    ("removeOnComplete", "all"), ("removeOnComplete", {"days": 1}), ("removeOnFail", {"age": "1d"}), ("removeOnFail", [1]),
    ("parent", "p"), ("parent", {"id": "p"}), ("parent", {"id": "p", "queue": "bull:q", "x": 1}), ("parent", {"id": 1, "queue": "bull:q"}),
    ("parent", {"id": "p", "queue": ""}), ("telemetry", "m"), ("telemetry", {"meta": 1}), ("telemetry", {"metadata": 5}),
    ("deduplication", "x"), ("deduplication", {}), ("deduplication", {"id": ""}), ("deduplication", {"id": 5}),
    ("deduplication", {"id": "x", "ttl": "5"}), ("deduplication", {"id": "x", "extend": 1}), ("deduplication", {"id": "x", "TTL": 5}),
    ("deduplication", {"id": "x", "ttl": float("inf")}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value"), WRONG, ids=lambda value: str(value)[:40])
def test_a_value_of_the_wrong_kind_is_refused(name: str, value: Any) -> None:
    with pytest.raises(BadInput) as error:
        make_job_options({name: value})
    assert any(word.lower() in str(error.value).lower() for word in (name, "Deduplication", "jitter", "Custom Id"))


@pytest.mark.parametrize("priority", [0, 1, MAX_PRIORITY])
def test_priorities_go_up_to_bullmqs_maximum(priority: int) -> None:
    assert make_job_options({"priority": priority}).priority == priority


@pytest.mark.parametrize("priority", [-1, MAX_PRIORITY + 1])
def test_other_priorities_are_refused(priority: int) -> None:
    with pytest.raises(BadInput, match="Priority should be between 0 and 2097151"):
        check_job_options({"priority": priority})


def test_a_priority_is_no_fraction() -> None:
    with pytest.raises(BadInput, match="Priority should not be float"):
        check_job_options({"priority": 1.5})


def test_only_one_thing_can_happen_to_the_parent() -> None:
    with pytest.raises(BadInput, match="cannot be used together: failParentOnFailure, removeDependencyOnFailure"):
        check_job_options({"failParentOnFailure": True, "removeDependencyOnFailure": True})
    check_job_options({"failParentOnFailure": True, "removeDependencyOnFailure": False})


@pytest.mark.parametrize(("defaults", "given"), [
    ({"failParentOnFailure": True}, {"ignoreDependencyOnFailure": True}),
    ({"deduplication": {"id": "x"}}, {"parent": {"id": "p", "queue": "bull:q"}}),
])  # fmt: skip
def test_what_cannot_go_together_cannot_by_way_of_the_defaults(defaults: dict[str, Any], given: dict[str, Any]) -> None:
    with pytest.raises(BadInput, match="cannot be used together"):
        make_job_options(given, defaults)
    make_job_options({**dict.fromkeys(given), "priority": 1}, defaults)


def test_a_default_of_none_is_none() -> None:
    options = make_job_options({}, {"priority": None, "delay": None, "deduplication": None, "telemetry": None, "attempts": 3})
    assert options == make_job_options({"attempts": 3})


def test_a_window_has_no_fractions_of_a_millisecond() -> None:
    options = make_job_options({"deduplication": {"id": "x", "ttl": 1500.5}})
    assert options.more["de"] == {"id": "x", "ttl": 1500}
    assert json.loads(options.stored)["de"] == {"id": "x", "ttl": 1500}


def test_a_child_is_not_deduplicated() -> None:
    with pytest.raises(BadInput, match="cannot be used together"):
        check_job_options({"deduplication": {"id": "x"}, "parent": {"id": "p", "queue": "bull:q"}})


@pytest.mark.parametrize("job_id", ["mine", "01", "1.5", "1e3", "a:b:c", "repeat:s:1", "-", "--1", "ü", "²"])
def test_ids_that_bullmq_takes(job_id: str) -> None:
    check_job_id(job_id)
    assert is_own_id(job_id)


@pytest.mark.parametrize(
    ("job_id", "rule"),
    [
        ("0", "cannot be '0' or start with '0:'"),
        ("0:1", "cannot be '0' or start with '0:'"),
        ("0:1:2", "cannot be '0' or start with '0:'"),
        ("12", "cannot be integers"),
        ("-1", "cannot be integers"),
        ("a:b", "cannot contain ':'"),
        ("a:b:c:d", "cannot contain ':'"),
        (":", "cannot contain ':'"),
        ("meta", "the queue's own keys"),
        ("stalled-check", "the queue's own keys"),
    ],
)
def test_ids_that_are_refused(job_id: str, rule: str) -> None:
    with pytest.raises(BadInput, match=rule):
        check_job_id(job_id)
    assert not is_own_id(job_id)


@pytest.mark.parametrize(
    ("data", "limit", "fits"), [("{}", 2, True), ("{}", 1, False), ('"ü"', 4, True), ('"ü"', 3, False), ("x" * 99, None, True)]
)
def test_the_size_limit_counts_bytes(data: str, limit: int | None, fits: bool) -> None:
    if fits:
        check_size("send", data, limit)
    else:
        with pytest.raises(BadInput, match=f"The size of job send exceeds the limit {limit} bytes"):
            check_size("send", data, limit)
