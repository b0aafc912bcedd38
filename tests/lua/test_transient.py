"""`declare`, `push`, `pop`: the messages of queues that Celery makes for itself, which live while somebody uses them."""

from __future__ import annotations

from typing import Any

import pytest
from one_queue import NOW, Queue

from bullmq_kombu import scripts

KEPT_MS = 60_000
SENT_MS = 5000


@pytest.fixture
def kombu(queue: Queue) -> Queue:
    """The keys behind `prefix::kombu:`, with a prefix of this test's own."""
    queue.base = f"{queue.name}::kombu:"
    return queue


def push(kombu: Queue, message: str, priority: int = 0, first: bool = False) -> Any:
    return scripts.run(kombu.server, "push", (kombu.base,), ("q", message, priority, SENT_MS, "1" if first else ""))


def pop(kombu: Queue, wanted: int) -> Any:
    return scripts.run(kombu.server, "pop", (kombu.base,), ("q", wanted))


def declare(kombu: Queue, *queues: Any) -> Any:
    return scripts.run(kombu.server, "declare", (kombu.base,), (NOW, *queues))


def test_messages_come_in_the_order_they_went(kombu: Queue) -> None:
    declare(kombu, "q", KEPT_MS, 0)
    assert [push(kombu, message) for message in ("one", "two", "three")] == [1, 2, 3]

    found = kombu.picture()
    assert set(found) == {"queue:q", "messages:q", "marker:q", "sequence"}
    assert found["queue:q"] == str(KEPT_MS)
    assert found["marker:q"] == {"0": 0}
    assert list(found["messages:q"]) == ["1:one", "2:two", "3:three"]

    assert pop(kombu, 2) == ["one", "two"]
    assert pop(kombu, 2) == ["three"]
    assert pop(kombu, 2) == []


def test_a_queue_that_is_new_starts_empty(kombu: Queue) -> None:
    push(kombu, "for an older one of this name")
    declare(kombu, "q", KEPT_MS, 0)
    assert pop(kombu, 2) == []
    push(kombu, "for this one")
    declare(kombu, "q", KEPT_MS, 0)
    assert pop(kombu, 2) == ["for this one"]


def test_lower_priorities_come_first(kombu: Queue) -> None:
    for message, priority in (("c", 9), ("a", 0), ("d", 2_097_151), ("b", 1), ("a2", 0)):
        push(kombu, message, priority)

    assert pop(kombu, 9) == ["a", "a2", "b", "c", "d"]


def test_what_was_not_handled_goes_back_before_those_of_its_priority(kombu: Queue) -> None:
    push(kombu, "third")
    push(kombu, "other", priority=3)
    push(kombu, "second", first=True)
    push(kombu, "first", first=True)
    push(kombu, "before other", priority=3, first=True)

    assert pop(kombu, 9) == ["first", "second", "third", "before other", "other"]


@pytest.mark.parametrize("message", ["", "12:3", "a:b", "line\nline", "nul\0nul", "ü😀", "x" * 100_000])
def test_any_text_is_a_message_and_the_same_may_come_twice(kombu: Queue, message: str) -> None:
    assert [push(kombu, message) for _ in range(2)] == [1, 2]

    assert pop(kombu, 9) == [message, message]


def test_whoever_waits_is_woken_while_there_is_more(kombu: Queue) -> None:
    push(kombu, "1")
    push(kombu, "2")
    kombu.set("marker:q", "DEL")

    pop(kombu, 1)
    assert kombu.value("marker:q") == {"0": 0}
    assert 0 < kombu.ttl("marker:q") <= SENT_MS
    kombu.set("marker:q", "DEL")

    pop(kombu, 1)
    assert kombu.value("marker:q") is None


def test_a_declared_queue_lives_as_long_as_it_was_declared_for(kombu: Queue) -> None:
    declare(kombu, "q", KEPT_MS, 0)
    push(kombu, "1")

    for key in ("queue:q", "messages:q", "marker:q"):
        assert KEPT_MS - 5000 < kombu.ttl(key) <= KEPT_MS


def test_a_message_to_a_queue_nobody_declared_does_not_stay_for_ever(kombu: Queue) -> None:
    push(kombu, "1")

    for key in ("messages:q", "marker:q"):
        assert 0 < kombu.ttl(key) <= SENT_MS
    assert kombu.value("queue:q") is None


def test_declaring_again_prolongs_what_is_there(kombu: Queue) -> None:
    declare(kombu, "q", 2000, 0)
    push(kombu, "1")
    declare(kombu, "q", KEPT_MS, 0)

    assert kombu.ttl("messages:q") > KEPT_MS - 5000
    assert kombu.ttl("marker:q") > KEPT_MS - 5000
    assert pop(kombu, 1) == ["1"]


def test_taking_does_not_prolong(kombu: Queue) -> None:
    push(kombu, "1")
    push(kombu, "2")
    pop(kombu, 1)

    assert kombu.ttl("messages:q") <= SENT_MS


def test_several_queues_and_their_bindings_in_one_call(kombu: Queue) -> None:
    declare(kombu, "q", KEPT_MS, 2, "reply", '["k","","q"]', "events", '["#","","q"]', "r", 2 * KEPT_MS, 1, "reply", '["r","","r"]')

    assert kombu.picture() == {
        "queue:q": str(KEPT_MS),
        "queue:r": str(2 * KEPT_MS),
        "bindings:reply": {'["k","","q"]': str(NOW + KEPT_MS), '["r","","r"]': str(NOW + 2 * KEPT_MS)},
        "bindings:events": {'["#","","q"]': str(NOW + KEPT_MS)},
    }
