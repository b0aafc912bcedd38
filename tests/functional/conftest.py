"""Celery workers and jobs for the functional tests; one worker of each pool serves all the tests that only need tasks run."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

_HERE = Path(__file__).parent
for _folder in (_HERE, _HERE / "apps"):
    if str(_folder) not in sys.path:
        sys.path.insert(0, str(_folder))

from celery import Celery  # noqa: E402
from jobs import Job  # noqa: E402 - needs the path above
from servers import Server  # noqa: E402
from worker import Worker  # noqa: E402

JobOf = Callable[[str], Job]
WorkerOf = Callable[..., Worker]


@pytest.fixture
def app(server: Server) -> Iterator[Celery]:
    """An app to send with; the tasks are those of `apps/tasks.py`."""
    with sender(server) as one:
        yield one


@contextlib.contextmanager
def sender(server: Server, **settings: Any) -> Iterator[Celery]:
    """An app that knows the names of tasks only, as that of another service would."""
    one = Celery("sender", broker=server.url, set_as_current=False)
    one.conf.update(settings)
    yield one
    one.close()


@pytest.fixture
def job(redis_client: redis.Redis, queue_name: str) -> JobOf:
    """`job(id)`: the job of the test's queue."""
    return lambda job_id: Job(redis_client, queue_name, job_id)


@pytest.fixture
def worker(server: Server, tmp_path: Path, queue_name: str, request: pytest.FixtureRequest) -> Iterator[WorkerOf]:
    """`worker(pool=…)`: starts a worker of the test's queue, which is killed when the test is over, for stopping one takes seconds; its log
    is shown if that failed."""
    started: list[Worker] = []

    def start(*queues: str, wait: bool = True, on: Server | None = None, **options: Any) -> Worker:
        one = Worker(on or server, tmp_path, queues or (queue_name,), **options)
        started.append(one)
        return one.start(wait=wait)

    yield start
    for one in started:
        one.kill()
        one.show()


@pytest.fixture(scope="session")
def standing(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Worker]]:
    """One worker per pool for the whole run, started when first asked for."""
    started: dict[str, Worker] = {}

    def get(pool: str) -> Worker:
        if pool not in started:
            settings = {"worker_prefetch_multiplier": 1}
            one = Worker(
                server, tmp_path_factory.mktemp("standing"), ["idle"], pool=pool, settings=settings, concurrency=1 + (pool != "solo")
            )
            started[pool] = one.start()
        return started[pool]

    yield get
    for one in started.values():
        one.stop()


@pytest.fixture
def serve(standing: Callable[[str], Worker], app: Celery, queue_name: str) -> Iterator[WorkerOf]:
    """`serve(queue, pool=…)`: from now on, until the test is over, a worker that is there already consumes the queue (the test's own)."""
    served: list[tuple[Worker, str]] = []

    def consume(queue: str = queue_name, pool: str = "prefork") -> Worker:
        one = standing(pool)
        served.append((one, queue))
        replies = app.control.add_consumer(queue, destination=[one.name], reply=True, timeout=10.0, limit=1)
        assert "ok" in replies[0][one.name], replies
        return one

    yield consume
    for one, queue in served:
        app.control.cancel_consumer(queue, destination=[one.name], reply=True, timeout=10.0, limit=1)
        one.show()
