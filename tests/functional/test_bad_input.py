"""Jobs that cannot be run: each becomes failed with a reason in one step, none is lost, and the worker goes on.

They are written with Redis' own commands, as anything might write them.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Iterator
from typing import Any

import pytest
import redis
from celery import Celery
from jobs import Job, jobs_of
from servers import Server
from worker import Worker


@pytest.fixture(scope="module")
def queue() -> str:
    """A queue for all tests of this module."""
    return f"q-bad-{secrets.token_hex(4)}"


@pytest.fixture(scope="module", autouse=True)
def worker(server: Server, tmp_path_factory: pytest.TempPathFactory, queue: str) -> Iterator[Worker]:
    """Its worker."""
    with Worker(server, tmp_path_factory.mktemp("worker"), [queue]) as made:
        yield made
    made.show()


def put(client: redis.Redis, queue: str, fields: dict[str, Any], job_id: str = "") -> Job:
    """A job as a careless producer would leave it; no field is a must."""
    job = Job(client, queue, job_id or secrets.token_hex(8))
    usual = {"name": "echo", "data": "{}", "opts": "{}", "timestamp": int(time.time() * 1000), "delay": 0, "priority": 0}
    stored = {name: value for name, value in {**usual, **fields}.items() if value is not None}
    with client.pipeline() as pipe:
        if stored:
            pipe.hset(job.key, mapping=stored)
        pipe.lpush(f"{job.base}wait", job.id)
        pipe.zadd(f"{job.base}marker", {"0": 0})
        pipe.execute()
    return job


def goes_on(app: Celery, client: redis.Redis, queue: str) -> None:
    after = Job(client, queue, app.send_task("echo", args=["after"], queue=queue).id)
    assert after.wait_for("completed").returnvalue == "after"
    assert jobs_of(client, queue, "active") == []


def own(**parts: Any) -> str:
    """The `celery` field of a job sent by Celery."""
    return json.dumps(parts)


PICKLE = "application/x-python-serialize"
NO_JSON = "ValueError: the data of this job is not JSON"

#: What stands in the hash, and how the reason begins.
REASONS: dict[str, tuple[dict[str, Any], str]] = {
    "no such task": ({"name": "nobody.knows"}, "NotRegistered: nobody.knows"),
    "no name": ({"name": None}, "NotRegistered: "),
    "a name that is a format": ({"name": "%s %(x)d {0.__class__} %n"}, "NotRegistered: %s %(x)d {0.__class__} %n"),
    "an empty name": ({"name": ""}, "NotRegistered: "),
    "an argument too many": ({"name": "two", "data": "[1, 2, 3]"}, "TypeError: two() takes from 2 to 3 positional arguments"),
    "an argument too few": ({"name": "two", "data": "{}"}, "TypeError: two() missing 1 required positional argument: 'a'"),
    "an unknown keyword": ({"name": "two", "data": '{"a": 1, "z": 2}'}, "TypeError: two() got an unexpected keyword argument 'z'"),
    "data that is no JSON": ({"data": "{not json"}, NO_JSON),
    "data that is NaN": ({"data": "NaN"}, NO_JSON),
    "data nested too deep": ({"data": "[" * 100_000 + "]" * 100_000}, NO_JSON),
    "data of a Celery job that is no JSON": ({"celery": own(), "data": "{oh"}, ""),
    "positional arguments that are none": ({"celery": own(k="a"), "data": "7"}, "TypeError: "),
    "an encoded body that is damaged": (
        {"celery": own(k="b"), "data": '{"body": "%%%"}'},
        "ValueError: the encoded body of this job is damaged",
    ),
    "a content type nobody may send": (
        {"celery": own(k="b", c=[PICKLE, "binary"]), "data": json.dumps({"body": "gASVAAAA", "contentType": PICKLE})},
        "ContentDisallowed: ",
    ),
    "a body that does not decode": (
        {
            "celery": own(k="b", c=["application/json", "utf-8"], t=1),
            "data": '{"body": "e25vdCBqc29u", "contentType": "application/json"}',
        },
        "",
    ),
    "a shape from the future": ({"celery": own(k="future"), "data": "{}"}, ""),
}


@pytest.mark.parametrize("case", REASONS)
def test_reason(app: Celery, redis_client: redis.Redis, queue: str, case: str) -> None:
    fields, reason = REASONS[case]
    job = put(redis_client, queue, fields)
    job.wait_for("failed")
    assert job.reason is not None
    assert job.reason.startswith(reason), job.reason
    assert job.reason
    assert job.history == ["active", "failed", "retries-exhausted"]
    assert "finishedOn" in job.hash
    assert not job.is_locked
    goes_on(app, redis_client, queue)


#: What is odd about these keeps nobody from running them.
HARMLESS: dict[str, dict[str, Any]] = {
    "no data": {"data": None},
    "no options": {"opts": None},
    "options that are no JSON": {"opts": "{attempts"},
    "options that are a list": {"opts": "[1]"},
    "attempts that are no number": {"opts": '{"attempts": "three", "backoff": "soon"}'},
    "retention that makes no sense": {"opts": '{"removeOnComplete": "yes", "removeOnFail": {"age": "old", "count": "many"}}'},
    "retention by halves": {"opts": '{"removeOnComplete": {"age": 10, "limit": 2.5}, "removeOnFail": {"age": 10, "limit": 2.5}}'},
    "retention beyond all bounds": {"opts": '{"removeOnComplete": {"count": 9223372036854775807}, "removeOnFail": 1e18}'},
    "no timestamp, delay, priority": {"timestamp": None, "delay": None, "priority": None},
    "a priority that is no number": {"priority": "high"},
    "a celery field that is no JSON": {"celery": "{oh"},
    "a celery field that is no object": {"celery": "[]"},
    "counters that are no numbers": {"atm": "x", "ats": "y"},
    "a stack trace that is no list": {"stacktrace": "7"},
}


@pytest.mark.parametrize("case", HARMLESS)
@pytest.mark.parametrize("task", ["echo", "boom"])
def test_harmless(app: Celery, redis_client: redis.Redis, queue: str, case: str, task: str) -> None:
    job = put(redis_client, queue, {"name": task, **HARMLESS[case]})
    if task == "echo":
        job.wait_for("completed")
        assert job.returnvalue is None
        assert job.history == ["active", "completed"]
    else:
        job.wait_for("failed")
        assert job.reason == "ValueError: the message"
        assert job.history == ["active", "failed", "retries-exhausted"]
    goes_on(app, redis_client, queue)


HOUR_MS = 3_600_000
#: What stands in the options of a scheduler's iteration.
NO_SCHEDULES: dict[str, Any] = {
    "a rule that is a text": "x\x1b[31m\n",
    "a rule that is a list": [1],
    "a pattern that is a number": {"pattern": 5},
    "a pattern that is none": {"pattern": "\x1b[31m\n"},
    "a time zone that is a number": {"pattern": "0 0 * * *", "tz": 5},
    "a count that is no number": {"every": HOUR_MS, "count": "x"},
    "a start beyond all time": {"pattern": "0 0 * * *", "startDate": 1e300},
    "an end beyond all time": {"pattern": "0 0 * * *", "endDate": [1]},
    "an interval that is no number": {"every": "x"},
    "an interval of nothing": {"every": 0},
}


def put_scheduled(client: redis.Redis, queue: str, repeat: Any) -> tuple[Job, str]:
    """The current iteration of a scheduler, and the id of that."""
    scheduler, due = f"s{secrets.token_hex(4)}", int(time.time() * 1000)
    client.zadd(f"bull:{queue}:repeat", {scheduler: due})
    client.hset(f"bull:{queue}:repeat:{scheduler}", mapping={"name": "echo", "ic": 1, "every": "soon"})
    fields = {"rjk": scheduler, "opts": json.dumps({"repeat": repeat})}
    return put(client, queue, fields, f"repeat:{scheduler}:{due}"), scheduler


@pytest.mark.parametrize("case", NO_SCHEDULES)
def test_no_schedule(app: Celery, redis_client: redis.Redis, queue: str, worker: Worker, case: str) -> None:
    """The job runs, and the schedule ends with it."""
    job, scheduler = put_scheduled(redis_client, queue, NO_SCHEDULES[case])
    job.wait_for("completed")
    assert job.attempts_started == 1
    assert not any(other.startswith(f"repeat:{scheduler}:") for other in jobs_of(redis_client, queue, "delayed"))
    line = next(line for line in worker.log.splitlines() if f"the schedule of job {job.id} of bull:{queue} ends with it: " in line)
    assert line.isprintable()
    goes_on(app, redis_client, queue)


@pytest.mark.parametrize(("limit", "goes"), [("3", True), ("2", False), (2.5, True), ("soon", True), ([], True)])
def test_a_limit_is_compared_as_javascript_does(app: Celery, redis_client: redis.Redis, queue: str, limit: Any, goes: bool) -> None:
    job, scheduler = put_scheduled(redis_client, queue, {"every": HOUR_MS, "count": 2 if limit != 2.5 else 1, "limit": limit})
    job.wait_for("completed")
    assert any(other.startswith(f"repeat:{scheduler}:") for other in jobs_of(redis_client, queue, "delayed")) is goes
    goes_on(app, redis_client, queue)


@pytest.mark.parametrize("key", ["wait", "prioritized"])
def test_ghost(app: Celery, redis_client: redis.Redis, queue: str, key: str) -> None:
    """An id whose hash is gone is never active: it is failed, and says why."""
    job = Job(redis_client, queue, f"ghost-{secrets.token_hex(4)}")
    if key == "wait":
        redis_client.lpush(f"{job.base}wait", job.id)
    else:
        redis_client.zadd(f"{job.base}prioritized", {job.id: 1})
    redis_client.zadd(f"{job.base}marker", {"0": 0})
    job.wait_for("failed")
    assert job.reason is not None
    assert job.reason.startswith("Missing key for job ghost-")
    assert job.history == ["failed"]
    goes_on(app, redis_client, queue)


def test_ghosts_among_others(app: Celery, redis_client: redis.Redis, queue: str) -> None:
    ghosts = [f"ghost-{secrets.token_hex(4)}" for _ in range(3)]
    before = put(redis_client, queue, {})
    redis_client.lpush(f"{before.base}wait", *ghosts)
    behind = put(redis_client, queue, {})
    before.wait_for("completed")
    behind.wait_for("completed")
    for ghost in ghosts:
        Job(redis_client, queue, ghost).wait_for("failed")
    goes_on(app, redis_client, queue)


def test_job_gone_while_it_runs(app: Celery, redis_client: redis.Redis, queue: str, tmp_path: Any) -> None:
    """Somebody deletes the job: its end is nobody's, and the worker goes on."""
    at = str(tmp_path / "it")
    job = Job(redis_client, queue, app.send_task("hold", args=[at], queue=queue).id)
    job.wait_for("active")
    redis_client.delete(job.key, f"{job.key}:lock")
    redis_client.lrem(f"{job.base}active", 0, job.id)
    (tmp_path / "it.go").touch()
    goes_on(app, redis_client, queue)
    assert not redis_client.exists(job.key)
