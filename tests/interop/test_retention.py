"""How many finished jobs stay: what the job says holds, whoever sent it and whoever worked."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import redis
from celery import Celery
from celery_worker import CeleryWorker
from interop_tasks import fail, value
from node_driver import Node
from servers import Server
from waiting import wait_until

Serve = Callable[[str], Any]


def run_all(node: Node, queue: str, name: str, count: int, opts: dict[str, Any]) -> list[str]:
    """Adds jobs, and waits until each of them has ended."""
    node.call("queueEvents", queue=queue)
    ids = [job["id"] for job in node.call("addBulk", queue=queue, jobs=[{"name": name, "data": {}, "opts": opts}] * count)]
    for job_id in ids:
        node.wait_for_event(queue, "failed" if name == "fail" else "completed", jobId=job_id)
    return ids


def kept(node: Node, queue: str, state: str) -> int:
    return int(node.call("getJobCounts", queue=queue)[state])


def test_celery_keeps_of_nodes_jobs_what_node_wished(node: Node, queue_name: str, serve: Serve, redis_client: redis.Redis) -> None:
    serve(queue_name)
    for number, (opts, left) in enumerate(
        [({"removeOnComplete": True}, 0), ({"removeOnComplete": 2}, 2), ({"removeOnComplete": {"count": 3}}, 3), ({}, 5)]
    ):
        queue = f"{queue_name}-{number}"
        serve(queue)
        run_all(node, queue, "seen", 5, opts)
        assert kept(node, queue, "completed") == left, opts
        hashes = [key for key in redis_client.scan_iter(f"bull:{queue}:*") if key.rsplit(":", 1)[1].isdigit()]
        assert len(hashes) == left, opts


def test_the_same_for_failed_ones(node: Node, queue_name: str, serve: Serve) -> None:
    for number, (opts, left) in enumerate(
        [({"removeOnFail": True}, 0), ({"removeOnFail": 2}, 2), ({"removeOnFail": {"age": 3600, "count": 3}}, 3), ({}, 5)]
    ):
        queue = f"{queue_name}-{number}"
        serve(queue)
        run_all(node, queue, "fail", 5, opts)
        assert kept(node, queue, "failed") == left, opts


def test_what_is_too_old_goes_when_the_next_one_ends(node: Node, queue_name: str, serve: Serve, redis_client: redis.Redis) -> None:
    serve(queue_name)
    old = run_all(node, queue_name, "seen", 3, {})
    for job_id in old:
        redis_client.zincrby(f"bull:{queue_name}:completed", -60_000, job_id)
    run_all(node, queue_name, "seen", 1, {"removeOnComplete": {"age": 30, "limit": 2}})
    assert kept(node, queue_name, "completed") == 2  # one old one, since the producer wished two at a time
    run_all(node, queue_name, "seen", 1, {"removeOnComplete": {"age": 30}})
    assert kept(node, queue_name, "completed") == 2


def test_node_keeps_of_celerys_jobs_what_celery_wished(node: Node, queue_name: str, celery_app: Celery) -> None:
    node.call("worker", queue=queue_name, behaviours={"fail": {"throw": "no"}})
    for n in range(5):
        value.apply_async((n,), queue=queue_name, bullmq={"removeOnComplete": 2})
        fail.apply_async(queue=queue_name, bullmq={"removeOnFail": True})
    wait_until(lambda: len([run for run in node.call("runs", queue=queue_name) if run["finished"]]) == 10, what="ten runs")
    wait_until(lambda: kept(node, queue_name, "active") == 0)
    assert (kept(node, queue_name, "completed"), kept(node, queue_name, "failed")) == (2, 0)


def test_what_celery_sends_is_not_kept_for_ever(node: Node, queue_name: str, celery_app: Celery) -> None:
    sent = value.apply_async((1,), queue=queue_name)
    opts = node.job(queue_name, sent.id)["opts"]
    assert (opts["removeOnComplete"], opts["removeOnFail"]) == ({"age": 86400, "count": 1000}, {"age": 604800, "count": 5000})


def test_the_workers_own_wish_is_for_jobs_that_say_nothing(
    node_of: Callable[[str], Node], queue_name: str, server: Server, tmp_path: Path, celery_app: Celery
) -> None:
    node = node_of("v6")
    settings = {"broker_transport_options": {"remove_on_complete": 1, "remove_on_fail": True}}
    with CeleryWorker(server, tmp_path, pool="solo", queues=[queue_name], settings=settings):
        run_all(node, queue_name, "seen", 3, {})
        assert kept(node, queue_name, "completed") == 1
        run_all(node, queue_name, "fail", 2, {})
        assert kept(node, queue_name, "failed") == 0
        run_all(node, queue_name, "seen", 3, {"removeOnComplete": False})
        assert kept(node, queue_name, "completed") == 4
