"""The Celery app of the tests of results: made anew for each test, so that each has a backend of its own."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

from celery import Celery, Task, chain, group
from celery.exceptions import Ignore


class Peculiar(Exception):
    """An exception class that only the worker has."""


class Odd:
    """No JSON."""


def make_app(broker: str, backend: str, **settings: Any) -> Celery:
    """The app, with tasks that no other app of the process gets."""
    app = Celery("results_app", broker=broker, backend=backend, set_as_current=False)
    app.conf.update(broker_connection_retry_on_startup=True, worker_hijack_root_logger=False, **settings)

    @app.task(shared=False, name="r.add")
    def add(x: Any, y: Any) -> Any:
        return x + y

    @app.task(shared=False, name="r.total")
    def total(values: list[Any]) -> Any:
        return sum(values)

    @app.task(shared=False, name="r.value")
    def value(value: Any) -> Any:
        return value

    @app.task(shared=False, name="r.quiet", ignore_result=True)
    def quiet(value: Any) -> Any:
        return value

    @app.task(shared=False, name="r.tracked", track_started=True)
    def tracked(at: str) -> str:
        wait(at)
        return "done"

    @app.task(shared=False, name="r.wait")
    def wait_for(at: str) -> str:
        wait(at)
        return "done"

    @app.task(shared=False, name="r.odd")
    def odd(what: str) -> Any:
        if what == "result":
            return Odd()
        if what == "exception":
            raise ValueError(Odd())
        raise Peculiar("so it is", 7)

    @app.task(shared=False, name="r.fail")
    def fail(message: str) -> None:
        raise ValueError(message)

    @app.task(shared=False, name="r.progress", bind=True)
    def progress(self: Task, at: str) -> str:
        self.update_state(state="PROGRESS", meta={"page": 1})
        wait(at)
        self.update_state(state="PROGRESS", meta={"page": 2})
        return "read"

    class DiesAfterwards(Task):
        def on_success(self, *args: Any) -> None:
            os._exit(1)

    @app.task(shared=False, name="r.dies.afterwards", base=DiesAfterwards)
    def dies_afterwards() -> list[int]:
        return [1]

    @app.task(shared=False, name="r.set.aside", bind=True)
    def set_aside(self: Task) -> None:
        self.update_state(state="SET ASIDE", meta="for later")
        raise Ignore

    @app.task(shared=False, name="r.twice", bind=True)
    def twice(self: Task, at: str) -> int:
        """Fails when it is run for the first time."""
        with Path(f"{at}.runs").open("a") as runs:
            print(os.getpid(), file=runs, flush=True)
        if len(Path(f"{at}.runs").read_text().splitlines()) == 1:
            raise ConnectionError("the first time")
        return 2

    @app.task(shared=False, name="r.retried", bind=True, max_retries=1)
    def retried(self: Task, at: str) -> str:
        if self.request.retries:
            wait(at)
            return "the second time"
        raise self.retry(exc=ConnectionError("the first time"), countdown=0)

    @app.task(shared=False, name="r.spread", bind=True)
    def spread(self: Task, number: int) -> Any:
        return self.replace(group(app.tasks["r.add"].s(one, 1) for one in range(number)))

    @app.task(shared=False, name="r.ignored")
    def ignored() -> None:
        raise Ignore

    @app.task(shared=False, name="r.chained", bind=True)
    def chained(self: Task, at: str) -> Any:
        """Goes on as a chain, of which the last task has its id."""
        return self.replace(chain(app.tasks["r.wait"].si(at), app.tasks["r.value"].si(at)))

    return app


def wait(at: str, timeout: float = 60.0) -> None:
    Path(f"{at}.started").touch()
    deadline = time.monotonic() + timeout
    while not Path(f"{at}.go").exists():
        assert time.monotonic() < deadline, f"nobody made {at}.go"
        time.sleep(0.01)


if "APP_BROKER" in os.environ:
    app = make_app(os.environ["APP_BROKER"], os.environ["APP_BROKER"], **json.loads(os.environ["APP_SETTINGS"]))
