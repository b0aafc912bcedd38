"""`next_iteration`: the current iteration of a scheduler makes the next one, once."""

from __future__ import annotations

import pytest
from one_queue import NOW, Queue

from bullmq_kombu import scripts

CURRENT = f"repeat:s:{NOW}"


def follow(queue: Queue, job_id: str = CURRENT, now: int = NOW, due: int | str = "") -> str:
    opts = '{"repeat":{"count":2}}'
    return scripts.next_iteration(queue.server, queue.base, "s", job_id, now, due, opts)


def schedule(queue: Queue, *rule: object) -> None:
    queue.set("repeat", "ZADD", NOW, "s")
    queue.set("repeat:s", "HSET", "name", "tick", "ic", 1, *rule)
    queue.active(queue.job(CURRENT, more='{"rjk":"s"}'))


@pytest.mark.parametrize("late", [0, 499, 600])
def test_every_so_often_also_when_taken_late(queue: Queue, late: int) -> None:
    schedule(queue, "every", 500)
    made = follow(queue, now=NOW + late)
    slot = NOW + 500 if late < 500 else (NOW + late) // 500 * 500 + 500
    assert made == f"repeat:s:{slot}"
    assert list(queue.value("delayed")) == [made]
    assert queue.value("repeat") == {"s": slot}
    assert queue.value("repeat:s")["ic"] == "2"
    assert queue.value(made)["rjk"] == "s"


def test_a_pattern_is_told_when_it_is_due(queue: Queue) -> None:
    schedule(queue, "pattern", "* * * * *")
    assert follow(queue, due=NOW + 7) == f"repeat:s:{NOW + 7}"
    assert queue.events() == [f"added jobId repeat:s:{NOW + 7} name tick", f"delayed jobId repeat:s:{NOW + 7} delay {NOW + 7}"]


@pytest.mark.parametrize("job_id", ["repeat:s:1", "other"])
def test_only_the_current_one_makes_another(queue: Queue, job_id: str) -> None:
    schedule(queue, "every", 500)
    before = queue.picture()
    assert follow(queue, job_id) == ""
    assert queue.picture() == before


def test_a_retried_iteration_makes_no_second(queue: Queue) -> None:
    schedule(queue, "every", 500)
    assert follow(queue) != ""
    assert follow(queue) == ""


def test_nothing_follows_a_scheduler_that_is_gone(queue: Queue) -> None:
    schedule(queue, "every", 500)
    scripts.remove_scheduler(queue.server, queue.base, "s")
    assert follow(queue) == ""
