"""The Celery app of these tests, as a user would write it: nothing in it but the URL says BullMQ.

The worker runs a copy of this file in a folder of its own; the tests import it to send. What a task has to tell or to wait for goes through
Redis keys whose names a test chooses.
"""

from __future__ import annotations

import json
import os
import time
from typing import Any

import redis
from celery import Celery

app = Celery("interop")
app.conf.update(
    broker_url=os.environ.get("INTEROP_BROKER"),
    worker_hijack_root_logger=False,
    broker_connection_retry_on_startup=True,
    worker_prefetch_multiplier=1,
    **json.loads(os.environ.get("INTEROP_SETTINGS", "{}")),
)


def ledger() -> redis.Redis:
    """For what a task tells the test; nothing of the package is used for that."""
    return redis.Redis.from_url(os.environ["INTEROP_REDIS"], decode_responses=True, socket_timeout=None)


@app.task(shared=False, bind=True, name="seen")
def seen(self: Any, *args: Any, **kwargs: Any) -> Any:
    """What the task was called with."""
    return {"task": self.name, "id": self.request.id, "args": list(args), "kwargs": kwargs}


@app.task(shared=False, name="value")
def value(value: Any) -> Any:
    return value


@app.task(shared=False, name="made")
def made(expression: str) -> Any:
    """A result that is no JSON, or that JSON writes in its own way."""
    return {"set": {1}, "nan": float("nan"), "object": object(), "bytes": b"\0", "tuple": (1, 2), "keys": {1: "one"}}[expression]


@app.task(shared=False, name="fail")
def fail(message: str = "no such address", kind: str = "ValueError") -> None:
    raise {"ValueError": ValueError, "KeyError": KeyError, "OSError": OSError}[kind](message)


@app.task(shared=False, name="fail.late", acks_late=True)
def fail_late(message: str = "no such address") -> None:
    raise ValueError(message)


def _fail_until(key: str, times: int) -> Any:
    with ledger() as client:
        attempt = client.incr(key)
    if attempt <= times:
        raise ValueError(f"not yet {attempt}")
    return {"attempt": attempt}


@app.task(shared=False, name="fail_until")
def fail_until(key: str, times: int) -> Any:
    """Fails the first `times` times."""
    return _fail_until(key, times)


@app.task(shared=False, name="fail_until.late", acks_late=True)
def fail_until_late(key: str, times: int) -> Any:
    return _fail_until(key, times)


@app.task(shared=False, name="unrecoverable")
def unrecoverable(message: str) -> None:
    from bullmq_kombu import UnrecoverableError

    raise UnrecoverableError(message)


@app.task(shared=False, name="unrecoverable.auto", autoretry_for=(Exception,), retry_backoff=False, default_retry_delay=0)
def unrecoverable_auto(message: str) -> None:
    """Celery would try again whatever is raised."""
    from bullmq_kombu import UnrecoverableError

    raise UnrecoverableError(message)


@app.task(shared=False, bind=True, name="again", max_retries=5)
def again(self: Any, times: int, countdown: float) -> Any:
    """Asks Celery for another try, `times` times."""
    try:
        if self.request.retries < times:
            raise ValueError(f"failure {self.request.retries + 1}")
    except ValueError as error:
        raise self.retry(countdown=countdown, exc=error) from error
    return {"retries": self.request.retries, "id": self.request.id}


@app.task(shared=False, name="two")
def two(a: Any, b: Any = None) -> Any:
    return [a, b]


def _hold(key: str, result: Any) -> Any:
    with ledger() as client:
        client.rpush(f"{key}:running", os.getpid())
        client.blpop([f"{key}:gate"], timeout=60)
    return result


@app.task(shared=False, name="hold")
def hold(key: str, result: Any = None) -> Any:
    """Runs until something is pushed to `<key>:gate`."""
    return _hold(key, result)


@app.task(shared=False, name="hold.late", acks_late=True)
def hold_late(key: str, result: Any = None) -> Any:
    return _hold(key, result)


@app.task(shared=False, name="note")
def note(key: str, text: Any) -> None:
    """One more line in the list `key`: the order in which tasks ran."""
    with ledger() as client:
        client.rpush(key, json.dumps(text))


@app.task(shared=False, name="count")
def count(key: str, n: int) -> int:
    """Counts how often `n` was done."""
    with ledger() as client:
        client.hincrby(key, str(n), 1)
    return n


# -- what a task asks of its job ---------------------------------------------------------------------------------------------


