"""Two ways to try again: BullMQ's attempts, which the sender asks for, and Celery's retry, which the task does."""

from __future__ import annotations

from typing import Any

from celery import Celery

from bullmq_kombu import UnrecoverableError, current_job

app = Celery("tasks", broker="bullmq://127.0.0.1:6379/0", backend="bullmq://127.0.0.1:6379/0")


@app.task(name="mail.send")
def send(to: str) -> str:
    if "@" not in to:
        # Nothing to try again.
        raise UnrecoverableError(f"{to} is no address")
    if current_job().attempts_made < 2:
        raise ConnectionError("the post office does not answer")
    return f"{to}: sent by attempt {current_job().attempts_made + 1}"


@app.task(name="page.fetch", bind=True, max_retries=3)
def fetch(self: Any, url: str) -> str:
    if self.request.retries < 1:
        # The same job becomes delayed; no worker holds it meanwhile.
        raise self.retry(countdown=0.5)
    return f"{url}: fetched after {self.request.retries} retry"
