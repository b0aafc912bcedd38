"""The Celery app of the demo: nothing but a URL says that the queues are BullMQ's."""

from __future__ import annotations

import os
import signal
import threading
from typing import Any

import click
from celery import Celery
from celery.signals import worker_ready

from bullmq_kombu import current_job

_url = os.environ["BULLMQ_KOMBU_DEMO_URL"]
_queue = os.environ["BULLMQ_KOMBU_DEMO_QUEUE"]

app = Celery("demo", broker=_url, backend=_url)
app.conf.task_default_queue = _queue
app.conf.result_expires = 60
# What the tasks print is the demo.
app.conf.worker_redirect_stdouts = False
app.conf.broker_connection_retry_on_startup = True


@app.task(name="demo.greet")  # type: ignore[untyped-decorator]
def greet(name: str) -> str:
    click.echo(f"demo.greet(name={name!r}) runs")
    return f"Hello {name}"


@app.task(name="demo.flaky")  # type: ignore[untyped-decorator]
def flaky() -> str:
    attempt = current_job().attempts_made + 1
    click.echo(f"demo.flaky() runs, attempt {attempt}")
    if attempt < 3:
        raise ConnectionError("not yet")
    return f"worked at attempt {attempt}"


@app.task(name="demo.divide")  # type: ignore[untyped-decorator]
def divide(a: int, b: int) -> float:
    click.echo(f"demo.divide(a={a}, b={b}) runs")
    return a / b


@worker_ready.connect  # type: ignore[untyped-decorator]
def _say_ready(**kwargs: Any) -> None:
    click.echo(f"a worker takes the tasks of queue {_queue}")
    threading.Thread(target=_end_with_the_demo, daemon=True).start()


def _end_with_the_demo() -> None:
    """The demo holds the other end of our input, and says nothing: when it is gone, so are we."""
    while os.read(0, 4096):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
