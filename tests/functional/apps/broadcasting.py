"""An app whose tasks of one kind go to every worker."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from celery import Celery
from kombu import Queue
from kombu.common import Broadcast

app = Celery("broadcasting", broker=os.environ["APP_BROKER"])
app.conf.update(broker_connection_retry_on_startup=True, worker_hijack_root_logger=False, **json.loads(os.environ["APP_SETTINGS"]))


@app.on_after_configure.connect
def listen(sender: Celery, **kwargs: Any) -> None:
    """To the queue the worker was started with, and to the news."""
    sender.conf.task_queues = [Queue("other"), Broadcast("news")]


@app.task(name="news", bind=True)
def news(self: Any, at: str) -> None:
    with Path(at).open("a") as seen:
        print(self.request.hostname, file=seen)
