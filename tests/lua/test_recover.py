"""`recover`: BullMQ's stalled check. One check marks what is active, the next one moves what is still marked and unlocked."""

from __future__ import annotations

import pytest
from one_queue import NOW, Queue, started, stored

from bullmq_kombu import scripts

INTERVAL_MS = 30_000


def check(*queues: Queue, max_stalled_count: int = 1) -> list[tuple[str, str]]:
    return scripts.recover(queues[0].server, [queue.base for queue in queues], NOW, max_stalled_count, INTERVAL_MS)[0]


def check_again(*queues: Queue, max_stalled_count: int = 1) -> list[tuple[str, str]]:
    """A check when the interval is over."""
    for queue in queues:
        queue.set("stalled-check", "DEL")
    return check(*queues, max_stalled_count=max_stalled_count)


def dead(queue: Queue, *jobs: scripts.NewJob) -> None:
    """Jobs taken by a worker that died, its locks expired."""
    queue.active(*jobs)
    for job in jobs:
        queue.set(f"{job.id}:lock", "DEL")
    queue.set("marker", "DEL")


def test_the_first_check_only_marks(queue: Queue) -> None:
    dead(queue, queue.job("a"), queue.job("b"))

    assert check(queue) == []

    assert queue.value("stalled") == {"a", "b"}
    assert queue.value("stalled-check") == str(NOW)
    assert INTERVAL_MS - 5000 < queue.ttl("stalled-check") <= INTERVAL_MS
    assert queue.value("active") == ["b", "a"]
    assert queue.events() == []


def test_who_comes_too_early_is_told_when_to_come_back(queue: Queue, other: Queue) -> None:
    def wait_ms(*queues: Queue) -> int:
        return scripts.recover(queue.server, [one.base for one in queues], NOW, 1, INTERVAL_MS)[1]

    assert wait_ms(queue) == INTERVAL_MS
    queue.set("stalled-check", "PEXPIRE", 12_000)

    assert 7000 < wait_ms(queue, other) <= 12_000


def test_the_second_check_moves_what_nobody_has_renewed(queue: Queue) -> None:
    dead(queue, queue.job("a"))
    queue.active(queue.job("alive"))
    queue.add(queue.job("b"))
    queue.set("marker", "DEL")
    queue.events()
    check(queue)

    assert check_again(queue) == [(queue.base, "a")]

    assert queue.without_meta() == {
        "id": "3",
        "wait": ["b", "a"],
        "active": ["alive"],
        "alive:lock": "worker:1",
        "marker": {"0": 0},
        "stalled": {"alive"},
        "stalled-check": str(NOW),
        "a": started(stc="1"),
        "b": stored(),
        "alive": started(),
    }
    assert queue.events() == ["waiting jobId a prev active", "stalled jobId a"]


def test_one_check_an_interval_is_enough_whoever_makes_it(queue: Queue, other: Queue) -> None:
    dead(queue, queue.job("a"))
    dead(other, other.job("b"))
    check(queue)

    assert check(queue, other) == []
    assert queue.value("active") == ["a"]
    assert other.value("stalled") == {"b"}, "a queue's check is its own"


def test_several_queues_in_one_call(queue: Queue, other: Queue) -> None:
    dead(queue, queue.job("a"))
    dead(other, other.job("b"), other.job("c"))
    check(queue, other)

    assert sorted(check_again(queue, other)) == sorted([(queue.base, "a"), (other.base, "b"), (other.base, "c")])


def test_a_renewed_lock_takes_the_mark_off(queue: Queue) -> None:
    queue.active(queue.job("a"))
    check(queue)
    scripts.extend(queue.server, [queue.ending("", "a")], 60_000)
    queue.set("a:lock", "DEL")

    assert check_again(queue) == []
    assert check_again(queue) == [(queue.base, "a")]


def test_a_finished_job_is_not_recovered(queue: Queue) -> None:
    queue.active(queue.job("a"))
    check(queue)
    queue.set("stalled", "SADD", "gone")
    queue.end(queue.ending("completed", "a", "1"))

    assert check_again(queue) == []
    assert queue.value("stalled") is None
    assert queue.value("wait") is None


