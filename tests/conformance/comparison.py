"""Does the same thing on both sides and insists that nothing differs: neither the answer nor, when asked, the key space."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import redis
from keyspace import Picture, differences
from sides import NodeSide, OurSide

#: Where the clock stands when a comparison begins. The past, so that nothing is due by accident.
START_MS = 1_700_000_000_000


class Comparison:
    """`both.do("add", "send", {}, {"delay": 5})` is done by Node and by this package in the queue of the comparison."""

    def __init__(self, version: str, queue: str, node: NodeSide, ours: OurSide, node_client: redis.Redis, our_client: redis.Redis) -> None:
        self.version = version
        self.queue = queue
        self.node = node
        self.ours = ours
        self.node_client = node_client
        self.our_client = our_client
        self.now = START_MS
        self.history: list[str] = []

    def begin(self) -> None:
        self.history = []
        self.at(START_MS)
        self.node.let_go()
        self.ours.let_go()

    def at(self, now: int) -> None:
        """The clock of both sides stands at `now`."""
        self.now = now
        self.node.set_clock(now)
        self.ours.set_clock(now)

    def later(self, ms: int) -> None:
        self.at(self.now + ms)
        self.history.append(f"later({ms})")

    def do(self, verb: str, *args: Any, **named: Any) -> Any:
        """The answer, which is that of both sides."""
        self.history.append(f"{verb}{args}{named or ''}")
        theirs = getattr(self.node, verb)(self.queue, *args, **named)
        mine = getattr(self.ours, verb)(self.queue, *args, **named)
        assert mine == theirs, f"{self.history[-1]}: Node answered {theirs!r}, we {mine!r}; after {self._story()}"
        return mine

    def lose_lock(self, job_id: str) -> None:
        """The worker that holds the job is gone and its lock has expired."""
        self.history.append(f"lose_lock({job_id})")
        for client in (self.node_client, self.our_client):
            client.delete(f"bull:{self.queue}:{job_id}:lock")

    def forget_check(self) -> None:
        """The interval within which one stalled check is enough is over."""
        for client in (self.node_client, self.our_client):
            client.delete(f"bull:{self.queue}:stalled-check")

    def recover(self) -> None:
        self.do("recover")
        self.forget_check()

    def promote_jobs(self, delayed: list[str]) -> None:
        """All `delayed` jobs are promoted. Upstream leaves the old delay in their hashes; here it is 0, as it is after every promotion."""
        self.do("promote_jobs")
        for job_id in delayed:
            self.node_client.hset(f"bull:{self.queue}:{job_id}", "delay", 0)

    def compare(self) -> None:
        """Both key spaces, the event streams included."""
        found = differences(Picture(self.node_client, self.version), Picture(self.our_client, self.version))
        assert not found, "\n".join([*found, f"after {self._story()}"])

    def pictures(self) -> tuple[Picture, Picture]:
        """Node's and ours, where a test looks at what it knows to differ."""
        return Picture(self.node_client, self.version), Picture(self.our_client, self.version)

    def _story(self) -> str:
        return "\n  ".join(["", *self.history])


MakeComparison = Callable[..., Comparison]


def add(both: Comparison, name: str = "n", data: Any = None, **opts: Any) -> str:
    """Adds a job with these options on both sides; its id."""
    job_id: str = both.do("add", name, {"a": 1} if data is None else data, opts)
    return job_id
