"""Publications that are wanted as jobs and not in Redis: a flow is put together of tasks before any of it is stored.

Set around `apply_async` by whoever collects (flows.py), read by the channel when it publishes. Routing, serialization and Celery's signals
are then those of any other publication.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from typing import Any, NamedTuple

from bullmq_kombu.codec import Outgoing


class Collected(NamedTuple):
    """What was published: (prefix, queue, job); `options` are BullMQ's, laid over those of the message."""

    options: Mapping[str, Any]
    jobs: list[tuple[str, str, Outgoing]]


collecting: ContextVar[Collected | None] = ContextVar("bullmq_kombu_collecting", default=None)


@contextlib.contextmanager
def collect(options: Mapping[str, Any]) -> Iterator[list[tuple[str, str, Outgoing]]]:
    """Within it, what this context publishes to BullMQ queues is in the list and not in Redis."""
    collected = Collected(options, [])
    before = collecting.set(collected)
    try:
        yield collected.jobs
    finally:
        collecting.reset(before)
