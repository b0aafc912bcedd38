"""Adds a flow whose children run in Celery and whose parent runs in Node. Node's FlowProducer makes the same one."""

from __future__ import annotations

from tasks import app, resize

from bullmq_kombu import FlowProducer, QueueEvents

if __name__ == "__main__":
    with FlowProducer(app) as flows, QueueEvents("albums", app) as events:
        flow = flows.add({
            "name": "album",
            "queueName": "albums",
            "data": {"title": "Summer"},
            "children": [
                # A signature of a task, or a job by its name: both run in Celery.
                resize.s(path="a.png").set(queue="images"),
                {"name": "image.resize", "queueName": "images", "data": {"path": "b.png"}, "opts": {"failParentOnFailure": True}},
            ],
        })  # fmt: skip
        print(flow.job.wait_until_finished(events, timeout=30))
