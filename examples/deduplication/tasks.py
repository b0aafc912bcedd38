"""A task that is asked for more often than it need be run."""

from __future__ import annotations

from celery import Celery

from bullmq_kombu import current_job

app = Celery("tasks", broker="bullmq://127.0.0.1:6379/0", backend="bullmq://127.0.0.1:6379/0")


@app.task(name="index.rebuild")
def rebuild(asked: int) -> str:
    current_job().log(f"asked for by request {asked}")
    return f"rebuilt for request {asked}"
