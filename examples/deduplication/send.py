"""Asks three times within a second; one job comes of it."""

from __future__ import annotations

from tasks import app, rebuild

from bullmq_kombu import JobsOptions, Queue

if __name__ == "__main__":
    # Until 5 s are over, others of this id are ignored. Without `ttl`: until the job has ended.
    options: JobsOptions = {"deduplication": {"id": "index", "ttl": 5000}}
    asked = [app.send_task(rebuild.name, (number,), queue="index", bullmq=options) for number in (1, 2, 3)]
    print(asked[0].get(timeout=30))
    with Queue("index", app) as queue:
        print("jobs:", sum(queue.get_job_counts().values()))
        print("the second is", queue.get_job(asked[1].id))
