"""Node's `queue.getWorkers()` lists a worker of several queues in each of them."""

from __future__ import annotations

import contextlib

from kombu import Connection, Consumer
from kombu import Queue as KombuQueue
from node_driver import Node
from redis import Redis
from servers import Server
from waiting import wait_until


def test_a_worker_of_several_queues_is_listed_in_each(server: Server, node: Node, queue_name: str, redis_client: Redis) -> None:
    names = [f"{queue_name}-{letter}" for letter in "abc"]

    def listed() -> list[int]:
        with contextlib.suppress(TimeoutError):
            connection.drain_events(timeout=0.05)
        return [len(node.queue_call(name, "getWorkers")) for name in names]

    with Connection(server.url) as connection:
        consumer = Consumer(connection, [KombuQueue(name) for name in names], on_message=lambda message: message.ack())
        consumer.consume()
        wait_until(lambda: listed() == [1, 1, 1], what="the worker to be listed in all three queues")
        for client in redis_client.client_list():
            if client["name"].startswith("bull:") and client["cmd"] != "bzpopmin":
                redis_client.client_kill_filter(_id=client["id"])
        wait_until(lambda: listed() == [1, 1, 1], what="the names to be shown again after their connections were killed")
        consumer.cancel_by_queue(names[0])
        wait_until(lambda: listed() == [0, 1, 1], what="the first queue to be left")
        consumer.cancel()
    wait_until(lambda: [len(node.queue_call(name, "getWorkers")) for name in names] == [0, 0, 0], what="the names to go with the consumer")
