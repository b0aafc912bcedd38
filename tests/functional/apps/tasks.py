"""The Celery app of these tests, as a user would write it: nothing in it but the URL says BullMQ.

Every task is there twice, acknowledged early (`name`) and late (`name.late`). What a task has to tell or to wait for goes through files a
test chooses, so that it works while Redis does not: a line in `<at>.runs` for each run, and `<at>.go` to go on.
"""

from __future__ import annotations

import json
import logging
import os
import resource
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from billiard import current_process
from celery import Celery, Task
from celery.exceptions import Ignore, Reject

app = Celery("tasks")
app.conf.update(
    broker_url=os.environ.get("APP_BROKER", "bullmq://"),
    broker_connection_retry_on_startup=True,
    worker_hijack_root_logger=False,
    worker_cancel_long_running_tasks_on_connection_loss=False,
    task_publish_retry_policy={"max_retries": 1, "interval_start": 0.1, "interval_max": 0.1},
)
app.conf.update(json.loads(os.environ.get("APP_SETTINGS", "{}")))


def task(name: str, **options: Any) -> Callable[[Callable[..., Any]], None]:
    """Registers a function under `name` and `name.late`."""

    def register(run: Callable[..., Any]) -> None:
        app.task(name=name, bind=True, shared=False, **options)(run)
        app.task(name=f"{name}.late", bind=True, shared=False, acks_late=True, **options)(run)

    return register


def note(at: str) -> int:
    """One more run; which one it is."""
    with Path(f"{at}.runs").open("a") as runs:
        print(os.getpid(), file=runs, flush=True)
    return len(Path(f"{at}.runs").read_text().splitlines())


def wait(at: str, timeout: float = 60.0) -> None:
    deadline = time.monotonic() + timeout
    while not Path(f"{at}.go").exists():
        assert time.monotonic() < deadline, f"nobody made {at}.go"
        time.sleep(0.02)


@task("echo")
def echo(self: Task, value: Any = None) -> Any:
    return value


@task("ignored", ignore_result=True)
def ignored(self: Task, value: Any = None) -> Any:
    return value


@task("seen")
def seen(self: Task, *args: Any, **kwargs: Any) -> Any:
    request = self.request
    return {"id": request.id, "args": list(args), "kwargs": kwargs, "retries": request.retries}


@task("header")
def header(self: Task, name: str) -> Any:
    """One that the sender gave the message."""
    return getattr(self.request, name, None)


@task("two")
def two(self: Task, a: Any, b: Any = None) -> Any:
    return [a, b]


@task("odd")
def odd(self: Task, kind: str) -> Any:
    """A value that JSON has no word for."""
    return {"object": object(), "nan": float("nan"), "bytes": b"\xff", "loop": _loop()}[kind]


def _loop() -> list[Any]:
    loop: list[Any] = []
    loop.append(loop)
    return loop


@task("hold")
def hold(self: Task, at: str, value: Any = None) -> Any:
    note(at)
    wait(at)
    return value


@task("hold_log")
def hold_log(self: Task, at: str) -> None:
    """Whoever has anything to log meanwhile waits."""
    handlers = [one for one in (*logging.getLogger().handlers, *logging.getLogger("celery").handlers) if one.lock is not None]
    for handler in handlers:
        handler.acquire()
    try:
        note(at)
        wait(at)
    finally:
        for handler in handlers:
            handler.release()


@task("last")
def last(self: Task, seconds: float) -> Any:
    time.sleep(seconds)
    return "rested"


@task("boom")
def boom(self: Task, message: str = "the message") -> None:
    raise ValueError(message)


class Awkward(Exception):
    """An exception no pickle brings back."""

    def __init__(self, first: Any, second: Any) -> None:
        super().__init__(f"{first}/{second}")


@task("awkward")
def awkward(self: Task) -> None:
    raise Awkward("one", "two")


class Mute(Exception):
    def __str__(self) -> str:
        raise KeyError("no message")


@task("mute")
def mute(self: Task) -> None:
    raise Mute


@task("surrogate")
def surrogate(self: Task) -> None:
    """Text that is no UTF-8."""
    raise ValueError("half a \ud83d and a \udcff")


@task("boom_until")
def boom_until(self: Task, at: str, times: int) -> Any:
    run = note(at)
    if run <= times:
        raise ValueError(f"not yet {run}")
    return run


@task("unrecoverable")
def unrecoverable(self: Task, at: str) -> None:
    from bullmq_kombu import UnrecoverableError

    note(at)
    raise UnrecoverableError("no use")


