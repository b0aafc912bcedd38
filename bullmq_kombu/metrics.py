"""Prometheus metrics of queues, through the official client library.

The names are those of BullMQ's own export (`Queue.exportPrometheusMetrics`), so that a dashboard made for Node shows these queues too:

    bullmq_job_count{queue, state}       gauge    jobs by state
    bullmq_job_completed_total{queue}    counter  where metrics are kept (option `metrics`)
    bullmq_job_failed_total{queue}       counter

`bullmq-kombu metrics` prints or serves them; `wsgi_app(server)` is for one's own web server. What workers count is in celery/metrics.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest, make_wsgi_app
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from bullmq_kombu.connection import Server
from bullmq_kombu.discovery import queue_names
from bullmq_kombu.queue import Queue, server_of


class QueueCollector(Collector):
    """Asks Redis when it is asked. Without names: every queue of the prefix."""

    def __init__(self, server: Server, names: Sequence[str] = ()) -> None:
        self._server = server
        self._names = names

    def describe(self) -> Iterable[Metric]:
        """Nothing beforehand: registering asks no server."""
        return []

    def collect(self) -> Iterator[Metric]:
        jobs = GaugeMetricFamily("bullmq_job_count", "Number of jobs in the queue by state", labels=["queue", "state"])
        completed = CounterMetricFamily("bullmq_job_completed", "Total number of completed jobs", labels=["queue"])
        failed = CounterMetricFamily("bullmq_job_failed", "Total number of failed jobs", labels=["queue"])
        for name in self._names or queue_names(self._server):
            queue = Queue(name, self._server)
            for state, number in queue.get_job_counts().items():
                jobs.add_metric([name, state], number)
            completed.add_metric([name], queue.get_metrics("completed", 0, 0)["meta"]["count"])
            failed.add_metric([name], queue.get_metrics("failed", 0, 0)["meta"]["count"])
        yield jobs
        yield completed
        yield failed


def registry_of(server: Server, names: Sequence[str] = ()) -> CollectorRegistry:
    registry = CollectorRegistry(auto_describe=False)
    registry.register(QueueCollector(server, names))
    return registry


def as_text(server: Server, names: Sequence[str] = ()) -> str:
    """Prometheus' text format."""
    return generate_latest(registry_of(server, names)).decode()


def wsgi_app(connection: Any, names: Sequence[str] = (), prefix: str | None = None) -> Any:
    """A WSGI application that answers with the metrics. `connection` is a URL, a kombu.Connection, a Celery app or a Server."""
    return make_wsgi_app(registry_of(server_of(connection, prefix)[0], names))
