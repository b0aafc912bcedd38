"""One trace from Node to Celery and back: bullmq-otel on one side, OpenTelemetry's instrumentation of Celery on the other."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from typing import Any

import pytest
import redis
from celery import Celery
from celery_worker import CeleryWorker
from interop_tasks import value
from node_driver import Node
from servers import Server
from waiting import wait_until

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@pytest.fixture(scope="module")
def traced_worker(server: Server, celery_app: Celery, tmp_path_factory: pytest.TempPathFactory) -> Iterator[CeleryWorker]:
    worker = CeleryWorker(server, tmp_path_factory.mktemp("traced"), pool="solo", concurrency=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("INTEROP_TRACES", "1")
        worker.start()
    yield worker
    worker.stop()


@pytest.fixture
def traced(traced_worker: CeleryWorker, queue_name: str) -> Iterator[CeleryWorker]:
    """The worker, consuming the queue."""
    traced_worker.consume(queue_name)
    yield traced_worker
    traced_worker.cancel(queue_name)
    print(traced_worker.log[-5000:])


def finished(node: Node, queue: str, job_id: str) -> Any:
    return node.call("waitUntilFinished", queue=queue, jobId=job_id, ttl=15000)


def spans_of(node: Node, queue: str, trace: str) -> dict[str, dict[str, Any]]:
    """The spans of a trace on both sides, by their id."""
    theirs = node.call("spans")
    ours = finished(node, queue, node.call("add", queue=queue, name="trace.spans", data={})["id"])
    return {span["spanId"]: span for span in [*theirs, *ours] if span["traceId"] == trace}


def test_one_trace_from_node_to_celery_to_node(node: Node, queue_name: str, traced: CeleryWorker) -> None:
    back, answer = f"{queue_name}-back", f"answer-{secrets.token_hex(4)}"
    node.call("openQueue", queue=queue_name, traced=True)
    node.call("worker", queue=back, traced=True)
    then = {"task": "answer", "queue": back, "id": answer, "kwargs": {"x": 1}}
    sent = node.call("add", queue=queue_name, name="trace.baggage", data={"then": then})
    trace = finished(node, queue_name, sent["id"])["trace"]
    node.wait_for_state(back, answer, "completed")

    def chain() -> list[str]:
        """The names of the spans from the processor that ran last back to the first of the trace."""
        spans = spans_of(node, queue_name, trace)
        ran = f"process {back}"
        last = [span for span in spans.values() if span["name"] == ran and span["attributes"].get("bullmq.job.id") == answer]
        assert last, f"the last processor is in the trace: {spans}"
        names, span = [], last[0]
        while span is not None:
            names.append(span["name"])
            span = spans.get(span["parentSpanId"] or "")
        return names

    names = wait_until(chain, what="the last span")
    assert names == [f"process {back}", "apply_async/answer", "run/trace.baggage", f"add {queue_name}.trace.baggage"]


def test_node_reads_what_celery_sent(node: Node, queue_name: str, celery_app: Celery, redis_client: redis.Redis) -> None:
    headers = {"traceparent": f"00-{TRACE}-{SPAN}-01", "tracestate": "a=b", "baggage": "user=7"}
    sent = value.apply_async((1,), queue=queue_name, headers=headers)
    assert node.job(queue_name, sent.id)["opts"]["telemetry"]["metadata"] == (
        f'{{"traceparent":"00-{TRACE}-{SPAN}-01","tracestate":"a=b","baggage":"user=7"}}'
    )
    node.call("worker", queue=queue_name, traced=True)
    node.wait_for_state(queue_name, sent.id, "completed")

    def processed() -> Any:
        spans = [span for span in node.call("spans") if span["attributes"].get("bullmq.job.id") == sent.id]
        return [span for span in spans if (span["traceId"], span["parentSpanId"]) == (TRACE, SPAN)]

    wait_until(processed, what="the span")


def test_a_task_reads_what_node_sent(node: Node, queue_name: str, traced: CeleryWorker) -> None:
    metadata = f'{{"traceparent":"00-{TRACE}-{SPAN}-01","baggage":"user=7"}}'
    sent = node.call("add", queue=queue_name, name="trace.baggage", data={}, opts={"telemetry": {"metadata": metadata}})
    assert finished(node, queue_name, sent["id"])["trace"] == TRACE


def test_a_context_that_is_not_to_be_told(node: Node, queue_name: str, traced: CeleryWorker) -> None:
    metadata = f'{{"traceparent":"00-{TRACE}-{SPAN}-01"}}'
    opts = {"telemetry": {"metadata": metadata, "omitContext": True}}
    sent = node.call("add", queue=queue_name, name="trace.baggage", data={}, opts=opts)
    assert finished(node, queue_name, sent["id"])["trace"] != TRACE
    again = value.apply_async(
        (1,), queue=queue_name, headers={"traceparent": f"00-{TRACE}-{SPAN}-01"}, bullmq={"telemetry": {"omitContext": True}}
    )
    assert "metadata" not in node.job(queue_name, again.id)["opts"]["telemetry"]


@pytest.mark.parametrize("metadata", ["no JSON", "[1]", '{"traceparent": 1}', '{"id": "x", "task": "evil"}'])
@pytest.mark.parametrize("node", ["v6"], indirect=True)
def test_metadata_of_another_kind_is_left_alone(metadata: str, node: Node, queue_name: str, traced: CeleryWorker) -> None:
    opts = {"telemetry": {"metadata": metadata}}
    sent = node.call("add", queue=queue_name, name="seen", data={}, opts=opts)
    assert finished(node, queue_name, sent["id"])["id"] == f"{queue_name}:{sent['id']}"
