"""Kombu without Celery: queues, exchanges and consumers, between connections and processes."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from conftest import WorkerOf, sender
from jobs import Job, jobs_of
from kombu import Connection, Consumer, Exchange, Producer, Queue
from kombu.common import Broadcast
from kombu.exceptions import OperationalError
from kombu.mixins import ConsumerMixin
from kombu.pools import producers
from kombu.simple import SimpleQueue
from servers import Server
from waiting import wait_until

from bullmq_kombu import Queue as Jobs
from bullmq_kombu.carry import Carried, current
from bullmq_kombu.leases import Leases
from bullmq_kombu.wire import Wire, wait_any

OPTIONS: dict[str, Any] = {"lock_duration": 1.0, "stalled_interval": 1.0, "drain_delay": 1.0}


@pytest.fixture
def connection(server: Server) -> Iterator[Connection]:
    with Connection(server.url, transport_options=OPTIONS) as one:
        yield one


@pytest.fixture
def other(server: Server) -> Iterator[Connection]:
    """Another connection, as another process would have."""
    with Connection(server.url, transport_options=OPTIONS) as one:
        yield one


class Inbox:
    """What a consumer got; messages are acknowledged unless told otherwise."""

    def __init__(self, connection: Any, *queues: Queue, ack: bool = True, **options: Any) -> None:
        self.bodies: list[Any] = []
        self.messages: list[Any] = []
        self._ack = ack
        self._connection = connection
        self.consumer = Consumer(connection, list(queues), callbacks=[self._take], **options)

    def _take(self, body: Any, message: Any) -> None:
        self.bodies.append(body)
        self.messages.append(message)
        if self._ack:
            message.ack()

    def drain(self, count: int, connection: Connection | None = None, timeout: float = 10.0) -> list[Any]:
        """Until it has got `count`."""
        connection = connection or self._connection
        until = time.monotonic() + timeout
        while len(self.bodies) < count:
            connection.drain_events(timeout=max(until - time.monotonic(), 0.01))
        return self.bodies

    def __enter__(self) -> Inbox:
        self.consumer.consume()
        return self

    def __exit__(self, *error: object) -> None:
        self.consumer.cancel()


def publish(connection: Connection, body: Any, **options: Any) -> None:
    with Producer(connection.channel()) as producer:
        producer.publish(body, **options)


# -- simple queues -------------------------------------------------------------------------------------------------------------


def test_simple_queue(connection: Connection, other: Connection, redis_client: redis.Redis, queue_name: str) -> None:
    with SimpleQueue(other, queue_name) as sending, SimpleQueue(connection, queue_name) as receiving:
        for n in range(3):
            sending.put({"n": n})
        assert receiving.qsize() == 3
        job_id = jobs_of(redis_client, queue_name, "wait")[-1]
        job = Job(redis_client, queue_name, job_id)
        assert job.hash["name"] == "kombu.message"
        assert json.loads(job.hash["data"]) == {"n": 0}
        for n in range(3):
            message = receiving.get(timeout=5)
            assert message.payload == {"n": n}
            message.ack()
        with pytest.raises(receiving.Empty):
            receiving.get(timeout=0.1)
        with pytest.raises(receiving.Empty):
            receiving.get_nowait()
        sending.put("now")
        assert receiving.get_nowait().payload == "now"
        sending.put("cleared")
        assert receiving.clear() == 1
    job.wait_for("completed")
    assert job.hash["returnvalue"] == "null"


@pytest.mark.parametrize(
    ("serializer", "body"),
    [("json", {"a": [1, None]}), ("pickle", {1, 2}), ("yaml", {"a": 1}), ("msgpack", {"a": 1}), ("raw", b"\xff\x00")],
)
def test_serializers(connection: Connection, other: Connection, queue_name: str, serializer: str, body: Any) -> None:
    queue = Queue(queue_name)
    publish(other, body, routing_key=queue_name, declare=[queue], serializer=serializer, headers={"x": 1}, correlation_id="c", priority=3)
    with Inbox(connection, queue, accept=["json", "pickle", "yaml", "msgpack", "application/data"]) as inbox:
        assert inbox.drain(1) == [body]
    (message,) = inbox.messages
    assert message.headers["x"] == 1
    assert message.properties["correlation_id"] == "c"
    assert message.properties["priority"] == 3


# -- acknowledgements ----------------------------------------------------------------------------------------------------------


def publish_job(connection: Connection, client: redis.Redis, queue: Queue) -> Job:
    publish(connection, "one", routing_key=queue.name, declare=[queue])
    return Job(client, queue.name, jobs_of(client, queue.name, "wait")[0])


def test_acknowledged(connection: Connection, redis_client: redis.Redis, queue_name: str) -> None:
    """Active and locked for as long as it takes, then completed."""
    queue = Queue(queue_name)
    job = publish_job(connection, redis_client, queue)
    with Inbox(connection, queue, ack=False) as inbox:
        inbox.drain(1)
        until = time.monotonic() + 2.5
        while time.monotonic() < until:  # longer than the lock
            assert job.state == "active"
            assert job.is_locked
        inbox.messages[0].ack()
        job.wait_for("completed")
    assert job.history == ["added", "waiting", "active", "completed"]


def test_rejected(connection: Connection, redis_client: redis.Redis, queue_name: str) -> None:
    queue = Queue(queue_name)
    job = publish_job(connection, redis_client, queue)
    with Inbox(connection, queue, ack=False) as inbox:
        inbox.drain(1)
        inbox.messages[0].reject()
        job.wait_for("failed")
    assert job.reason == "rejected"


def test_requeued(connection: Connection, redis_client: redis.Redis, queue_name: str) -> None:
    """It comes again, before the others."""
    queue = Queue(queue_name)
    for body in ("first", "second"):
        publish(connection, body, routing_key=queue_name, declare=[queue])
    with Inbox(connection, queue, ack=False, prefetch_count=1) as inbox:
        inbox.drain(1)
        inbox.messages[0].requeue()
        inbox.drain(2)
        inbox.messages[1].ack()
        inbox.drain(3)
        inbox.messages[2].ack()
    assert inbox.bodies == ["first", "first", "second"]


def test_closed_without_acknowledgement(connection: Connection, other: Connection, redis_client: redis.Redis, queue_name: str) -> None:
    """Whatever was not acknowledged goes back, in its order."""
    queue = Queue(queue_name)
    for n in range(5):
        publish(other, n, routing_key=queue_name, declare=[queue])
    inbox = Inbox(connection, queue, ack=False, prefetch_count=3)
    inbox.consumer.consume()
    inbox.drain(3)
    assert len(jobs_of(redis_client, queue_name, "active")) == 3
    connection.close()
    wait_until(lambda: jobs_of(redis_client, queue_name, "active") == [], what="the jobs to be back")
    with Inbox(other, queue) as again:
        assert again.drain(5) == [0, 1, 2, 3, 4]


def test_process_lost(server: Server, connection: Connection, redis_client: redis.Redis, queue_name: str, tmp_path: Path) -> None:
    """A consumer that dies with a message in hand: it comes again when the lock has expired."""
    publish(connection, "precious", routing_key=queue_name, declare=[Queue(queue_name)])
    script = (
        "import os, kombu, bullmq_kombu\n"
        f"connection = kombu.Connection({server.url!r}, transport_options={OPTIONS!r})\n"
        "take = lambda body, message: os._exit(7)\n"
        f"with kombu.Consumer(connection, [kombu.Queue({queue_name!r})], callbacks=[take]):\n"
        "    connection.drain_events(timeout=10)\n"
    )
    assert subprocess.run([sys.executable, "-c", script], cwd=tmp_path, timeout=60).returncode == 7
    with Inbox(connection, Queue(queue_name)) as inbox:
        assert inbox.drain(1) == ["precious"]
    assert inbox.messages[0].delivery_info["redelivered"]


def test_told_to_end_while_it_waits_for_its_answer(
    connection: Connection, redis_client: redis.Redis, queue_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the shutdown of an event loop's worker may meet it: all that it had goes back at once, in its order."""
    queue = Queue(queue_name)
    for n in range(8):
        publish(connection, n, routing_key=queue_name, declare=[queue])
    ids = jobs_of(redis_client, queue_name, "wait")[::-1]
    channel = connection.channel()
    inbox = Inbox(channel, queue, ack=False)
    inbox.consumer.qos(prefetch_count=4)
    with inbox:
        for had in (0, 2):  # by the second time the server knows the script
            inbox.drain(4 + had, connection)
            for message in inbox.messages[had : had + 2]:
                message.ack()

        answer, recall, here = Wire._answer, Leases._recall, threading.get_ident()

        def late(leases: Leases, *args: Any) -> None:
            """The thread that keeps the locks comes to it when the channel is closed."""
            if threading.get_ident() == here or channel.closed:
                recall(leases, *args)

        def interrupted(wire: Wire, redis_connection: Any) -> Any:
            if threading.get_ident() != here:
                return answer(wire, redis_connection)
            monkeypatch.setattr(Wire, "_answer", answer)
            assert wire.wait_readable(5.0)
            raise SystemExit

        monkeypatch.setattr(Leases, "_recall", late)
        monkeypatch.setattr(Wire, "_answer", interrupted)
        with pytest.raises(SystemExit):
            connection.drain_events(timeout=10)
        assert jobs_of(redis_client, queue_name, "wait") == ids[:5:-1]
        channel.close()
    assert jobs_of(redis_client, queue_name, "wait") == ids[:3:-1]
    assert set(jobs_of(redis_client, queue_name, "completed")) == set(ids[:4])


