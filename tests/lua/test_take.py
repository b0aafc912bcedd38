"""`take`: which jobs become active, in which order, and what the answer says of the queue."""

from __future__ import annotations

import time
from typing import Any

import pytest
from one_queue import LOCK_MS, NOW, WORKER, Queue, started, stored

from bullmq_kombu import scripts
from bullmq_kombu.scripts import QueueState, Taken

LIMITED = WORKER._replace(limiter_max=3, limiter_ms=60_000)


def ids(jobs: list[Taken]) -> list[str]:
    return [job.id for job in jobs]


# -- activation


@pytest.mark.parametrize("wanted", [1, 5])
def test_a_job_becomes_active_with_the_lock_of_its_delivery(queue: Queue, wanted: int) -> None:
    queue.add(queue.job("a", celery="{}"))
    queue.events()

    taken, states = queue.ask(wanted)

    assert taken == [Taken(queue.base, "a", stored(celery="{}"))], "the hash as it was before"
    assert queue.without_meta() == {
        "id": "1",
        "active": ["a"],
        "a:lock": "worker:1",
        "a": started(celery="{}"),
        "marker": {"0": 0},
    }
    assert LOCK_MS - 5000 < queue.ttl("a:lock") <= LOCK_MS
    assert queue.events() == ["active jobId a prev waiting"]
    assert states == [QueueState(queue.base, 0, 0)]


def test_a_worker_without_a_name_leaves_no_name(queue: Queue) -> None:
    queue.add(queue.job("a"))
    queue.take(worker=WORKER._replace(name=""))

    assert "pb" not in queue.value("a")


def test_every_activation_is_counted(queue: Queue) -> None:
    queue.add(queue.job("a"))
    queue.set("a", "HSET", "ats", 4, "atm", 2)

    assert queue.take()[0].fields["ats"] == "4"
    assert queue.value("a")["ats"] == "5"
    assert queue.value("a")["atm"] == "2"


def test_nothing_to_take_changes_nothing(queue: Queue) -> None:
    assert queue.ask(5) == ([], [QueueState(queue.base, 0, 0)])
    assert queue.picture() == {}
    assert queue.events() == []


# -- order


def test_the_oldest_goes_first_and_the_newest_stands_at_the_head_of_active(queue: Queue) -> None:
    queue.add(*(queue.job(job) for job in "abcd"))

    assert ids(queue.take(3)) == ["a", "b", "c"]
    assert queue.value("wait") == ["d"]
    assert queue.value("active") == ["c", "b", "a"]


@pytest.mark.parametrize("wanted", [1, 6])
def test_jobs_without_a_priority_go_before_all_others(queue: Queue, wanted: int) -> None:
    queue.add(queue.job("p9", priority=9), queue.job("p1", priority=1), queue.job("p9b", priority=9), queue.job("plain"),
              queue.job("lifo", more='{"lifo":true}'))  # fmt: skip

    order = []
    while taken := queue.take(wanted):
        order += ids(taken)
    assert order == ["lifo", "plain", "p1", "p9", "p9b"]


def test_when_no_prioritized_job_is_left_their_counter_begins_anew(queue: Queue) -> None:
    queue.add(queue.job("p", priority=1), queue.job("q", priority=1))
    queue.take(2)
    assert queue.value("pc") == "2", "nobody knows yet that there are no more"
    queue.take(1)
    assert queue.value("pc") is None

    queue.add(queue.job("r", priority=1))
    assert queue.value("prioritized") == {"r": 2**32 + 1}
    queue.take(2)
    assert queue.value("pc") is None


def test_queues_are_asked_in_the_order_given_until_there_are_enough(queue: Queue, other: Queue) -> None:
    queue.add(queue.job("a1"), queue.job("a2"), other.job("b1"), other.job("b2"))

    jobs, states = scripts.take(queue.server, [other.base, queue.base], NOW, 3, WORKER)
    assert [(job.base, job.id) for job in jobs] == [(other.base, "b1"), (other.base, "b2"), (queue.base, "a1")]
    assert states == [QueueState(other.base, 0, 0), QueueState(queue.base, 0, 0)]

    jobs, states = scripts.take(queue.server, [queue.base, other.base], NOW, 1, WORKER)
    assert ids(jobs) == ["a2"]
    assert states == [QueueState(queue.base, 0, 0)], "the other one was not asked"


