"""`remove_child_dependency`: a child becomes a job of its own, and its parent waits for it no longer."""

from __future__ import annotations

import json

from one_queue import NOW, Queue, stored

from bullmq_kombu import admin_scripts


def child(parent: Queue) -> str:
    return json.dumps({"parentKey": parent.key("top"), "parent": json.dumps({"id": "top", "queueKey": parent.base[:-1]})})


def release(queue: Queue, job_id: str, parent: Queue) -> int:
    return admin_scripts.remove_child_dependency(queue.server, queue.base, job_id, parent.key("top"))


def test_the_parent_goes_on_when_it_waits_for_nobody_else(queue: Queue, other: Queue) -> None:
    queue.add(queue.job("top", more='{"children":true}'), other.job("a", more=child(queue)), other.job("b", more=child(queue)))
    queue.events()

    assert release(other, "a", queue) == 0
    assert other.value("a") == stored()
    assert other.value("wait") == ["b", "a"]
    assert (queue.value("top:dependencies"), queue.value("waiting-children")) == ({other.key("b")}, {"top": NOW})
    assert queue.events() == []

    assert release(other, "b", queue) == 0
    assert queue.value("wait") == ["top"]
    assert queue.value("waiting-children") is None
    assert queue.events() == ["waiting jobId top prev waiting-children"]


def test_what_is_not_waited_for_stays_as_it_is(queue: Queue, other: Queue) -> None:
    other.add(other.job("a"))
    assert release(other, "a", queue) == -5
    assert release(other, "nobody", queue) == -1
    queue.add(queue.job("top"))
    assert release(other, "a", queue) == 1
    assert other.value("a") == stored()