@pytest.mark.parametrize(("allowed", "fails"), [(0, True), (1, False), (2, False)])
def test_who_stalls_too_often_is_to_be_failed(queue: Queue, allowed: int, fails: bool) -> None:
    dead(queue, queue.job("a"))
    check(queue)
    check_again(queue, max_stalled_count=allowed)

    expected = {"defa": "job stalled more than allowable limit"} if fails else {}
    assert queue.value("a") == started(stc="1", **expected)
    assert queue.value("wait") == ["a"], "whoever takes it fails it"


def test_stalls_are_counted_over_activations(queue: Queue) -> None:
    queue.add(queue.job("a"))
    for count in ("1", "2"):
        queue.take()
        queue.set("a:lock", "DEL")
        check_again(queue)
        check_again(queue)
        assert queue.value("a")["stc"] == count

    assert queue.value("a")["defa"] == "job stalled more than allowable limit"
    assert queue.value("a")["ats"] == "2"
    assert "atm" not in queue.value("a"), "a stall is no attempt made"


def test_a_promise_of_at_most_once_holds(queue: Queue) -> None:
    queue.active(queue.job("a"))
    queue.end(queue.ending("commit", "a"))
    queue.set("a:lock", "DEL")
    check(queue)
    check_again(queue)

    assert queue.value("a")["defa"] == "worker lost after acknowledging early"


def test_a_prioritized_job_goes_before_those_of_its_priority(queue: Queue) -> None:
    dead(queue, queue.job("a", priority=2))
    queue.add(queue.job("b", priority=2))
    check(queue)
    check_again(queue)

    assert queue.value("prioritized")["a"] == 2 * 2**32
    assert queue.value("wait") is None, "unlike BullMQ, which lets it overtake all others"


@pytest.mark.parametrize("known_by", ["hash", "set"])
def test_a_job_of_a_scheduler_may_stall_as_often_as_it_likes(queue: Queue, known_by: str) -> None:
    dead(queue, queue.job("repeat:s:1", more='{"rjk":"s"}'))
    if known_by == "hash":
        queue.set("repeat:s", "HSET", "name", "n")
    else:
        queue.set("repeat", "ZADD", 1, "s")
    check(queue)
    check_again(queue, max_stalled_count=0)

    assert queue.value("repeat:s:1") == started(rjk="s", stc="1")


def test_a_job_of_a_scheduler_that_is_gone_may_not(queue: Queue) -> None:
    dead(queue, queue.job("repeat:s:1", more='{"rjk":"s"}'))
    check(queue)
    check_again(queue, max_stalled_count=0)

    assert "defa" in queue.value("repeat:s:1")


def test_an_id_without_a_hash_gets_none(queue: Queue) -> None:
    dead(queue, queue.job("a"))
    queue.set("a", "DEL")
    check(queue)

    assert check_again(queue) == [(queue.base, "a")]
    assert queue.value("a") is None
    assert queue.value("wait") == ["a"], "the next take fails it"


def test_in_a_paused_queue_nobody_is_woken(queue: Queue) -> None:
    dead(queue, queue.job("a"), queue.job("b"))
    queue.pause()
    check(queue)
    queue.set("stalled", "SREM", "b")
    check_again(queue)
    assert queue.value("wait") == ["a"]
    assert queue.value("marker") is None

    queue.set("paused", "LPUSH", "parked")
    check_again(queue)
    assert queue.value("paused") == ["parked", "b"]


def test_many_jobs_are_marked_and_moved(queue: Queue) -> None:
    ids = [f"j{number}" for number in range(6000)]
    queue.set("active", "RPUSH", *ids)
    check(queue)
    assert len(queue.value("stalled")) == 6000

    assert len(check_again(queue)) == 6000
    assert queue.value("active") is None


def test_what_is_no_job_hinders_no_other(queue: Queue) -> None:
    dead(queue, queue.job("a"))
    queue.set("active", "RPUSH", "text")
    queue.set("text", "SET", "not ours")
    check(queue)

    assert sorted(one for _, one in check_again(queue)) == ["a", "text"]
    assert [taken.id for taken in queue.take(5)] == ["a"]
    assert queue.value("text") == "not ours"
