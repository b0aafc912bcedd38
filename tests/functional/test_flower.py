"""The real Flower over HTTP, beside a real worker: tasks, workers and the broker page."""

from __future__ import annotations

import json
import os
import sys
import urllib.request
from pathlib import Path
from typing import Any

from celery import Celery
from servers import Server, end, free_port, spawn
from waiting import wait_until

APP = """
from celery import Celery
import bullmq_kombu.contrib.flower
app = Celery("watched", broker={url!r})
app.conf.update(task_default_queue={queue!r}, broker_connection_retry_on_startup=True)
@app.task(name="add")
def add(x, y):
    return x + y
"""


def get(port: int, path: str) -> Any:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
        text = answer.read().decode()
    return json.loads(text) if path.startswith("/api") else text


def test_flower_shows_tasks_workers_and_the_broker(server: Server, queue_name: str, tmp_path: Path) -> None:
    (tmp_path / "watched.py").write_text(APP.format(url=server.url, queue=queue_name))
    port = free_port()
    celery = [sys.executable, "-m", "celery", "-A", "watched"]
    log = (tmp_path / "log").open("w")
    environment = {**os.environ, "FLOWER_UNAUTHENTICATED_API": "true"}
    common: dict[str, Any] = {"cwd": tmp_path, "stdout": log, "stderr": log, "env": environment}
    flower = spawn([*celery, "flower", f"--port={port}", "--address=127.0.0.1"], **common)
    worker = spawn([*celery, "worker", "-P", "solo", "-E", "-n", "seen@here"], **common)
    try:

        def answers(path: str) -> Any:
            try:
                return get(port, path)
            except OSError:
                return None

        wait_until(lambda: "seen@here" in (answers("/api/workers?refresh=1") or {}), timeout=40, what="Flower to list the worker")
        app = Celery(broker=server.url)
        sent = app.send_task("add", (1, 2), queue=queue_name)
        task = wait_until(lambda: (answers("/api/tasks") or {}).get(sent.id), timeout=20, what="Flower to hear of the task")
        assert task["name"] == "add"
        wait_until(lambda: answers("/api/tasks")[sent.id]["state"] == "SUCCESS", timeout=20, what="Flower to hear of the result")

        def messages() -> Any:
            return {one["name"]: one["messages"] for one in answers("/api/queues/length")["active_queues"]}[queue_name]

        # The event is sent before the job's end is: a moment later.
        wait_until(lambda: messages() == 0, timeout=10, what="the queue to be empty for Flower")
        assert queue_name in get(port, "/broker")
    finally:
        end(worker)
        end(flower)
        log.close()
