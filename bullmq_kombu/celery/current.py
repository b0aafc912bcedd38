"""The job of the running task: what BullMQ knows of it, and what a processor may do to it.

    @app.task
    def convert(path):
        job = current_job()
        job.update_progress({"page": 3})
        job.log("slow disk")

What the job was when it was taken came with the message; everything else asks the Redis that the message came from. Works in every pool:
the connection belongs to the process, and a forked child opens its own.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any
from weakref import WeakKeyDictionary

from celery._state import _task_stack
from celery.exceptions import Ignore

from bullmq_kombu import scripts
from bullmq_kombu.address import address_of
from bullmq_kombu.connection import Server
from bullmq_kombu.errors import BullMQError, job_error
from bullmq_kombu.job import Job
from bullmq_kombu.options import check_options
from bullmq_kombu.queue import Queue


class RateLimitError(BullMQError, Ignore):
    """Raise it in a task after limiting the queue (`current_job().rate_limit`): the job goes back to the head of its queue, no attempt is
    counted, and this worker leaves the queue alone for as long as the limit says."""


class WaitingChildrenError(BullMQError, Ignore):
    """Ends the run of a task whose job waits for its children; the task runs again when they are done."""


class CurrentJob(Job):
    """A job while its task runs. Everything of `Job`, and what only the one who works on it may do.

    `attempts_started` counts this run. What changes during the run (progress, logs) is as it was before; `refresh()` reads it again.
    """

    def __init__(self, queue: Queue, about: Mapping[str, Any]) -> None:
        super().__init__(queue, about["job"], about)
        self.token: str = about["token"]
        self.attempts_started += 1

    @cached_property
    def data(self) -> Any:
        """The job's data, as it is now. The message carries it once, as the task's arguments: it is read when asked for."""
        text = self.queue.server.call("HGET", self.key, "data")
        return json.loads(text) if text else {}

    @property
    def as_parent(self) -> dict[str, str]:
        """For the option `parent` of a job that is to be a child of this one."""
        return {"id": self.id, "queue": f"{self.prefix}:{self.queue_name}"}

    def wait_for_children(self) -> None:
        """Returns when no child is pending. While one is, the job leaves this worker and waits in Redis; when the last child is done, the
        task runs again, from its beginning, with its children's values at hand.

        A child that has failed under `failParentOnFailure` is an error: FailedChildren.
        """
        queue = self.queue
        code = scripts.wait_children(queue.server, queue.base, self.id, self.token, queue.clock())
        if code < 0:
            raise job_error(code, "moveToWaitingChildren", self.id)
        if code == 0:
            raise WaitingChildrenError(f"job {self.id} waits for its children")

    def rate_limit(self, expire_ms: int) -> None:
        """Closes the job's queue for `expire_ms`: the first half of being limited. The second is to raise RateLimitError."""
        self.queue.rate_limit(expire_ms)


_servers: WeakKeyDictionary[Any, dict[str, Server]] = WeakKeyDictionary()


def current_job() -> CurrentJob:
    """The job of the task that runs here; BullMQError where none does, or where it came from another broker."""
    for task in reversed(_task_stack.stack or ()):
        properties = getattr(task.request, "properties", None) or {}
        about = properties.get("bullmq")
        if isinstance(about, Mapping) and "token" in about:
            return CurrentJob(Queue(about["queue"], _server_of(task.app, about.get("at", "")), prefix=about["prefix"]), about)
    raise BullMQError("current_job() is for a running task that a worker got from a bullmq:// broker")


def _server_of(app: Any, where: str) -> Server:
    """The Redis of the app's broker; where it has several, the one the message came from."""
    servers = _servers.get(app)
    if servers is None:
        servers = _servers[app] = dict(_servers_of(app))
    return servers[where] if where in servers else next(iter(servers.values()))


def _servers_of(app: Any) -> Iterator[tuple[str, Server]]:
    with app.connection_for_read() as connection:
        addresses = [address_of(connection)]
        options = check_options(connection.transport_options, addresses[0].kind)
        if addresses[0].kind in ("tcp", "unix"):
            addresses += [address_of(app.connection_for_read(url)) for url in connection.alt or ()]
    for address in addresses:
        yield address.where, Server(address, options)
