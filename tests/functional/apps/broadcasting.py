"""An app whose tasks of one kind go to every worker."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from celery import Celery
from kombu.common import Broadcast

app = Celery("broadcasting", broker=os.environ["APP_BROKER"])
app.conf.task_queues = [Broadcast("news")]
app.conf.update(broker_connection_retry_on_startup=True, worker_hijack_root_logger=False, **json.loads(os.environ["APP_SETTINGS"]))


@app.task(name="news", bind=True)
def news(self: Any, at: str) -> None:
    with Path(at).open("a") as seen:
        print(self.request.hostname, file=seen)
