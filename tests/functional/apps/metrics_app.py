"""The Celery app of the tests of metrics: its worker serves them at the port that the environment says."""

from __future__ import annotations

import json
import os

from celery import Celery

from bullmq_kombu.celery.metrics import expose

app = Celery("metrics_app", broker=os.environ["APP_BROKER"])
app.conf.update(json.loads(os.environ["APP_SETTINGS"]), worker_hijack_root_logger=False)
expose(app, port=app.conf.get("metrics_port", 0))


@app.task(name="t.double")
def double(number: int) -> int:
    return 2 * number


@app.task(name="t.raise")
def fail() -> None:
    raise ValueError("as asked")
