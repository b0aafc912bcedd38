"""A task that says when it was run."""

from __future__ import annotations

import time

from celery import Celery

app = Celery("tasks", broker="bullmq://127.0.0.1:6379/0", backend="bullmq://127.0.0.1:6379/0")


@app.task(name="order.pack")
def pack(number: str) -> float:
    return time.time()
