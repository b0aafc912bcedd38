"""The children of the flow: tasks in Python."""

from __future__ import annotations

from celery import Celery

app = Celery("tasks", broker="bullmq://127.0.0.1:6379/0")


@app.task(name="image.resize")
def resize(path: str) -> str:
    return path.replace(".png", "-small.png")
