"""Node beside us: every test that asks for ``node`` runs against both majors of BullMQ."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from node_driver import VERSIONS, Node
from servers import Server

NodeOf = Callable[[str], Node]


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