def test_no_ack(connection: Connection, redis_client: redis.Redis, queue_name: str) -> None:
    """Completed as soon as it is handed over."""
    queue = Queue(queue_name)
    for n in range(3):
        publish(connection, n, routing_key=queue_name, declare=[queue])
    with Inbox(connection, queue, ack=False, no_ack=True) as inbox:
        assert inbox.drain(3) == [0, 1, 2]
        wait_until(lambda: len(jobs_of(redis_client, queue_name, "completed")) == 3, what="them to be completed")


def test_basic_get(connection: Connection, redis_client: redis.Redis, queue_name: str) -> None:
    queue = Queue(queue_name)(connection.channel())
    queue.declare()
    assert queue.get() is None
    for n in range(3):
        publish(connection, n, routing_key=queue_name)
    message = queue.get()
    assert message.payload == 0
    assert len(jobs_of(redis_client, queue_name, "active")) == 1
    message.ack()
    assert queue.get(no_ack=True).payload == 1
    left = queue.get()
    left.requeue()
    wait_until(lambda: len(jobs_of(redis_client, queue_name, "wait")) == 1, what="it to be back")
    assert len(jobs_of(redis_client, queue_name, "completed")) == 2


# -- exchanges -----------------------------------------------------------------------------------------------------------------


def test_direct_exchange(connection: Connection, other: Connection, queue_name: str) -> None:
    exchange = Exchange(f"x-{queue_name}", "direct")
    queues = [Queue(f"{queue_name}-{key}", exchange, routing_key=key) for key in ("a", "b")]
    with Inbox(connection, queues[0]) as first, Inbox(connection, queues[1]) as second:
        for key in ("a", "b", "a", "nobody"):
            publish(other, key, exchange=exchange, routing_key=key, declare=[exchange])
        first.drain(2, connection)
        second.drain(1, connection)
        assert (first.bodies, second.bodies) == (["a", "a"], ["b"])


