"""`finish`: how deliveries end, what is kept of their jobs, what parents and waiters get to know, and the jobs taken in the same call."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from one_queue import LOCK_MS, NOW, WORKER, Queue, started, stored

from bullmq_kombu import scripts
from bullmq_kombu.scripts import QueueState

LOST = "worker lost after acknowledging early"
NEXT = WORKER._replace(token="worker:2")
KEEP_NONE = (0, "", "")


def child_of(parent: Queue, job_id: str, **flags: bool) -> str:
    link = {"id": job_id, "queueKey": parent.base[:-1], **flags}
    return json.dumps({"parentKey": parent.key(job_id), "parent": json.dumps(link, separators=(",", ":"))})


# -- completed and failed


def test_a_completed_job(queue: Queue) -> None:
    queue.active(queue.job("a"))
    queue.set("stalled", "SADD", "a", "x")
    queue.set("active", "LPUSH", "x")
    queue.set("marker", "DEL")

    assert queue.end(queue.ending("completed", "a", '{"r":1}'), now=NOW + 7) == [0]

    assert queue.without_meta() == {
        "id": "1",
        "active": ["x"],
        "stalled": {"x"},
        "completed": {"a": NOW + 7},
        "a": started(atm="1", returnvalue='{"r":1}', finishedOn=str(NOW + 7)),
    }
    assert queue.events() == ['completed jobId a returnvalue {"r":1} prev active']


def test_an_end_that_tells_nothing_of_the_task(queue: Queue) -> None:
    queue.active(queue.job("a"))
    queue.end(queue.ending("completed", "a", "null", more='{"silent":true}'), now=NOW + 7)

    ended = str(NOW + 7)
    assert queue.value("a") == started(atm="1", returnvalue="null", finishedOn=ended, silent=ended)


def test_a_failed_job(queue: Queue) -> None:
    queue.active(queue.job("a"))
    queue.set("active", "LPUSH", "x")

    assert queue.end(queue.ending("failed", "a", "ValueError: no", '["trace"]', number=3)) == [0]

    assert queue.value("a") == started(atm="1", failedReason="ValueError: no", stacktrace='["trace"]', finishedOn=str(NOW))
    assert queue.value("failed") == {"a": NOW}
    assert queue.value("a:lock") is None
    assert queue.value("active") == ["x"]
    assert queue.events() == ["failed jobId a failedReason ValueError: no prev active"], "attempts are left: it was unrecoverable"


@pytest.mark.parametrize(("attempts", "made", "exhausted"), [(0, 0, True), (1, 0, True), (3, 2, True), (3, 1, False), (2, 5, True)])
def test_the_last_attempt_is_told(queue: Queue, attempts: int, made: int, exhausted: bool) -> None:
    queue.add(queue.job("a"))
    queue.set("a", "HSET", "atm", made)
    queue.take()
    queue.set("active", "LPUSH", "x")
    queue.events()
    queue.end(queue.ending("failed", "a", "no", number=attempts))

    told = [f"retries-exhausted jobId a attemptsMade {made + 1}"] if exhausted else []
    assert queue.events() == ["failed jobId a failedReason no prev active", *told]
    assert queue.value("a")["atm"] == str(made + 1)


def test_an_empty_reason_is_kept_as_it_is(queue: Queue) -> None:
    queue.active(queue.job("a"))
    queue.end(queue.ending("failed", "a", "", "[]"))

    assert queue.value("a")["failedReason"] == ""
    assert queue.value("a")["stacktrace"] == "[]"
    assert queue.events()[0] == "failed jobId a failedReason  prev active"


@pytest.mark.parametrize("what", ["completed", "failed"])
def test_what_else_an_end_may_write(queue: Queue, what: str) -> None:
    queue.active(queue.job("a"))
    queue.end(queue.ending(what, "a", "1", more='{"log":"a line","tm":"trace-context"}'))

    assert queue.value("a:logs") == ["a line"]
    assert queue.value("a")["tm"] == "trace-context"


@pytest.mark.parametrize("what", ["completed", "failed"])
def test_a_deferred_failure_does_not_outlive_the_end(queue: Queue, what: str) -> None:
    queue.add(queue.job("a"))
    queue.set("a", "HSET", "defa", "job stalled more than allowable limit")
    queue.take()
    queue.end(queue.ending(what, "a", "1"))

    assert "defa" not in queue.value("a")


def test_ends_of_every_kind_in_one_call(queue: Queue, other: Queue) -> None:
    queue.active(*(queue.job(job) for job in "abcde"))
    other.active(other.job("f"))

    assert queue.end(
        queue.ending("completed", "a", "1"),
        queue.ending("failed", "b", "no"),
        other.ending("completed", "f", "2"),
        queue.ending("retry", "c", "again", '["t"]', number=500),
        queue.ending("release", "d"),
        queue.ending("commit", "e"),
    ) == [0] * 6  # fmt: skip

    assert queue.without_meta() == {
        "id": "5",
        "active": ["e"],
        "completed": {"a": NOW},
        "failed": {"b": NOW},
        "delayed": {"c": (NOW + 500) * 4096},
        "wait": ["d"],
        "marker": {"0": 0, "1": NOW + 500},
        "a": started(atm="1", returnvalue="1", finishedOn=str(NOW)),
        "b": started(atm="1", failedReason="no", finishedOn=str(NOW)),
        "c": {**started(atm="1", failedReason="again", stacktrace='["t"]'), "delay": "500"},
        "d": started(),
        "e": started(defa=LOST),
        "e:lock": "worker:1",
    }
    assert other.value("completed") == {"f": NOW}
    assert queue.events() == [
        f"delayed jobId c delay {NOW + 500}",
        "waiting jobId d prev active",
        "completed jobId a returnvalue 1 prev active",
        "failed jobId b failedReason no prev active",
        "retries-exhausted jobId b attemptsMade 1",
    ]
    assert other.events() == ["completed jobId f returnvalue 2 prev active", "drained"]


def test_many_ends_in_one_call(queue: Queue) -> None:
    jobs = [f"job-{number}" for number in range(scripts.BATCH)]
    queue.active(*(queue.job(job) for job in jobs))

    assert queue.end(*(queue.ending("completed", job, "null") for job in jobs)) == [0] * len(jobs)
    assert queue.value("completed") == dict.fromkeys(jobs, NOW)
    assert queue.value("active") is None
    assert not any(key.endswith(":lock") for key in queue.picture())


# -- what is refused


def gone(queue: Queue) -> None:
    queue.set("a", "DEL")


def unlocked(queue: Queue) -> None:
    queue.set("a:lock", "DEL")


def locked_by_another(queue: Queue) -> None:
    queue.set("a:lock", "SET", "worker:9")


def not_active(queue: Queue) -> None:
    queue.set("active", "DEL")


REFUSALS = [(gone, -1), (unlocked, -2), (locked_by_another, -6), (not_active, -3)]


@pytest.mark.parametrize(("happened", "code"), REFUSALS, ids=[happened.__name__ for happened, _ in REFUSALS])
@pytest.mark.parametrize("what", ["completed", "failed", "retry", "release"])
def test_an_end_that_is_refused_changes_nothing(queue: Queue, what: str, happened: Callable[[Queue], None], code: int) -> None:
    queue.active(queue.job("a"), queue.job("b"))
    happened(queue)
    queue.set("active", "LPUSH", "x")
    before = queue.picture()

    assert queue.end(queue.ending(what, "a", "1", more='{"log":"line"}'), queue.ending("release", "b")) == [code, 0 if code != -3 else -3]

    after = queue.picture()
    for suffix in ("a", "completed", "failed", "delayed", "a:logs"):
        assert after.get(suffix) == before.get(suffix)
    assert not any("jobId a " in event for event in queue.events())
    if code == -6:
        assert after["a:lock"] == "worker:9", "another delivery keeps its lock"


@pytest.mark.parametrize(("happened", "code"), REFUSALS[1:3], ids=["unlocked", "locked_by_another"])
def test_at_most_once_cannot_be_promised_by_another(queue: Queue, happened: Callable[[Queue], None], code: int) -> None:
    queue.active(queue.job("a"))
    happened(queue)

    assert queue.end(queue.ending("commit", "a")) == [code]
    assert "defa" not in queue.value("a")


def test_a_job_that_is_gone_does_not_come_back_by_a_promise(queue: Queue) -> None:
    queue.active(queue.job("a"))
    queue.set("a", "DEL")

    assert queue.end(queue.ending("commit", "a")) == [-1]
    assert queue.value("a") is None


def test_sending_an_end_again_changes_nothing(queue: Queue) -> None:
    queue.active(queue.job("a"))
    ending = queue.ending("completed", "a", "1", keep=(5, "", ""))
    assert queue.end(ending) == [0]
    before = queue.picture()
    queue.events()

    assert queue.end(ending, now=NOW + 5) == [-2]
    assert queue.picture() == before
    assert queue.events() == []


def test_the_same_end_twice_in_one_call_counts_once(queue: Queue) -> None:
    queue.active(queue.job("a"))

    codes = queue.end(queue.ending("completed", "a", "1"), queue.ending("failed", "a", "no"))
    assert codes[0] == 0
    assert codes[1] < 0
    assert queue.value("completed") == {"a": NOW}
    assert queue.value("failed") is None


def test_token_0_asks_for_no_lock(queue: Queue) -> None:
    queue.active(queue.job("a"))

    assert queue.end(queue.ending("completed", "a", "1", token="0")) == [0]
    assert queue.value("a:lock") == "worker:1", "it expires by itself"


# -- children and parents


@pytest.mark.parametrize(("suffix", "kind", "code"), [("a:dependencies", "SADD", -4), ("a:unsuccessful", "ZADD", -9)])
def test_a_parent_cannot_complete_before_its_children(queue: Queue, suffix: str, kind: str, code: int) -> None:
    queue.active(queue.job("a"))
    queue.set(suffix, kind, *([1] if kind == "ZADD" else []), "bull:c:1")
    before = queue.picture()

    assert queue.end(queue.ending("completed", "a", "1")) == [code]
    assert queue.picture() == before, "the lock is kept: it can fail instead"
    assert queue.end(queue.ending("failed", "a", "no")) == [0]


def flow(
    parent: Queue, children: Queue, names: Sequence[str], waits: bool = True, opts: dict[str, Any] | None = None, **flags: bool
) -> None:
    """A parent `p` and its children, which are active."""
    more = '{"children":true}' if waits else ""
    parent.add(parent.job("p", more=more, **(opts or {})), *(children.job(name, more=child_of(parent, "p", **flags)) for name in names))
    assert len(children.take(len(names))) == len(names)
    parent.events()
    children.events()


def test_a_parent_goes_on_when_its_last_child_has_completed(queue: Queue, other: Queue) -> None:
    queue.add(queue.job("first"))
    flow(queue, other, "cd")

    other.end(other.ending("completed", "c", "1"))
    assert queue.value("waiting-children") == {"p": NOW}
    assert queue.events() == []
    queue.set("marker", "DEL")

    other.end(other.ending("completed", "d", "2"))
    assert queue.without_meta() == {
        "id": "2",
        "wait": ["first", "p"],
        "marker": {"0": 0},
        "p": stored(),
        "p:processed": {other.key("c"): "1", other.key("d"): "2"},
        "first": stored(),
    }
    assert queue.events() == ["waiting jobId p prev waiting-children"]


@pytest.mark.parametrize(
    ("opts", "place", "event"),
    [
        ({"priority": 3}, {"prioritized": {"p": 3 * 2**32 + 1}}, "waiting jobId p prev waiting-children"),
        ({"delay": 100}, {"delayed": {"p": (NOW + 150) * 4096}}, f"delayed jobId p delay {NOW + 150}"),
    ],
    ids=["priority", "delay"],
)
def test_a_parent_goes_where_its_options_say(queue: Queue, other: Queue, opts: dict[str, Any], place: dict[str, Any], event: str) -> None:
    flow(queue, other, "c", opts=opts)
    other.end(other.ending("completed", "c", "1"), now=NOW + 50)

    assert place.items() <= queue.picture().items()
    assert queue.value("waiting-children") is None
    assert queue.events() == [event]


def test_a_parent_of_the_same_queue(queue: Queue) -> None:
    flow(queue, queue, "c")

    assert queue.end(queue.ending("completed", "c", "1")) == [0]
    assert queue.value("wait") == ["p"]
    assert queue.events() == ["waiting jobId p prev waiting-children", "completed jobId c returnvalue 1 prev active"]


def test_children_of_one_parent_that_end_in_one_call(queue: Queue, other: Queue) -> None:
    flow(queue, other, "cde")
    other.end(*(other.ending("completed", name, "1", keep=KEEP_NONE) for name in "cde"))

    assert queue.value("p:processed") == {other.key(name): "1" for name in "cde"}
    assert queue.events() == ["waiting jobId p prev waiting-children"]
    assert other.value("c") is None


def test_a_parent_that_does_not_wait_is_told_the_value(queue: Queue, other: Queue) -> None:
    flow(queue, other, "c", waits=False)
    other.end(other.ending("completed", "c", "1"))

    assert queue.value("p:processed") == {other.key("c"): "1"}
    assert queue.value("p:dependencies") is None
    assert queue.value("wait") == ["p"]
    assert queue.events() == []


def test_a_failed_child_without_a_policy_holds_its_parent_up(queue: Queue, other: Queue) -> None:
    flow(queue, other, "c")
    other.end(other.ending("failed", "c", "no"))

    assert queue.value("waiting-children") == {"p": NOW}
    assert queue.value("p:dependencies") == {other.key("c")}
    assert queue.events() == []


def test_fpof_the_parent_is_to_be_failed(queue: Queue, other: Queue) -> None:
    queue.add(queue.job("first"))
    flow(queue, other, "cd", fpof=True)
    other.end(other.ending("failed", "c", "no"), now=NOW + 5)

    assert queue.value("p:unsuccessful") == {other.key("c"): NOW + 5}
    assert queue.value("p:dependencies") == {other.key("d")}
    assert queue.value("p") == stored(defa=f"child {other.key('c')} failed")
    assert queue.value("wait") == ["first", "p"], "at once, though another child is pending"
    assert queue.events() == ["waiting jobId p prev waiting-children"]


def test_fpof_a_delayed_parent_is_delayed_no_longer(queue: Queue, other: Queue) -> None:
    flow(queue, other, "c", waits=False, opts={"delay": 60_000}, fpof=True)
    other.end(other.ending("failed", "c", "no"))

    assert queue.value("p") == stored(defa=f"child {other.key('c')} failed")
    assert queue.value("delayed") is None
    assert queue.value("wait") == ["p"]
    assert len(queue.events()) == 1


def test_fpof_an_active_parent_is_only_marked(queue: Queue, other: Queue) -> None:
    flow(queue, other, "c", waits=False, fpof=True)
    queue.take()
    queue.events()
    other.end(other.ending("failed", "c", "no"))

    assert queue.value("p")["defa"] == f"child {other.key('c')} failed"
    assert queue.value("active") == ["p"]
    assert queue.events() == []
    assert queue.end(queue.ending("completed", "p", "1")) == [-9]


def test_fpof_a_parent_that_has_failed_or_is_gone_is_left_alone(queue: Queue, other: Queue) -> None:
    flow(queue, other, "cd", waits=False, fpof=True)
    queue.take()
    queue.end(queue.ending("failed", "p", "of itself"))
    other.end(other.ending("failed", "c", "no"))
    assert "defa" not in queue.value("p")

    queue.set("p", "DEL")
    other.end(other.ending("failed", "d", "no"))
    assert queue.value("p") is None


def test_cpof_the_parent_goes_on_at_once(queue: Queue, other: Queue) -> None:
    flow(queue, other, "cd", cpof=True)
    other.end(other.ending("failed", "c", "no"))

    assert queue.value("p:failed") == {other.key("c"): "no"}
    assert queue.value("p:dependencies") == {other.key("d")}
    assert queue.value("wait") == ["p"]
    assert queue.events() == ["waiting jobId p prev waiting-children"]


def test_idof_the_failure_is_noted_and_the_others_waited_for(queue: Queue, other: Queue) -> None:
    flow(queue, other, "cd", idof=True)
    other.end(other.ending("failed", "c", "no"))
    assert queue.value("waiting-children") == {"p": NOW}

    other.end(other.ending("completed", "d", "1"))
    assert queue.value("p:failed") == {other.key("c"): "no"}
    assert queue.value("p:processed") == {other.key("d"): "1"}
    assert queue.value("wait") == ["p"]


def test_rdof_the_failure_is_as_if_there_had_been_no_child(queue: Queue, other: Queue) -> None:
    flow(queue, other, "c", rdof=True)
    other.end(other.ending("failed", "c", "no"))

    assert queue.without_meta() == {"id": "1", "wait": ["p"], "marker": {"0": 0}, "p": stored()}


@pytest.mark.parametrize("flags", ["", "no JSON", "7"])
def test_what_a_stranger_wrote_of_a_parent_keeps_no_end_from_being_written(queue: Queue, other: Queue, flags: str) -> None:
    queue.active(*(queue.job(one) for one in "abc"))
    queue.set("b", "HSET", "parentKey", other.key("p"), "parent", flags)

    assert queue.end(*(queue.ending("failed", one, "why") for one in "abc")) == [0, 0, 0]
    assert set(queue.value("failed")) == {"a", "b", "c"}
    assert [text.split()[2] for text in queue.events() if text.startswith("failed")] == ["a", "b", "c"]


def test_a_failed_child_that_is_not_kept_holds_nobody_up(queue: Queue, other: Queue) -> None:
    flow(queue, other, "c")
    other.end(other.ending("failed", "c", "no", keep=KEEP_NONE))

    assert other.value("c") is None
    assert queue.value("wait") == ["p"]
    assert queue.events() == ["waiting jobId p prev waiting-children"]


# -- deduplication


def deduplicated(**dedup: Any) -> dict[str, Any]:
    return {"more": json.dumps({"de": {"id": "x", **dedup}}), "opts": json.dumps({"attempts": 0, "de": {"id": "x", **dedup}})}


@pytest.mark.parametrize("what", ["completed", "failed"])
def test_the_end_of_its_owner_frees_a_deduplication_id(queue: Queue, what: str) -> None:
    queue.active(queue.job("a", **deduplicated()))
    queue.end(queue.ending(what, "a", "1"))

    assert queue.value("de:x") is None


def test_a_running_window_is_not_shortened(queue: Queue) -> None:
    queue.active(queue.job("a", **deduplicated(ttl=60_000)))
    queue.end(queue.ending("completed", "a", "1"))

    assert queue.value("de:x") == "a"
    assert queue.ttl("de:x") > 50_000


def test_the_end_of_another_does_not_free_it(queue: Queue) -> None:
    queue.active(queue.job("a", **deduplicated()))
    queue.set("de:x", "SET", "b")
    queue.end(queue.ending("completed", "a", "1"))

    assert queue.value("de:x") == "b"


@pytest.mark.parametrize("what", ["retry", "release"])
def test_another_attempt_keeps_it(queue: Queue, what: str) -> None:
    queue.active(queue.job("a", **deduplicated()))
    queue.end(queue.ending(what, "a"))

    assert queue.value("de:x") == "a"


@pytest.mark.parametrize(
    ("what", "last"),
    [("completed", "completed jobId a returnvalue 1 prev active"), ("failed", "failed jobId a failedReason 1 prev active")],
)
def test_what_keep_last_if_active_kept_is_added_when_the_owner_ends(queue: Queue, what: str, last: str) -> None:
    spec = deduplicated(keepLastIfActive=True)
    queue.active(queue.job("a", **spec))
    queue.add(queue.job("b", name="later", data='{"v":2}', celery='{"k":"a"}', **spec))
    queue.set("marker", "DEL")
    queue.events()

    queue.end(queue.ending(what, "a", "1", number=9), now=NOW + 50)

    assert queue.value("b") == {
        **stored(deid="x", celery='{"k":"a"}', opts=spec["opts"], data='{"v":2}', timestamp=str(NOW + 50)),
        "name": "later",
    }
    assert queue.value("wait") == ["b"]
    assert queue.value("marker") == {"0": 0}
    assert queue.value("id") == "3"
    assert queue.value("de:x") == "b"
    assert queue.value("dn:x") is None
    assert queue.events() == ["added jobId b name later", "waiting jobId b", last]


@pytest.mark.parametrize(
    ("opts", "place"),
    [
        ({"delay": 100}, {"delayed": {"b": (NOW + 100) * 4096}}),
        ({"priority": 2}, {"prioritized": {"b": 2 * 2**32 + 1}}),
        ({"lifo": True}, {"wait": ["z", "b"]}),
        ({}, {"wait": ["b", "z"]}),
    ],
    ids=["delay", "priority", "lifo", "plain"],
)
def test_it_goes_where_its_options_say(queue: Queue, opts: dict[str, Any], place: dict[str, Any]) -> None:
    more = json.dumps({"de": {"id": "x", "keepLastIfActive": True}})
    queue.active(queue.job("a", more=more))
    queue.add(queue.job("z"), queue.job("b", more=more, opts=json.dumps({"de": {"id": "x", "keepLastIfActive": True}, **opts})))
    queue.end(queue.ending("completed", "a", "1"))

    assert place.items() <= queue.picture().items()


def test_it_joins_its_parent(queue: Queue, other: Queue) -> None:
    other.add(other.job("p", more='{"children":true}'), other.job("c", more=child_of(other, "p")))
    dedup = {"de": {"id": "x", "keepLastIfActive": True}}
    queue.active(queue.job("a", more=json.dumps(dedup)))
    queue.add(queue.job("b", opts=json.dumps(dedup), more=json.dumps({**dedup, **json.loads(child_of(other, "p"))})))
    queue.end(queue.ending("completed", "a", "1"))

    assert queue.key("b") in other.value("p:dependencies")
    assert queue.value("b")["parentKey"] == other.key("p")


# -- what is kept of finished jobs


@pytest.mark.parametrize("what", ["completed", "failed"])
def test_a_job_that_is_not_kept_leaves_nothing(queue: Queue, what: str) -> None:
    queue.active(queue.job("a"))
    queue.set("a:logs", "RPUSH", "line")
    queue.set("a:processed", "HSET", "k", "v")
    queue.set("marker", "DEL")

    assert queue.end(queue.ending(what, "a", "1", keep=KEEP_NONE, more='{"log":"line","tm":"t"}')) == [0]

    assert queue.without_meta() == {"id": "1"}
    assert queue.events()[0].startswith(f"{what} jobId a ")


def test_only_the_newest_are_kept(queue: Queue) -> None:
    for at, name in enumerate("abcd"):
        queue.active(queue.job(name))
        queue.set(f"{name}:logs", "RPUSH", "line")
        queue.end(queue.ending("completed", name, "1", keep=(2, "", "")), now=NOW + at)
    queue.events()

    assert queue.value("completed") == {"c": NOW + 2, "d": NOW + 3}
    assert {suffix for suffix in queue.picture() if suffix[0] in "abcd" and suffix != "active"} >= {"c", "c:logs", "d", "d:logs"}
    assert queue.value("a") is None
    assert queue.value("a:logs") is None


def test_a_batch_is_cut_to_what_is_kept(queue: Queue) -> None:
    jobs = [f"j{number}" for number in range(10)]
    queue.active(*(queue.job(job) for job in jobs))
    queue.end(*(queue.ending("completed", job, "1", keep=(3, "", "")) for job in jobs))

    assert len(queue.value("completed")) == 3
    assert sum(queue.value(job) is not None for job in jobs) == 3
    assert len([event for event in queue.events() if event.startswith("completed")]) == 10, "every end is told"


def test_completed_and_failed_are_kept_apart(queue: Queue) -> None:
    queue.active(*(queue.job(name) for name in "abcd"))
    queue.end(*(queue.ending(what, name, "1", keep=(1, "", "")) for name, what in zip("abcd", ("completed", "failed") * 2, strict=True)))

    assert len(queue.value("completed")) == 1
    assert len(queue.value("failed")) == 1


@pytest.mark.parametrize(
    ("ages_s", "keep", "left"),
    [
        ([50, 11, 9], (-1, 10, ""), {"now", "2"}),  # by age
        ([50, 40, 30], (-1, 10, 2), {"now", "2"}),  # at most two at a time, the oldest
        ([50, 9, 8, 7], (2, 10, ""), {"now", "3"}),  # by age and count
        ([50, 9, 8, 7], (9, 10, ""), {"now", "1", "2", "3"}),
        ([50], (-1, 0, ""), set()),
    ],
    ids=["age", "limit", "age-and-count", "age-within-count", "age-0"],
)
def test_the_old_ones_go(queue: Queue, ages_s: list[int], keep: tuple[Any, ...], left: set[str]) -> None:
    for number, age in enumerate(ages_s):
        queue.set(str(number), "HSET", "name", "n")
        queue.set("completed", "ZADD", NOW - age * 1000, number)
    queue.active(queue.job("now"))
    queue.end(queue.ending("completed", "now", "1", keep=keep))

    assert set(queue.value("completed") or ()) == left
    assert {suffix for suffix in queue.picture() if suffix.isdigit() or suffix == "now"} == left


def test_at_most_a_thousand_old_ones_go_in_one_call_unless_told_otherwise(queue: Queue) -> None:
    queue.set("completed", "ZADD", *(part for number in range(1500) for part in (NOW - 99_000, f"x{number}")))
    queue.active(queue.job("a"), queue.job("b"))
    queue.end(queue.ending("completed", "a", "1", keep=(-1, 10, "")))
    assert len(queue.value("completed")) == 501

    queue.end(queue.ending("completed", "b", "1", keep=(-1, 10, 20_000)))
    assert set(queue.value("completed")) == {"a", "b"}


def test_a_great_many_old_ones_can_go_at_once(queue: Queue) -> None:
    queue.set("completed", "ZADD", *(part for number in range(12_000) for part in (NOW - 99_000, f"x{number}")))
    queue.active(queue.job("a"), queue.job("b"))

    assert queue.end(queue.ending("completed", "a", "1", keep=(-1, 10, 11_000))) == [0]
    assert len(queue.value("completed")) == 1001
    assert queue.end(queue.ending("completed", "b", "1", keep=(1, "", ""))) == [0]
    assert len(queue.value("completed")) == 1


def test_each_end_of_a_call_has_a_policy_of_its_own(queue: Queue) -> None:
    queue.active(*(queue.job(name) for name in "abcd"))
    queue.end(
        queue.ending("completed", "a", "1"),
        queue.ending("completed", "b", "1", keep=(1, "", "")),
        queue.ending("completed", "c", "1", keep=KEEP_NONE),
        queue.ending("completed", "d", "1"),
    )

    assert set(queue.value("completed")) >= {"d"}
    assert "c" not in queue.value("completed")


def test_an_end_without_a_policy_keeps_all(queue: Queue) -> None:
    queue.active(queue.job("a"))

    assert queue.end(queue.ending("completed", "a", "1", keep=("", "", ""))) == [0]
    assert queue.value("completed") == {"a": NOW}


def test_retention_takes_a_child_off_its_parent(queue: Queue, other: Queue) -> None:
    flow(queue, other, "c")
    other.end(other.ending("failed", "c", "no"))
    other.active(other.job("d"))
    other.end(other.ending("failed", "d", "no", keep=(1, "", "")), now=NOW + 1)

    assert other.value("c") is None
    assert queue.value("wait") == ["p"]


def test_retention_does_not_touch_deduplication(queue: Queue) -> None:
    queue.active(queue.job("a", **deduplicated(ttl=60_000)))
    queue.end(queue.ending("completed", "a", "1", keep=KEEP_NONE))

    assert queue.value("de:x") == "a"


def test_the_event_stream_is_trimmed(queue: Queue) -> None:
    queue.active(*(queue.job() for _ in range(300)))
    queue.set("meta", "HSET", "opts.maxLenEvents", 0)
    queue.end(*(queue.ending("completed", str(number), "1") for number in range(1, 301)))

    assert queue.redis.xlen(queue.key("events")) < 500


# -- metrics


def test_metrics_count_by_the_minute(queue: Queue) -> None:
    minute = NOW // 60_000 * 60_000

    def finish(*minutes: int, points: int = 4) -> None:
        for at in minutes:
            queue.active(queue.job())
            job_id = queue.value("id")
            queue.end(queue.ending("completed", job_id, "1", more=json.dumps({"metrics": points})), now=minute + at * 60_000)

    finish(0)
    assert queue.value("metrics:completed") == {"count": "1", "prevTS": str(minute), "prevCount": "0"}
    assert queue.value("metrics:completed:data") is None

    finish(0, 0)
    assert queue.value("metrics:completed") == {"count": "3", "prevTS": str(minute), "prevCount": "0"}

    finish(1)
    assert queue.value("metrics:completed") == {"count": "4", "prevTS": str(minute + 60_000), "prevCount": "3"}
    assert queue.value("metrics:completed:data") == ["3"]

    finish(4)
    assert queue.value("metrics:completed:data") == ["0", "0", "1", "3"], "newest first"

    finish(5)
    assert queue.value("metrics:completed:data") == ["1", "0", "0", "1"], "as many as asked for"

    finish(1000)
    assert queue.value("metrics:completed:data") == ["0", "0", "0", "1"]
    assert queue.value("metrics:failed") is None


def test_without_metrics_nothing_is_counted(queue: Queue) -> None:
    queue.active(queue.job("a"))
    queue.end(queue.ending("failed", "a", "no"))

    assert not any("metrics" in suffix for suffix in queue.picture())


def test_failures_are_counted_apart_and_retries_not_at_all(queue: Queue) -> None:
    queue.active(queue.job("a"), queue.job("b"))
    more = '{"metrics":5}'
    queue.end(queue.ending("failed", "a", "no", more=more), queue.ending("retry", "b", "no", more=more))

    assert queue.value("metrics:failed") == {"count": "1", "prevTS": str(NOW), "prevCount": "0"}
    assert queue.value("metrics:completed") is None


# -- drained


def test_drained_is_told_when_nothing_is_left(queue: Queue) -> None:
    queue.active(queue.job("a"), queue.job("b"))
    queue.end(queue.ending("completed", "a", "1"))
    assert queue.events() == ["completed jobId a returnvalue 1 prev active"]

    queue.end(queue.ending("completed", "b", "1"))
    assert queue.events() == ["completed jobId b returnvalue 1 prev active", "drained"]


@pytest.mark.parametrize(
    "place", [("wait", "LPUSH", "x"), ("active", "LPUSH", "x"), ("prioritized", "ZADD", 1, "x")], ids=lambda place: place[0]
)
def test_drained_is_not_told_while_something_is_left(queue: Queue, place: tuple[Any, ...]) -> None:
    queue.active(queue.job("a"))
    queue.set(*place)
    queue.end(queue.ending("completed", "a", "1"))

    assert queue.events() == ["completed jobId a returnvalue 1 prev active"]


def test_delayed_jobs_hinder_drained_only_for_who_would_wait_for_them(queue: Queue) -> None:
    queue.active(queue.job("a"), queue.job("b"))
    queue.add(queue.job("d", delay=1000))
    queue.events()

    queue.end(queue.ending("completed", "a", "1"))
    assert scripts.finish(queue.server, [queue.ending("completed", "b", "1")], NOW, [queue.base], 1, NEXT)[2] == [
        QueueState(queue.base, 0, NOW + 1000)
    ]
    assert "drained" not in queue.events()

    queue.active(queue.job("c"))
    queue.end(queue.ending("completed", "c", "1"))
    assert "drained" in queue.events()


# -- the next jobs, in the same call


def test_the_next_jobs_come_with_the_answer(queue: Queue, other: Queue) -> None:
    queue.active(queue.job("a"))
    queue.add(queue.job("b"), queue.job("c"))
    other.active(other.job("x"))
    other.add(other.job("y"))
    queue.events()

    codes, jobs, states = scripts.finish(
        queue.server, [queue.ending("completed", "a", "1"), other.ending("completed", "x", "1")], NOW, [queue.base], 5, NEXT
    )

    assert list(codes) == [0, 0]
    assert [(job.base, job.id) for job in jobs] == [(queue.base, "b"), (queue.base, "c")]
    assert states == [QueueState(queue.base, 0, 0)]
    assert queue.value("b:lock") == "worker:2"
    assert LOCK_MS - 5000 < queue.ttl("b:lock") <= LOCK_MS
    assert other.value("wait") == ["y"], "not asked"
    assert queue.events() == ["completed jobId a returnvalue 1 prev active", "active jobId b prev waiting", "active jobId c prev waiting"]


def test_a_job_put_back_can_be_taken_again_in_the_same_call(queue: Queue) -> None:
    queue.active(queue.job("a"))

    _, jobs, _ = scripts.finish(queue.server, [queue.ending("retry", "a", "no")], NOW, [queue.base], 1, NEXT)
    assert jobs[0].id == "a"
    assert jobs[0].fields["failedReason"] == "no"
    assert queue.value("a:lock") == "worker:2"
    assert queue.value("active") == ["a"]


def test_a_finished_job_makes_room_under_the_global_concurrency(queue: Queue) -> None:
    queue.set("meta", "HSET", "concurrency", 1)
    queue.add(queue.job("a"), queue.job("b"), queue.job("c"))
    assert len(queue.take(3)) == 1
    queue.set("marker", "DEL")

    _, jobs, _ = scripts.finish(queue.server, [queue.ending("completed", "a", "1")], NOW, [queue.base], 1, NEXT)
    assert jobs[0].id == "b"

    queue.set("marker", "DEL")
    queue.end(queue.ending("completed", "b", "1", token="worker:2"))
    assert queue.value("marker") == {"0": 0}, "who took nothing in turn wakes somebody who may"


@pytest.mark.parametrize("ending", [("retry", 1000), ("retry", 0), ("release", "")], ids=["delayed", "retried", "released"])
def test_whichever_way_a_job_leaves_its_room_is_told(queue: Queue, ending: tuple[str, Any]) -> None:
    what, number = ending
    queue.set("meta", "HSET", "concurrency", 1)
    queue.add(queue.job("a"), queue.job("b"))
    queue.take()
    queue.set("marker", "DEL")

    queue.end(queue.ending(what, "a", number=number))
    assert queue.value("marker")["0"] == 0


# -- another attempt


def test_a_retry_at_once_goes_to_the_back(queue: Queue) -> None:
    queue.active(queue.job("a"))
    queue.add(queue.job("b"))
    queue.set("a", "HSET", "defa", LOST)
    queue.set("stalled", "SADD", "a")
    queue.events()

    queue.end(queue.ending("retry", "a", "no", '["t"]', number=0))

    assert queue.without_meta() == {
        "id": "2",
        "wait": ["a", "b"],
        "marker": {"0": 0},
        "a": started(atm="1", failedReason="no", stacktrace='["t"]'),
        "b": stored(),
    }
    assert queue.events() == ["waiting jobId a prev active"]


def test_a_lifo_job_is_retried_next(queue: Queue) -> None:
    queue.active(queue.job("a"))
    queue.add(queue.job("b"))
    queue.end(queue.ending("retry", "a", "no", more='{"lifo":true}'))

    assert queue.value("wait") == ["b", "a"]


def test_a_prioritized_job_lines_up_anew(queue: Queue) -> None:
    queue.active(queue.job("a", priority=2))
    queue.add(queue.job("b", priority=2))
    queue.end(queue.ending("retry", "a", "no"))

    assert queue.value("prioritized") == {"b": 2 * 2**32 + 2, "a": 2 * 2**32 + 3}


def test_a_retry_later(queue: Queue) -> None:
    queue.active(queue.job("a", priority=2))
    queue.add(queue.job("d", delay=1000))
    queue.events()

    queue.end(queue.ending("retry", "a", "no", number=990), now=NOW + 10)

    due = NOW + 1000
    assert queue.value("delayed") == {"d": due * 4096, "a": due * 4096 + 1}
    assert queue.value("a") == {**started(atm="1", failedReason="no"), "delay": "990", "priority": "2"}
    assert queue.value("marker") == {"0": 0, "1": due}
    assert queue.events() == [f"delayed jobId a delay {due}"]


def test_a_retry_promotes_what_is_due(queue: Queue) -> None:
    queue.active(queue.job("a"))
    queue.add(queue.job("d", delay=10))
    queue.events()
    queue.end(queue.ending("retry", "a", "no"), now=NOW + 10)

    assert queue.value("wait") == ["a", "d"]
    assert queue.events() == ["waiting jobId d prev delayed", "waiting jobId a prev active"]


def test_an_attempt_may_not_count(queue: Queue) -> None:
    queue.active(queue.job("a"))
    queue.end(
        queue.ending("retry", "a", number=5, more='{"skip":true,"log":"line","tm":"t","fields":["data","{\\"v\\":1}","celery","{}"]}')
    )

    found = queue.value("a")
    assert "atm" not in found
    assert found["failedReason"] == "", "an empty reason is one"
    assert (found["tm"], found["data"], found["celery"]) == ("t", '{"v":1}', "{}")
    assert queue.value("a:logs") == ["line"]


def test_a_retry_in_a_paused_queue_wakes_nobody(queue: Queue) -> None:
    queue.active(queue.job("a"), queue.job("b"))
    queue.set("marker", "DEL")
    queue.pause()
    queue.end(queue.ending("retry", "a", "no"))
    assert queue.value("wait") == ["a"]
    assert queue.value("marker") is None

    queue.set("paused", "LPUSH", "parked")
    queue.end(queue.ending("retry", "b", "no"))
    assert queue.value("paused") == ["b", "parked"]


# -- put back


def test_what_is_put_back_goes_first_and_counts_nothing(queue: Queue) -> None:
    queue.active(queue.job("a"), queue.job("p", priority=2))
    queue.add(queue.job("b"), queue.job("q", priority=2))
    queue.events()

    queue.end(queue.ending("release", "a"), queue.ending("release", "p"))

    assert queue.value("wait") == ["b", "a"]
    assert queue.value("prioritized") == {"p": 2 * 2**32, "q": 2 * 2**32 + 2}
    assert queue.value("a") == started()
    assert queue.value("a:lock") is None
    assert queue.events() == ["waiting jobId a prev active", "waiting jobId p prev active"]


def test_put_back_in_the_order_of_the_last_taken_the_queue_is_as_before(queue: Queue) -> None:
    queue.add(*(queue.job(name) for name in "abcd"))
    queue.take(3)
    queue.end(*(queue.ending("release", name) for name in "cba"))

    assert queue.value("wait") == ["d", "c", "b", "a"]


@pytest.mark.parametrize("what", ["release", "retry"])
def test_only_a_promise_of_ones_own_is_taken_back(queue: Queue, what: str) -> None:
    queue.active(queue.job("a"), queue.job("b"))
    queue.end(queue.ending("commit", "a"))
    queue.set("b", "HSET", "defa", "job stalled more than allowable limit")
    queue.end(queue.ending(what, "a"), queue.ending(what, "b"))

    assert "defa" not in queue.value("a")
    assert queue.value("b")["defa"] == "job stalled more than allowable limit"


# -- the queue is limited, says a task


def test_a_limited_queue_is_not_taken_from(queue: Queue) -> None:
    queue.active(queue.job("a"))
    queue.add(queue.job("b"))
    queue.set("limiter", "SET", 2**53 - 1, "PX", 60_000)
    queue.events()

    codes, jobs, states = scripts.finish(queue.server, [queue.ending("limit", "a")], NOW, [queue.base], 5, NEXT)

    assert 55_000 < codes[0] <= 60_000
    assert jobs == []
    assert 55_000 < states[0].closed_ms <= 60_000
    assert queue.value("wait") == ["b", "a"]
    assert queue.value("a") == started()
    assert queue.events() == ["waiting jobId a prev active"]


def test_without_a_limit_the_job_is_only_put_back(queue: Queue) -> None:
    queue.active(queue.job("a"))

    codes, jobs, _ = scripts.finish(queue.server, [queue.ending("limit", "a")], NOW, [queue.base], 5, NEXT)
    assert list(codes) == [0]
    assert [job.id for job in jobs] == ["a"]


# -- at most once


def test_a_promise_is_bullmqs_own_deferred_failure(queue: Queue) -> None:
    queue.active(queue.job("a"))
    assert queue.end(queue.ending("commit", "a")) == [0]

    assert queue.value("a") == started(defa=LOST)
    assert queue.value("a:lock") == "worker:1"
    assert queue.events() == []


def test_a_promise_does_not_hide_another_reason(queue: Queue) -> None:
    queue.active(queue.job("a"))
    queue.set("a", "HSET", "defa", "child c failed")
    queue.end(queue.ending("commit", "a"))

    assert queue.value("a")["defa"] == "child c failed"


def test_the_answer_may_be_read_later(queue: Queue) -> None:
    queue.active(queue.job("a"), queue.job("b"))
    wire = queue.server.wire()
    try:
        flight = scripts.finish_later(wire, [queue.ending("retry", "a")], NOW, [queue.base], 1, NEXT)
        codes, jobs, states = scripts.finish_answer([queue.base], flight.answer())
    finally:
        wire.close()
    assert list(codes) == [0]
    assert [job.id for job in jobs] == ["a"]
    assert states == [QueueState(queue.base, 0, 0)]
