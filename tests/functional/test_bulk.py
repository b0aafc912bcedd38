"""Many publications in one call: `bullmq_kombu.bulk()` for whatever is published, Kombu's `producer.batch()` for one producer."""

from __future__ import annotations

import json
import uuid
from typing import Any

import kombu
import pytest
import redis
from celery import Celery, group
from kombu.exceptions import OperationalError
from servers import Server

from bullmq_kombu import BullMQError, bulk


def added(client: redis.Redis, queue: str) -> list[str]:
    """The ids that wait, oldest first."""
    found: Any = client.lrange(f"bull:{queue}:wait", 0, -1)
    return list(reversed(found))


def script_calls(client: redis.Redis) -> int:
    stats: Any = client.info("commandstats")
    return sum(stats.get(f"cmdstat_{name}", {"calls": 0})["calls"] for name in ("evalsha", "eval"))


@pytest.fixture
def producer(server: Server, queue_name: str) -> Any:
    with kombu.Connection(server.url) as connection:
        kombu.Queue(queue_name)(connection.default_channel).declare()
        yield kombu.Producer(connection, routing_key=queue_name, serializer="json")


@pytest.fixture
def own_app(server: Server) -> Any:
    app = Celery("bulk", broker=server.url, set_as_current=False)
    yield app
    app.close()


# -- bulk()


def test_what_is_published_in_a_block_is_stored_by_its_end(producer: Any, redis_client: redis.Redis, queue_name: str) -> None:
    with bulk():
        for number in range(20):
            producer.publish({"n": number})
        assert added(redis_client, queue_name) == []

    ids = added(redis_client, queue_name)
    assert [json.loads(redis_client.hget(f"bull:{queue_name}:{one}", "data")) for one in ids] == [{"n": number} for number in range(20)]


def test_one_call_stores_them(redis_client: redis.Redis, producer: Any) -> None:
    producer.publish({})
    before = script_calls(redis_client)

    with bulk():
        for number in range(50):
            producer.publish({"n": number})

    assert script_calls(redis_client) == before + 1


def test_a_full_batch_does_not_wait_for_the_end(producer: Any, redis_client: redis.Redis, queue_name: str) -> None:
    with bulk(max_size=3):
        for number in range(7):
            producer.publish({"n": number})
        assert len(added(redis_client, queue_name)) == 6

    assert len(added(redis_client, queue_name)) == 7


def test_flush_stores_at_once(producer: Any, redis_client: redis.Redis, queue_name: str) -> None:
    with bulk() as batch:
        producer.publish({})
        batch.flush()
        assert len(added(redis_client, queue_name)) == 1


def test_an_exception_leaves_what_was_not_stored_unstored(producer: Any, redis_client: redis.Redis, queue_name: str) -> None:
    def publish_and_stumble() -> None:
        with bulk():
            producer.publish({})
            raise KeyError("mine")

    with pytest.raises(KeyError):
        publish_and_stumble()

    assert added(redis_client, queue_name) == []
    producer.publish({})
    assert len(added(redis_client, queue_name)) == 1


def test_a_group_of_tasks(own_app: Celery, redis_client: redis.Redis, queue_name: str) -> None:
    signature = own_app.signature("shop.resize", kwargs={"size": 10}, queue=queue_name, app=own_app)

    with bulk():
        result = group([signature.clone() for _ in range(30)], app=own_app).apply_async()

    assert added(redis_client, queue_name) == [one.id for one in result.results]


def test_every_kind_of_job_finds_its_place(own_app: Celery, redis_client: redis.Redis, queue_name: str) -> None:
    with bulk():
        own_app.send_task("t", queue=queue_name, task_id="plain")
        own_app.send_task("t", queue=queue_name, task_id="later", countdown=60)
        own_app.send_task("t", queue=queue_name, task_id="urgent", priority=3)
        own_app.send_task("t", queue=queue_name, task_id="first", bullmq={"lifo": True})

    assert added(redis_client, queue_name) == ["first", "plain"]
    assert redis_client.zrange(f"bull:{queue_name}:delayed", 0, -1) == ["later"]
    assert redis_client.zrange(f"bull:{queue_name}:prioritized", 0, -1) == ["urgent"]


