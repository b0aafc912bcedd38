"""Job schedulers across the languages: whoever takes an iteration makes the next one, whoever made the scheduler."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import pytest
import redis
from celery_worker import CeleryWorker
from node_driver import Node
from servers import Server
from waiting import wait_until

from bullmq_kombu.errors import BadInput, BelongsToScheduler
from bullmq_kombu.queue import Queue

Serve = Callable[[str], CeleryWorker]
EVERY_MS = 200
TIMES = 4


@pytest.fixture
def queue(server: Server, queue_name: str) -> Iterator[Queue]:
    with Queue(queue_name, server.url) as made:
        yield made


def make(maker: str, node: Node, queue: Queue, rule: dict[str, Any], template: dict[str, Any]) -> None:
    if maker == "node":
        node.queue_call(queue.name, "upsertJobScheduler", "s", rule, template)
    else:
        queue.upsert_job_scheduler("s", rule, template)


def due_times(redis_client: redis.Redis, queue: Queue) -> list[int]:
    """Of the iterations that have completed."""
    ids = redis_client.zrange(f"{queue.base}completed", 0, -1)
    return sorted(int(job_id.rpartition(":")[2]) for job_id in ids)


@pytest.mark.parametrize("rule", [{"every": EVERY_MS}, {"pattern": "* * * * * *"}], ids=lambda rule: next(iter(rule)))
@pytest.mark.parametrize(("maker", "worker"), [("node", "celery"), ("celery", "node"), ("celery", "celery")])
def test_a_schedule_goes_on(
    maker: str, worker: str, rule: dict[str, Any], node: Node, queue: Queue, serve: Serve, redis_client: redis.Redis
) -> None:
    if worker == "celery":
        serve(queue.name)
    else:
        node.call("worker", queue=queue.name, default={"return": 7})
    make(maker, node, queue, {**rule, "limit": TIMES}, {"name": "value", "data": {"value": 7}})
    wait_until(lambda: len(due_times(redis_client, queue)) == TIMES, what="all iterations")
    times = due_times(redis_client, queue)
    step = rule.get("every", 1000)
    assert [later - before for before, later in pairwise(times)] == [step] * (TIMES - 1)
    assert {job.returnvalue for job in queue.get_jobs("completed")} == {7}
    scheduler = queue.get_job_scheduler("s")
    assert scheduler is not None
    assert (scheduler.next, scheduler.iteration_count, scheduler.limit) == (times[-1], TIMES, TIMES)
    assert queue.get_job_counts("waiting", "delayed", "active") == {"waiting": 0, "delayed": 0, "active": 0}


def test_a_fleet_makes_each_iteration_once(node: Node, queue: Queue, serve: Serve, redis_client: redis.Redis) -> None:
    serve(queue.name)
    node.call("worker", queue=queue.name, default={"return": 7})
    make("node", node, queue, {"every": 100, "limit": 15}, {"name": "value", "data": {"value": 7}})
    wait_until(lambda: len(due_times(redis_client, queue)) == 15, what="all iterations")
    times = due_times(redis_client, queue)
    assert [later - before for before, later in pairwise(times)] == [100] * 14
    assert redis_client.get(f"{queue.base}id") == "15"


def test_a_task_that_fails_does_not_end_its_schedule(node: Node, queue: Queue, serve: Serve, redis_client: redis.Redis) -> None:
    serve(queue.name)
    make("node", node, queue, {"every": EVERY_MS, "limit": 3}, {"name": "fail", "data": {}, "opts": {"attempts": 2}})
    wait_until(lambda: redis_client.zcard(f"{queue.base}failed") == 3, what="all iterations")
    assert {job.attempts_made for job in queue.get_jobs("failed")} == {2}
    assert redis_client.get(f"{queue.base}id") == "3"


def test_a_task_knows_its_scheduler(node: Node, queue: Queue, serve: Serve) -> None:
    serve(queue.name)
    make("node", node, queue, {"every": 60_000}, {"name": "job.about", "data": {}})
    (job,) = wait_until(lambda: queue.get_jobs("completed"), what="the first iteration")
    assert job.returnvalue["repeat_job_key"] == "s"
    assert job.returnvalue["opts"]["repeat"] == {"every": 60_000, "count": 1}
    assert job.returnvalue["task_id"] == job.id == f"repeat:s:{job.id.rpartition(':')[2]}"


def test_a_pattern_that_nobody_understands_ends_its_schedule_and_not_the_worker(
    node: Node, queue: Queue, serve: Serve, redis_client: redis.Redis
) -> None:
    job = queue.upsert_job_scheduler("s", {"pattern": "0 0 * * * *", "immediately": True}, {"name": "value", "data": {"value": 1}})
    assert job is not None
    opts = redis_client.hget(job.key, "opts")
    assert opts is not None
    redis_client.hset(job.key, "opts", opts.replace("0 0 * * * *", "whenever"))
    worker = serve(queue.name)
    assert node.wait_for_state(queue.name, job.id, "completed")["returnvalue"] == 1
    assert "ends with it" in worker.log


def test_what_each_side_says_of_the_schedulers(node: Node, queue: Queue) -> None:
    template = {"name": "tick", "data": {"a": [1]}, "opts": {"attempts": 3, "keepLogs": 2}}
    queue.upsert_job_scheduler("ours", {"pattern": "0 30 9 * * 1-5", "tz": "Europe/Berlin", "limit": 9}, template)
    node.queue_call(queue.name, "upsertJobScheduler", "theirs", {"every": 3_600_000, "offset": 60_000}, template)
    said = node.queue_call(queue.name, "getJobSchedulers", 0, -1, True)
    found = queue.get_job_schedulers(asc=True)
    assert queue.get_job_schedulers_count() == 2
    assert [one.id for one in reversed(queue.get_job_schedulers())] == [one.id for one in found]
    for mine, theirs in zip(found, said, strict=True):
        expected = tuple(theirs[name] for name in ("key", "name", "next", "iterationCount"))
        assert (mine.id, mine.name, mine.next, mine.iteration_count) == expected
        assert (mine.every, mine.pattern, mine.tz, mine.limit) == tuple(theirs.get(name) for name in ("every", "pattern", "tz", "limit"))
        opts = {name: value for name, value in theirs["template"]["opts"].items() if value is not None}
        assert (mine.data, mine.opts) == ({"a": [1]}, opts)
    assert queue.get_job_scheduler("nobody") is None
    job = queue.get_jobs("delayed")[0]
    with pytest.raises(BelongsToScheduler):
        job.remove()
    assert queue.remove_job_scheduler("theirs") is True
    assert node.queue_call(queue.name, "removeJobScheduler", "ours") is True
    assert queue.get_job_counts("delayed") == {"delayed": 0}


@pytest.mark.parametrize("node", ["v5"], indirect=True)
def test_a_repeatable_job_of_bullmq_5_goes_on_with_its_data(node: Node, queue: Queue, serve: Serve, redis_client: redis.Redis) -> None:
    node.call("add", queue=queue.name, name="value", data={"value": 3}, opts={"repeat": {"every": EVERY_MS, "limit": 4}})
    serve(queue.name)
    wait_until(lambda: redis_client.zcard(f"{queue.base}completed") >= 3, what="some iterations")
    assert {job.returnvalue for job in queue.get_jobs("completed")} == {3}


@pytest.mark.parametrize(
    ("rule", "template", "message"),
    [
        ({}, {}, "either .pattern or .every"),
        ({"every": 1000, "pattern": "* * * * *"}, {}, "either .pattern or .every"),
        ({"every": 0}, {}, "'every' of a job scheduler is an integer"),
        ({"pattern": "99 * * * *"}, {}, "'99' is no minute of 0-59"),
        ({"pattern": "* * * * *", "tz": "Mars"}, {}, "unknown time zone 'Mars'"),
        ({"patern": "* * * * *"}, {}, "did you mean 'pattern'"),
        ({"every": 1000, "startDate": "soon"}, {}, "'startDate' of a job scheduler is a time"),
        ({"every": 1000}, {"dat": {}}, "did you mean 'data'"),
        ({"every": 1000}, {"opts": {"delay": 5}}, "no option 'delay'"),
        ({"every": 1000}, {"opts": {"atempts": 5}}, "did you mean 'attempts'"),
    ],
)
def test_a_wrong_scheduler_is_an_error_at_the_call(rule: dict[str, Any], template: dict[str, Any], message: str, queue: Queue) -> None:
    with pytest.raises(BadInput, match=message):
        queue.upsert_job_scheduler("s", rule, template)
    assert queue.get_job_schedulers_count() == 0