def test_topic_exchange(connection: Connection, other: Connection, queue_name: str) -> None:
    """Only what every version of Kombu and AMQP agree on: in Kombu a `*` was once several words, and a `#` at the end is at least one."""
    exchange = Exchange(f"x-{queue_name}", "topic")
    keys = {"one": "stock.*.price", "all": "stock.#", "end": "#.price"}
    with Inbox(connection, *(Queue(f"{queue_name}-{name}", exchange, routing_key=key) for name, key in keys.items())) as inbox:
        for key in ("stock.us.price", "stock.us", "weather.price", "weather"):
            publish(other, key, exchange=exchange, routing_key=key, declare=[exchange])
        inbox.drain(5)
        with pytest.raises(TimeoutError):
            connection.drain_events(timeout=0.1)
        got = sorted(message.delivery_info["routing_key"] for message in inbox.messages)
    assert got == sorted(["stock.us.price"] * 3 + ["stock.us"] + ["weather.price"])


def test_binding_made_by_another_process(connection: Connection, server: Server, queue_name: str, tmp_path: Path) -> None:
    """Publishing there reaches what was bound here."""
    exchange = Exchange(f"x-{queue_name}", "direct")
    with Inbox(connection, Queue(queue_name, exchange, routing_key="k")) as inbox:
        script = (
            "import kombu, bullmq_kombu\n"
            f"with kombu.Connection({server.url!r}) as connection:\n"
            f"    exchange = kombu.Exchange({exchange.name!r}, 'direct')\n"
            "    kombu.Producer(connection).publish('there', exchange=exchange, routing_key='k', declare=[exchange])\n"
        )
        assert subprocess.run([sys.executable, "-c", script], cwd=tmp_path, timeout=60).returncode == 0
        assert inbox.drain(1) == ["there"]


def test_unbound(connection: Connection, other: Connection, redis_client: redis.Redis, queue_name: str) -> None:
    """A queue that is unbound gets nothing more, also from a connection that has published there before."""
    exchange = Exchange(f"x-{queue_name}", "direct")
    queue = Queue(queue_name, exchange, routing_key="k")(connection.channel())
    queue.declare()
    publish(other, "before", exchange=exchange, routing_key="k", declare=[exchange])
    assert queue.get(no_ack=True).payload == "before"
    queue.unbind_from(exchange, routing_key="k")
    publish(other, "after", exchange=exchange, routing_key="k", declare=[exchange])
    assert queue.get() is None
    queue.bind_to(exchange, routing_key="k")
    publish(other, "again", exchange=exchange, routing_key="k", declare=[exchange])
    assert queue.get(no_ack=True).payload == "again"


def listening(client: redis.Redis) -> list[Any]:
    found: list[Any] = client.client_list(_type="pubsub")
    return found


def test_fanout(connection: Connection, other: Connection, redis_client: redis.Redis, queue_name: str) -> None:
    """Everybody who listens gets it, and it leaves nothing behind."""
    exchange = Exchange(f"x-{queue_name}", "fanout", durable=False)
    before = listening(redis_client)
    with (
        Inbox(connection, Queue("", exchange, exclusive=True, auto_delete=True)) as first,
        Inbox(other, Queue("", exchange, exclusive=True, auto_delete=True)) as second,
    ):
        wait_until(lambda: len(listening(redis_client)) - len(before) == 2, what="both to listen")
        for n in range(3):
            publish(other, n, exchange=exchange, declare=[exchange])
        assert first.drain(3, connection) == second.drain(3, other) == [0, 1, 2]
    assert not list(redis_client.scan_iter(f"*{exchange.name}*"))