# -- markers: whoever waits is woken while there may be more


@pytest.mark.parametrize(("wanted", "marker"), [(1, {"0": 0}), (3, None)])
def test_one_more_is_woken_unless_all_were_taken(queue: Queue, wanted: int, marker: Any) -> None:
    queue.add(queue.job("a"), queue.job("b"))
    queue.set("marker", "DEL")
    queue.take(wanted)

    assert queue.value("marker") == marker


# -- ids whose hash is gone


@pytest.mark.parametrize("wanted", [1, 5])
@pytest.mark.parametrize("place", ["wait", "prioritized"])
def test_an_id_without_a_hash_is_failed_and_never_active(queue: Queue, place: str, wanted: int) -> None:
    if place == "wait":
        queue.set("wait", "RPUSH", "ghost")
    else:
        queue.set("prioritized", "ZADD", 2**32, "ghost")

    assert queue.take(wanted) == []

    reason = "Missing key for job ghost. moveToActive"
    assert {suffix: value for suffix, value in queue.picture().items() if suffix != "marker"} == {
        "failed": {"ghost": NOW},
        "ghost": {**stored(opts="{}"), "name": "", "failedReason": reason, "finishedOn": str(NOW)},
    }
    assert queue.events() == [f"failed jobId ghost failedReason {reason} prev waiting"]


def test_ghosts_are_no_reason_to_stop(queue: Queue) -> None:
    queue.add(queue.job("a"))
    queue.set("wait", "RPUSH", "ghost")
    queue.add(queue.job("b", more='{"lifo":true}'))

    assert ids(queue.take(3)) == ["b", "a"]
    assert queue.value("active") == ["a", "b"]
    assert queue.value("failed") == {"ghost": NOW}


@pytest.mark.parametrize("wanted", [1, 5])
@pytest.mark.parametrize("place", ["wait", "prioritized", "delayed"])
def test_what_is_no_job_takes_no_job_with_it(queue: Queue, place: str, wanted: int) -> None:
    """The key of an id is somebody else's text. It stays, and is in no state: BullMQ could not list the others of one it is in."""
    queue.add(queue.job("a"))
    queue.set("text", "SET", "not ours")
    if place == "wait":
        queue.set("wait", "RPUSH", "text")
    else:
        queue.set(place, "ZADD", 1, "text")
    queue.add(queue.job("b"))
    queue.events()

    taken = [one for _ in range(4) for one in queue.take(wanted)]
    assert sorted(ids(taken)) == ["a", "b"]
    assert queue.value("active") == list(reversed(ids(taken)))
    assert queue.value("text") == "not ours"
    assert not {"failed", "wait", "delayed", "prioritized"} & set(queue.picture())
    assert "failed jobId text failedReason The key of job text holds no job prev waiting" in queue.events()


@pytest.mark.parametrize("wanted", [1, 5])
def test_a_marker_of_bullmq_4_in_the_list_is_dropped(queue: Queue, wanted: int) -> None:
    queue.add(queue.job("a"))
    queue.set("wait", "RPUSH", "0:1795491304286")
    queue.events()

    taken = queue.take(wanted) + queue.take(wanted)
    assert ids(taken) == ["a"]
    assert queue.value("failed") is None
    assert queue.value("active") == ["a"]
    assert queue.events() == ["active jobId a prev waiting"]


# -- delayed jobs


def test_what_has_become_due_is_taken_in_the_order_of_its_time(queue: Queue) -> None:
    queue.add(queue.job("b", delay=20), queue.job("a", delay=10), queue.job("late", delay=21), queue.job("p", delay=5, priority=2))
    queue.set("marker", "DEL")
    queue.events()

    jobs, states = queue.ask(9, NOW + 20)

    assert ids(jobs) == ["a", "b", "p"]
    assert jobs[0].fields == stored(delay="0"), "promotion takes the delay away"
    assert states == [QueueState(queue.base, 0, NOW + 21)], "when the next one is due"
    assert queue.value("delayed") == {"late": (NOW + 21) * 4096}
    assert queue.events() == [
        "waiting jobId p prev delayed",
        "waiting jobId a prev delayed",
        "waiting jobId b prev delayed",
        "active jobId a prev waiting",
        "active jobId b prev waiting",
        "active jobId p prev waiting",
    ]


