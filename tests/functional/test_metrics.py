"""Prometheus' numbers, fetched as Prometheus does: of a worker over HTTP, and of the queues from a WSGI app."""

from __future__ import annotations

import re
from urllib.request import urlopen
from wsgiref.util import setup_testing_defaults

from celery import Celery
from conftest import JobOf, WorkerOf
from servers import Server
from waiting import wait_until

from bullmq_kombu import Queue
from bullmq_kombu.metrics import wsgi_app


def test_a_worker_serves_what_it_has_done(worker: WorkerOf, app: Celery, job: JobOf, queue_name: str) -> None:
    one = worker(app="metrics_app")
    (address,) = re.findall(r"Metrics at (http://\S+)", one.log)
    ids = [app.send_task(name, args, queue=queue_name).id for name, args in (("t.double", (2,)), ("t.double", (3,)), ("t.raise", ()))]
    for task_id in ids:
        job(task_id).wait_for("completed", "failed")
    wanted = [
        f'bullmq_worker_jobs_total{{name="t.double",outcome="completed",queue="{queue_name}"}} 2.0',
        f'bullmq_worker_jobs_total{{name="t.raise",outcome="failed",queue="{queue_name}"}} 1.0',
        f'bullmq_worker_job_duration_seconds_count{{name="t.double",queue="{queue_name}"}} 2.0',
        f'bullmq_job_count{{queue="{queue_name}",state="completed"}} 2.0',
        "bullmq_worker_jobs_held 0.0",
    ]

    def missing() -> list[str]:
        with urlopen(address) as answer:
            text = answer.read().decode()
        return [line for line in wanted if line not in text]

    wait_until(lambda: not missing(), 10, "the counts of all three jobs")

    port = int(address.partition("//")[2].partition("/")[0].partition(":")[2])
    other = worker(app="metrics_app", settings={"metrics_port": port})
    assert f"No metrics at 127.0.0.1:{port}" in other.log, "it works all the same"


def test_a_wsgi_app_tells_of_the_queues(server: Server, queue_name: str) -> None:
    environ: dict[str, object] = {}
    setup_testing_defaults(environ)
    said: list[str] = []
    with Queue(queue_name, server.url) as queue:
        queue.add("n", None, {"delay": 60_000})
        body = b"".join(wsgi_app(server.url, [queue_name])(environ, lambda status, headers: said.append(status))).decode()
        queue.obliterate(force=True)
    assert said == ["200 OK"]
    assert f'bullmq_job_count{{queue="{queue_name}",state="delayed"}} 1.0' in body
