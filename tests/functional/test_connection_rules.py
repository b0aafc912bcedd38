"""BullMQ's rules for connections, as the contract has them: who gives up and when, who never does, and what is said of it."""

from __future__ import annotations

import inspect
import logging
import os
import secrets
import signal
import socket
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
import redis.asyncio
from celery import Celery
from jobs import Job
from kombu import Connection
from kombu.exceptions import OperationalError
from servers import Server, free_port
from waiting import wait_until
from worker import Worker

from bullmq_kombu import errors, server_check
from bullmq_kombu.patience import reconnect_delay_s

WorkerOf = Callable[..., Worker]

#: What redis-py 5 brought; before, there is only the one protocol.
RESP3: dict[str, Any] = {"protocol": 3} if "protocol" in inspect.signature(redis.Redis.__init__).parameters else {}


@pytest.fixture
def nobody() -> str:
    """An address where nothing listens."""
    return f"bullmq://127.0.0.1:{free_port()}/0"


@pytest.fixture
def silent() -> Iterator[str]:
    """A server that accepts connections and says nothing."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(64)
        yield f"bullmq://127.0.0.1:{listening.getsockname()[1]}/0"


def app_of(url: str, **settings: Any) -> Celery:
    app = Celery("sender", broker=url, set_as_current=False)
    app.conf.update(settings)
    return app


def seconds_to_fail(app: Celery) -> float:
    # What Celery does once, before the first message, is not what is measured.
    assert app.amqp.queues is not None
    assert app.connection_for_write().transport is not None
    began = time.monotonic()
    with pytest.raises(OperationalError):
        app.send_task("echo", queue="q")
    return time.monotonic() - began


# -- producers give up -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["nobody", "silent"])
def test_a_producer_fails_within_five_seconds(where: str, request: pytest.FixtureRequest) -> None:
    with app_of(request.getfixturevalue(where)) as app:
        assert seconds_to_fail(app) < 5.0


@pytest.mark.parametrize("where", ["nobody", "silent"])
def test_a_producer_with_one_retry_fails_within_one_second(where: str, request: pytest.FixtureRequest) -> None:
    with app_of(request.getfixturevalue(where), broker_transport_options={"max_retries_per_request": 1}) as app:
        assert seconds_to_fail(app) < 1.0


@pytest.mark.parametrize("options", [{}, {"max_retries_per_request": 1}])
def test_a_producer_fails_when_a_server_it_has_used_stops_answering(options: dict[str, Any]) -> None:
    with Server() as server, app_of(server.url, broker_transport_options=options) as app:
        app.send_task("echo", queue="q")
        server.freeze()
        assert seconds_to_fail(app) < (1.0 if options else 5.0)
        server.thaw()
        # And it is at once what it was when the server is.
        wait_until(lambda: app.send_task("echo", queue="q"), what="publishing to go on")
        server.kill()
        assert seconds_to_fail(app) < (1.0 if options else 5.0)
        server.start()
        app.send_task("echo", queue="q")


def test_the_publish_retry_policy_of_celery_wins(nobody: str) -> None:
    policy = {"max_retries": 4, "interval_start": 0.3, "interval_step": 0, "interval_max": 0.3}
    with app_of(nobody, task_publish_retry_policy=policy) as app:
        assert 1.1 < seconds_to_fail(app) < 4.0
    with app_of(nobody, task_publish_retry=False, broker_transport_options={"max_retries": 0}) as app:
        assert seconds_to_fail(app) < 0.5


def test_a_connection_that_died_idle_is_no_error(server: Server, redis_client: redis.Redis, queue_name: str) -> None:
    with app_of(server.url, task_publish_retry=False) as app:
        app.send_task("echo", queue=queue_name)
        redis_client.client_kill_filter(_type="normal", skipme=True)
        app.send_task("echo", queue=queue_name)
    assert redis_client.llen(f"bull:{queue_name}:wait") == 2


def fill(client: redis.Redis) -> None:
    """Until there is no memory left, not even for little: before Redis 7 what a large command itself takes counts, while it is read."""
    for size in (50_000, 100, 1):
        with pytest.raises(redis.RedisError, match="maxmemory"):
            [client.set(f"filler:{size}:{number}", "x" * size) for number in range(50_000)]


def test_out_of_memory_is_said_clearly() -> None:
    with Server(extra=["--maxmemory", "3mb", "--maxmemory-policy", "noeviction"]) as server, app_of(server.url) as app:
        with server.client() as client:
            fill(client)
            with pytest.raises(OperationalError, match="out of memory"):
                app.send_task("echo", queue="q")


# -- consumers do not ----------------------------------------------------------------------------------------------------------


def test_a_server_that_lets_a_worker_in_and_refuses_is_not_asked_all_the_time(worker: WorkerOf, queue_name: str) -> None:
    """One without memory: a connection is made, what the worker then declares is not."""
    with Server() as server, server.client() as client, app_of(server.url) as app:
        one = worker(on=server)
        wait_until(lambda: client.info("clients")["blocked_clients"], what="the worker to wait for jobs")
        client.config_set("maxmemory", 1)
        client.client_kill_filter(_type="normal", skipme=True)
        wait_until(lambda: one.log.count("Connection to broker lost") >= 3, 60, "the worker to have been refused twice")
        began = time.monotonic()
        wait_until(lambda: one.log.count("Connection to broker lost") >= 5, 60, "and twice again")
        assert time.monotonic() - began > 1.0
        client.config_set("maxmemory", 0)
        app.send_task("echo", queue=queue_name)
        wait_until(lambda: "succeeded" in one.log, 60, "the worker to work again")


def test_the_pauses_are_those_of_bullmq() -> None:
    pauses = [reconnect_delay_s(failures) for failures in range(1, 14)]
    assert pauses[:6] == [1.0] * 6
    assert [round(pause, 1) for pause in pauses[6:]] == [1.1, 3.0, 8.1, 20.0, 20.0, 20.0, 20.0]


def test_a_limit_of_retries_on_a_consumer_is_an_error(server: Server, queue_name: str, worker: WorkerOf) -> None:
    with Connection(server.url, transport_options={"max_retries_per_request": 3}) as connection:
        simple = connection.SimpleQueue(queue_name)
        simple.put({})
        with pytest.raises(errors.BadInput, match="must be None"):
            simple.get(timeout=1)
    one = worker(options={"max_retries_per_request": 3}, wait=False)
    assert one.wait() != 0
    assert "max_retries_per_request=3 is for producers" in one.log


def test_a_worker_waits_for_a_server_that_is_not_there_yet(worker: WorkerOf, queue_name: str) -> None:
    """However often Celery counts: its default of a hundred is not the user's."""
    server = Server()
    server.start()
    server.stop()
    try:
        one = worker(on=server, wait=False)
        wait_until(lambda: one.log.count("Cannot connect to") >= 2, 20, "the worker to have tried twice")
        server.start()
        one.wait_until_ready()
    finally:
        server.close()


