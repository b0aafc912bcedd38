"""`remove_scheduler`: nothing follows; what is delayed goes, what waits or runs is done."""

from __future__ import annotations

import pytest
from one_queue import NOW, Queue

from bullmq_kombu import scripts

CURRENT = f"repeat:s:{NOW + 50}"


@pytest.mark.parametrize("place", ["wait", "delayed", "active"])
def test_only_a_delayed_iteration_goes(queue: Queue, place: str) -> None:
    queue.set("repeat", "ZADD", NOW + 50, "s")
    queue.set("repeat:s", "HSET", "name", "n")
    queue.add(queue.job(CURRENT, delay=50 if place == "delayed" else 0, more='{"rjk":"s"}'))
    if place == "active":
        queue.take()
    queue.events()

    assert scripts.remove_scheduler(queue.server, queue.base, "s") == 1

    assert (queue.value("repeat"), queue.value("repeat:s")) == (None, None)
    gone = place == "delayed"
    assert (queue.value(CURRENT) is None) is gone
    assert (queue.value(place) is None) is gone
    assert queue.events() == ([f"removed jobId {CURRENT} prev delayed"] if gone else [])


def test_one_that_is_not_there(queue: Queue) -> None:
    assert scripts.remove_scheduler(queue.server, queue.base, "s") == 0
    assert queue.picture() == {}
