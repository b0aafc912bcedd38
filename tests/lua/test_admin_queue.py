"""`pause`, `resume`, `obliterate`, `clean`, `move_to_wait`, `forget_orphans`: what is done to a queue as a whole.

That they do what Node does is proved in tests/conformance; here is what is ours, and what Node cannot show.
"""

from __future__ import annotations

import json

import pytest
from one_queue import NOW, Queue

from bullmq_kombu import admin_scripts


def child_of(parent: Queue, job_id: str) -> str:
    link = json.dumps({"id": job_id, "queueKey": parent.base[:-1]}, separators=(",", ":"))
    return json.dumps({"parentKey": parent.key(job_id), "parent": link})


# -- pause and resume ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["", "bullmq:6.7.0"])
def test_pause_touches_no_list(queue: Queue, version: str) -> None:
    queue.add(queue.job("a"), queue.job("p", priority=1))
    queue.set("meta", "HSET", "version", version)
    queue.events()
    admin_scripts.pause(queue.server, queue.base)

    assert queue.value("wait") == ["a"]
    assert queue.value("paused") is None
    assert queue.value("marker") is None
    assert queue.events() == ["paused"]
    assert queue.take(5) == []


def test_pause_parks_what_waits_where_bullmq_5_will_look_for_it(queue: Queue) -> None:
    """Its resume puts `paused`, which its producers fill meanwhile, in the place of `wait`."""
    queue.add(queue.job("a"), queue.job("b"), queue.job("p", priority=1))
    queue.set("meta", "HSET", "version", "bullmq:5.81.5")
    admin_scripts.pause(queue.server, queue.base)
    queue.add(queue.job("c"))

    assert queue.value("wait") is None
    assert queue.value("paused") == ["c", "b", "a"]
    assert set(queue.value("prioritized")) == {"p"}
    admin_scripts.pause(queue.server, queue.base)
    admin_scripts.resume(queue.server, queue.base)
    assert queue.value("wait") == ["c", "b", "a"]


def test_pause_puts_what_waits_behind_what_bullmq_5_had_parked(queue: Queue) -> None:
    """As many as there may be. Its next pause would put `wait` in the place of `paused`."""
    ids = [f"j{number}" for number in range(2500)]
    queue.set("wait", "LPUSH", *ids)
    queue.set("paused", "LPUSH", "parked-1", "parked-2")
    admin_scripts.pause(queue.server, queue.base)

    assert queue.value("wait") is None
    assert queue.value("paused") == [*reversed(ids), "parked-2", "parked-1"]


def test_resume_puts_what_bullmq_5_had_parked_first_and_in_its_order(queue: Queue, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admin_scripts, "CHUNK", 2)  # in several calls
    queue.pause()
    queue.set("wait", "LPUSH", "later-1", "later-2")
    queue.set("paused", "LPUSH", *(f"parked-{number}" for number in range(1, 6)))
    admin_scripts.resume(queue.server, queue.base)

    assert queue.value("wait") == ["later-2", "later-1", "parked-5", "parked-4", "parked-3", "parked-2", "parked-1"]
    assert queue.value("paused") is None
    assert queue.value("marker") == {"0": 0}
    assert queue.events() == ["resumed"]


def test_resume_wakes_for_what_waits_or_for_what_is_due(queue: Queue, other: Queue) -> None:
    queue.pause()
    queue.add(queue.job("p", priority=2))
    admin_scripts.resume(queue.server, queue.base)
    assert queue.value("marker") == {"0": 0}

    other.add(other.job("d", delay=50))
    admin_scripts.pause(other.server, other.base)
    admin_scripts.resume(other.server, other.base)
    assert other.value("marker") == {"1": NOW + 50}


def test_added_while_bullmq_5_has_parked_jobs(queue: Queue) -> None:
    """Its resume renames `paused` to `wait`: a job in `wait` would be lost."""
    queue.pause()
    queue.set("paused", "LPUSH", "parked")
    queue.add(queue.job("a"))
    assert queue.value("paused") == ["a", "parked"]
    assert queue.value("wait") is None


def test_added_where_bullmq_5_came_to_a_queue_paused_by_another(queue: Queue) -> None:
    """As long as it has parked none, its resume leaves `wait` alone."""
    queue.pause()
    queue.add(queue.job("a"))
    queue.set("meta", "HSET", "version", "bullmq:5.81.5")
    queue.add(queue.job("b"))
    assert queue.value("wait") == ["b", "a"]
    assert queue.value("paused") is None


# -- obliterate ------------------------------------------------------------------------------------------------------------------


def fill(queue: Queue, other: Queue) -> None:
    queue.active(queue.job("running", more='{"de":{"id":"x"}}'))
    queue.add(
        queue.job("a"), queue.job("p", priority=1), queue.job("d", delay=1000, more='{"de":{"id":"y","ttl":60000}}'),
        queue.job("parent", more='{"children":true}'), other.job("c", more=child_of(queue, "parent")),
        other.job("far", more='{"children":true}'), queue.job("near", more=child_of(other, "far")),
    )  # fmt: skip
    queue.active(queue.job("done"), queue.job("broken"))
    queue.end(queue.ending("completed", "done", "1"), queue.ending("failed", "broken", "no"))
    for suffix, kind, *values in (
        ("dn:x", "HSET", "name", "n"), ("limiter", "SET", 3), ("stalled", "SADD", "running"), ("stalled-check", "SET", NOW),
        ("metrics:completed", "HSET", "count", 1), ("metrics:completed:data", "LPUSH", 1), ("repeat", "ZADD", NOW, "s"),
        ("repeat:s", "HSET", "ic", 1), (f"repeat:s:{NOW}", "HSET", "name", "n"), ("a:logs", "RPUSH", "line"),
    ):  # fmt: skip
        queue.set(suffix, kind, *values)
    queue.set("delayed", "ZADD", (NOW + 10) * 4096, f"repeat:s:{NOW}")


