"""`extend`: locks of jobs in hand are kept, lost ones told."""

from __future__ import annotations

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


@pytest.mark.parametrize("happened", ["expired", "taken over"])
def test_a_lock_that_was_lost_is_told_and_not_taken_back(queue: Queue, happened: str) -> None:
    queue.active(queue.job("a"), queue.job("b"), queue.job("c"))
    if happened == "expired":
        queue.set("b:lock", "DEL")
    else:
        queue.set("b:lock", "SET", "worker:9", "PX", 5000)
    queue.set("stalled", "SADD", "b")
    before = queue.picture()

    assert scripts.extend(queue.server, [held(queue, job) for job in "abc"], 60_000) == [1]

    assert queue.picture() == before
    assert queue.ttl("b:lock") <= 5000


def test_all_can_be_lost(queue: Queue) -> None:
    assert scripts.extend(queue.server, [held(queue, "a"), held(queue, "b")], 60_000) == [0, 1]
    assert queue.picture() == {}


def test_none_is_fine(queue: Queue) -> None:
    assert scripts.extend(queue.server, [], 60_000) == []