def test_broadcast_queues(connection: Connection, other: Connection, redis_client: redis.Redis, queue_name: str) -> None:
    """Kombu's Broadcast: each consumer has a queue of its own."""
    before = listening(redis_client)
    queue = Broadcast(f"x-{queue_name}")
    with Inbox(connection, queue) as first, Inbox(other, Broadcast(f"x-{queue_name}")) as second:
        wait_until(lambda: len(listening(redis_client)) - len(before) == 2, what="both to listen")
        publish(other, "news", exchange=queue.exchange, declare=[queue.exchange])
        assert first.drain(1, connection) == second.drain(1, other) == ["news"]


#: What may stand where a message is expected: of another program, or another release.
NO_MESSAGES = [
    b"x", b"", b"null", b"[]", b"{}", b'{"properties": 5}', b'{"properties": {}, "headers": [1]}', b"\xff", b"\x1b[31m\n", b"[" * 100_000,
    b'{"body": "a", "properties": {"body_encoding": "base64"}}', b'{"body": "a", "properties": {"body_encoding": "nobody knows"}}',
]  # fmt: skip


def put_no_messages(client: redis.Redis, queue: str) -> None:
    client.zadd(f"bull::kombu:messages:{queue}", {b"%d:%s" % (number, text): number for number, text in enumerate(NO_MESSAGES)})
    client.zadd(f"bull::kombu:marker:{queue}", {"0": 0})


@pytest.mark.parametrize("where", ["a broadcast", "a queue", "get"])
def test_what_is_no_message_is_dropped(
    connection: Connection, other: Connection, redis_client: redis.Redis, queue_name: str, caplog: pytest.LogCaptureFixture, where: str
) -> None:  # fmt: skip
    exchange = Exchange(f"x-{queue_name}", "fanout", durable=False)
    if where == "a broadcast":
        queue = Queue("", exchange, exclusive=True, auto_delete=True)
    else:
        queue = Queue(queue_name, exclusive=True, auto_delete=True)(connection.channel())
        queue.declare()
        put_no_messages(redis_client, queue_name)
        publish(other, "one", routing_key=queue_name)
    if where == "get":
        assert queue.get().payload == "one"
    else:
        with Inbox(connection, queue) as inbox:
            if where == "a broadcast":
                for text in NO_MESSAGES:
                    assert redis_client.publish(f"bull::kombu:0:fanout:{exchange.name}/", text) == 1
                publish(other, "one", exchange=exchange)
            assert inbox.drain(1) == ["one"]
    said = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert len(said) == len(NO_MESSAGES)
    assert all(text.isprintable() and "is none, and dropped" in text for text in said)


# -- several threads, and servers that are away ----------------------------------------------------------------------------------


def test_several_threads(connection: Connection, other: Connection, queue_name: str) -> None:
    """Producers of one pool in four threads; each message comes once."""

    def send(first: int) -> None:
        for n in range(first, first + 25):
            with producers[connection].acquire(block=True, timeout=30) as producer:
                producer.publish(n, routing_key=queue_name)

    threads = [threading.Thread(target=send, args=(25 * n,)) for n in range(4)]
    with Inbox(other, Queue(queue_name)) as inbox:
        for thread in threads:
            thread.start()
        assert sorted(inbox.drain(100, timeout=60.0)) == list(range(100))
    for thread in threads:
        thread.join(10)
    producers[connection].force_close_all()


def test_several_threads_consume(server: Server, other: Connection, redis_client: redis.Redis, queue_name: str) -> None:
    """Two threads with a connection each share one queue: each message comes once, to one of them, and is ended there."""
    both = threading.Barrier(2)

    class Sharing(Service):
        def on_message(self, body: Any, message: Any) -> None:
            if not self.got:
                both.wait(20)  # for the other one's first
            super().on_message(body, message)

    services = [Sharing(Connection(server.url, transport_options=OPTIONS), queue_name) for _ in range(2)]
    threads = [threading.Thread(target=one.run) for one in services]
    Queue(queue_name)(other.channel()).declare()
    for thread in threads:
        thread.start()
    try:
        for n in range(200):
            publish(other, n, routing_key=queue_name)
        wait_until(lambda: sum(len(one.got) for one in services) >= 200, timeout=20.0, what="all messages")
        wait_until(lambda: len(jobs_of(redis_client, queue_name, "completed")) == 200, what="all to be acknowledged")
    finally:
        for one in services:
            one.should_stop = True
        for thread in threads:
            thread.join(20)
    assert sorted(services[0].got + services[1].got) == list(range(200))
    assert not any(thread.is_alive() for thread in threads)