@pytest.mark.parametrize("pool", ["prefork", "gevent"])
def test_a_shutdown_does_not_wait_for_a_retry(worker: WorkerOf, pool: str) -> None:
    server = Server().start()
    try:
        one = worker(on=server, pool=pool)
        server.kill()
        wait_until(lambda: "Cannot connect to" in one.log, 20, "the worker to have noticed")
        began = time.monotonic()
        one.signal(signal.SIGTERM)
        one.wait(5)
        assert time.monotonic() - began < 5
    finally:
        server.close()


def test_the_retry_settings_of_celery_win(worker: WorkerOf) -> None:
    for settings, said in (
        ({"broker_connection_max_retries": 2}, "OperationalError"),
        ({"broker_connection_retry": False}, "has been disabled"),
    ):
        server = Server().start()
        try:
            one = worker(on=server, settings=settings)
            server.kill()
            one.wait(25)
            assert said in one.log
        finally:
            server.close()


# -- a shared client -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["text", "bytes", "resp3", "pool", "unix"])
def test_a_client_can_be_shared(server: Server, queue_name: str, kind: str) -> None:
    made: dict[str, Callable[[], Any]] = {
        "text": server.client,
        "bytes": lambda: server.client(decode_responses=False),
        "resp3": lambda: server.client(decode_responses=False, **RESP3),
        "pool": lambda: redis.ConnectionPool(host=server.host, port=server.port),
        "unix": lambda: redis.Redis(unix_socket_path=str(server.socket_path)),
    }
    shared = made[kind]()
    pool = getattr(shared, "connection_pool", shared)
    # The URL says another server: the client is what counts.
    with Connection("bullmq://127.0.0.1:1", transport_options={"connection": shared}) as connection:
        with connection.SimpleQueue(queue_name) as jobs, connection.SimpleBuffer(f"{queue_name}-own") as own:
            for simple in (jobs, own):
                simple.put({"kind": kind})
                message = simple.get(timeout=5)
                assert message.payload == {"kind": kind}
                message.ack()
            with pytest.raises(jobs.Empty):
                jobs.get(timeout=0.2)
            with server.client() as client:
                names = [one["name"] for one in client.client_list()]
        with server.client() as client:
            wait_until(lambda: client.zcard(f"bull:{queue_name}:completed") == 1, what="the job to be completed")
        assert any(name.startswith("bull:") for name in names), "who blocks has a connection of its own"
    assert redis.Redis(connection_pool=pool).ping(), "it is not closed"
    assert not getattr(pool, "_in_use_connections", None), "all have gone back"
    pool.disconnect()


def test_what_cannot_be_shared_is_said(server: Server) -> None:
    for wrong in (object(), redis.asyncio.Redis(port=server.port)):
        with (
            Connection(server.url, transport_options={"connection": wrong}) as connection,
            pytest.raises(errors.BadInput, match="connection"),
        ):
            connection.connect()


# -- the server is looked at once --------------------------------------------------------------------------------------------


