"""`recall`: jobs that a call took whose answer nobody has read are put back, or kept."""

from __future__ import annotations

import secrets

from one_queue import LOCK_MS, WORKER, Queue, started

from bullmq_kombu import scripts
from bullmq_kombu.scripts import Worker

LOST = Worker("worker:2", LOCK_MS, "host")


def test_they_go_back_to_the_head_in_their_order(queue: Queue) -> None:
    queue.add(*(queue.job(job) for job in "abcde"))
    queue.take(1)
    queue.take(2, worker=LOST)
    queue.events()

    found = scripts.recall(queue.server, [queue.base], [LOST.token, "worker:3"])

    assert sorted(one.id for one in found) == ["b", "c"]
    assert {one.fields["token"] for one in found} == {LOST.token}
    assert queue.value("wait") == ["e", "d", "c", "b"]
    assert queue.value("active") == ["a"]
    assert queue.value("b:lock") is None
    assert queue.value("b") == started()
    assert queue.events() == ["waiting jobId c prev active", "waiting jobId b prev active"]
    assert [taken.id for taken in queue.take(3)] == ["b", "c", "d"]


def test_a_call_that_took_nothing_changes_nothing(queue: Queue) -> None:
    queue.active(queue.job("a"))
    before = queue.picture()

    assert scripts.recall(queue.server, [queue.base], ["worker:7"]) == []

    assert queue.picture() == before
    assert queue.events() == []


def test_their_locks_can_be_kept_instead(queue: Queue) -> None:
    queue.active(queue.job("a"), queue.job("b"))
    queue.set("stalled", "SADD", "a", "x")
    queue.set("a:lock", "PEXPIRE", 1000)

    found = scripts.recall(queue.server, [queue.base], [WORKER.token], 60_000)

    assert sorted(one.id for one in found) == ["a", "b"]
    assert 55_000 < queue.ttl("a:lock") <= 60_000
    assert queue.value("stalled") == {"x"}
    assert queue.value("active") == ["b", "a"]


def test_several_queues_and_priorities(queue: Queue) -> None:
    other = Queue(queue.redis, queue.server, f"q-{secrets.token_hex(6)}")
    queue.add(queue.job("a"))
    other.add(other.job("p", priority=5), other.job("q", priority=5))
    scripts.take(queue.server, [queue.base, other.base], 1_795_491_304_286, 2, LOST)

    found = scripts.recall(queue.server, [queue.base, other.base], [LOST.token])

    assert {(one.base, one.id) for one in found} == {(queue.base, "a"), (other.base, "p")}
    assert queue.value("wait") == ["a"]
    assert [taken.id for taken in other.take(2)] == ["p", "q"]
