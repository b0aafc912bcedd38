"""`bullmq_kombu.Queue` beside Node: what one side adds, changes or stops, the other serves, sees and starts again."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from celery_worker import CeleryWorker
from kombu import Connection
from node_driver import Node
from servers import Server
from waiting import wait_until

from bullmq_kombu import Queue, QueueEvents, scripts
from bullmq_kombu.errors import BadInput, BullMQError, JobMissing, LockMismatch, NotInState
from bullmq_kombu.scripts import Ending, Worker

OPTIONS: dict[str, Any] = {
    "attempts": 3, "backoff": {"type": "exponential", "delay": 100}, "delay": 60_000, "priority": 7, "lifo": True, "keepLogs": 4,
    "removeOnComplete": {"age": 60, "count": 5}, "removeOnFail": 10, "deduplication": {"id": "x", "ttl": 60_000}, "jobId": "own",
    "stackTraceLimit": 2, "failParentOnFailure": True,
}  # fmt: skip
LOCK_MS = 60_000


@pytest.fixture
def queue(server: Server, queue_name: str) -> Iterator[Queue]:
    with Queue(queue_name, server.url) as opened:
        yield opened


# -- adding and reading ----------------------------------------------------------------------------------------------------------


def test_node_reads_what_python_adds(node: Node, queue: Queue) -> None:
    data = {"to": "ä@b.c", "n": [1, None, 1.5]}
    added = queue.add("send", data, OPTIONS)
    job = node.job(queue.name, "own")

    assert (job["name"], job["data"], job["timestamp"]) == ("send", data, added.timestamp)
    assert {name: job["opts"][name] for name in OPTIONS} == OPTIONS
    assert (job["delay"], job["priority"], job["deduplicationId"]) == (60_000, 7, "x")


def test_python_reads_what_node_adds_and_does(node: Node, queue: Queue) -> None:
    node.call("worker", queue=queue.name, opts={"name": "nodeworker"}, default={"log": ["hello"], "progress": [40], "throw": "boom"})
    node.call("add", queue=queue.name, name="send", data={"a": 1}, opts={**OPTIONS, "delay": 1, "attempts": 1})
    node.wait_for_state(queue.name, "own", "failed")
    job = queue.get_job("own")
    assert job is not None
    theirs = node.job(queue.name, "own")

    assert {name: job.opts[name] for name in OPTIONS if name not in ("delay", "attempts")} == {
        name: value for name, value in OPTIONS.items() if name not in ("delay", "attempts")
    }
    for mine, name in (
        ("name", "name"), ("data", "data"), ("timestamp", "timestamp"), ("delay", "delay"), ("priority", "priority"),
        ("progress", "progress"), ("failed_reason", "failedReason"), ("stacktrace", "stacktrace"), ("attempts_made", "attemptsMade"),
        ("attempts_started", "attemptsStarted"), ("stalled_counter", "stalledCounter"), ("processed_on", "processedOn"),
        ("finished_on", "finishedOn"), ("processed_by", "processedBy"), ("deduplication_id", "deduplicationId"),
    ):  # fmt: skip
        assert getattr(job, mine) == theirs[name], name
    assert job.get_logs() == ["hello"]
    assert job.get_state() == "failed"
    assert job.is_failed()


def test_default_options_bulk_and_what_is_refused(node: Node, server: Server, queue_name: str) -> None:
    with Queue(queue_name, Connection(server.url), default_job_options={"attempts": 4, "removeOnComplete": True}) as queue:
        one, other = queue.add_bulk([{"name": "a"}, {"name": "b", "data": None, "opts": {"attempts": 2}}])
        assert [node.job(queue_name, job.id)["opts"]["attempts"] for job in (one, other)] == [4, 2]
        assert [node.job(queue_name, job.id)["data"] for job in (one, other)] == [{}, None]
        assert queue.add_bulk([]) == []
        for data, opts in (({1, 2}, {}), (float("nan"), {}), ({}, {"atempts": 2}), ({}, {"jobId": "12"}), ("long", {"sizeLimit": 3})):
            with pytest.raises(BadInput):
                queue.add("n", data, opts)
        assert queue.get_job_counts("waiting") == {"waiting": 2}
    with pytest.raises(BadInput):
        Queue(queue_name, server.url, default_job_options={"atempts": 2})
    for name in ("", "a:b"):
        with pytest.raises(BadInput, match="Queue name"):
            Queue(name, server.url)


def test_a_prefix_and_a_shared_connection(node: Node, server: Server, queue_name: str) -> None:
    with Queue(queue_name, server.url, prefix="other") as queue:
        job = queue.add("n", {})
        assert node.call("getJob", queue=queue_name, prefix="other", jobId=job.id)["name"] == "n"
        with Queue(queue_name, queue.server) as shared:
            assert shared.get_job(job.id) is not None, "the prefix comes with the connection"
        assert queue.count() == 1, "which stays open"


# -- what the one does to the other's work ---------------------------------------------------------------------------------------


def test_pause_and_resume_from_python(node: Node, queue: Queue) -> None:
    node.call("worker", queue=queue.name, default={"return": 1})
    queue.pause()
    assert queue.is_paused()
    assert node.call("queueCall", queue=queue.name, method="isPaused") is True
    ids = [queue.add("n").id for _ in range(3)]
    assert queue.get_job_counts("waiting", "active", "completed") == {"waiting": 3, "active": 0, "completed": 0}
    before = time.monotonic()
    queue.resume()
    for job_id in ids:
        node.wait_for_state(queue.name, job_id, "completed")
    assert time.monotonic() - before < 4, "sooner than an idle worker asks by itself"


@pytest.mark.parametrize("order", list(itertools.product(["v5", "v6"], repeat=2)), ids="-".join)
def test_a_mixed_fleet_loses_nothing_when_python_pauses_and_resumes(
    node_of: Callable[[str], Node], queue: Queue, order: tuple[str, str]
) -> None:
    """Jobs of both majors, added while either or we had paused the queue, all run, in the order each side gave them."""
    for number, name in enumerate(order):
        node_of(name).call("queueCall", queue=queue.name, method="pause")
        node_of(name).call("add", queue=queue.name, name="n", data={}, opts={"jobId": f"j{number}"})
        queue.pause()
        queue.add("n", {}, {"jobId": f"p{number}"})
    queue.resume()

    assert queue.get_job_counts("waiting") == {"waiting": 4}
    worker = Worker("t:1", LOCK_MS)
    taken, _ = scripts.take(queue.server, [queue.base], queue.clock(), 9, worker)
    assert sorted(one.id for one in taken) == ["j0", "j1", "p0", "p1"]
    assert queue.server.call("EXISTS", f"{queue.base}paused") == 0


def test_limits_set_from_python_bind_node(node: Node, queue: Queue) -> None:
    queue.set_global_concurrency(1)
    assert queue.get_global_concurrency() == node.call("queueCall", queue=queue.name, method="getGlobalConcurrency") == 1
    queue.set_global_rate_limit(2, 60_000)
    assert queue.get_global_rate_limit() == node.call("queueCall", queue=queue.name, method="getGlobalRateLimit")
    for _ in range(4):
        queue.add("n")
    node.call("worker", queue=queue.name, opts={"concurrency": 4}, default={"return": 1})
    wait_until(lambda: queue.get_job_counts("completed") == {"completed": 2}, what="the jobs within the limit")
    assert 0 < queue.get_rate_limit_ttl() <= 60_000
    assert not queue.is_maxed()

    queue.remove_global_rate_limit()
    queue.remove_global_concurrency()
    assert queue.get_global_rate_limit() is queue.get_global_concurrency() is None
    assert queue.remove_rate_limit_key() is True
    queue.rate_limit(5000)
    assert node.call("queueCall", queue=queue.name, method="getRateLimitTtl") > 0


def test_workers_of_node_are_listed(node: Node, queue: Queue) -> None:
    node.call("worker", queue=queue.name, opts={"name": "one"})
    node.call("worker", queue=queue.name)
    wait_until(lambda: len(queue.get_workers()) == 2, what="both workers")
    assert {worker["name"] for worker in queue.get_workers()} == {queue.name}
    assert any(worker["rawname"].endswith(":w:one") for worker in queue.get_workers())


def test_metrics_of_node(node: Node, queue: Queue) -> None:
    node.call(
        "worker", queue=queue.name, opts={"metrics": {"maxDataPoints": 10}}, behaviours={"bad": {"throw": "x"}}, default={"return": 1}
    )
    for name in ("n", "n", "bad"):
        queue.add(name)
    wait_until(lambda: queue.get_job_counts("completed", "failed") == {"completed": 2, "failed": 1}, what="the jobs to end")
    for state in ("completed", "failed"):
        mine, theirs = queue.get_metrics(state), node.call("queueCall", queue=queue.name, method="getMetrics", args=[state])
        assert (mine["meta"], mine["count"]) == (theirs["meta"], theirs["count"])
    with pytest.raises(BadInput):
        queue.get_metrics("active")


def test_metrics_of_celery(node: Node, server: Server, queue: Queue, tmp_path: Path) -> None:
    settings = {"broker_transport_options": {"metrics": 10}}
    with CeleryWorker(server, tmp_path, pool="solo", queues=[queue.name], settings=settings):
        sent = {name: queue.add(name, data).id for name, data in (("value", 1), ("fail", {}), ("value.again", 2))}
        node.wait_for_state(queue.name, sent["value"], "completed")
        for name in ("fail", "value.again"):
            node.wait_for_state(queue.name, sent[name], "failed")
    for state, count in (("completed", 1), ("failed", 2)):
        mine, theirs = queue.get_metrics(state), node.queue_call(queue.name, "getMetrics", state)
        assert theirs["meta"]["count"] == count
        assert (mine["meta"], mine["count"]) == (theirs["meta"], theirs["count"])


def test_one_job_by_hand(node: Node, queue: Queue) -> None:
    with QueueEvents(queue.name, queue.server) as events:
        delayed = queue.add("n", {}, {"delay": 600_000, "priority": 3})
        delayed.change_delay(500_000)
        delayed.change_priority(1)
        delayed.update_data({"b": 2})
        delayed.update_progress(30)
        assert [delayed.log(f"line {number}") for number in range(3)] == [1, 2, 3]
        delayed.clear_logs(keep=1)
        theirs = node.job(queue.name, delayed.id)
        assert (theirs["delay"], theirs["priority"], theirs["data"], theirs["progress"]) == (500_000, 1, {"b": 2}, 30)
        assert delayed.get_logs() == ["line 2"]
        assert queue.get_counts_per_priority([1]) == {1: 0}

        worker = node.call("worker", queue=queue.name, default={"throw": "boom"})
        delayed.promote()
        node.wait_for_state(queue.name, delayed.id, "failed")
        node.call("behave", worker=worker, default={"return": {"ok": True}})
        delayed.refresh().retry(reset_attempts_made=True)
        assert delayed.wait_until_finished(events, 10) == {"ok": True}
        assert delayed.refresh().attempts_made == 1
        with pytest.raises(NotInState, match=f"Job {delayed.id} is not in the delayed state. promote"):
            delayed.promote()
        delayed.remove()
        assert queue.get_job(delayed.id) is None
        with pytest.raises(JobMissing):
            delayed.refresh()


def test_a_job_that_node_works_on_is_not_removed(node: Node, queue: Queue) -> None:
    node.call("worker", queue=queue.name, default={"hold": queue.name})
    job = queue.add("n")
    node.wait_for_state(queue.name, job.id, "active")
    assert queue.remove(job.id) is False
    with pytest.raises(LockMismatch, match="locked by another worker"):
        job.remove()
    queue.pause()
    with pytest.raises(BullMQError, match="active jobs"):
        queue.obliterate()
    node.call("release", gate=queue.name)
    node.wait_for_state(queue.name, job.id, "completed")
    queue.obliterate()
    assert list(queue.server.call("KEYS", f"{queue.base}*")) == []


def test_many_jobs_by_hand(node: Node, queue: Queue) -> None:
    worker = node.call("worker", queue=queue.name, default={"throw": "boom"})
    jobs = queue.add_bulk([{"name": "n"}] * 5)
    for job in jobs:
        node.wait_for_state(queue.name, job.id, "failed")
    node.call("behave", worker=worker, default={"return": 1})
    assert queue.retry_jobs("failed", count=2) == 5
    for job in jobs:
        node.wait_for_state(queue.name, job.id, "completed")
    queue.add_bulk([{"name": "n", "opts": {"delay": 600_000}}] * 3)
    assert queue.promote_jobs() == 3
    wait_until(lambda: queue.get_job_counts("completed") == {"completed": 8}, what="the promoted jobs to run")
    assert queue.clean(0, 3, "completed") == [job.id for job in jobs[:3]]
    assert len(queue.clean(0, 0, "completed")) == 5
    assert queue.count() == 0


def test_orphans_go_and_nothing_else_does(node: Node, queue: Queue, redis_client: redis.Redis) -> None:
    node.call("worker", queue=queue.name, opts={"metrics": {"maxDataPoints": 10}}, default={"throw": "x"})
    kept = queue.add("n")
    node.wait_for_state(queue.name, kept.id, "failed")
    queue.add("n", {}, {"jobId": "lost", "delay": 600_000})
    redis_client.zrem(f"{queue.base}delayed", "lost")
    before = set(redis_client.keys(f"{queue.base}*"))

    assert queue.remove_orphaned_jobs() == 1
    assert set(redis_client.keys(f"{queue.base}*")) == before - {f"{queue.base}lost"}
    assert queue.remove_orphaned_jobs() == 0


# -- hand-over -------------------------------------------------------------------------------------------------------------------


def test_taken_by_node_and_ended_by_us(node: Node, queue: Queue) -> None:
    job = queue.add("n")
    node.call("queueEvents", queue=queue.name)
    assert node.call("getNextJob", queue=queue.name, token="t:1")["id"] == job.id
    codes, _, _ = scripts.finish(queue.server, [Ending("completed", queue.base, job.id, "t:1", '{"by":"us"}', "", -1)], queue.clock())
    assert codes == [0]
    assert node.call("waitUntilFinished", queue=queue.name, jobId=job.id, ttl=10_000) == {"by": "us"}


def test_taken_by_us_and_ended_by_node(node: Node, queue: Queue, redis_client: redis.Redis) -> None:
    job = queue.add("n")
    # Node holds what it took itself: it takes the job, and the lock passes to our token and back.
    node.call("getNextJob", queue=queue.name, token="t:1")
    redis_client.delete(f"{queue.base}{job.id}:lock")
    for _ in range(2):
        scripts.recover(queue.server, [queue.base], queue.clock(), 5, 60_000)
        redis_client.delete(f"{queue.base}stalled-check")
    assert [one.id for one in scripts.take(queue.server, [queue.base], queue.clock(), 1, Worker("t:2", LOCK_MS))[0]] == [job.id]
    node.call("moveToCompleted", queue=queue.name, jobId=job.id, token="t:2", value={"by": "node"})
    assert job.refresh().returnvalue == {"by": "node"}
    assert job.get_state() == "completed"
    assert job.stalled_counter == 1


def test_stalled_by_us_and_recovered_by_node(node: Node, queue: Queue) -> None:
    job = queue.add("n")
    scripts.take(queue.server, [queue.base], queue.clock(), 1, Worker("t:1", 1))
    node.call("worker", queue=queue.name, opts={"stalledInterval": 50}, default={"return": "recovered"})
    node.wait_for_state(queue.name, job.id, "completed")
    assert (job.refresh().returnvalue, job.stalled_counter) == ("recovered", 1)