def test_ensure(queue_name: str) -> None:
    """What is wrapped is tried again until the server is back, and told of each failure; without it the error comes through."""
    with Server(appendonly=True) as server, Connection(server.url) as connection:
        producer = connection.Producer()
        producer.publish("before", routing_key=queue_name)
        server.stop()
        with pytest.raises(OperationalError):
            connection.ensure(producer, producer.publish, max_retries=1, interval_start=0)("lost", routing_key=queue_name)
        told: list[BaseException] = []

        def errback(error: BaseException, pause: float) -> None:
            told.append(error)
            if server.process is None:
                server.start()

        options = {"errback": errback, "max_retries": 5, "interval_start": 0.1}
        connection.ensure(producer, producer.publish, **options)("after", routing_key=queue_name)
        assert told
        queue = connection.SimpleQueue(queue_name)
        assert [queue.get(timeout=10).payload for _ in range(2)] == ["before", "after"]


# -- waiting -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("timeout", [0, 0.01, 0.5])
def test_timeout(connection: Connection, queue_name: str, timeout: float) -> None:
    with Inbox(connection, Queue(queue_name)):
        begun = time.monotonic()
        with pytest.raises(TimeoutError):
            connection.drain_events(timeout=timeout)
        assert timeout - 0.01 <= time.monotonic() - begun < timeout + 0.5


def test_woken(connection: Connection, other: Connection, queue_name: str) -> None:
    """A consumer that waits is told at once."""
    with Inbox(connection, Queue(queue_name)) as inbox:
        told: list[float] = []
        inbox.consumer.register_callback(lambda body, message: told.append(time.monotonic()))
        thread = threading.Thread(target=inbox.drain, args=(1,))
        thread.start()
        with pytest.raises(TimeoutError):
            other.drain_events(timeout=0.3) if other.transport.channels else _pause(0.3)
        sent = time.monotonic()
        publish(other, "hello", routing_key=queue_name)
        thread.join(10)
    assert told
    assert told[0] - sent < 0.5


def test_who_is_woken_asks_at_once(connection: Connection, other: Connection, redis_client: redis.Redis, queue_name: str) -> None:
    """While the server takes the job, the loop comes round. With something in hand it asks later, together with how that ended."""
    queue = Queue(queue_name)
    channel = connection.default_channel
    with Inbox(channel, queue, ack=False) as inbox:
        inbox.consumer.qos(prefetch_count=4)
        with pytest.raises(TimeoutError):
            connection.drain_events(timeout=0.1)
        for n, asks in enumerate((True, False)):
            publish(other, n, routing_key=queue_name, declare=[queue])
            intake = channel.intake
            for descriptor in wait_any(intake.descriptors(), 5.0):
                intake.on_readable(descriptor)
            if asks:
                wait_until(lambda: len(jobs_of(redis_client, queue_name, "active")) == 1, what="the job to be taken")
            else:
                time.sleep(0.05)
                assert len(jobs_of(redis_client, queue_name, "active")) == 1
            assert inbox.drain(n + 1, connection) == list(range(n + 1))


@pytest.mark.parametrize("how", ["no room", "cancelled", "closed"])
def test_a_wake_up_is_not_kept_from_others(
    server: Server, connection: Connection, redis_client: redis.Redis, queue_name: str, how: str
) -> None:
    """By one that had waited, and cannot take the job any more."""
    publish(connection, "first", routing_key=queue_name, declare=[Queue(queue_name)])
    options = {"drain_delay": 30.0}
    with Connection(server.url, transport_options=options) as one, Connection(server.url, transport_options=options) as another:
        inbox = Inbox(one, Queue(queue_name), ack=False)
        inbox.consumer.qos(prefetch_count=2)
        with inbox:
            inbox.drain(1)
            with pytest.raises(TimeoutError):
                one.drain_events(timeout=0.2)  # it waits, having room for one more
            second = Inbox(another, Queue(queue_name))
            second.consumer.consume()
            with pytest.raises(TimeoutError):
                another.drain_events(timeout=0.2)
            publish(connection, "second", routing_key=queue_name)
            assert not redis_client.exists(f"bull:{queue_name}:marker"), "it was the first one's to be woken"
            if how == "no room":
                inbox.consumer.qos(prefetch_count=1)
                with pytest.raises(TimeoutError):
                    one.drain_events(timeout=0.2)
            elif how == "cancelled":
                inbox.consumer.cancel()
            else:
                one.close()
            got = second.drain(2 if how == "closed" else 1, another, timeout=5.0)
            assert "second" in got
        second.consumer.cancel()


def test_one_message_that_is_asked_for_is_one_that_is_taken(
    connection: Connection, other: Connection, redis_client: redis.Redis, queue_name: str
) -> None:
    """Others may read the same queue, however long this one takes for each. Who is quick gets many at once."""
    for n in range(300):
        publish(other, n, routing_key=queue_name, declare=[Queue(queue_name)])
    with SimpleQueue(connection, queue_name) as queue:
        for n in range(3):
            assert queue.get(timeout=5).payload == n
            time.sleep(0.15)
            assert len(jobs_of(redis_client, queue_name, "active")) == n + 1
        for n in range(3, 200):
            assert queue.get(timeout=5).payload == n
        assert len(jobs_of(redis_client, queue_name, "active")) > 210


