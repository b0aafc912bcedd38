"""Jobs that Node runs, as Celery's `AsyncResult` shows them through `result_backend = "bullmq://…"`."""

from __future__ import annotations

import secrets
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from celery import Celery, chain, group
from celery.exceptions import TimeoutError as ResultTimeoutError
from celery.result import AsyncResult
from node_driver import Node
from servers import Server, end, spawn
from waiting import wait_until

from bullmq_kombu import JobFailed

TIMEOUT_S = 20.0

Serve = Callable[[str], Any]


@pytest.fixture
def app(server: Server) -> Iterator[Celery]:
    """An app of its own with a backend; tasks that only Node has are sent by name."""
    app = Celery("python_results", broker=server.url, backend=server.url, set_as_current=False)
    yield app
    app.backend.result_consumer.stop()
    app.backend.server.close()
    app.close()


class Waiting:
    """A `get()` in a thread of its own."""

    def __init__(self, result: AsyncResult, **options: Any) -> None:
        self.got: list[Any] = []
        self._thread = threading.Thread(target=self._wait, args=(result, options), daemon=True)
        self._thread.start()

    def _wait(self, result: AsyncResult, options: dict[str, Any]) -> None:
        try:
            self.got.append(result.get(timeout=TIMEOUT_S, **options))
        except Exception as error:
            self.got.append(error)
        finally:
            result.backend.result_consumer.stop()
            result.backend.server.close()

    def end(self) -> Any:
        self._thread.join(TIMEOUT_S + 5)
        return self.got[0]


def waiting(app: Celery, task_id: str, **options: Any) -> Waiting:
    """Waits in a thread that has a backend of its own."""
    backend = type(app.backend)(app=app, url=app.conf.result_backend)
    return Waiting(AsyncResult(task_id, app=app, backend=backend), **options)


def is_blocked(client: redis.Redis, queue: str) -> bool:
    """Somebody waits in XREAD."""
    clients: Any = client.client_list()
    return any(one["cmd"] == "xread" and "b" in one["flags"] for one in clients)


VALUES = [None, 1, 1.5, "text ä", [1, [2]], {"a": {"b": None}}, "x" * 100_000]


def test_values(node: Node, queue_name: str, app: Celery) -> None:
    node.call("worker", queue=queue_name, default={"echo": True})
    for value in VALUES:
        result = app.send_task("echo", kwargs={"value": value}, queue=queue_name)
        assert result.get(timeout=TIMEOUT_S) == {"value": value}
        assert (result.state, result.traceback, result.successful()) == ("SUCCESS", None, True)
    assert result.date_done is not None


def test_a_failure(node: Node, queue_name: str, app: Celery) -> None:
    node.call("worker", queue=queue_name, default={"throw": "no such address"})
    result = app.send_task("send", queue=queue_name)

    with pytest.raises(JobFailed, match=r"^no such address$"):
        result.get(timeout=TIMEOUT_S)

    assert (result.state, result.failed()) == ("FAILURE", True)
    assert "Error: no such address\n    at " in result.traceback
    assert isinstance(result.get(propagate=False), JobFailed)


def test_the_states_on_the_way(node: Node, queue_name: str, app: Celery, redis_client: redis.Redis) -> None:
    gate = secrets.token_hex(4)
    result = app.send_task("send", queue=queue_name, countdown=0.3, bullmq={"attempts": 2, "backoff": 200})
    assert result.state == "PENDING"

    node.call("worker", queue=queue_name, default={"progress": [{"page": 1}], "hold": gate, "throwTimes": 1, "message": "the first time"})
    wait_until(lambda: result.state == "STARTED" and result.info == {"page": 1}, what="the job to be active")
    node.call("release", gate=gate)
    wait_until(lambda: result.state in ("RETRY", "SUCCESS"), what="the first attempt to fail")
    assert result.get(timeout=TIMEOUT_S) is None
    assert result.state == "SUCCESS"


def test_a_retry_tells_why(node: Node, queue_name: str, app: Celery) -> None:
    node.call("worker", queue=queue_name, default={"throw": "each time"})
    result = app.send_task("send", queue=queue_name, bullmq={"attempts": 2, "backoff": 60_000})

    wait_until(lambda: result.state == "RETRY", what="the first attempt to fail")

    assert isinstance(result.info, JobFailed)
    assert str(result.info) == "each time"
    with pytest.raises(ResultTimeoutError):
        result.get(timeout=0.2)


