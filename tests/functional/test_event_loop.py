"""The transport in Kombu's event loop: nothing that is due waits for the loop's next timeout."""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
from kombu import Connection, Consumer, Exchange, Queue
from kombu.asynchronous import Hub
from servers import Server

DRAIN_DELAY_S = 30.0


@pytest.fixture
def loop() -> Iterator[Hub]:
    hub = Hub()
    yield hub
    hub.close()
    hub.poller.close()


def turn(loop: Hub) -> None:
    loop.call_later(0.05, lambda: None)
    loop.run_once()


def run_until(loop: Hub, condition: Any, timeout: float = 5.0) -> None:
    until = time.monotonic() + timeout
    loop.call_later(timeout, lambda: None)
    while not condition():
        assert time.monotonic() < until, "the loop was not woken"
        loop.run_once()


def test_a_queue_added_while_the_loop_waits_wakes_it(server: Server, loop: Hub, queue_name: str) -> None:
    """A connection that is replaced, mostly under the same number, is watched again."""
    first, second = Queue(f"{queue_name}-1"), Queue(f"{queue_name}-2")
    came: list[Any] = []

    def on_message(body: Any, message: Any) -> None:
        message.ack()
        came.append(body)

    with Connection(server.url, transport_options={"drain_delay": DRAIN_DELAY_S}) as connection, connection.clone() as other:
        connection.connect()
        connection.transport.register_with_event_loop(connection.connection, loop)
        channel = connection.default_channel
        Consumer(channel, [first], callbacks=[on_message]).consume()
        producer = other.Producer()
        producer.publish(1, routing_key=first.name, declare=[first])
        run_until(loop, lambda: came == [1])
        turn(loop)  # now it waits for the first queue

        Consumer(channel, [second], callbacks=[on_message]).consume()
        turn(loop)  # and now for both, on a connection that has the number of the one before

        producer.publish(2, routing_key=second.name, declare=[second])
        run_until(loop, lambda: came == [1, 2])


def test_what_a_consumer_schedules_runs_at_once(server: Server, loop: Hub, queue_name: str) -> None:
    """So does Celery's worker with what remote control asks for, which comes by broadcast."""
    exchange = Exchange(queue_name, type="fanout")
    queue = Queue(queue_name, exchange, auto_delete=True)
    received: list[float] = []
    ran: list[float] = []

    def on_message(body: Any, message: Any) -> None:
        received.append(time.monotonic())
        loop.call_soon(lambda: ran.append(time.monotonic()))

    with Connection(server.url, transport_options={"drain_delay": DRAIN_DELAY_S}) as connection, connection.clone() as other:
        connection.connect()
        connection.transport.register_with_event_loop(connection.connection, loop)
        Consumer(connection.default_channel, [queue], callbacks=[on_message], no_ack=True).consume()
        turn(loop)
        other.Producer().publish(1, exchange=exchange, declare=[queue])
        run_until(loop, lambda: ran)
    assert ran[0] - received[0] < 0.5


def test_what_another_tick_does_with_a_delivery_is_done_at_once(server: Server, loop: Hub, queue_name: str) -> None:
    """Celery's pool hands tasks to its children in a tick of its own. A loop runs its ticks in no order: some of these come before ours."""
    queue = Queue(queue_name)
    received: list[float] = []
    seen: dict[int, float] = {}

    def on_message(body: Any, message: Any) -> None:
        message.ack()
        received.append(time.monotonic())

    def ticks(number: int) -> None:
        if received:
            seen.setdefault(number, time.monotonic())

    with Connection(server.url, transport_options={"drain_delay": DRAIN_DELAY_S}) as connection, connection.clone() as other:
        connection.connect()
        for number in range(32):
            loop.on_tick.add(partial(ticks, number))
        connection.transport.register_with_event_loop(connection.connection, loop)
        Consumer(connection.default_channel, [queue], callbacks=[on_message]).consume()
        turn(loop)
        other.Producer().publish(1, routing_key=queue.name)
        run_until(loop, lambda: len(seen) == 32)
    assert max(seen.values()) - received[0] < 0.5
