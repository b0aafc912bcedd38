"""`drain` and `size`: the jobs that wait, removed and counted."""

from __future__ import annotations

import json

import pytest
from one_queue import NOW, Queue, stored

from bullmq_kombu import admin_scripts, scripts


def child_of(parent: Queue, job_id: str) -> str:
    link = json.dumps({"id": job_id, "queueKey": parent.base[:-1]}, separators=(",", ":"))
    return json.dumps({"parentKey": parent.key(job_id), "parent": link})


def drain(queue: Queue, delayed: bool = False) -> int:
    return admin_scripts.drain(queue.server, queue.base, NOW, delayed)


def fill(queue: Queue) -> None:
    queue.active(queue.job("running"))
    queue.add(queue.job("a"), queue.job("b"), queue.job("p", priority=1), queue.job("d", delay=1000))
    queue.set("a:logs", "RPUSH", "line")
    queue.set("paused", "LPUSH", "parked")
    queue.set("parked", "HSET", "name", "n")
    queue.events()


@pytest.mark.parametrize("delayed", [False, True])
def test_what_waits_goes_without_a_sound(queue: Queue, delayed: bool) -> None:
    fill(queue)
    before = queue.picture()

    assert drain(queue, delayed) == (5 if delayed else 4)

    gone = {"a", "a:logs", "b", "p", "parked", "wait", "paused", "prioritized"} | ({"d", "delayed"} if delayed else set())
    assert queue.picture() == {suffix: value for suffix, value in before.items() if suffix not in gone}
    assert queue.events() == []


def test_an_empty_queue(queue: Queue) -> None:
    assert drain(queue, delayed=True) == 0
    assert queue.picture() == {}


@pytest.mark.parametrize("place", ["wait", "delayed"])
def test_the_current_job_of_a_scheduler_stays(queue: Queue, place: str) -> None:
    current, older = f"repeat:s:{NOW + 50}", f"repeat:s:{NOW}"
    queue.set("repeat", "ZADD", NOW + 50, "s")
    delay = 50 if place == "delayed" else 0
    queue.add(queue.job("a", delay=delay), queue.job(current, delay=delay), queue.job(older, delay=delay), queue.job("b", delay=delay))

    assert drain(queue, delayed=True) == 3
    assert list(queue.value(place)) == [current]
    assert queue.value(current) == stored(delay=str(delay))
    assert queue.value(older) is None


def test_deduplication_ids_are_freed(queue: Queue) -> None:
    queue.add(queue.job("a", more='{"de":{"id":"x"}}'), queue.job("b", more='{"de":{"id":"y"}}'))
    queue.set("dn:x", "HSET", "name", "n")
    queue.set("de:y", "SET", "another")
    drain(queue)

    assert queue.value("de:x") is None
    assert queue.value("dn:x") is None
    assert queue.value("de:y") == "another"


def test_a_parent_of_another_queue_goes_on_when_no_child_is_left(queue: Queue, other: Queue) -> None:
    other.add(
        other.job("p", more='{"children":true}'), queue.job("c", more=child_of(other, "p")), queue.job("d", more=child_of(other, "p"))
    )
    other.events()
    drain(queue)

    assert other.value("wait") == ["p"]
    assert other.value("marker") == {"0": 0}
    assert other.value("p:dependencies") is None
    assert other.events() == []


def test_a_parent_waits_on_for_the_children_that_are_left(queue: Queue, other: Queue) -> None:
    other.add(
        other.job("p", more='{"children":true}'), queue.job("c", more=child_of(other, "p")), other.job("d", more=child_of(other, "p"))
    )
    drain(queue)

    assert other.value("waiting-children") == {"p": NOW}
    assert other.value("p:dependencies") == {other.key("d")}


def test_parents_of_the_same_queue_go_with_their_last_child(queue: Queue) -> None:
    children = '{"children":true}'
    nested = json.dumps({**json.loads(child_of(queue, "g")), "children": True})
    queue.add(queue.job("g", more=children), queue.job("p", more=nested), queue.job("c", more=child_of(queue, "p")))

    assert drain(queue) == 1
    assert queue.without_meta() == {"id": "3", "marker": {"0": 0}}


def test_draining_a_long_queue_takes_time_by_its_length_only(queue: Queue) -> None:
    count = 30_000
    queue.set("wait", "RPUSH", *(f"j{number}" for number in range(count)))

    assert drain(queue) == count, "well within the socket's timeout"
    assert queue.picture() == {}


def test_size_counts_what_a_worker_could_take(queue: Queue) -> None:
    assert scripts.run(queue.server, "size", (queue.base,), ()) == 0
    fill(queue)

    assert scripts.run(queue.server, "size", (queue.base,), ()) == 4
