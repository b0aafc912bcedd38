"""The job that the running task belongs to, so that what the task publishes under its own id carries the job on.

Set around the execution of a task by whoever executes it (celery/outcome.py), read by the channel when it publishes.
"""

from __future__ import annotations

from contextvars import ContextVar
from typing import NamedTuple


class Carried(NamedTuple):
    """One job in hand: its queue's base, its id and token, and the id of its task."""

    base: str
    id: str
    token: str
    task_id: str


current: ContextVar[Carried | None] = ContextVar("bullmq_kombu_job", default=None)
