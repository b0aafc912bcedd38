"""`retry`: a task's own retry carries its job on, with what the task says of it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from one_queue import NOW, WORKER, Queue, started

from bullmq_kombu import scripts


def retry(queue: Queue, job_id: str = "a", delay: int = 0, *said: Any, token: str = WORKER.token, now: int = NOW) -> int:
    return scripts.retry(queue.server, queue.base, job_id, token, now, delay, *said)


def test_the_job_waits_again_with_its_reason_and_trace(queue: Queue) -> None:
    queue.active(queue.job("a"))
    queue.set("marker", "DEL")

    assert retry(queue, "a", 0, "Retry: soon", "Traceback…") == 0

    assert queue.without_meta() == {
        "id": "1",
        "wait": ["a"],
        "marker": {"0": 0},
        "a": started(atm="1", failedReason="Retry: soon", stacktrace='["Traceback…"]'),
    }
    assert queue.events() == ["waiting jobId a prev active"]


def test_a_countdown_makes_it_delayed(queue: Queue) -> None:
    queue.active(queue.job("a"))

    assert retry(queue, "a", 1500, now=NOW + 5) == 0

    assert queue.value("delayed") == {"a": (NOW + 1505) * 4096}
    assert queue.value("a") == {**started(atm="1"), "delay": "1500"}
    assert queue.events() == [f"delayed jobId a delay {NOW + 1505}"]


def test_the_fields_given_are_written(queue: Queue) -> None:
    queue.active(queue.job("a"))
    fields = ("data", '{"v":2}', "celery", '{"h":{"retries":1}}', "name", "other")

    assert retry(queue, "a", 0, "", "", '{"skip":true,"log":"line"}', fields) == 0

    assert queue.value("a") == {**started(data='{"v":2}', celery='{"h":{"retries":1}}'), "name": "other"}
    assert queue.value("a:logs") == ["line"]


@pytest.mark.parametrize(
    ("before", "opts", "after"),
    [
        (None, {}, ["new"]),
        ('["old"]', {}, ["old", "new"]),
        ('["1","2","3"]', {"stackTraceLimit": 2}, ["3", "new"]),
        ('["old"]', {"stackTraceLimit": 0}, []),
        ("[]", {}, ["new"]),
        ("no JSON", {}, ["new"]),
        ("7", {}, ["new"]),
    ],
)
def test_its_trace_joins_those_before(queue: Queue, before: str | None, opts: dict[str, Any], after: list[str]) -> None:
    queue.active(queue.job("a", opts=json.dumps(opts)))
    if before is not None:
        queue.set("a", "HSET", "stacktrace", before)
    retry(queue, "a", 0, "again", "new")

    assert json.loads(queue.value("a")["stacktrace"]) == after


def test_options_that_are_no_json_are_no_hindrance(queue: Queue) -> None:
    queue.active(queue.job("a", opts="[no"))

    assert retry(queue, "a", 0, "again", "new") == 0
    assert queue.value("a")["stacktrace"] == '["new"]'


def test_a_promise_made_for_this_attempt_is_taken_back(queue: Queue) -> None:
    queue.active(queue.job("a"))
    queue.end(queue.ending("commit", "a"))
    retry(queue)

    assert "defa" not in queue.value("a")


@pytest.mark.parametrize(
    ("token", "without", "code"), [("worker:1", "a", -1), ("worker:1", "a:lock", -2), ("worker:1", "active", -3), ("worker:9", "", -6)]
)
def test_it_is_guarded_by_the_token(queue: Queue, token: str, without: str, code: int) -> None:
    queue.active(queue.job("a"))
    queue.set(without or "nothing", "DEL")
    before = queue.picture()

    assert retry(queue, "a", 0, "again", "new", "", ("data", "1"), token=token) == code
    assert queue.picture() == before
    assert queue.events() == []


def test_what_is_due_is_promoted(queue: Queue) -> None:
    queue.active(queue.job("a"))
    queue.add(queue.job("d", delay=10))
    retry(queue, now=NOW + 10)

    assert queue.value("wait") == ["a", "d"]
