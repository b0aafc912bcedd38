"""A traced Celery app: OpenTelemetry's own instrumentation, and nothing of BullMQ's."""

from __future__ import annotations

from typing import Any

from celery import Celery
from celery.signals import worker_process_init
from opentelemetry import trace
from opentelemetry.instrumentation.celery import CeleryInstrumentor
from opentelemetry.sdk.trace import TracerProvider

app = Celery("tasks", broker="bullmq://127.0.0.1:6379/0")


@worker_process_init.connect(weak=False)
def instrument(**kwargs: Any) -> None:
    # With an exporter of yours: trace.get_tracer_provider().add_span_processor(…)
    trace.set_tracer_provider(TracerProvider())
    CeleryInstrumentor().instrument()


@app.task(name="report.build")
def build(rows: int) -> str:
    return trace.format_trace_id(trace.get_current_span().get_span_context().trace_id)
