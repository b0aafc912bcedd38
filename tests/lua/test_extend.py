"""`extend`: locks of jobs in hand are kept, lost ones told."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from one_queue import WORKER, Queue

from bullmq_kombu import scripts


def held(queue: Queue, job_id: str, token: str = WORKER.token) -> scripts.Ending:
    """Anything with base, id and token is a delivery to `extend`."""
    return queue.ending("", job_id, token=token)


def test_locks_are_renewed_and_the_stalled_mark_is_taken_off(queue: Queue, other: Queue) -> None:
    queue.active(queue.job("a"), queue.job("b"))
    other.active(other.job("c"))
    for job in "ab":
        queue.set(f"{job}:lock", "PEXPIRE", 500)
    queue.set("stalled", "SADD", "a", "b", "x")
    other.set("stalled", "SADD", "c")
    before = queue.without_meta()

    assert scripts.extend(queue.server, [held(queue, "a"), held(other, "c"), held(queue, "b")], 60_000) == []

    for lock in (queue.ttl("a:lock"), queue.ttl("b:lock"), other.ttl("c:lock")):
        assert 55_000 < lock <= 60_000
    assert queue.without_meta() == {**before, "stalled": {"x"}}
    assert other.value("stalled") is None
    assert queue.events() == []


def finished(queue: Queue) -> None:
    queue.set("active", "LREM", 1, "b")
    queue.set("b:lock", "DEL")


def gone(queue: Queue) -> None:
    queue.set("b", "DEL")
    queue.set("b:lock", "DEL")


def taken_over(queue: Queue) -> None:
    queue.set("b:lock", "SET", "worker:9", "PX", 5000)


@pytest.mark.parametrize("happened", [finished, gone, taken_over], ids=lambda happened: happened.__name__)
def test_a_lock_that_was_lost_is_told_and_not_taken_back(queue: Queue, happened: Callable[[Queue], None]) -> None:
    queue.active(queue.job("a"), queue.job("b"), queue.job("c"))
    happened(queue)
    queue.set("stalled", "SADD", "b")
    before = queue.picture()

    assert scripts.extend(queue.server, [held(queue, job) for job in "abc"], 60_000) == [1]

    assert queue.picture() == before
    assert queue.ttl("b:lock") <= 5000


def test_a_lock_that_expired_is_taken_again_while_nobody_else_has_the_job(queue: Queue) -> None:
    queue.active(queue.job("a"))
    queue.set("a:lock", "DEL")
    queue.set("stalled", "SADD", "a")

    assert scripts.extend(queue.server, [held(queue, "a")], 60_000) == []

    assert queue.value("a:lock") == "worker:1"
    assert 55_000 < queue.ttl("a:lock") <= 60_000
    assert queue.value("stalled") is None


def test_all_can_be_lost(queue: Queue) -> None:
    assert scripts.extend(queue.server, [held(queue, "a"), held(queue, "b")], 60_000) == [0, 1]
    assert queue.picture() == {}


def test_none_is_fine(queue: Queue) -> None:
    assert scripts.extend(queue.server, [], 60_000) == []
