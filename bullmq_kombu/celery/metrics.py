"""What a Celery worker counts, for Prometheus: ends of jobs, how long they took, how many it holds.

    from bullmq_kombu.celery.metrics import expose
    expose(app, port=9808)

The worker's main process then serves its own numbers and those of its queues' jobs (metrics.py) at http://127.0.0.1:9808/metrics.
"""

from __future__ import annotations

from typing import Any

from celery import bootsteps
from celery.utils.log import get_logger
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server

from bullmq_kombu.delivery import Delivery
from bullmq_kombu.leases import all_leases
from bullmq_kombu.metrics import QueueCollector
from bullmq_kombu.queue import server_of
from bullmq_kombu.scripts import Ending

logger = get_logger(__name__)

#: From a no-op to a job of ten minutes, s.
BUCKETS = (0.005, 0.025, 0.1, 0.5, 1, 5, 30, 120, 600)


class WorkerMetrics:
    """The instruments of one worker."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.ended = Counter("bullmq_worker_jobs", "Jobs this worker ended, by how", ["queue", "name", "outcome"], registry=registry)
        self.took = Histogram(
            "bullmq_worker_job_duration_seconds",
            "From the start of a job to its end",
            ["queue", "name"],
            buckets=BUCKETS,
            registry=registry,
        )
        held = Gauge("bullmq_worker_jobs_held", "Jobs reserved or running", registry=registry)
        held.set_function(lambda: sum(len(leases.held()) for leases in all_leases()))

    def observe(self, delivery: Delivery, ending: Ending) -> None:
        if ending.what == "commit":
            return
        queue, name = delivery.base.rstrip(":").rpartition(":")[2], delivery.fields.get("name", "")
        self.ended.labels(queue, name, ending.what).inc()
        seconds = delivery.seconds()
        if seconds is not None:
            self.took.labels(queue, name).observe(seconds)


def expose(app: Any, port: int = 9808, address: str = "127.0.0.1") -> None:
    """Every worker of the app serves metrics at `address`:`port`; 0 takes any free port and says it in the log."""

    class MetricsServer(bootsteps.StartStopStep):
        """Serves the metrics from the worker's main process, in a thread of its own."""

        requires = ("celery.worker.components:Pool",)

        def __init__(self, parent: Any, **kwargs: Any) -> None:
            super().__init__(parent, **kwargs)
            self._httpd: Any = None

        def start(self, parent: Any) -> None:
            registry = CollectorRegistry()
            instruments = WorkerMetrics(registry)
            for leases in all_leases():
                leases.observers.append(instruments.observe)
            registry.register(QueueCollector(server_of(parent.app)[0], [*parent.app.amqp.queues]))
            try:
                self._httpd, _ = start_http_server(port, address, registry)
            except OSError as error:  # another worker of this machine, mostly: no reason not to work
                logger.error("No metrics at %s:%s: %s. Port 0 takes any that is free", address, port, error)
            else:
                logger.info("Metrics at http://%s:%s/metrics", address, self._httpd.server_port)

        def stop(self, parent: Any) -> None:
            if self._httpd is not None:
                self._httpd.shutdown()

    app.steps["worker"].add(MetricsServer)
