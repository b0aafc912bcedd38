"""`upsert_scheduler`: what is kept of a scheduler, and which iteration it has afterwards."""

from __future__ import annotations

import json

import pytest
from one_queue import NOW, Queue

from bullmq_kombu import scripts


def upsert(queue: Queue, rule: dict[str, object], due: int | str = "", data: str = "{}", now: int = NOW) -> tuple[str, int] | int:
    given = json.dumps({"name": "tick", **rule})
    return scripts.upsert_scheduler(queue.server, queue.base, "s", now, due, given, data, "{}", '{"attempts":0}')


def test_a_new_one_begins_at_once(queue: Queue) -> None:
    assert upsert(queue, {"every": 500}, data='{"n":1}') == (f"repeat:s:{NOW}", 0)
    assert queue.value("repeat") == {"s": NOW}
    assert queue.value("repeat:s") == {"name": "tick", "ic": "1", "offset": str(NOW % 500), "every": "500", "data": '{"n":1}'}
    assert queue.value("wait") == [f"repeat:s:{NOW}"]
    assert queue.events() == [f"added jobId repeat:s:{NOW} name tick", f"waiting jobId repeat:s:{NOW}"]


@pytest.mark.parametrize("paused", [False, True])
def test_the_iteration_that_waits_is_replaced(queue: Queue, paused: bool) -> None:
    upsert(queue, {"every": 500})
    if paused:
        queue.pause()
    assert upsert(queue, {"every": 500}, data='{"n":2}', now=NOW + 10) == (f"repeat:s:{NOW}", 0)
    assert queue.value("wait") == [f"repeat:s:{NOW}"]
    assert queue.value(f"repeat:s:{NOW}")["data"] == '{"n":2}'


def test_the_iteration_that_runs_goes_on(queue: Queue) -> None:
    upsert(queue, {"every": 500})
    queue.take()
    assert upsert(queue, {"every": 500}, now=NOW + 10) == (f"repeat:s:{NOW + 500}", 490)
    assert queue.value("active") == [f"repeat:s:{NOW}"]


def test_a_pattern_whose_time_is_taken_is_refused_and_nothing_changes(queue: Queue) -> None:
    upsert(queue, {"pattern": "* * * * *"}, due=NOW)
    queue.take()
    before = queue.picture()
    assert upsert(queue, {"pattern": "* * * * *"}, due=NOW) == -10
    assert queue.picture() == before


def test_a_pattern_done_early_keeps_the_time_of_what_waits(queue: Queue) -> None:
    upsert(queue, {"pattern": "* * * * *"}, due=NOW)
    queue.take()
    scripts.next_iteration(queue.server, queue.base, "s", f"repeat:s:{NOW}", NOW, NOW + 60_000, '{"repeat":{}}')
    assert upsert(queue, {"pattern": "* * * * *"}, due=NOW) == (f"repeat:s:{NOW + 60_000}", 60_000)
    assert list(queue.value("delayed")) == [f"repeat:s:{NOW + 60_000}"]
    assert json.loads(queue.value(f"repeat:s:{NOW + 60_000}")["opts"])["prevMillis"] == NOW + 60_000
    assert queue.value("active") == [f"repeat:s:{NOW}"]


def test_places_that_are_taken_are_passed_over(queue: Queue) -> None:
    for n in range(3):
        queue.set(f"repeat:s:{NOW + n * 500}", "HSET", "name", "old")
    assert upsert(queue, {"every": 500}) == (f"repeat:s:{NOW + 1500}", 1500)
