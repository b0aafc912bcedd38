"""The app of the battle, the same for every broker: a task that writes down that it ran, and a producer that writes down what it sent.

Run by the interpreter that has the broker's packages; the ledger is a file, out of reach of the server under test.

    celery -A fighters worker …          a worker
    python fighters.py <rate> <seed>     a producer, until it is terminated
"""

from __future__ import annotations

import importlib
import json
import os
import random
import signal
import sys
import time
import uuid
from typing import Any

from celery import Celery

LEDGER = os.environ["BATTLE_LEDGER"]
for _module in os.environ.get("BATTLE_IMPORT", "").split():
    importlib.import_module(_module)

app = Celery("fighters", broker=os.environ["BATTLE_BROKER"])
app.conf.update(
    broker_connection_retry_on_startup=True,
    broker_connection_max_retries=None,
    task_acks_late=os.environ.get("BATTLE_ACKS", "late") == "late",
    task_ignore_result=True,
    task_default_queue="battle",
    worker_prefetch_multiplier=1,
    worker_hijack_root_logger=False,
    task_publish_retry_policy={"max_retries": 50, "interval_start": 0, "interval_step": 0.2, "interval_max": 0.5},
    broker_transport_options=json.loads(os.environ.get("BATTLE_OPTIONS", "{}")),
)


def write(*words: Any) -> None:
    """One line, in one write: it is there whole or not at all."""
    line = " ".join(map(str, (f"{time.time():.4f}", *words))) + "\n"
    descriptor = os.open(LEDGER, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(descriptor, line.encode())
    finally:
        os.close(descriptor)


@app.task(bind=True, name="work")
def work(self: Any, seconds: float) -> None:
    write("start", self.request.id, os.getpid())
    time.sleep(seconds)
    write("end", self.request.id, os.getpid())


def produce(rate: float, seed: str) -> None:
    # The sleep before the next message: more than one producer, so that they do not march in step.
    draw = random.Random(seed)
    going = True

    def stop(*_: Any) -> None:
        nonlocal going
        going = False

    signal.signal(signal.SIGTERM, stop)
    while going:
        task_id = str(uuid.uuid4())
        seconds = draw.uniform(0.02, 0.2) if draw.random() < 0.85 else draw.uniform(0.5, 2.0)
        write("sending", task_id)
        try:
            work.apply_async(kwargs={"seconds": seconds}, task_id=task_id)
        except Exception as error:
            write("unsent", task_id, type(error).__name__)
        else:
            write("sent", task_id)
        time.sleep(draw.expovariate(rate))


if __name__ == "__main__":
    produce(float(sys.argv[1]), sys.argv[2])
