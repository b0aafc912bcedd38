"""What a message becomes in Redis when it is sent, and what is refused at the call. No worker runs here unless a test says so."""

from __future__ import annotations

import json
import threading
import time
import uuid
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
import redis
from celery import Celery
from conftest import JobOf, WorkerOf, sender
from jobs import Job, jobs_of
from kombu.exceptions import OperationalError
from servers import Server
from waiting import wait_until

from bullmq_kombu.errors import BadInput

DAY_S = 86_400


# -- a plain job ---------------------------------------------------------------------------------------------------------------


def test_plain_job(app: Celery, job: JobOf, queue_name: str) -> None:
    before = time.time()
    one = job(app.send_task("mail.send", kwargs={"to": "a@b.c"}, queue=queue_name).id)
    fields = one.hash
    assert one.state == "waiting"
    assert fields["name"] == "mail.send"
    assert json.loads(fields["data"]) == {"to": "a@b.c"}
    assert before * 1000 - 1 <= int(fields["timestamp"]) <= time.time() * 1000 + 1
    assert fields["delay"] == "0"
    assert fields["priority"] == "0"
    assert set(fields) == {"name", "data", "opts", "timestamp", "delay", "priority", "celery"}
    assert one.history == ["added", "waiting"]
    assert one.opts == {
        "attempts": 0,
        "removeOnComplete": {"age": DAY_S, "count": 1000},
        "removeOnFail": {"age": 7 * DAY_S, "count": 5000},
    }


@pytest.mark.parametrize(
    ("args", "kwargs", "data"),
    [
        ([], {}, {}),
        ([1, "two"], {}, {"args": [1, "two"], "kwargs": {}}),
        ([1], {"b": 2}, {"args": [1], "kwargs": {"b": 2}}),
        ([], {"args": [1]}, {"args": [1]}),
    ],
)
def test_data(app: Celery, job: JobOf, queue_name: str, args: list[Any], kwargs: dict[str, Any], data: Any) -> None:
    one = job(app.send_task("task", args=args, kwargs=kwargs, queue=queue_name).id)
    assert json.loads(one.hash["data"]) == data


@pytest.mark.parametrize(
    "how", [{"serializer": "pickle"}, {"serializer": "yaml"}, {"compression": "gzip"}, {"kwargs": {"n": float("nan")}}]
)
def test_body_that_is_no_strict_json(app: Celery, job: JobOf, queue_name: str, how: dict[str, Any]) -> None:
    one = job(app.send_task("task", **{"kwargs": {"n": 1}, **how}, queue=queue_name).id)
    data = json.loads(one.hash["data"])
    assert set(data) == {"body", "contentType", "contentEncoding"}
    assert data["contentType"].startswith("application/")


def test_unbound_queue_is_declared(app: Celery, redis_client: redis.Redis, queue_name: str) -> None:
    app.send_task("task", queue=queue_name)
    assert redis_client.hget(f"bull:{queue_name}:meta", "opts.maxLenEvents") == "10000"


# -- when it runs --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["countdown", "eta", "eta elsewhere", "delay"])
def test_later(app: Celery, job: JobOf, queue_name: str, how: str) -> None:
    """A delayed job in Redis; no worker holds it."""
    when: dict[str, Any] = {
        "countdown": {"countdown": 60},
        "eta": {"eta": datetime.now(timezone.utc) + timedelta(seconds=60)},
        "eta elsewhere": {"eta": datetime.now(timezone(timedelta(hours=5))) + timedelta(seconds=60)},
        "delay": {"bullmq": {"delay": 60_000}},
    }[how]
    one = job(app.send_task("task", queue=queue_name, **when).id)
    assert one.state == "delayed"
    assert 58_000 <= int(one.hash["delay"]) <= 60_000
    due = float(one.client.zscore(f"{one.base}delayed", one.id)) / 4096
    assert due == pytest.approx(int(one.hash["timestamp"]) + int(one.hash["delay"]), abs=1)
    assert one.history == ["added", "delayed"]
    assert one.client.zscore(f"{one.base}marker", "1") == pytest.approx(due, abs=1)


def test_eta_that_has_passed(app: Celery, job: JobOf, queue_name: str) -> None:
    assert job(app.send_task("task", queue=queue_name, eta=datetime(2020, 1, 1, tzinfo=timezone.utc)).id).state == "waiting"