def test_messages_without_acknowledgement_are_not_remembered(connection: Connection, other: Connection, queue_name: str) -> None:
    for n in range(20):
        publish(other, n, routing_key=queue_name, declare=[Queue(queue_name)])
    channel = connection.channel()
    with Inbox(channel, Queue(queue_name), no_ack=True, ack=False) as inbox:
        assert inbox.drain(20, connection) == list(range(20))
        assert not channel.qos._delivered


def test_messages_that_are_no_jobs_count_as_well(connection: Connection, other: Connection, queue_name: str) -> None:
    """Those of a queue that goes with its consumers, as Celery's `worker_direct` has one: others find the rest."""
    queue = Queue(queue_name, auto_delete=True)
    channel = connection.channel()
    inbox = Inbox(channel, queue, ack=False)
    inbox.consumer.qos(prefetch_count=2)
    with inbox:
        for n in range(6):
            publish(other, n, routing_key=queue_name, declare=[queue])
        inbox.drain(2, connection)
        with pytest.raises(TimeoutError):
            connection.drain_events(timeout=0.3)
        with Inbox(other, queue) as second:
            assert second.drain(4, other) == [2, 3, 4, 5]
        inbox.messages[0].ack()
        inbox.messages[1].reject()
        for n in range(2):
            publish(other, n, routing_key=queue_name, declare=[queue])
        assert len(inbox.drain(4, connection)) == 4


def test_each_connection_has_its_own_limit(server: Server, connection: Connection, queue_name: str) -> None:
    """Whichever was made first in the process."""
    for n in range(3):
        publish(connection, n, routing_key=queue_name, declare=[Queue(queue_name)])
    limited = {**OPTIONS, "limiter": {"max": 1, "duration": 30.0}}
    with Connection(server.url, transport_options=limited) as one, Inbox(one, Queue(queue_name)) as inbox:
        inbox.drain(1)
        with pytest.raises(TimeoutError):
            one.drain_events(timeout=0.5)


def _pause(seconds: float) -> None:
    threading.Event().wait(seconds)
    raise TimeoutError


def test_several_channels(connection: Connection, other: Connection, queue_name: str) -> None:
    """Jobs, lists and broadcasts on channels of one connection, waited for together."""
    broadcast = Exchange(f"x-{queue_name}", "fanout", durable=False)
    queues = [
        Queue(f"{queue_name}-1"),
        Queue(f"{queue_name}-2"),
        Queue(f"{queue_name}-mine", exclusive=True, auto_delete=True),
        Queue("", broadcast, exclusive=True, auto_delete=True),
    ]
    inboxes = [Inbox(connection.channel(), queue) for queue in queues]
    for inbox in inboxes:
        inbox.consumer.consume()
    for round_ in range(3):
        for queue in queues[:3]:
            publish(other, round_, routing_key=queue.name)
        publish(other, round_, exchange=broadcast, declare=[broadcast])
        for inbox in inboxes:
            assert inbox.drain(round_ + 1, connection) == list(range(round_ + 1))
    with pytest.raises(TimeoutError):
        connection.drain_events(timeout=0.05)


def test_prefetch_count(connection: Connection, other: Connection, redis_client: redis.Redis, queue_name: str) -> None:
    queue = Queue(queue_name)
    for n in range(5):
        publish(other, n, routing_key=queue_name, declare=[queue])
    with Inbox(connection, queue, ack=False, prefetch_count=2) as inbox:
        inbox.drain(2)
        with pytest.raises(TimeoutError):
            connection.drain_events(timeout=0.2)
        assert len(jobs_of(redis_client, queue_name, "active")) == 2
        inbox.messages[0].ack()
        inbox.drain(3)
        for message in inbox.messages[1:]:
            message.ack()
        inbox.drain(5)
        for message in inbox.messages[3:]:
            message.ack()
    assert inbox.bodies == [0, 1, 2, 3, 4]


class Service(ConsumerMixin):  # type: ignore[misc]
    """As Kombu's manual shows it."""

    def __init__(self, connection: Connection, queue: str) -> None:
        self.connection = connection
        self.queue = queue
        self.got: list[Any] = []

    def get_consumers(self, consumer: Any, channel: Any) -> list[Any]:
        return [consumer([Queue(self.queue)], callbacks=[self.on_message], prefetch_count=10)]

    def on_message(self, body: Any, message: Any) -> None:
        self.got.append(body)
        message.ack()


def test_consumer_mixin(queue_name: str) -> None:
    """It goes on after its connections were cut."""
    with Server() as own, own.client() as client:
        service = Service(Connection(own.url, transport_options=OPTIONS), queue_name)
        thread = threading.Thread(target=service.run)
        thread.start()
        try:
            with Connection(own.url) as sending:
                publish(sending, 1, routing_key=queue_name, declare=[Queue(queue_name)])
                wait_until(lambda: service.got == [1], what="the first message")
                client.client_kill_filter(_type="normal", skipme=True)
            with Connection(own.url) as sending:
                publish(sending, 2, routing_key=queue_name)
                wait_until(lambda: service.got == [1, 2], what="the second message")
        finally:
            service.should_stop = True
            thread.join(20)
        assert not thread.is_alive()