def test_all_places_of_the_due_millisecond_are_due(queue: Queue) -> None:
    queue.add(*(queue.job(job, delay=10) for job in "abc"))

    assert ids(queue.take(9, NOW + 9)) == []
    assert ids(queue.take(9, NOW + 10)) == ["a", "b", "c"]


def test_a_thousand_jobs_become_due_in_one_call(queue: Queue) -> None:
    queue.add(*(queue.job(delay=10) for _ in range(1001)))

    assert len(queue.take(2000, NOW + 10)) == 1000
    assert len(queue.take(2000, NOW + 10)) == 1


def test_a_delayed_id_without_a_hash_gets_none(queue: Queue) -> None:
    queue.set("delayed", "ZADD", NOW * 4096, "ghost")
    queue.pause()
    queue.take()

    assert queue.value("wait") == ["ghost"]
    assert queue.value("ghost") is None


def test_with_enough_jobs_the_next_due_time_is_not_looked_up(queue: Queue) -> None:
    queue.add(queue.job("a"), queue.job("d", delay=10))

    assert queue.ask(1)[1] == [QueueState(queue.base, 0, 0)]
    assert queue.ask(1)[1] == [QueueState(queue.base, 0, NOW + 10)]


def test_a_due_time_between_two_milliseconds_is_told_as_the_earlier(queue: Queue) -> None:
    queue.set("delayed", "ZADD", (NOW + 10) * 4096 + 4000, "d")

    assert queue.ask(1)[1] == [QueueState(queue.base, 0, NOW + 10)]


# -- a queue that is closed


def test_a_paused_queue_gives_nothing_but_promotes_what_is_due(queue: Queue) -> None:
    queue.add(queue.job("a"), queue.job("d", delay=10), queue.job("late", delay=99))
    queue.set("marker", "DEL")
    queue.pause()
    queue.events()

    assert queue.ask(5, NOW + 10) == ([], [QueueState(queue.base, 0, 0)])

    assert queue.value("wait") == ["d", "a"]
    assert queue.value("marker") is None
    assert queue.events() == ["waiting jobId d prev delayed"]


def test_where_bullmq_5_has_parked_jobs_due_ones_join_them(queue: Queue) -> None:
    queue.add(queue.job("d", delay=10))
    queue.pause()
    queue.set("paused", "LPUSH", "parked")
    queue.take(5, NOW + 10)

    assert queue.value("paused") == ["d", "parked"]
    assert queue.value("wait") is None


def test_no_more_jobs_run_than_the_global_concurrency_allows(queue: Queue) -> None:
    queue.set("meta", "HSET", "concurrency", 3)
    queue.add(*(queue.job(job) for job in "abcde"))

    assert ids(queue.take(2)) == ["a", "b"]
    assert ids(queue.take(2)) == ["c"]
    assert queue.ask(2) == ([], [QueueState(queue.base, 0, 0)])
    assert queue.value("wait") == ["e", "d"]


# -- rate limits


def test_a_rate_limit_opens_and_closes_the_queue(queue: Queue) -> None:
    queue.add(*(queue.job(job) for job in "abcde"))

    jobs, states = queue.ask(2, worker=LIMITED)
    assert (ids(jobs), states) == (["a", "b"], [QueueState(queue.base, 0, 0)])
    assert queue.value("limiter") == "2"
    assert 55_000 < queue.ttl("limiter") <= 60_000, "the window begins with its first job"
    queue.set("limiter", "PEXPIRE", 40_000)

    jobs, _ = queue.ask(2, worker=LIMITED)
    assert ids(jobs) == ["c"]
    assert queue.value("limiter") == "3"
    assert queue.ttl("limiter") <= 40_000, "and does not begin again"

    jobs, states = queue.ask(2, worker=LIMITED)
    assert jobs == []
    assert 35_000 < states[0].closed_ms <= 40_000
    assert queue.value("wait") == ["e", "d"]
    assert queue.value("limiter") == "3", "asking costs nothing"