def test_the_wait_is_for_the_event_stream_and_ends_at_once(node: Node, queue_name: str, app: Celery, redis_client: redis.Redis) -> None:
    gate = secrets.token_hex(4)
    node.call("worker", queue=queue_name, default={"hold": gate, "return": "done"})
    result = app.send_task("send", queue=queue_name)
    node.wait_for_state(queue_name, result.id, "active")
    told: list[str] = []
    waits = waiting(app, result.id, on_message=lambda meta: told.append(meta["status"]))
    wait_until(lambda: is_blocked(redis_client, queue_name), what="the wait to block")
    calls = redis_client.info("commandstats").get("cmdstat_evalsha", {}).get("calls", 0)  # type: ignore[union-attr]
    assert waits.got == []

    start = time.monotonic()
    node.call("release", gate=gate)
    assert waits.end() == "done"

    assert time.monotonic() - start < 2.0
    assert told[-1] == "SUCCESS"
    # Not polled: between the block and the end there was little to ask for. Node's own calls are among these.
    after = redis_client.info("commandstats")["cmdstat_evalsha"]["calls"]  # type: ignore[index]
    assert after - calls < 20


def test_a_busy_queue_is_not_asked_about_all_the_time(node: Node, queue_name: str, app: Celery, redis_client: redis.Redis) -> None:
    gate = secrets.token_hex(4)
    node.call(
        "worker", queue=queue_name, opts={"concurrency": 10}, behaviours={"hold": {"hold": gate, "return": "done"}}, default={"echo": True}
    )
    result = app.send_task("hold", queue=queue_name)
    waits = waiting(app, result.id)
    wait_until(lambda: is_blocked(redis_client, queue_name), what="the wait to block")

    node.queue_call(queue_name, "addBulk", [{"name": "echo", "data": number} for number in range(1000)])
    wait_until(lambda: redis_client.zcard(f"bull:{queue_name}:completed") >= 1000, what="the others to be done")
    node.call("release", gate=gate)

    assert waits.end() == "done"


def test_a_job_that_node_added_and_numbered(node: Node, queue_name: str, app: Celery) -> None:
    app.amqp.queues.add(queue_name)
    added = node.call("add", queue=queue_name, name="send", data={"n": 1})
    result = AsyncResult(f"{queue_name}:{added['id']}", app=app)
    assert result.state == "PENDING"
    node.call("worker", queue=queue_name, default={"echo": True})
    assert result.get(timeout=TIMEOUT_S) == {"n": 1}
    # A number alone is the id of a job in every queue.
    assert AsyncResult(added["id"], app=app).state == "PENDING"


def test_a_task_that_celery_ran_for_node(node: Node, queue_name: str, app: Celery, serve: Serve) -> None:
    """The worker has no result backend at all: its jobs tell."""
    serve(queue_name)
    good = node.call("add", queue=queue_name, name="value", data={"value": [1]})
    bad = node.call("add", queue=queue_name, name="fail", data={"message": "no such address"})
    unknown = node.call("add", queue=queue_name, name="nobody.has.it", data={})

    assert AsyncResult(f"{queue_name}:{good['id']}", app=app).get(timeout=TIMEOUT_S) == [1]
    with pytest.raises(JobFailed, match="ValueError: no such address"):
        AsyncResult(f"{queue_name}:{bad['id']}", app=app).get(timeout=TIMEOUT_S)
    with pytest.raises(JobFailed, match="NotRegistered"):
        AsyncResult(f"{queue_name}:{unknown['id']}", app=app).get(timeout=TIMEOUT_S)


@pytest.mark.parametrize("task_id", ["17", "with:colon", "{queue}:5"])
def test_a_task_id_that_cannot_be_a_jobs(node: Node, queue_name: str, app: Celery, task_id: str) -> None:
    task_id = f"{task_id.format(queue=queue_name)}{'' if task_id == '17' else secrets.token_hex(4)}"
    app.send_task("send", kwargs={"n": 2}, task_id=task_id, queue=queue_name)
    node.call("worker", queue=queue_name, default={"echo": True})
    assert AsyncResult(task_id, app=app).get(timeout=TIMEOUT_S) == {"n": 2}


