"""Node and Celery beside us: every test that asks for ``node`` runs against both majors of BullMQ.

Celery workers stay for the run; a test has them consume its queue by remote control, and stop when it is over.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from celery_worker import CeleryWorker
from interop_tasks import app
from node_driver import HERE, V5_VARIABLE, VERSIONS, Node
from servers import Server

NodeOf = Callable[[str], Node]
Serve = Callable[[str], CeleryWorker]


LEFT_OUT = pytest.StashKey[int]()


def _lacking() -> set[str]:
    """Where another BullMQ stands in for the newest 5, the tests that it cannot pass; its folder has their names."""
    folder = os.environ.get(V5_VARIABLE)
    if folder is None:
        return set()
    lines = (HERE / folder / "differences.txt").read_text(encoding="utf-8").splitlines()
    return {line.split()[0] for line in lines if line and not line.startswith("#")}


def pytest_configure() -> None:
    """A name that no test has is an error: what it stood for would be left out no longer, or for no reason."""
    for name in sorted(_lacking()):
        file, _, test = name.partition("::")
        path = Path(__file__).with_name(file)
        # In its source, since a run may be of a few files only.
        if not path.exists() or f"def {test}(" not in path.read_text(encoding="utf-8"):
            raise pytest.UsageError(f"differences.txt of {os.environ[V5_VARIABLE]} names a test that is not there: {name}")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    lacking = _lacking()
    kept = [item for item in items if "v5" not in item.name or item.nodeid.partition("[")[0].rpartition("/")[2] not in lacking]
    config.stash[LEFT_OUT] = len(items) - len(kept)
    items[:] = kept


def pytest_sessionfinish(session: pytest.Session) -> None:
    """A process of xdist tells the one that prints."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["left_out"] = session.config.stash.get(LEFT_OUT, 0)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    if "left_out" in getattr(node, "workeroutput", {}):
        node.config.stash[LEFT_OUT] = node.workeroutput["left_out"]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if V5_VARIABLE in os.environ:
        terminalreporter.write_line(f"{os.environ[V5_VARIABLE]}: {config.stash.get(LEFT_OUT, 0)} tests that it cannot pass left out")


@pytest.fixture(scope="session")
def node_processes(server: Server) -> Iterator[NodeOf]:
    """One process per version for the whole run, started when first asked for."""
    started: dict[str, Node] = {}

    def get(version: str) -> Node:
        if version not in started:
            started[version] = Node(version, server).start()
        return started[version]

    yield get
    for node in started.values():
        node.close()


@pytest.fixture
def node_of(node_processes: NodeOf) -> Iterator[NodeOf]:
    """``node_of("v5")``: for tests that want one version, or both at once."""
    used: dict[str, Node] = {}

    def get(version: str) -> Node:
        if version not in used:
            used[version] = node_processes(version)
        return used[version]

    yield get
    # After the test and not before the next: a worker left behind would compete for the machine, if not for the jobs.
    for node in used.values():
        node.reset()


@pytest.fixture(params=VERSIONS)
def node(request: pytest.FixtureRequest, node_of: NodeOf) -> Node:
    """Node with BullMQ, once per major version.

    ``@pytest.mark.parametrize("node", ["v6"], indirect=True)`` takes one.
    """
    return node_of(request.param)


@pytest.fixture(scope="session")
def celery_app(server: Server) -> Iterator[Celery]:
    """The app of `interop_tasks`, to send with."""
    os.environ["INTEROP_REDIS"] = server.redis_url
    app.conf.broker_url = server.url
    yield app
    app.close()


@pytest.fixture(scope="session")
def celery_workers(server: Server, celery_app: Celery, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], CeleryWorker]]:
    """One worker per pool for the whole run, started when first asked for."""
    started: dict[str, CeleryWorker] = {}

    def get(pool: str) -> CeleryWorker:
        if pool not in started:
            folder = tmp_path_factory.mktemp(f"celery-{pool}")
            started[pool] = CeleryWorker(server, folder, pool=pool, concurrency=1 if pool == "solo" else 2).start()
        return started[pool]

    yield get
    for worker in started.values():
        worker.stop()


def _serving(worker_of: Callable[[], CeleryWorker]) -> Iterator[Serve]:
    served: list[tuple[CeleryWorker, str]] = []

    def serve(queue: str) -> CeleryWorker:
        worker = worker_of()
        worker.consume(queue)
        served.append((worker, queue))
        return worker

    yield serve
    for worker, queue in served:
        worker.cancel(queue)
        print(worker.log[-5000:])  # pytest shows it where the test failed


@pytest.fixture
def serve(celery_workers: Callable[[str], CeleryWorker]) -> Iterator[Serve]:
    """`serve(queue)`: from now on a Celery worker with two processes consumes the queue."""
    yield from _serving(lambda: celery_workers("prefork"))


@pytest.fixture
def serve_in_order(celery_workers: Callable[[str], CeleryWorker]) -> Iterator[Serve]:
    """The same with a worker that does one task after the other."""
    yield from _serving(lambda: celery_workers("solo"))