def test_a_window_that_is_over_opens_the_queue_again(queue: Queue) -> None:
    queue.add(queue.job("a"), queue.job("b"))
    worker = LIMITED._replace(limiter_max=1, limiter_ms=1)

    assert ids(queue.take(worker=worker)) == ["a"]
    until = time.monotonic() + 10
    while not (jobs := queue.take(worker=worker)):
        assert time.monotonic() < until
    assert ids(jobs) == ["b"]


def test_a_limit_without_an_end_is_none(queue: Queue) -> None:
    queue.set("limiter", "SET", 9)
    queue.add(queue.job("a"))

    assert ids(queue.take(worker=LIMITED)) == ["a"], "as in BullMQ"


def test_the_queues_own_limit_wins_over_the_workers(queue: Queue) -> None:
    queue.set("meta", "HSET", "max", 1, "duration", 20_000)
    queue.add(queue.job("a"), queue.job("b"))

    assert ids(queue.take(5, worker=LIMITED)) == ["a"]
    assert 50_000 < queue.ttl("limiter") <= 60_000, "but the worker's window, if it has one: BullMQ's rule"


def test_the_queues_own_window_serves_a_worker_without_one(queue: Queue) -> None:
    queue.set("meta", "HSET", "max", 1, "duration", 20_000)
    queue.add(queue.job("a"), queue.job("b"))

    assert ids(queue.take(5)) == ["a"]
    assert 15_000 < queue.ttl("limiter") <= 20_000


def test_without_a_limit_the_counter_is_not_looked_at(queue: Queue) -> None:
    queue.set("limiter", "SET", 2**53 - 1, "PX", 60_000)
    queue.add(queue.job("a"))

    assert ids(queue.take()) == ["a"]
    assert queue.value("limiter") == str(2**53 - 1)


def test_a_job_that_is_only_to_be_failed_does_not_count(queue: Queue) -> None:
    queue.add(queue.job("a"), queue.job("b"))
    queue.set("a", "HSET", "defa", "child failed")

    assert ids(queue.take(5, worker=LIMITED)) == ["a", "b"]
    assert queue.value("limiter") == "1"


def test_a_limited_queue_promotes_what_is_due(queue: Queue) -> None:
    queue.set("limiter", "SET", 3, "PX", 60_000)
    queue.add(queue.job("d", delay=10))

    assert queue.take(5, NOW + 10, LIMITED) == []
    assert queue.value("wait") == ["d"]


def test_a_limited_queue_does_not_close_the_next_one(queue: Queue, other: Queue) -> None:
    queue.set("limiter", "SET", 3, "PX", 60_000)
    queue.add(queue.job("a"), other.job("b"))

    jobs, states = scripts.take(queue.server, [queue.base, other.base], NOW, 5, LIMITED)
    assert ids(jobs) == ["b"]
    assert [state.closed_ms > 0 for state in states] == [True, False]


# -- sent now, read later


def test_the_answer_may_be_read_later(queue: Queue) -> None:
    queue.add(queue.job("a"))
    wire = queue.server.wire()
    try:
        flight = scripts.take_later(wire, [queue.base], NOW, 5, WORKER)
        _, jobs, states = scripts.finish_answer([queue.base], [(), *flight.answer()])
    finally:
        wire.close()
    assert ids(jobs) == ["a"]
    assert states == [QueueState(queue.base, 0, 0)]


def test_a_server_that_forgot_the_script_gets_its_text(queue: Queue) -> None:
    queue.add(queue.job("a"), queue.job("b"))
    queue.redis.script_flush()
    assert ids(queue.take()) == ["a"]

    queue.redis.script_flush()
    wire = queue.server.wire()
    try:
        flight = scripts.take_later(wire, [queue.base], NOW, 5, WORKER)
        _, jobs, _ = scripts.finish_answer([queue.base], [(), *flight.answer()])
    finally:
        wire.close()
    assert ids(jobs) == ["b"]


def test_text_that_is_no_utf8_comes_and_goes_as_it_is(queue: Queue) -> None:
    queue.redis.execute_command("HSET", queue.key("a"), "name", b"n\xff")
    queue.set("wait", "LPUSH", "a")

    job = queue.take()[0]
    assert job.fields["name"].encode("utf-8", "surrogateescape") == b"n\xff"
