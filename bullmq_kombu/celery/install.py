"""Puts the hooks in place: once in every process that uses a `bullmq://` broker with Celery.

`worker_init` is sent after the worker has imported the transport and before it builds its parts, so a handler connected at import time may
still add a bootstep. Pool children get their part at `worker_process_init`; those that are started anew, not forked, import this package
because it is put on the app's `include`.
"""

from __future__ import annotations

from typing import Any

from celery import bootsteps, signals
from kombu.common import ignore_errors
from kombu.transport import get_transport_cls

from bullmq_kombu.celery import outcome
from bullmq_kombu.celery.reconnect import keep_what_was_sent, reconnect_patiently, refuse_retry_limit
from bullmq_kombu.leases import all_leases


def connect() -> None:
    """Connects the handlers; doing it again changes nothing."""
    signals.worker_init.connect(_on_worker_init, dispatch_uid="bullmq_kombu.worker_init")
    signals.worker_process_init.connect(_on_process_init, dispatch_uid="bullmq_kombu.process_init")


def _on_worker_init(sender: Any = None, **kwargs: Any) -> None:
    app = sender.app
    if not _is_ours(app):
        return
    app.steps["consumer"].add(JobOutcome)
    if __package__ not in app.conf.include:
        app.conf.include = (*app.conf.include, __package__)


def _is_ours(app: Any) -> bool:
    from bullmq_kombu.transport import Transport

    with app.connection_for_read() as connection:
        return issubclass(get_transport_cls(connection.transport_cls), Transport)


def _on_process_init(**kwargs: Any) -> None:
    from celery import current_app

    outcome.wrap_tracers(current_app._get_current_object())


class JobOutcome(bootsteps.StartStopStep):
    """Before the tasks step makes a strategy for each task: they use our requests, which know how a task ended."""

    requires = ("celery.worker.consumer.connection:Connection",)

    def __init__(self, parent: Any, **kwargs: Any) -> None:
        super().__init__(parent, **kwargs)
        refuse_retry_limit(parent.app)
        reconnect_patiently(parent)
        outcome.explain_rejections(parent)
        update_strategies = parent.update_strategies

        def update_with_outcome() -> None:
            outcome.tasks_run_here(not parent.pool.uses_semaphore)
            for task in parent.app.tasks.values():
                outcome.use_job_request(task)
            update_strategies()
            outcome.wrap_tracers(parent.app)

        parent.update_strategies = update_with_outcome

    def start(self, parent: Any) -> None:
        for leases in all_leases():
            leases.worker_name = parent.hostname
        keep_what_was_sent(parent.pool)

    def stop(self, parent: Any) -> None:
        # What was not even given to Celery goes back first, so that the order stays; the tasks step will find it done.
        if parent.task_consumer is not None:
            ignore_errors(parent, parent.task_consumer.cancel)
        # After a cold shutdown the pool has stopped, and every outcome is read; after a lost connection it goes on without them.
        outcome.end_cancelled()
        outcome.return_unstarted()

    def shutdown(self, parent: Any) -> None:
        # The pool is gone, so what it had not begun with never will be.
        outcome.return_unstarted(handed=True)