def test_a_task_whose_id_is_taken_is_not_swallowed(own_app: Celery, redis_client: redis.Redis, queue_name: str) -> None:
    own_app.send_task("t", kwargs={"n": 1}, queue=queue_name, task_id="same")

    with bulk():
        own_app.send_task("t", kwargs={"n": 2}, queue=queue_name, task_id="same")
        own_app.send_task("t", kwargs={"n": 3}, queue=queue_name, task_id="other")

    ids = added(redis_client, queue_name)
    data = [json.loads(redis_client.hget(f"bull:{queue_name}:{one}", "data"))["n"] for one in ids]
    assert sorted(data) == [1, 2, 3]
    assert len({"same", "other"} & set(ids)) == 2


def test_a_refused_job_is_an_error_and_takes_no_other_with_it(own_app: Celery, redis_client: redis.Redis, queue_name: str) -> None:
    orphan = {"parent": {"id": "nobody", "queue": f"bull:{queue_name}"}}

    def send() -> None:
        with bulk():
            own_app.send_task("t", queue=queue_name, bullmq=orphan)
            own_app.send_task("t", queue=queue_name, task_id="well")

    with pytest.raises(BullMQError, match="Missing key for parent job"):
        send()

    assert added(redis_client, queue_name) == ["well"]


def test_several_servers_get_their_own(server: Server, producer: Any, redis_client: redis.Redis, queue_name: str) -> None:
    with Server() as other, other.client() as other_client, kombu.Connection(other.url) as connection:
        elsewhere = kombu.Producer(connection, routing_key=queue_name, serializer="json")
        with bulk():
            for number in range(3):
                producer.publish({"n": number})
                elsewhere.publish({"n": number})

        assert len(added(redis_client, queue_name)) == 3
        assert len(added(other_client, queue_name)) == 3


def test_a_server_that_is_away_is_an_error_of_the_block(queue_name: str) -> None:
    with Server() as server, kombu.Connection(server.url) as connection:
        producer = kombu.Producer(connection, routing_key=queue_name, serializer="json")
        producer.publish({})

        def publish() -> None:
            with bulk():
                producer.publish({"id": str(uuid.uuid4())})
                server.kill()

        with pytest.raises(OperationalError, match="may not be stored"):
            publish()


def test_a_server_that_comes_back_gets_the_jobs_once(queue_name: str) -> None:
    with Server(appendonly=True) as server, Celery("bulk", broker=server.url, set_as_current=False) as app:
        app.send_task("t", queue=queue_name)
        with bulk():
            for _ in range(5):
                app.send_task("t", queue=queue_name)
            server.restart()

        with server.client() as client:
            assert len(added(client, queue_name)) == 6


# -- Kombu's own


@pytest.mark.skipif(not hasattr(kombu.Producer, "batch"), reason="Kombu has batches since 5.7")
class TestKombuBatch:
    def test_it_is_one_call(self, producer: Any, redis_client: redis.Redis, queue_name: str) -> None:
        producer.publish({})
        before = script_calls(redis_client)
        assert producer.supports_batch_publish

        with producer.batch():
            for number in range(40):
                producer.publish({"n": number})
            assert len(added(redis_client, queue_name)) == 1

        assert len(added(redis_client, queue_name)) == 41
        assert script_calls(redis_client) == before + 1

    def test_max_size_and_flush(self, producer: Any, redis_client: redis.Redis, queue_name: str) -> None:
        with producer.batch(max_size=4) as batch:
            for number in range(5):
                producer.publish({"n": number})
            assert len(added(redis_client, queue_name)) == 4
            batch.flush()
            assert len(added(redis_client, queue_name)) == 5

    def test_an_exception_discards(self, producer: Any, redis_client: redis.Redis, queue_name: str) -> None:
        def publish_and_stumble() -> None:
            with producer.batch():
                producer.publish({})
                raise KeyError("mine")

        with pytest.raises(KeyError):
            publish_and_stumble()
        assert added(redis_client, queue_name) == []

    def test_a_lost_server_is_kombus_error(self, queue_name: str) -> None:
        from kombu.exceptions import BatchPublishError

        with Server() as server, kombu.Connection(server.url) as connection:
            producer = kombu.Producer(connection, routing_key=queue_name, serializer="json")
            producer.publish({})

            def publish() -> None:
                with producer.batch():
                    producer.publish({})
                    server.kill()

            with pytest.raises(BatchPublishError):
                publish()