def test_consumer_mixin_fails_over(queue_name: str) -> None:
    """Its server is stopped while it consumes: it goes on with the next address."""
    with Server() as first, Server() as second, second.client() as client:
        service = Service(Connection(f"{first.url};{second.url}", transport_options=OPTIONS), queue_name)
        thread = threading.Thread(target=service.run)
        thread.start()
        try:
            with Connection(first.url) as sending:
                publish(sending, 1, routing_key=queue_name, declare=[Queue(queue_name)])
            with first.client() as there:
                wait_until(lambda: jobs_of(there, queue_name, "completed"), what="the first message to be acknowledged")
            first.stop()
            with Connection(second.url) as sending:
                for n in (2, 3):
                    publish(sending, n, routing_key=queue_name, declare=[Queue(queue_name)])
            wait_until(lambda: service.got == [1, 2, 3], timeout=20.0, what="the messages of the second server")
            wait_until(lambda: len(jobs_of(client, queue_name, "completed")) == 2, what="both to be acknowledged there")
        finally:
            service.should_stop = True
            thread.join(20)
        assert not thread.is_alive()


# -- queues --------------------------------------------------------------------------------------------------------------------


def test_declare_passively(connection: Connection, queue_name: str) -> None:
    channel = connection.channel()
    with pytest.raises(connection.channel_errors):
        Queue(queue_name)(channel).queue_declare(passive=True)
    Queue(queue_name)(channel).declare()
    publish(connection, 1, routing_key=queue_name)
    assert Queue(queue_name)(channel).queue_declare(passive=True).message_count == 1


def test_delete(connection: Connection, redis_client: redis.Redis, queue_name: str) -> None:
    """What waits goes; the queue's settings and what is finished stay: it is not only ours."""
    queue = Queue(queue_name)(connection.channel())
    queue.declare()
    publish(connection, "done", routing_key=queue_name)
    queue.get(no_ack=True)
    publish(connection, "waits", routing_key=queue_name)
    publish(connection, "later", routing_key=queue_name, bullmq={"delay": 60_000})
    wait_until(lambda: redis_client.zcard(f"bull:{queue_name}:completed"), what="the first to be completed")
    queue.delete(if_empty=True)
    assert len(jobs_of(redis_client, queue_name, "wait")) == 1
    queue.purge()
    publish(connection, "later", routing_key=queue_name, bullmq={"delay": 60_000})
    queue.delete(if_empty=True)
    assert len(jobs_of(redis_client, queue_name, "delayed")) == 1
    queue.delete()
    assert jobs_of(redis_client, queue_name, "delayed") == []
    assert jobs_of(redis_client, queue_name, "wait") == []
    assert len(jobs_of(redis_client, queue_name, "completed")) == 1
    assert redis_client.exists(f"bull:{queue_name}:meta")


@pytest.mark.parametrize("name", ["a:b", ":"])
def test_name_that_bullmq_refuses(connection: Connection, name: str) -> None:
    with pytest.raises(ValueError, match="cannot contain ':'"):
        Queue(name)(connection.channel()).declare()


def test_queue_of_ones_own(connection: Connection, other: Connection, redis_client: redis.Redis, queue_name: str) -> None:
    """Exclusive queues are lists that expire once nobody uses them."""
    queue = Queue(queue_name, exclusive=True, auto_delete=True, expires=5.0)
    with Inbox(connection, queue) as inbox:
        publish(other, "reply", routing_key=queue_name)
        assert inbox.drain(1) == ["reply"]
        publish(other, "left", routing_key=queue_name)
        for key in redis_client.scan_iter(f"*{queue_name}*"):
            assert 0 < redis_client.pttl(key) <= 5000, key
    connection.close()
    wait_until(lambda: not list(redis_client.scan_iter(f"*{queue_name}*")), what="nothing to be left")