def test_eta_is_kept_for_the_worker(app: Celery, serve: WorkerOf, job: JobOf, queue_name: str) -> None:
    """A worker that is there meanwhile holds nothing, and runs it when it is due."""
    serve()
    begun = time.time()
    one = job(app.send_task("echo", args=["later"], queue=queue_name, countdown=2).id)
    one.wait_for("completed")
    assert int(one.hash["processedOn"]) >= (begun + 2) * 1000 - 2
    assert one.history == ["added", "delayed", "waiting", "active", "completed"]


# -- order ---------------------------------------------------------------------------------------------------------------------


def test_priority_order(app: Celery, serve: WorkerOf, job: JobOf, queue_name: str) -> None:
    """Lower runs first; none and 0 before all others; lifo before those of the list."""
    sent = []
    for name, options in [
        ("ten", {"priority": 10}), ("one", {"priority": 1}), ("none", {}), ("zero", {"priority": 0}), ("ten again", {"priority": 10}),
        ("most", {"priority": 2_097_151}), ("five", {"bullmq": {"priority": 5}}), ("lifo", {"bullmq": {"lifo": True}}),
    ]:  # fmt: skip
        sent.append(job(app.send_task("echo", args=[name], queue=queue_name, **options).id))
    for one in sent:
        assert one.state == ("waiting" if one.hash["priority"] == "0" else "prioritized")
    serve(pool="solo")
    for one in sent:
        one.wait_for("completed")
    done = jobs_of(sent[0].client, queue_name, "completed")
    stream: Any = sent[0].client.xrange(f"bull:{queue_name}:events")
    order = [event["jobId"] for _, event in stream if event["event"] == "active"]
    assert sorted(order) == sorted(done)
    names = {one.id: one.returnvalue for one in sent}
    assert [names[job_id] for job_id in order] == ["lifo", "none", "zero", "one", "five", "ten", "ten again", "most"]


# -- options -------------------------------------------------------------------------------------------------------------------


def test_options(app: Celery, job: JobOf, queue_name: str) -> None:
    options = {"attempts": 3, "backoff": 500, "removeOnComplete": True, "keepLogs": 5, "stackTraceLimit": 2}
    one = job(app.send_task("task", queue=queue_name, bullmq=options).id)
    assert one.opts == {
        "attempts": 3, "backoff": {"type": "fixed", "delay": 500}, "removeOnComplete": True, "kl": 5, "stackTraceLimit": 2,
        "removeOnFail": {"age": 7 * DAY_S, "count": 5000},
    }  # fmt: skip


def test_options_of_a_route(server: Server, redis_client: redis.Redis, queue_name: str) -> None:
    with sender(server, task_routes={"mail.*": {"queue": queue_name, "bullmq": {"attempts": 4, "removeOnComplete": 10}}}) as app:
        routed = Job(redis_client, queue_name, app.send_task("mail.send").id)
        other = Job(redis_client, queue_name, app.send_task("other", queue=queue_name).id)
        both = Job(redis_client, queue_name, app.send_task("mail.send", bullmq={"attempts": 2}).id)
    assert routed.opts["attempts"] == 4
    assert routed.opts["removeOnComplete"] == 10
    assert other.opts["attempts"] == 0
    assert both.opts["attempts"] == 2


def test_retention_of_the_transport(server: Server, redis_client: redis.Redis, queue_name: str) -> None:
    with sender(server, broker_transport_options={"remove_on_complete": 7, "remove_on_fail": {"age": 60}}) as app:
        usual = Job(redis_client, queue_name, app.send_task("task", queue=queue_name).id)
        own = Job(redis_client, queue_name, app.send_task("task", queue=queue_name, bullmq={"removeOnComplete": False}).id)
    assert usual.opts["removeOnComplete"] == 7
    assert usual.opts["removeOnFail"] == {"age": 60}
    assert own.opts["removeOnComplete"] is False


