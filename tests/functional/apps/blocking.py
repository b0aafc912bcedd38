"""Tasks that block everything in their process: the event loop of a pool, or the interpreter itself."""

from __future__ import annotations

import ctypes
import json
import os
import time
from pathlib import Path

from celery import Celery

app = Celery("blocking")
app.conf.update(
    broker_url=os.environ.get("APP_BROKER", "bullmq://"),
    broker_connection_retry_on_startup=True,
    worker_hijack_root_logger=False,
    **json.loads(os.environ.get("APP_SETTINGS", "{}")),
)


def _note(at: str) -> None:
    with Path(f"{at}.runs").open("a") as runs:
        print(os.getpid(), file=runs, flush=True)


def _busy(seconds: float) -> None:
    """Computes: other threads get the interpreter now and then, an event loop gets nothing."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        sum(range(1000))


@app.task(acks_late=True)
def compute(at: str, seconds: float) -> str:
    _note(at)
    _busy(seconds)
    return "computed"


@app.task(acks_late=True)
def hold_interpreter(at: str, seconds: float) -> str:
    """Calls C that does not let go of the interpreter, so that no other thread runs."""
    _note(at)
    usleep = ctypes.PyDLL(None).usleep
    usleep.argtypes = [ctypes.c_uint]
    left = seconds
    while left > 0:
        usleep(int(min(left, 0.9) * 1_000_000))
        left -= 0.9
    return "held"