@pytest.mark.parametrize("chunk", [1000, 2])
def test_obliterate_leaves_nothing(queue: Queue, other: Queue, monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    monkeypatch.setattr(admin_scripts, "CHUNK", chunk)
    fill(queue, other)
    assert admin_scripts.obliterate(queue.server, queue.base, force=True) == -1, "not paused"
    queue.pause()
    assert admin_scripts.obliterate(queue.server, queue.base, force=False) == -2, "active"
    assert admin_scripts.obliterate(queue.server, queue.base, force=True) == 0

    assert queue.picture() == {}
    assert queue.value("events") is None
    assert queue.events() == []


def test_obliterate_lets_parents_elsewhere_go_on(queue: Queue, other: Queue) -> None:
    fill(queue, other)
    queue.pause()
    admin_scripts.obliterate(queue.server, queue.base, force=True)

    assert other.value("waiting-children") is None
    assert set(other.value("wait")) == {"c", "far"}


def test_obliterate_of_an_empty_queue(queue: Queue) -> None:
    queue.pause()
    assert admin_scripts.obliterate(queue.server, queue.base, force=False) == 0
    assert queue.picture() == {}


# -- clean -----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", ["wait", "paused", "active", "delayed", "prioritized"])
def test_clean_removes_as_many_as_asked_and_passes_over_what_stays(queue: Queue, state: str) -> None:
    ids = [f"j{number}" for number in range(6)]
    for number, job_id in enumerate(ids):
        queue.set(job_id, "HSET", "name", "n", "timestamp", NOW if number % 2 else NOW - 100)
    if state in ("delayed", "prioritized"):
        for number, job_id in enumerate(ids):
            queue.set(state, "ZADD", number, job_id)
    else:
        queue.set(state, "LPUSH", *ids)
    asked = "wait" if state == "paused" else state

    assert admin_scripts.clean(queue.server, queue.base, asked, NOW - 50, 2) == ["j0", "j2"]
    assert sorted(queue.value(state)) == ["j1", "j3", "j4", "j5"]
    assert admin_scripts.clean(queue.server, queue.base, asked, NOW - 50, 1000) == ["j4"]
    assert queue.events() == ["cleaned count 2", "cleaned count 1"]


def test_clean_leaves_what_a_scheduler_does_next(queue: Queue) -> None:
    queue.set("repeat", "ZADD", NOW, "s")
    queue.add(queue.job(f"repeat:s:{NOW}"), queue.job("a"))
    assert admin_scripts.clean(queue.server, queue.base, "wait", NOW, 10) == ["a"]


def test_clean_takes_time_by_the_length_of_the_list_only(queue: Queue) -> None:
    count = 30_000
    queue.set("wait", "RPUSH", *(f"j{number}" for number in range(count)))
    assert len(admin_scripts.clean(queue.server, queue.base, "wait", NOW, count)) == count, "well within the socket's timeout"


# -- move_to_wait ----------------------------------------------------------------------------------------------------------------


def test_jobs_retried_together_keep_their_priority(queue: Queue) -> None:
    """BullMQ puts them all into `wait` (protocol 16.12)."""
    queue.active(queue.job("five", priority=5), queue.job("two", priority=2), queue.job("none"))
    queue.end(*(queue.ending("failed", job_id, "no") for job_id in ("five", "two", "none")))
    queue.events()

    assert admin_scripts.move_to_wait(queue.server, queue.base, "failed", 10, NOW) == 3
    assert [taken.id for taken in queue.take(3)] == ["none", "two", "five"]
    assert queue.value("failed") is None


def test_jobs_promoted_together_keep_their_priority(queue: Queue) -> None:
    queue.add(queue.job("five", priority=5, delay=10), queue.job("two", priority=2, delay=20), queue.job("none", delay=30))
    queue.events()

    assert admin_scripts.move_to_wait(queue.server, queue.base, "delayed", 10, "") == 3
    assert queue.events() == [f"waiting jobId {job_id} prev delayed" for job_id in ("five", "two", "none")]
    assert [taken.id for taken in queue.take(3)] == ["none", "two", "five"]


def test_an_id_without_a_job_is_not_put_into_wait(queue: Queue) -> None:
    queue.set("failed", "ZADD", NOW, "ghost")
    assert admin_scripts.move_to_wait(queue.server, queue.base, "failed", 10, NOW) == 1
    assert queue.picture() == {"marker": {"0": 0}}


# -- forget_orphans --------------------------------------------------------------------------------------------------------------


def test_only_what_no_state_has_is_forgotten(queue: Queue, other: Queue) -> None:
    fill(queue, other)
    queue.set("celery", "HSET", "name", "n", "timestamp", NOW)  # a job may be called anything
    queue.set("celery:logs", "RPUSH", "line")
    queue.set("lost:processed", "HSET", "a", 1)
    queue.set("locked", "HSET", "name", "n", "timestamp", NOW)
    queue.set("locked:lock", "SET", "token")
    before = queue.picture()
    candidates = sorted({suffix.partition(":")[0] for suffix in before} | set(before) | {"metrics", "repeat:s", "lost"})

    assert admin_scripts.forget_orphans(queue.server, queue.base, candidates) == 2
    assert queue.picture() == {name: value for name, value in before.items() if name not in ("celery", "celery:logs", "lost:processed")}
