"""Celery and Kombu on BullMQ's Redis queues.

Importing this package registers the URL schemes and nothing else: the public names below are loaded when they are first used, because
this package is also imported by an entry point in every process that uses Kombu.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from bullmq_kombu import _register  # noqa: F401  (registering is what the import is for)

if TYPE_CHECKING:  # the same names for those who read the source; a test compares the two lists
    from bullmq_kombu.batch import bulk as bulk
    from bullmq_kombu.celery.current import RateLimitError as RateLimitError
    from bullmq_kombu.celery.current import WaitingChildrenError as WaitingChildrenError
    from bullmq_kombu.celery.current import current_job as current_job
    from bullmq_kombu.errors import BullMQError as BullMQError
    from bullmq_kombu.errors import JobFailed as JobFailed
    from bullmq_kombu.errors import UnrecoverableError as UnrecoverableError
    from bullmq_kombu.flows import FlowProducer as FlowProducer
    from bullmq_kombu.job import Job as Job
    from bullmq_kombu.queue import Queue as Queue
    from bullmq_kombu.queue_events import QueueEvents as QueueEvents
    from bullmq_kombu.shapes import JobsOptions as JobsOptions

__version__ = "0.1.0"

_PUBLIC = {
    "BullMQError": "bullmq_kombu.errors",
    "FlowProducer": "bullmq_kombu.flows",
    "Job": "bullmq_kombu.job",
    "JobFailed": "bullmq_kombu.errors",
    "JobsOptions": "bullmq_kombu.shapes",
    "Queue": "bullmq_kombu.queue",
    "QueueEvents": "bullmq_kombu.queue_events",
    "RateLimitError": "bullmq_kombu.celery.current",
    "UnrecoverableError": "bullmq_kombu.errors",
    "WaitingChildrenError": "bullmq_kombu.celery.current",
    "bulk": "bullmq_kombu.batch",
    "current_job": "bullmq_kombu.celery.current",
}

__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str) -> Any:
    try:
        module = _PUBLIC[name]
    except KeyError:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from None
    return getattr(import_module(module), name)


def __dir__() -> list[str]:
    return sorted(__all__)
