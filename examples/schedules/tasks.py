"""A task that a schedule runs."""

from __future__ import annotations

from celery import Celery

app = Celery("tasks", broker="bullmq://127.0.0.1:6379/0")


@app.task(name="stock.count")
def count(shelf: str) -> str:
    return f"{shelf} counted"
