"""Celery and Kombu on BullMQ's Redis queues.

Importing this package registers the URL schemes and nothing else: the public names below are loaded when they are first used, because
this package is also imported by an entry point in every process that uses Kombu.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from bullmq_kombu import _register  # noqa: F401  (registering is what the import is for)

__version__ = "0.1.0"

_PUBLIC = {
    "BullMQError": "bullmq_kombu.errors",
    "FlowProducer": "bullmq_kombu.flows",
    "Job": "bullmq_kombu.job",
    "JobFailed": "bullmq_kombu.errors",
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
