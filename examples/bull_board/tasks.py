"""A Celery app whose tasks show what a dashboard can show: progress, logs, a result, an error."""

from __future__ import annotations

import time

from celery import Celery

from bullmq_kombu import current_job

app = Celery("tasks", broker="bullmq://127.0.0.1:6379/0")


@app.task(name="report.build")
def build(customer: str, rows: int) -> dict[str, object]:
    job = current_job()
    job.log(f"reading {rows} rows of {customer}")
    job.update_progress(100)
    return {"path": f"/reports/{customer}.pdf", "rows": rows}


@app.task(name="report.send")
def send(to: str) -> None:
    current_job().log(f"calling the post office for {to}")
    raise ConnectionError(f"the post office does not answer for {to}")


# With Celery's usual early acknowledgement a board says "will fail" beside the running job: what becomes of it should this worker be lost.
@app.task(name="report.print", acks_late=True)
def print_pages(pages: int, seconds: float = 1.0) -> int:
    job = current_job()
    for page in range(pages):
        job.log(f"page {page + 1} of {pages}")
        job.update_progress({"page": page + 1, "of": pages})
        time.sleep(seconds)
    return pages