def test_reply_to_a_queue_that_has_expired(
    connection: Connection, other: Connection, redis_client: redis.Redis, queue_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    """Who answers has known it for longer than that is remembered. It does not become a queue of jobs."""
    monkeypatch.setattr("bullmq_kombu.transient.KNOWN_FOR_S", 0.0)
    answers = Exchange(f"{queue_name}.answers", "direct")
    with Inbox(connection, Queue(queue_name, answers, routing_key="mine", exclusive=True, auto_delete=True)) as inbox:
        publish(other, "first", exchange=answers, routing_key="mine")
        assert inbox.drain(1) == ["first"]
        assert redis_client.delete(f"bull::kombu:queue:{queue_name}") == 1
        publish(other, "second", exchange=answers, routing_key="mine")
        assert not list(redis_client.scan_iter(f"bull:{queue_name}:*", 1000))


def test_reply_to_somebody_who_comes_back(connection: Connection, other: Connection, redis_client: redis.Redis, queue_name: str) -> None:
    """As a second `celery inspect` of one process does: it has the queue of the first."""
    publish(other, "nobody is there", routing_key=queue_name, correlation_id="asked")
    with Inbox(connection, Queue(queue_name, exclusive=True, auto_delete=True)) as inbox:
        publish(other, "you are back", routing_key=queue_name, correlation_id="asked again")
        assert inbox.drain(1) == ["you are back"]
    assert not list(redis_client.scan_iter(f"bull:{queue_name}:*", 1000))


def test_a_reply_comes_whatever_the_time_is(connection: Connection, other: Connection, redis_client: redis.Redis, queue_name: str) -> None:
    """Where the clocks of two machines differ by more than such a queue is kept."""
    answers = Exchange(f"{queue_name}.answers", "direct")
    with Inbox(connection, Queue(queue_name, answers, routing_key="mine", exclusive=True, auto_delete=True, expires=5.0)) as inbox:
        table = f"bull::kombu:bindings:{answers.name}"
        for binding in redis_client.hkeys(table):
            redis_client.hset(table, binding, 1)
        publish(other, "late", exchange=answers, routing_key="mine")
        assert inbox.drain(1) == ["late"]
        redis_client.delete(f"bull::kombu:queue:{queue_name}")
        publish(other, "too late", exchange=answers, routing_key="mine")
        assert not redis_client.exists(table)


def test_queues_of_others_are_not_remembered_for_ever(connection: Connection, queue_name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each `celery inspect` has one of its own, and the worker that answers lives long."""
    monkeypatch.setattr("bullmq_kombu.transient.KNOWN_FOR_S", 0.0)
    monkeypatch.setattr("bullmq_kombu.transient.KNOWN_AT_MOST", 10)
    for number in range(30):
        publish(connection, "answer", routing_key=f"{queue_name}-{number}", correlation_id="asked")
    assert len(connection.default_channel.transient._known) <= 10


def test_a_subscription_whose_connection_was_closed_is_made_anew(connection: Connection, other: Connection, queue_name: str) -> None:
    """As a server that refuses it for a while has it closed."""
    exchange = Exchange(f"{queue_name}.all", "fanout")
    with Inbox(connection, Queue("", exchange, exclusive=True, auto_delete=True)) as inbox:
        publish(other, 1, exchange=exchange)
        assert inbox.drain(1) == [1]
        inbox.consumer.channel.intake.fanout._wire.close()
        with pytest.raises(TimeoutError):
            connection.drain_events(timeout=0.2)
        publish(other, 2, exchange=exchange)
        assert inbox.drain(2) == [1, 2]


def test_a_retry_whose_answer_was_lost_is_the_same_job(
    connection: Connection, redis_client: redis.Redis, queue_name: str, server: Server
) -> None:
    """Also where Node has numbered the job, so that it and its task have different ids."""
    with Jobs(queue_name, server.url) as queue:
        job_id = queue.add("again", {"a": 1}).id
    message = connection.default_channel.basic_get(queue_name)
    job = message.properties["bullmq"]
    assert job["job"] == job_id
    carried = current.set(Carried(f"bull:{queue_name}:", job_id, job["token"], message.headers["id"]))
    try:
        for _ in range(2):  # the second time it is not in hand any more
            body = [[], {"a": 1}, {"callbacks": None, "errbacks": None, "chain": None, "chord": None}]
            publish(connection, body, routing_key=queue_name, headers={**message.headers, "retries": 1})
    finally:
        current.reset(carried)
    assert jobs_of(redis_client, queue_name, "wait") == [job_id]


# -- with Celery ---------------------------------------------------------------------------------------------------------------


def test_broadcast_of_tasks(server: Server, worker: WorkerOf, queue_name: str, tmp_path: Path) -> None:
    """A task sent to a broadcast queue runs once on every worker; there is no job."""
    workers = [worker("news", app="broadcasting") for _ in range(2)]
    with sender(server, task_queues=[Broadcast("news")], task_routes={"news": {"queue": "news"}}) as app:
        app.send_task("news", args=[str(tmp_path / "it")])
    wait_until(lambda: (tmp_path / "it").exists() and (tmp_path / "it").read_text().count("\n") == 2, what="both workers to run it")
    assert sorted((tmp_path / "it").read_text().split()) == sorted(one.name for one in workers)


def test_rpc_results(server: Server, worker: WorkerOf, redis_client: redis.Redis, queue_name: str) -> None:
    """`rpc://` sends results through the broker; they leave no queue behind."""
    worker(settings={"result_backend": "rpc://"})
    with sender(server, result_backend="rpc://") as app:
        results = [app.send_task("echo", args=[n], queue=queue_name) for n in range(5)]
        assert [result.get(timeout=20) for result in results] == [0, 1, 2, 3, 4]
        failed = app.send_task("boom", queue=queue_name)
        with pytest.raises(ValueError, match="the message"):
            failed.get(timeout=20)
        oid = app.thread_oid
    for key in redis_client.scan_iter(f"*{oid}*"):
        assert "::kombu:" in key
        assert redis_client.pttl(key) > 0