def test_the_eviction_policy_is_warned_of_once(caplog: pytest.LogCaptureFixture) -> None:
    with Server(extra=["--maxmemory-policy", "allkeys-lru"]) as server:
        for _ in range(3):
            with Connection(server.url) as connection:
                connection.connect()
        assert [record.message for record in caplog.records if "ctionPolicy" in record.message or "viction policy" in record.message] == [
            f'IMPORTANT! Eviction policy is allkeys-lru. It should be "noeviction" (Redis at tcp://{server.host}:{server.port}/0)'
        ]


def test_the_check_can_be_skipped(caplog: pytest.LogCaptureFixture) -> None:
    with Server(extra=["--maxmemory-policy", "allkeys-lru"]) as server:
        with Connection(server.url, transport_options={"skip_version_check": True}) as connection:
            connection.connect()
        with server.client() as client:
            assert "cmdstat_info" not in client.info("commandstats") or client.info("commandstats")["cmdstat_info"]["calls"] <= 3
    assert not [record for record in caplog.records if "viction policy" in record.message]


def read(text: str) -> server_check.Facts:
    return server_check.read_info(text.replace("\n", "\r\n"))


def test_versions_are_judged(server: Server, redis_client: redis.Redis, caplog: pytest.LogCaptureFixture) -> None:
    raw = Connection(server.url).transport.server.call("INFO", "server")
    said: Any = redis_client.info()
    version = str(said.get("valkey_version") or said["redis_version"])
    assert server_check.read_info(raw).version == tuple(int(part) for part in version.split("."))
    old = read("# Server\nredis_version:4.0.14\n")
    with pytest.raises(server_check.ServerTooOld, match=r"greater or equal than 5\.0\.0 Current: 4\.0\.14"):
        server_check.judge(old, "here")
    assert not old.takes_fractions
    caplog.set_level(logging.INFO)
    server_check.judge(read("redis_version:6.0.16\n"), "here")
    assert "6.2.0 or newer is recommended" in caplog.text
    caplog.clear()
    for fine in (
        "redis_version:7.2.4\nmaxmemory_policy:noeviction\n",
        "redis_version:7.2.4\nserver_name:valkey\nvalkey_version:9.0.1\nmaxmemory_policy:noeviction\n",
        "redis_version:4.0.0\nvalkey_version:8.0.0\n",
        "redis_version:2.0.0\ndragonfly_version:df-v1.21.0\n",
        "",
    ):
        server_check.judge(read(fine), "here")
    assert not caplog.records
    assert read("redis_version:2.0.0\ndragonfly_version:df-v1.21.0\n").kind == "dragonfly"


# -- names and secrets -----------------------------------------------------------------------------------------------------------


def test_a_key_prefix_is_refused_and_the_message_says_what_to_use(server: Server) -> None:
    with (
        Connection(server.url, transport_options={"global_keyprefix": "x"}) as connection,
        pytest.raises(errors.BadInput, match="'prefix'"),
    ):
        connection.connect()


def test_no_password_in_any_log(worker: WorkerOf, queue_name: str) -> None:
    password = f"s3cr3t-{secrets.token_hex(8)}"
    with Server(password=password) as server:
        one = worker(on=server, settings={"result_backend": server.url}, arguments=["-l", "DEBUG"])
        with app_of(server.url) as app:
            app.send_task("echo", queue=queue_name)
            app.send_task("boom", queue=queue_name)
        wait_until(lambda: "raised unexpected" in one.log, what="the tasks to have run")
        with server.client() as client:
            assert not [line for line in client.client_list() if password in line["name"]]
        server.kill()
        wait_until(lambda: "Cannot connect to" in one.log, 20, "the worker to have noticed")
        assert password not in one.log


def test_a_connection_does_not_outlive_the_fork(server: Server, redis_client: redis.Redis, queue_name: str) -> None:
    """A child that closes what it has inherited leaves its parent's connection as it is."""
    with Connection(server.url) as connection, warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        with connection.SimpleQueue(queue_name) as simple:
            simple.put(1)
            child = os.fork()
            if child == 0:
                try:
                    connection.release()
                    os._exit(0)
                finally:
                    os._exit(1)
            assert os.waitpid(child, 0)[1] == 0
            simple.put(2)
            assert [simple.get(timeout=5).payload for _ in range(2)] == [1, 2]


def test_log_lines_hold_no_control_characters_of_others(
    server: Server, redis_client: redis.Redis, queue_name: str, worker: WorkerOf
) -> None:
    one = worker()
    base = f"bull:{queue_name}:"
    evil = "id\n[2026-01-01] CRITICAL/MainProcess all is lost\x1b[2J"
    redis_client.hset(base + evil, mapping={"name": "no\nsuch\x1btask", "data": "no json", "opts": "{}", "timestamp": 1})
    redis_client.lpush(f"{base}wait", evil)
    redis_client.zadd(f"{base}marker", {"0": 0})
    Job(redis_client, queue_name, evil).wait_for("failed")
    wait_until(lambda: "cannot be run" in one.log, what="the log line")
    assert "\n[2026-01-01] CRITICAL" not in one.log
    assert "\x1b" not in one.log
    assert Path(one.folder).exists()