def test_a_job_id_of_the_users_choice(node: Node, queue_name: str, app: Celery) -> None:
    first, second = (app.send_task("send", kwargs={"n": n}, queue=queue_name, bullmq={"jobId": "only-once"}) for n in (1, 2))
    node.call("worker", queue=queue_name, default={"echo": True})
    assert first.get(timeout=TIMEOUT_S) == {"n": 1}
    # BullMQ ignores the second, as it was told to: the job that is there stands for it.
    assert second.get(timeout=TIMEOUT_S) == {"n": 1}


def test_groups_of_jobs(node: Node, queue_name: str, app: Celery) -> None:
    node.call("worker", queue=queue_name, opts={"concurrency": 5}, default={"echo": True})
    send = app.signature("send").set(queue=queue_name)
    result = group(send.clone(kwargs={"n": n}) for n in range(30)).apply_async()
    assert result.get(timeout=TIMEOUT_S) == [{"n": n} for n in range(30)]


def test_a_chain_from_celery_to_node(node: Node, queue_name: str, app: Celery, serve: Serve) -> None:
    queue, last = f"{queue_name}-celery", f"{queue_name}-node"
    serve(queue)
    node.call("worker", queue=last, default={"echo": True})
    steps = chain(app.signature("value", (7,)).set(queue=queue), app.signature("send").set(queue=last), app=app)
    result = steps.apply_async()
    assert result.get(timeout=TIMEOUT_S) == {"args": [7], "kwargs": {}}
    assert result.parent.get(timeout=TIMEOUT_S) == 7


def test_forgotten_and_expired(node: Node, queue_name: str, server: Server, app: Celery) -> None:
    node.call("worker", queue=queue_name, default={"echo": True})
    result = app.send_task("send", kwargs={"n": 1}, queue=queue_name)
    assert result.get(timeout=TIMEOUT_S) == {"n": 1}
    app.conf.result_expires = 1
    short = type(app.backend)(app=app, url=server.url)
    wait_until(lambda: AsyncResult(result.id, app=app, backend=short).state == "PENDING", what="the result to expire")
    assert AsyncResult(result.id, app=app).state == "SUCCESS"
    result.forget()
    assert AsyncResult(result.id, app=app).state == "PENDING"
    node.wait_for_state(queue_name, result.id, "completed")
    short.server.close()


def test_a_job_that_is_removed_while_it_is_waited_for(node: Node, queue_name: str, app: Celery) -> None:
    result = app.send_task("send", queue=queue_name)
    node.job_call(queue_name, result.id, "remove")
    assert result.state == "PENDING"
    with pytest.raises(ResultTimeoutError):
        result.get(timeout=0.3)


def test_extended_results(node: Node, queue_name: str, app: Celery) -> None:
    app.conf.result_extended = True
    node.call("worker", queue=queue_name, opts={"name": "nodeworker"}, default={"echo": True})
    result = app.send_task("send", kwargs={"n": 1}, queue=queue_name)
    result.get(timeout=TIMEOUT_S)
    assert (result.name, result.args, result.kwargs, result.queue, result.worker) == ("send", [], {"n": 1}, queue_name, "nodeworker")


def test_a_process_that_knows_only_the_id(node: Node, queue_name: str, app: Celery, server: Server, tmp_path: Path) -> None:
    result = app.send_task("send", kwargs={"n": 1}, queue=queue_name)
    (tmp_path / "other.py").write_text(
        f"from celery import Celery\nprint(Celery(backend={server.url!r}).AsyncResult({result.id!r}).get(timeout={TIMEOUT_S}))\n"
    )
    process = spawn([sys.executable, "other.py"], cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    try:
        node.call("worker", queue=queue_name, default={"echo": True})
        output, _ = process.communicate(timeout=TIMEOUT_S * 2)
    finally:
        end(process)
    assert output.strip() == "{'n': 1}"


def test_the_wait_outlives_its_connections(node: Node, queue_name: str, app: Celery, redis_client: redis.Redis) -> None:
    gate = secrets.token_hex(4)
    node.call("worker", queue=queue_name, default={"hold": gate, "return": "done"})
    result = app.send_task("send", queue=queue_name)
    waits = waiting(app, result.id)
    wait_until(lambda: is_blocked(redis_client, queue_name), what="the wait to block")

    redis_client.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
    for client in redis_client.client_list():  # type: ignore[union-attr]
        if client["cmd"] == "xread":
            redis_client.client_kill_filter(_id=client["id"])
    node.call("release", gate=gate)

    assert waits.end() == "done"
