"""The real Flower over HTTP, beside a real worker: tasks, workers and the broker page."""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
from celery import Celery
from servers import Server, end, free_port, spawn
from waiting import wait_until

#: One task at a time, and none taken beforehand: a worker with acks_late takes as many as it runs, times the multiplier.
APP = """
import os.path
import time
from celery import Celery
import bullmq_kombu.contrib.flower
app = Celery("watched", broker={url!r})
app.conf.update(task_default_queue={queue!r}, broker_connection_retry_on_startup=True, worker_prefetch_multiplier=1)
@app.task(name="add")
def add(x, y):
    return x + y
@app.task(name="hold", acks_late=True)
def hold(gate):
    while not os.path.exists(gate):
        time.sleep(0.02)
"""


class Flower:
    """A running Flower, and the queue of the worker beside it."""

    def __init__(self, port: int, queue: str, app: Celery) -> None:
        self.port = port
        self.queue = queue
        self.app = app

    def get(self, path: str) -> Any:
        """Text, or what the JSON says; anything but 200 is an error."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=5) as answer:
            assert answer.status == 200
            text = answer.read().decode()
            return json.loads(text) if answer.headers.get_content_type() == "application/json" else text

    def send(self, name: str, *args: Any) -> str:
        return str(self.app.send_task(name, args, queue=self.queue).id)

    def wait_for_task(self, task_id: str, state: str) -> dict[str, Any]:
        def reached() -> Any:
            task = self.get("/api/tasks").get(task_id)
            return task if task and task["state"] == state else None

        found: dict[str, Any] = wait_until(reached, timeout=20, what=f"Flower to hear that the task is {state}")
        return found

    @property
    def counts(self) -> dict[str, Any]:
        """What Flower has of the broker, and makes the broker page of."""
        return next(dict(one) for one in self.get("/api/queues/length")["active_queues"] if one["name"] == self.queue)

    @property
    def row(self) -> list[str]:
        """The queue's numbers on the broker page: messages, unacknowledged, ready, consumers."""
        rows = re.findall(r"<tr.*?</tr>", self.get("/broker"), re.DOTALL)
        cells = next(re.findall(r"<td.*?>(.*?)</td>", row, re.DOTALL) for row in rows if self.queue in row)
        return [cell.strip() for cell in cells[1:5]]

    def wait_for_counts(self, **wished: int) -> None:
        wait_until(lambda: self.counts == {"name": self.queue, **wished}, timeout=20, what=f"Flower to count {wished}")


@pytest.fixture(scope="module")
def flower(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Flower]:
    folder, port, queue = tmp_path_factory.mktemp("flower"), free_port(), f"q-{secrets.token_hex(4)}"
    (folder / "watched.py").write_text(APP.format(url=server.url, queue=queue))
    celery = [sys.executable, "-m", "celery", "-A", "watched"]
    with contextlib.ExitStack() as stack:
        log = stack.enter_context((folder / "log").open("w"))
        environment = {**os.environ, "FLOWER_UNAUTHENTICATED_API": "true"}
        common: dict[str, Any] = {"cwd": folder, "stdout": log, "stderr": log, "env": environment}
        stack.callback(end, spawn([*celery, "flower", f"--port={port}", "--address=127.0.0.1"], **common))
        stack.callback(end, spawn([*celery, "worker", "-c", "1", "-E", "-n", "seen@here"], **common))
        one = Flower(port, queue, stack.enter_context(Celery(broker=server.url, set_as_current=False)))

        def lists_the_worker() -> bool:
            try:
                return "seen@here" in one.get("/api/workers?refresh=1")
            except OSError:
                return False

        wait_until(lists_the_worker, timeout=40, what="Flower to list the worker")
        yield one


def test_a_task_on_every_page(flower: Flower) -> None:
    task_id = flower.send("add", 1, 2)
    assert flower.wait_for_task(task_id, "SUCCESS")["name"] == "add"
    # The event is sent before the job's end is: a moment later.
    flower.wait_for_counts(messages=0, messages_ready=0, messages_unacknowledged=0, consumers=1)
    assert "seen@here" in flower.get("/workers")
    assert flower.queue in flower.get("/worker/seen@here")
    page = flower.get(f"/task/{task_id}")
    assert task_id in page
    assert ">add<" in re.sub(r"\s+", "", page)
    assert "<table" in flower.get("/tasks")  # which its script fills from the next
    columns = {"columns[0][data]": "name", "order[0][column]": 0, "order[0][dir]": "asc", "search[value]": task_id}
    (shown,) = flower.get(f"/tasks/datatable?{urlencode({'draw': 1, 'start': 0, 'length': 10, **columns})}")["data"]
    assert (shown["name"], shown["uuid"], shown["worker"], shown["result"]) == ("add", task_id, "seen@here", "3")


def test_the_broker_page_counts_what_waits_and_what_runs(flower: Flower, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    held = flower.send("hold", str(gate))
    assert flower.wait_for_task(held, "STARTED")["worker"] == "seen@here"
    for n in range(2):
        flower.send("add", n, n)
    flower.wait_for_counts(messages=3, messages_ready=2, messages_unacknowledged=1, consumers=1)
    assert flower.row == ["3", "1", "2", "1"]
    gate.touch()
    flower.wait_for_counts(messages=0, messages_ready=0, messages_unacknowledged=0, consumers=1)
    assert flower.row == ["0", "0", "0", "1"]
