"""One queue, filled and served by both sides at once: every job is done exactly once, and nothing is left over."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import redis
from celery import Celery
from interop_tasks import count
from node_driver import Node
from waiting import wait_until

JOBS = 400


def wishes(n: int) -> dict[str, Any]:
    """Every fifth has a priority, every seventh is delayed, every eleventh is put before the others."""
    wish: dict[str, Any] = {}
    if n % 5 == 0:
        wish["priority"] = 1 + n % 3
    if n % 7 == 0:
        wish["delay"] = n % 200
    if n % 11 == 0:
        wish["lifo"] = True
    return wish


def test_every_job_is_done_once(
    node: Node, queue_name: str, celery_app: Celery, celery_workers: Callable[[str], Any], redis_client: redis.Redis
) -> None:
    key = f"{queue_name}:done"
    node.call("queueEvents", queue=queue_name)
    serving = [celery_workers(pool) for pool in ("prefork", "solo")]
    for worker in serving:
        worker.consume(queue_name)
    try:
        # A processor that takes its time, or Node would have done everything before a Python process has begun.
        node.call("worker", queue=queue_name, opts={"concurrency": 2}, default={"sleep": 5, "echo": True})
        half = [{"name": "count", "data": {"key": key, "n": n}, "opts": wishes(n)} for n in range(0, JOBS, 2)]
        filling = node.begin("addBulk", queue=queue_name, jobs=half)
        for n in range(1, JOBS, 2):
            count.apply_async(kwargs={"key": key, "n": n}, queue=queue_name, bullmq=wishes(n))
        filling.result(30)

        def counts() -> dict[str, int]:
            return {state: n for state, n in node.call("getJobCounts", queue=queue_name).items() if n}

        wait_until(lambda: counts() == {"completed": JOBS}, 60, "all jobs to be completed")
    finally:
        for worker in serving:
            worker.cancel(queue_name)

    by_node = Counter(run["data"]["n"] for run in node.call("runs", queue=queue_name))
    by_celery = Counter({int(n): int(times) for n, times in redis_client.hgetall(key).items()})  # type: ignore[union-attr]
    assert by_node + by_celery == Counter(range(JOBS))
    # Both had their part.
    assert min(by_node.total(), by_celery.total()) > JOBS / 20

    base = f"bull:{queue_name}"
    left = [name for name in ("wait", "paused", "active", "prioritized", "delayed", "failed") if redis_client.exists(f"{base}:{name}")]
    assert left == []
    assert list(redis_client.scan_iter(f"{base}:*:lock")) == []

    completed = Counter(event["args"]["jobId"] for event in node.call("events", queue=queue_name) if event["event"] == "completed")
    assert (len(completed), completed.total()) == (JOBS, JOBS)
    for job in node.queue_call(queue_name, "getCompleted", 0, 20):
        assert (job["attemptsMade"], job["attemptsStarted"], job["stalledCounter"]) == (1, 1, 0)


def test_attempts_may_change_sides(
    node: Node, queue_name: str, celery_app: Celery, celery_workers: Callable[[str], Any], redis_client: redis.Redis
) -> None:
    """Each attempt is whoever's turn it is; together they are as many as the producer wished."""
    worker = celery_workers("prefork")
    worker.consume(queue_name)
    try:
        node.call("worker", queue=queue_name, opts={"concurrency": 2}, default={"sleep": 3, "throw": "not in Node"})
        opts = {"attempts": 4, "backoff": {"type": "fixed", "delay": 5}}
        jobs = [{"name": "fail", "data": {"message": "not in Celery"}, "opts": opts}] * 60
        ids = [job["id"] for job in node.call("addBulk", queue=queue_name, jobs=jobs)]
        wait_until(lambda: node.call("getJobCounts", queue=queue_name)["failed"] == len(ids), 40, "all jobs to fail")
    finally:
        worker.cancel(queue_name)

    tried_in = Counter[str]()
    for job_id in ids:
        job = node.job(queue_name, job_id)
        assert (job["attemptsMade"], job["attemptsStarted"], len(job["stacktrace"])) == (4, 4, 4)
        tried_in.update("Celery" if "not in Celery" in trace else "Node" for trace in job["stacktrace"])
    assert tried_in.total() == 4 * len(ids)
    assert min(tried_in.values()) > len(ids) / 20
