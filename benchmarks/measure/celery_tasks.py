"""The Celery app that the workers and senders of the measurements share. Its broker is in the environment."""

from __future__ import annotations

import os
import time

import redis
from celery import Celery

app = Celery("bench", broker=os.environ["BENCH_BROKER"], backend=os.environ.get("BENCH_BACKEND") or None)
app.conf.update(
    task_ignore_result=not os.environ.get("BENCH_BACKEND"),
    worker_prefetch_multiplier=int(os.environ.get("BENCH_MULTIPLIER", "4")),
    worker_send_task_events=False,
    broker_connection_retry_on_startup=True,
    task_create_missing_queues=True,
    worker_hijack_root_logger=False,
)
_said: set[str] = set()
_latencies: list[float] = []


def tell(what: str) -> None:
    """To whoever waits for it: when, by this machine's clock."""
    with redis.Redis(port=int(os.environ["BENCH_TELL_PORT"])) as client:
        client.rpush(f"told:{what}", time.time())


@app.task(acks_late=False)
def early() -> None:
    _say_first("early")


@app.task(acks_late=True)
def late() -> None:
    _say_first("late")


def _say_first(what: str) -> None:
    if what not in _said:
        _said.add(what)
        tell(f"{what} began")


@app.task
def end(what: str) -> None:
    tell(f"{what} ended")


@app.task
def ping() -> None:
    """Nothing; its result is waited for."""


@app.task
def started(sent: float) -> None:
    _latencies.append(time.time() - sent)


@app.task
def latencies() -> None:
    with redis.Redis(port=int(os.environ["BENCH_TELL_PORT"])) as client:
        client.rpush("told:latencies", *_latencies)
    _latencies.clear()