@task("again", max_retries=5)
def again(self: Task, times: int, countdown: float = 0.2, queue: str | None = None) -> Any:
    if self.request.retries < times:
        try:
            raise KeyError(f"try {self.request.retries}")
        except KeyError as error:
            raise self.retry(exc=error, countdown=countdown, **({"queue": queue} if queue else {})) from None
    return {"retries": self.request.retries, "id": self.request.id}


@task("again_plainly", max_retries=5)
def again_plainly(self: Task, times: int) -> Any:
    """Without an exception at hand."""
    if self.request.retries < times:
        self.retry(countdown=0)
    return self.request.retries


@task("again_quietly", max_retries=5)
def again_quietly(self: Task) -> Any:
    """Asks for another run and returns."""
    if self.request.retries < 1:
        self.retry(countdown=0.5, throw=False)
        return "first"
    return "second"


@task("too_often", max_retries=1)
def too_often(self: Task, *, with_cause: bool) -> None:
    if with_cause:
        try:
            raise KeyError("the cause")
        except KeyError as error:
            self.retry(exc=error, countdown=0.1)
    self.retry(countdown=0.1)


@task("auto", autoretry_for=(ValueError,), max_retries=3, retry_backoff=False, default_retry_delay=1.0)
def auto(self: Task, at: str, times: int) -> Any:
    run = note(at)
    if run <= times:
        raise ValueError(f"not yet {run}")
    return self.request.retries


@task("replaced")
def replaced(self: Task, value: Any) -> Any:
    suffix = ".late" if self.name.endswith(".late") else ""
    return self.replace(app.signature(f"echo{suffix}", kwargs={"value": value}).set(queue=self.request.delivery_info["routing_key"]))


@task("ignore")
def ignore(self: Task) -> None:
    raise Ignore


@task("reject")
def reject(self: Task, reason: str | None = "not for me") -> None:
    raise Reject(reason, requeue=False)


@task("reject_once")
def reject_once(self: Task, at: str) -> Any:
    if note(at) == 1:
        raise Reject("not now", requeue=True)
    return "later"


@task("soft", soft_time_limit=1)
def soft(self: Task) -> None:
    time.sleep(30)


@task("hard", time_limit=1)
def hard(self: Task) -> None:
    time.sleep(30)


@task("hard_again", time_limit=1, acks_on_timeout=False, acks_on_failure_or_timeout=False)
def hard_again(self: Task, at: str) -> Any:
    if note(at) == 1:
        time.sleep(30)
    return "in time"


def be_killed() -> None:
    if current_process().name != "MainProcess":
        # Celery itself has another process run a task whose process is gone before the main one has read that it began.
        time.sleep(0.5)
    os.kill(os.getpid(), signal.SIGKILL)


@task("die")
def die(self: Task, at: str) -> Any:
    """Its process is killed, the first time."""
    if note(at) == 1:
        be_killed()
    return "alive"


@task("die_requeued", reject_on_worker_lost=True)
def die_requeued(self: Task, at: str) -> Any:
    if note(at) == 1:
        be_killed()
    return "alive"


@task("die_retried", retry_on_worker_lost=True, default_retry_delay=1.0, max_retries=2)
def die_retried(self: Task, at: str) -> Any:
    if note(at) == 1:
        be_killed()
    return "alive"


@task("hoard")
def hoard(self: Task, at: str, killed: bool) -> None:
    """Takes memory until there is no more, some tens of megabytes. Then it fails, or is killed as the kernel would."""
    note(at)
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    has = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (has + 50_000_000, hard))
    taken = []
    try:
        while True:
            taken.append(bytearray(5_000_000))
    except MemoryError:
        if killed:
            os.kill(os.getpid(), signal.SIGKILL)
        taken.clear()
        raise
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@task("leave")
def leave(self: Task) -> None:
    sys.exit(3)


@task("again_after_gate", max_retries=5)
def again_after_gate(self: Task, at: str) -> Any:
    if note(at) == 1:
        wait(at)
        raise self.retry(countdown=0)
    return "second"


@task("boom_after_gate")
def boom_after_gate(self: Task, at: str) -> None:
    note(at)
    wait(at)
    raise ValueError("the message")


@task("replace_after_gate")
def replace_after_gate(self: Task, at: str) -> Any:
    if note(at) == 1:
        wait(at)
        return self.replace(app.signature(self.name, kwargs={"at": at}).set(queue=self.request.delivery_info["routing_key"]))
    return "second"
