"""Everybody on the same queues at once: Node with BullMQ 5 and 6, BullMQ's own Python port, Celery, and producers of each of them.

5,000 jobs of all kinds, while BullMQ 6 pauses and resumes at random. Every job ends once, in the state it should, and nothing is left.
"""

from __future__ import annotations

import random
import secrets
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import redis
from celery_worker import CeleryWorker
from interop_tasks import app
from node_driver import Node
from python_port import PythonPort
from servers import Server
from waiting import wait_until

from bullmq_kombu import FlowProducer, Queue, QueueEvents

JOBS = 5000
BATCH = 250
BEHAVIOURS = {"value": {"echo": True}, "fail": {"throw": "no such address"}, "fail_until": {"throwTimes": 1, "then": {"echo": True}}}
KEEP = {"removeOnComplete": False, "removeOnFail": False}


def draw_job(dice: random.Random, number: int) -> dict[str, Any]:
    """One job of any kind; its id says whether it should fail."""
    kind = dice.choice(["plain", "plain", "delayed", "prioritized", "lifo", "retried", "failing", "prioritized and delayed"])
    opts: dict[str, Any] = {**KEEP, "jobId": f"{'bad' if kind == 'failing' else 'good'}-{number}"}
    if "delayed" in kind:
        opts["delay"] = dice.randrange(1, 1500)
    if "prioritized" in kind:
        opts["priority"] = dice.randrange(1, 5)
    if kind == "lifo":
        opts["lifo"] = True
    if kind == "failing":
        return {"name": "fail", "data": {}, "opts": {**opts, "attempts": dice.randrange(1, 3)}}
    if kind == "retried":
        # A worker of each kind may fail it once: neither knows of the other's counting.
        data = {"key": f"{secrets.token_hex(4)}", "times": 1}
        return {"name": "fail_until", "data": data, "opts": {**opts, "attempts": 5, "backoff": dice.choice([0, 30])}}
    if dice.random() < 0.1:
        opts["deduplication"] = {"id": f"d{dice.randrange(20)}"}
    return {"name": "value", "data": {"value": number}, "opts": opts}


@pytest.mark.timeout(300)
def test_every_job_ends_once(
    server: Server, queue_name: str, node_of: Callable[[str], Node], serve: Callable[[str], CeleryWorker], redis_client: redis.Redis
) -> None:
    dice = random.Random(seed := secrets.randbits(32))
    print(f"seed {seed}")
    first, second = queue_name, f"{queue_name}-2"
    expected: dict[str, set[str]] = {first: set(), second: set()}
    ended: Counter[tuple[str, str]] = Counter()

    def listen(name: str) -> QueueEvents:
        events = QueueEvents(name, server.url, last_event_id="0-0")
        for how in ("completed", "failed"):
            events.on(how, lambda event: ended.update([(name, str(event.job_id))]))
        events.start()
        return events

    with (
        Queue(first, server.url) as queue, Queue(second, server.url) as other, FlowProducer(server.url) as flows,
        listen(first), listen(second), PythonPort(server, first, second) as port,
    ):  # fmt: skip
        for version in ("v5", "v6"):
            for name in (first, second):
                opts = {"concurrency": 8, "stalledInterval": 1000, "lockDuration": 20_000}
                node_of(version).call("worker", queue=name, behaviours=BEHAVIOURS, record=False, opts=opts)
        for name in (first, second):
            serve(name)

        number = 0
        while number < JOBS:
            name = dice.choice([first, second])
            jobs = [draw_job(dice, number + place) for place in range(BATCH)]
            number += BATCH
            who = dice.choice(["v5", "v6", "python", "flow", "celery"])
            if who in ("v5", "v6"):
                added = [job["id"] for job in node_of(who).call("addBulk", queue=name, jobs=jobs)]
            elif who == "python":
                added = [job.id for job in (queue if name == first else other).add_bulk(jobs)]
            elif who == "celery":
                ids = [f"good-{number}-{place}" for place in range(BATCH)]
                for task_id in ids:
                    app.send_task("value", kwargs={"value": 1}, queue=name, task_id=task_id, bullmq=KEEP)
                added = ids
            else:
                added = add_flows(flows, jobs, first, second, expected)
            expected[name].update(added)
            if dice.random() < 0.4:
                node_of("v6").call("queueCall", queue=name, method=dice.choice(["pause", "resume"]))
        expected[first].update(port.add(100))
        for name in (first, second):
            node_of("v6").call("queueCall", queue=name, method="resume")

        def missing() -> list[tuple[str, str, str]]:
            found = [(name, job_id) for name, ids in expected.items() for job_id in ids if not ended[name, job_id]]
            return [(name, job_id, (queue if name == first else other).get_job_state(job_id)) for name, job_id in found[:10]]

        def all_ended() -> bool:
            left = missing()
            assert not left
            return True

        wait_until(all_ended, 240, "every job to end")
        assert {one: count for one, count in ended.items() if count != 1} == {}, "ended more than once"
        for one in (queue, other):
            counts = one.get_job_counts()
            assert {state: counts[state] for state in counts if state not in ("completed", "failed")} == dict.fromkeys(
                ("active", "delayed", "prioritized", "waiting", "waiting-children"), 0
            )
            failed = set(redis_client.zrange(f"{one.base}failed", 0, -1))
            assert failed == {job_id for job_id in expected[one.name] if job_id.startswith("bad")}
            assert counts["completed"] + counts["failed"] == len(expected[one.name])
            assert list(redis_client.scan_iter(f"{one.base}*:lock", 1000)) == []
            assert redis_client.exists(f"{one.base}paused", f"{one.base}wait", f"{one.base}active") == 0


def add_flows(flows: FlowProducer, jobs: list[dict[str, Any]], first: str, second: str, expected: dict[str, set[str]]) -> list[str]:
    """Parents in the first queue with these jobs as children in the second, ten each. What fails does not hold its parent up."""
    for at in range(0, len(jobs), 10):
        children = []
        for job in jobs[at : at + 10]:
            opts = {name: value for name, value in job["opts"].items() if name != "deduplication"}
            children.append({**job, "queueName": second, "opts": {**opts, "ignoreDependencyOnFailure": True}})
        parent = f"good-parent-{children[0]['opts']['jobId']}"
        flows.add({"name": "value", "queueName": first, "data": {"value": 1}, "opts": {**KEEP, "jobId": parent}, "children": children})
        expected[first].add(parent)
        expected[second].update(child["opts"]["jobId"] for child in children)
    return []
