"""A task that says how far it is."""

from __future__ import annotations

import time

from celery import Celery

from bullmq_kombu import current_job

app = Celery("tasks", broker="bullmq://127.0.0.1:6379/0")


@app.task(name="report.print")
def print_pages(pages: int) -> str:
    for page in range(1, pages + 1):
        time.sleep(0.05)
        current_job().update_progress({"page": page})
    return f"{pages} pages"
