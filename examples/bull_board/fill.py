"""Makes jobs of every state: Celery's worker has the queue `reports`; nobody works on `thumbnails`, so what is there stays there."""

from __future__ import annotations

from tasks import app, build, print_pages, send

from bullmq_kombu import FlowProducer

if __name__ == "__main__":
    build.apply_async(kwargs={"customer": "ada", "rows": 3}, queue="reports", task_id="completed-one")
    app.send_task(send.name, kwargs={"to": "bob@example.org"}, queue="reports", task_id="failed-one", bullmq={"attempts": 2})
    print_pages.apply_async(kwargs={"pages": 300}, queue="reports", task_id="active-one")
    build.apply_async(kwargs={"customer": "eve", "rows": 5}, queue="reports", task_id="delayed-one", countdown=3600)
    app.send_task("thumbnail.make", kwargs={"path": "a.png"}, queue="thumbnails", task_id="waiting-one")
    app.send_task("thumbnail.make", kwargs={"path": "b.png"}, queue="thumbnails", task_id="prioritized-one", priority=5)
    with FlowProducer(app) as flows:
        flows.add({
            "name": "report.build", "queueName": "reports", "data": {"customer": "kim", "rows": 1}, "opts": {"jobId": "parent-one"},
            "children": [{"name": "thumbnail.make", "queueName": "thumbnails", "data": {"path": "c.png"}}],
        })  # fmt: skip
