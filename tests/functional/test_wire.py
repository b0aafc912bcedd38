"""One connection: what has come together is all there to read, though the socket has nothing more to tell."""

from __future__ import annotations

import contextlib
import socket

import redis
from kombu import Connection, Consumer, Exchange, Queue
from servers import Server
from waiting import wait_until

from bullmq_kombu.address import Address
from bullmq_kombu.connection import Server as Connections
from bullmq_kombu.options import Options


def test_answers_that_came_together_are_all_readable(server: Server) -> None:
    connections = Connections(Address("tcp", ((server.host, server.port),)), Options())
    wire = connections.wire()
    for number in range(3):
        wire.send("ECHO", number)

    answers = []
    wait_until(lambda: wire.wait_readable(0.1), what="the first answer")
    # The third has come when the server answers somebody who asked later.
    assert connections.call("PING") == "PONG"
    while wire.wait_readable(0):
        answers.append(wire.read())

    assert answers == ["0", "1", "2"]
    wire.close()
    connections.close()


def test_broadcasts_that_came_together_are_delivered_together(server: Server, redis_client: redis.Redis, queue_name: str) -> None:
    exchange = Exchange(f"x-{queue_name}", type="fanout")
    heard: list[int] = []
    with Connection(server.url) as connection, connection.channel() as channel:
        queue = Queue(f"b-{queue_name}", exchange, auto_delete=True)
        with Consumer(channel, [queue], callbacks=[lambda body, message: heard.append(body)], no_ack=True):
            wait_until(lambda: _has_subscribed(connection, redis_client), what="the subscription")
            with redis_client.pipeline() as pipe:
                for number in range(5):
                    pipe.publish(f"bull::kombu:0:fanout:{exchange.name}/", _message(number))
                pipe.execute()
            for _ in range(5):
                connection.drain_events(timeout=0.5)
    assert heard == [0, 1, 2, 3, 4]


def _has_subscribed(connection: Connection, client: redis.Redis) -> bool:
    with contextlib.suppress(socket.timeout):
        connection.drain_events(timeout=0.05)
    return bool(client.execute_command("PUBSUB", "NUMPAT"))


def _message(number: int) -> str:
    return (
        f'{{"body": "{number}", "content-type": "application/json", "content-encoding": "utf-8", "headers": {{}}, '
        '"properties": {"delivery_info": {"exchange": "", "routing_key": ""}, "delivery_tag": "t"}}'
    )