@app.task(shared=False, bind=True, name="job.about")
def about(self: Any, **kwargs: Any) -> Any:
    """All that `current_job` says."""
    from bullmq_kombu import current_job

    job = current_job()
    names = (
        "id", "name", "queue_name", "prefix", "opts", "timestamp", "delay", "priority", "attempts_made", "attempts_started", "parent",
        "parent_key", "processed_by", "repeat_job_key", "deduplication_id", "token", "data",
    )  # fmt: skip
    return {**{name: getattr(job, name) for name in names}, "task_id": self.request.id, "lock": _lock_of(job.key)}


def _lock_of(key: str) -> Any:
    with ledger() as client:
        return client.get(f"{key}:lock")


@app.task(shared=False, name="job.tell")
def tell(progress: Any = None, lines: Any = (), data: Any = None) -> Any:
    from bullmq_kombu import current_job

    job = current_job()
    for value in progress or ():
        job.update_progress(value)
    counts = [job.log(line) for line in lines]
    if data is not None:
        job.update_data(data)
    return {"counts": counts, "data": job.data}


@app.task(shared=False, name="job.inner")
def inner_job() -> Any:
    """A task called by a task still has the job of the outer one."""
    return job_id.apply().result


@app.task(shared=False, name="job.id")
def job_id() -> Any:
    from bullmq_kombu import current_job

    return current_job().id


def _gather(queue: str, children: int, key: str, **policy: Any) -> Any:
    from bullmq_kombu import current_job

    job = current_job()
    with ledger() as client:
        if client.incr(key) == 1:
            for n in range(children):
                value.apply_async((n,), queue=queue, bullmq={"parent": job.as_parent, **policy})
    job.wait_for_children()
    return {"values": sorted(job.get_children_values().values()), "started": job.attempts_started, "made": job.attempts_made}


@app.task(shared=False, name="job.gather")
def gather(queue: str, children: int, key: str) -> Any:
    """Makes children the first time, and waits for them."""
    return _gather(queue, children, key)


@app.task(shared=False, name="job.gather.late", acks_late=True, autoretry_for=(Exception,))
def gather_late(queue: str, children: int, key: str) -> Any:
    return _gather(queue, children, key)


@app.task(shared=False, name="job.children")
def children() -> Any:
    """A parent that reports how its children ended."""
    from bullmq_kombu import current_job

    job = current_job()
    return {"values": job.get_children_values(), "ignored": job.get_ignored_children_failures(), "counts": job.get_dependencies_count()}


@app.task(shared=False, name="job.limited", autoretry_for=(Exception,))
def limited(key: str, ms: int) -> Any:
    """Finds the queue limited the first time."""
    from bullmq_kombu import RateLimitError, current_job

    job = current_job()
    with ledger() as client:
        if client.incr(key) == 1:
            job.rate_limit(ms)
            client.set(f"{key}:at", time.time())
            raise RateLimitError("too much")
        waited = time.time() - float(client.get(f"{key}:at"))
    return {"waited": waited, "made": job.attempts_made, "started": job.attempts_started}


# -- traces --------------------------------------------------------------------------------------------------------------------


def trace_everything() -> Any:
    """OpenTelemetry's own instrumentation of Celery, with the spans kept in this process."""
    from opentelemetry import trace
    from opentelemetry.instrumentation.celery import CeleryInstrumentor
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    trace.set_tracer_provider(provider)
    CeleryInstrumentor().instrument()
    return exporter


exporter = trace_everything() if os.environ.get("INTEROP_TRACES") else None


@app.task(shared=False, name="trace.baggage")
def trace_baggage(then: Any = None) -> Any:
    """What a task knows of the trace it is part of; `then` is another task to send from within."""
    from opentelemetry import baggage, trace

    if then:
        app.send_task(then["task"], kwargs=then.get("kwargs"), queue=then["queue"], task_id=then["id"])
    return {"trace": f"{trace.get_current_span().get_span_context().trace_id:032x}", "baggage": dict(baggage.get_all())}


@app.task(shared=False, name="trace.spans")
def trace_spans() -> Any:
    """All spans that have ended in this process."""
    assert exporter is not None
    return [
        {
            "name": span.name, "traceId": f"{span.context.trace_id:032x}", "spanId": f"{span.context.span_id:016x}",
            "parentSpanId": f"{span.parent.span_id:016x}" if span.parent else None,
        }
        for span in exporter.get_finished_spans()
    ]  # fmt: skip