def test_retention_is_kept(app: Celery, serve: WorkerOf, job: JobOf, redis_client: redis.Redis, queue_name: str) -> None:
    keep_one = [job(app.send_task("echo", queue=queue_name, bullmq={"removeOnComplete": 1}).id) for _ in range(3)]
    keep_none = [job(app.send_task("boom", queue=queue_name, bullmq={"removeOnFail": True}).id) for _ in range(2)]
    serve(pool="solo")
    wait_until(lambda: not any(redis_client.exists(one.key) for one in keep_none), what="the failed ones to be gone")
    wait_until(lambda: len(jobs_of(redis_client, queue_name, "completed")) == 1, what="one completed job to be left")
    assert jobs_of(redis_client, queue_name, "failed") == []
    assert sum(redis_client.exists(one.key) for one in keep_one) == 1


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "unknown option": ({"bullmq": {"atempts": 3}}, "did you mean 'attempts'"),
    "ill-typed option": ({"bullmq": {"attempts": "3"}}, "'attempts' must be an integer"),
    "options that are none": ({"bullmq": ["attempts"]}, "dictionary"),
    "back-off": ({"bullmq": {"backoff": {"delay": 3}}}, "backoff"),
    "retention": ({"bullmq": {"removeOnFail": {"max": 3}}}, "unknown key 'max'"),
    "priority too high": ({"priority": 2_097_152}, "between 0 and 2097151"),
    "priority below": ({"priority": -1}, "between 0 and 2097151"),
    "priority that is no integer": ({"priority": 1.5}, "Priority should be an integer"),
    "BullMQ's priority too high": ({"bullmq": {"priority": 3_000_000}}, "between 0 and 2097151"),
    "id that is a number": ({"bullmq": {"jobId": "17"}}, "Custom Id cannot be integers"),
    "id with a colon": ({"bullmq": {"jobId": "a:b"}}, "Custom Id cannot contain ':'"),
    "queue with a colon": ({"queue": "a:b"}, "cannot contain ':'"),
    "size": ({"kwargs": {"text": "x" * 100}, "bullmq": {"sizeLimit": 50}}, "exceeds the limit"),
    "parent and deduplication": (
        {"bullmq": {"parent": {"id": "1", "queue": "bull:q"}, "deduplication": {"id": "d"}}}, "cannot be used together"
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refused_at_the_call(app: Celery, redis_client: redis.Redis, queue_name: str, case: str) -> None:
    options, message = REFUSED[case]
    with pytest.raises(BadInput, match=message):
        app.send_task("task", **{"queue": queue_name, **options})
    assert jobs_of(redis_client, queue_name, "wait") == []


def test_refused_parent(app: Celery, queue_name: str) -> None:
    with pytest.raises(Exception, match="Missing key for parent job"):
        app.send_task("task", queue=queue_name, bullmq={"parent": {"id": "nobody", "queue": f"bull:{queue_name}"}})


# -- ids -----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task_id", ["17", "a:b", "-3", "0"])
def test_task_id_that_bullmq_refuses(app: Celery, redis_client: redis.Redis, queue_name: str, task_id: str) -> None:
    """The job gets another id; the task keeps its own."""
    app.send_task("task", task_id=task_id, queue=queue_name)
    (job_id,) = jobs_of(redis_client, queue_name, "wait")
    assert uuid.UUID(job_id)
    assert json.loads(Job(redis_client, queue_name, job_id).hash["celery"])["i"] == task_id


def test_id_of_a_finished_job(app: Celery, serve: WorkerOf, job: JobOf, redis_client: redis.Redis, queue_name: str) -> None:
    """It is replaced: nothing of the old job is left."""
    serve()
    for task, state in (("echo", "completed"), ("boom", "failed")):
        one = job(app.send_task(task, task_id=f"again-{state}", queue=queue_name).id)
        one.wait_for(state)
        redis_client.rpush(f"{one.key}:logs", "of the old one")
        app.send_task("echo", args=["new"], task_id=one.id, queue=queue_name)
        one.wait_until(lambda one: one.hash.get("returnvalue") == '"new"', "the new job to be completed")
        assert one.state == "completed"
        assert one.reason is None
        assert one.logs == []
        assert one.attempts_made == 1


def test_id_of_a_waiting_job(app: Celery, serve: WorkerOf, redis_client: redis.Redis, queue_name: str) -> None:
    """A second job under an id of its own, which knows the task id; both run."""
    for value in (1, 2):
        app.send_task("seen", args=[value], task_id="twice", queue=queue_name)
    second, first = jobs_of(redis_client, queue_name, "wait")
    assert first == "twice"
    assert json.loads(Job(redis_client, queue_name, second).hash["celery"])["i"] == "twice"
    serve()
    for value, job_id in ((1, first), (2, second)):
        one = Job(redis_client, queue_name, job_id).wait_for("completed")
        assert one.returnvalue == {"id": "twice", "args": [value], "kwargs": {}, "retries": 0}


@pytest.mark.parametrize("state", ["active", "delayed", "prioritized"])
def test_id_of_a_job_not_finished(
    app: Celery, serve: WorkerOf, job: JobOf, redis_client: redis.Redis, queue_name: str, tmp_path: Path, state: str
) -> None:
    options: dict[str, Any] = {"delayed": {"countdown": 60}, "prioritized": {"priority": 3}, "active": {}}[state]
    app.send_task("hold", args=[str(tmp_path / "it")], task_id="twice", queue=queue_name, **options)
    if state == "active":
        serve(pool="solo")
    job("twice").wait_for(state)
    app.send_task("echo", args=["second"], task_id="twice", queue=queue_name)
    (second,) = jobs_of(redis_client, queue_name, "wait")
    assert uuid.UUID(second)
    assert job("twice").state == state
    (tmp_path / "it.go").touch()


def test_retry_of_a_job_under_another_id(app: Celery, serve: WorkerOf, redis_client: redis.Redis, queue_name: str) -> None:
    """Its task's id is not the job's: the same job goes on all the same."""
    app.send_task("again", args=[2], task_id="17", queue=queue_name)
    (job_id,) = jobs_of(redis_client, queue_name, "wait")
    serve()
    one = Job(redis_client, queue_name, job_id).wait_for("completed")
    assert one.returnvalue == {"retries": 2, "id": "17"}
    assert one.history == ["added", "waiting", *("active", "delayed", "waiting") * 2, "active", "completed"]


def test_retry_into_another_queue(app: Celery, serve: WorkerOf, job: JobOf, redis_client: redis.Redis, queue_name: str) -> None:
    """The job here is completed and says so; one of the same id goes on there."""
    there = f"{queue_name}-there"
    for name in ("again", "again.late"):
        app.send_task(name, args=[1], kwargs={"queue": there}, task_id=name, queue=queue_name)
    serve()
    for name in ("again", "again.late"):
        here = job(name).wait_for("completed")
        assert here.hash["returnvalue"] == "null"
        assert here.logs
        assert "retried" in here.logs[0].lower()
        assert Job(redis_client, there, name).state in ("delayed", "waiting")
    serve(there)
    for name in ("again", "again.late"):
        assert Job(redis_client, there, name).wait_for("completed").returnvalue == {"retries": 1, "id": name}


def test_own_job_id(app: Celery, job: JobOf, redis_client: redis.Redis, queue_name: str) -> None:
    """An explicit jobId makes BullMQ ignore a second message, as the user asked."""
    for value in (1, 2):
        app.send_task("task", args=[value], queue=queue_name, bullmq={"jobId": "mine"})
    assert jobs_of(redis_client, queue_name, "wait") == ["mine"]
    assert json.loads(job("mine").hash["data"])["args"] == [1]
    assert job("mine").history == ["added", "waiting", "duplicated"]


def test_deduplication(app: Celery, redis_client: redis.Redis, queue_name: str) -> None:
    sent = [app.send_task("task", args=[value], queue=queue_name, bullmq={"deduplication": {"id": "once"}}).id for value in (1, 2)]
    assert jobs_of(redis_client, queue_name, "wait") == [sent[0]]
    assert redis_client.get(f"bull:{queue_name}:de:once") == sent[0]


# -- a server that does not answer ---------------------------------------------------------------------------------------------


def test_publish_while_redis_is_away_raises_in_bounded_time(queue_name: str) -> None:
    with Server() as own:
        policy = {"max_retries": 2, "interval_start": 0.05, "interval_step": 0.05, "interval_max": 0.1}
        with sender(own, task_publish_retry_policy=policy) as app:
            app.send_task("task", queue=queue_name)
            own.stop()
            begun = time.monotonic()
            with pytest.raises(OperationalError):
                app.send_task("task", queue=queue_name)
            assert time.monotonic() - begun < 10


def test_answer_that_is_lost(queue_name: str) -> None:
    """The server adds the job and its answer does not come: the same message, sent again, is the same job."""
    with Server() as own, own.client() as client:
        policy = {"max_retries": 5, "interval_start": 0.05, "interval_step": 0.05, "interval_max": 0.2}
        with sender(own, broker_transport_options={"socket_timeout": 0.5}, task_publish_retry_policy=policy) as app:
            app.send_task("first", queue=queue_name)
            own.freeze()
            sent: list[str] = []
            thread = threading.Thread(target=lambda: sent.append(app.send_task("second", queue=queue_name).id))
            thread.start()
            # Until it has been sent at least twice: then both are in the server's ears.
            until = time.monotonic() + 1.3
            wait_until(lambda: time.monotonic() > until, what="the call to be repeated")
            own.thaw()
            thread.join(20)
            assert len(sent) == 1
            names = [client.hget(f"bull:{queue_name}:{job_id}", "name") for job_id in jobs_of(client, queue_name, "wait")]
            assert sorted(names) == ["first", "second"]
