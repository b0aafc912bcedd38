"""How a worker comes back to a Redis that is away: for ever, with BullMQ's pauses, and without keeping a shutdown waiting.

Celery asks Kombu to connect, which pauses in steps of whole seconds and gives up after `broker_connection_max_retries`, 100 by default.
Here the pauses are BullMQ's, and the number counts where the user has set it. Everything else of Celery's (`broker_connection_retry`,
`broker_connection_retry_on_startup`, failover, what is logged) stays as it is.

A pool of processes goes on meanwhile with the tasks that its children were sent. Celery forgets those of them that a child has not yet
reported, for the broker to deliver them again; here they would run twice, so they are kept.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import count
from typing import Any

from kombu.exceptions import OperationalError

from bullmq_kombu.errors import BadInput
from bullmq_kombu.leases import all_leases
from bullmq_kombu.patience import reconnect_delay_s
from bullmq_kombu.wire import ServerNotReady

#: How long a shutdown may go unnoticed during a pause, s.
SLICE_S = 0.1
#: A refusal so long after the one before, or after the pause for it, is another trouble, s.
SAME_TROUBLE_S = 5.0

_MAX_RETRIES = "broker_connection_max_retries"


def reconnect_patiently(consumer: Any) -> None:
    """The consumer of a worker connects as this module says."""
    ensure_connected = consumer.ensure_connected
    limit = consumer.app.conf[_MAX_RETRIES] if _is_set_by_user(consumer.app.conf, _MAX_RETRIES) else None

    def patiently(connection: Any) -> Any:
        def ensure_connection(errback: Callable[[Exception, float], Any], max_retries: Any = None, callback: Any = None, **kw: Any) -> Any:
            _connect(connection, errback, limit, callback)
            return connection

        connection.ensure_connection = ensure_connection
        try:
            return ensure_connected(connection)
        finally:
            del connection.ensure_connection

    consumer.ensure_connected = patiently
    _keep_prefetch_count(consumer)
    _pause_where_refused(consumer)


def _keep_prefetch_count(consumer: Any) -> None:
    """Celery before 5.7 takes the running tasks off the prefetch count when the connection is lost, for a broker that counts them no more.
    Here they go on counting."""
    lost = consumer.on_connection_error_after_connected

    def on_lost(error: Exception) -> None:
        lost(error)
        consumer.initial_prefetch_count = consumer.max_prefetch_count
        consumer._maximum_prefetch_restored = True

    consumer.on_connection_error_after_connected = on_lost


def _pause_where_refused(consumer: Any) -> None:
    """A server that lets us in and then refuses, as one without memory does when queues are declared, is not asked again at once."""
    from celery.worker.state import maybe_shutdown

    lost = consumer.on_connection_error_after_connected
    refusals, until = 0, 0.0

    def on_lost(error: Exception) -> None:
        nonlocal refusals, until
        lost(error)
        if not isinstance(error, ServerNotReady):
            return
        is_next = time.monotonic() < until + SAME_TROUBLE_S
        refusals = refusals + 1 if is_next else 0
        # The first time there may be another server already.
        pause = reconnect_delay_s(refusals) if refusals else 0.0
        until = time.monotonic() + pause
        _pause(pause, maybe_shutdown)

    consumer.on_connection_error_after_connected = on_lost


def _connect(connection: Any, errback: Callable[[Exception, float], Any], limit: int | None, callback: Callable[[], Any] | None) -> None:
    failures = 0
    for attempt in count(1):
        try:
            connection._ensure_connection(max_retries=0, reraise_as_library_errors=False)
            return
        except connection.recoverable_connection_errors as error:
            if limit and attempt > limit:
                raise OperationalError(str(error)) from error
            pause = 0.0
            if connection.completes_cycle(attempt - 1):
                failures += 1
                pause = reconnect_delay_s(failures)
            try:
                errback(error, pause)
            finally:
                connection.maybe_switch_next()
            _pause(pause, callback)


def _pause(seconds: float, callback: Callable[[], Any] | None) -> None:
    until = time.monotonic() + seconds
    while True:
        if callback is not None:
            callback()
        left = until - time.monotonic()
        if left <= 0:
            return
        time.sleep(min(left, SLICE_S))


def keep_what_was_sent(pool: Any) -> None:
    """The pool's `flush`, which Celery calls when the connection is lost, forgets no task that a living child has been sent; the jobs of
    those that were sent to none go back."""
    flush = getattr(pool, "flush", None)
    if flush is None or hasattr(flush, "keeps_what_was_sent"):
        return

    def flushing() -> None:
        workers: set[Any] = getattr(pool._pool, "_busy_workers", set())
        busy = set(workers)
        flush()
        for leases in all_leases():
            for delivery in reversed(leases.held()):
                result = delivery.handed
                if result is None or delivery.settled:
                    continue
                # Celery before 5.6 forgets those that have begun, too.
                if delivery.started or (result._write_to is not None and result._write_to._is_alive()):
                    pool._pool._cache[result._job] = result
                    # Celery before 5.7 takes all children for idle now, and would let the next task wait for one that is not.
                    workers.update(busy & {_pipe_of(result)})
                else:
                    delivery.return_unstarted()

    flushing.keeps_what_was_sent = True  # type: ignore[attr-defined]
    pool.flush = flushing


def _pipe_of(result: Any) -> Any:
    """Of the child that runs it, by which the pool knows it."""
    process = result._write_to or result._scheduled_for
    return None if process is None else process.inqW_fd


def _is_set_by_user(conf: Any, name: str) -> bool:
    """Whether it is more than Celery's default, which is in the last of the maps."""
    return any(spelling in one for one in conf.maps[:-1] for spelling in (name, name.upper()))


def refuse_retry_limit(app: Any) -> None:
    """BullMQ's rule for workers: the limit of retries must be null."""
    limit = (app.conf.broker_transport_options or {}).get("max_retries_per_request")
    if limit is not None:
        raise BadInput(
            f"max_retries_per_request={limit!r} is for producers: a worker waits for Redis for ever, and it must be None in its"
            " broker_transport_options"
        )
