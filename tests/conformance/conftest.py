"""The two sides, ready to be compared: a Node of its own per version, with a clock that stands, and this package."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from node_driver import VERSIONS, Node
from servers import Server

_HERE = Path(__file__).parent
if str(_HERE) not in sys.path:
    sys.path.insert(0, str(_HERE))

from comparison import Comparison, MakeComparison  # noqa: E402 - needs the path above
from sides import PLAIN, NodeSide, OurSide, WorkerOptions  # noqa: E402

#: Databases of the test server that only the comparison uses.
NODE_DB, OUR_DB = 12, 13


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--long", action="store_true", help="conformance: 2,000 random sequences instead of 100")


@pytest.fixture(scope="session")
def sequences(request: pytest.FixtureRequest) -> int:
    """How many random sequences are tried."""
    wanted = os.environ.get("BULLMQ_KOMBU_SEQUENCES")
    if wanted:
        return int(wanted)
    return 2000 if request.config.getoption("--long", False) else 100


@pytest.fixture(scope="session")
def stopped_nodes(server: Server) -> Iterator[Callable[[str], Node]]:
    """One Node per version for the whole run, whose clock stands where the tests put it."""
    started: dict[str, Node] = {}

    def get(version: str) -> Node:
        if version not in started:
            started[version] = Node(version, server, connection={"db": NODE_DB}).start()
        return started[version]

    yield get
    for node in started.values():
        node.close()


@pytest.fixture(scope="session", params=VERSIONS)
def make_comparison(request: pytest.FixtureRequest, server: Server, stopped_nodes: Callable[[str], Node]) -> Iterator[MakeComparison]:
    """`make_comparison(worker=WorkerOptions(…))`: both sides empty. Once per major version of BullMQ."""
    from kombu import Connection

    from bullmq_kombu.address import address_of
    from bullmq_kombu.connection import Server as OurServer
    from bullmq_kombu.options import check_options

    node = stopped_nodes(request.param)
    node_client, our_client = server.client(db=NODE_DB), server.client(db=OUR_DB)
    made: dict[str, Comparison] = {}

    def our_server(**options: Any) -> OurServer:
        return OurServer(address_of(Connection(server.url_of(db=OUR_DB))), check_options(options))

    def make(worker: WorkerOptions = PLAIN) -> Comparison:
        for client in (node_client, our_client):
            client.flushdb()
        key = repr(worker)
        if key not in made:
            queue = f"c{len(made)}"
            made[key] = Comparison(
                request.param, queue, NodeSide(node, worker), OurSide(our_server, our_client, worker), node_client, our_client
            )
        made[key].begin()
        return made[key]

    yield make
    for comparison in made.values():
        comparison.ours.close()
    node.reset()
    node_client.close()
    our_client.close()


@pytest.fixture
def both(make_comparison: MakeComparison) -> Comparison:
    """Both sides empty, with plain workers."""
    return make_comparison()
