"""The Celery app; its worker is a process of its own."""

from __future__ import annotations

from celery import Celery

app = Celery("tasks", broker="bullmq://127.0.0.1:6379/0", backend="bullmq://127.0.0.1:6379/0")


@app.task(name="report.build")
def build(rows: int) -> dict[str, str]:
    return {"path": f"/reports/{rows}.pdf"}
