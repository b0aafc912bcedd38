"""What is measured: for each area the systems that do the work, and how. A measurement is one new process that prints one line of JSON.

Systems: `bullmq` is this package, `redis` Kombu's Redis transport, `node` Node's BullMQ, `port` its official Python port. Floors: `raw` is
this package's scripts on a bare socket, `memory` Kombu's transport without a server.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.peers import node_command, port_command

MEASURE = Path(__file__).parent / "measure"
PREFETCHES = ("1", "10", "100")
POOLS = (("solo", "1"), ("prefork", "2"), ("threads", "4"))
MULTIPLIERS = ("1", "4", "100")


@dataclass(frozen=True)
class Sizes:
    """How many jobs of each kind: enough for some tenths of a second, so slow systems get fewer."""

    fast: int = 4000
    slow: int = 1200
    tasks: int = 2000
    slow_tasks: int = 700
    samples: int = 80
    bytes: int = 2000
    idle_s: float = 31.0
    idle_warm_s: float = 5.0
    idle_queues: tuple[int, ...] = (1, 10, 100)
    waiting: int = 1_000_000
    kept: int = 100_000
    held: int = 10_000
    few: int = 1000
    pools: tuple[tuple[str, str], ...] = POOLS
    multipliers: tuple[str, ...] = MULTIPLIERS


SMOKE = Sizes(
    fast=40, slow=40, tasks=30, slow_tasks=30, samples=8, bytes=100, idle_s=1.0, idle_warm_s=0.3, idle_queues=(1,), waiting=2000, kept=200,
    held=200, few=100, pools=(("solo", "1"),), multipliers=("4",),
)  # fmt: skip


@dataclass(frozen=True)
class Measurement:
    """One process: its command, given the port of an empty server, and what is added to its environment."""

    system: str
    command: Callable[[int], list[str]]
    environment: Callable[[int], dict[str, str]] = field(default=lambda port: {})


def script(name: str, *args: str) -> list[str]:
    return [sys.executable, str(MEASURE / f"{name}.py"), *args]


def _broker(system: str, *, result: bool = False, **more: str) -> Callable[[int], dict[str, str]]:
    def environment(port: int) -> dict[str, str]:
        url = "memory://" if system == "memory" else f"{system}://127.0.0.1:{port}/0"
        return {"BENCH_BROKER": url, "BENCH_BACKEND": url if result else "", **more}

    return environment


def areas(sizes: Sizes) -> dict[str, list[Measurement]]:
    """Area -> its measurements, in the order in which they take turns."""
    fast, slow = str(sizes.fast), str(sizes.slow)
    found: dict[str, list[Measurement]] = {
        "kombu": [
            Measurement("bullmq", lambda port: script("kombu_client", "bullmq", str(port), fast, fast, *PREFETCHES)),
            Measurement("redis", lambda port: script("kombu_client", "redis", str(port), fast, slow, *PREFETCHES)),
            Measurement("memory", lambda port: script("kombu_client", "memory", str(port), fast, fast, *PREFETCHES)),
            Measurement("raw", lambda port: script("raw", str(port), fast, *PREFETCHES)),
            Measurement("node", lambda port: node_command(str(port), "add", fast)),
            Measurement("node", lambda port: node_command(str(port), "addBulk", fast, "1000")),
            *(
                Measurement("node", lambda port, one=one: node_command(str(port), "worker", fast, one))  # type: ignore[misc]
                for one in PREFETCHES
            ),
            Measurement("port", lambda port: port_command(str(port), slow, slow, *PREFETCHES)),
        ],
        "queue": [
            Measurement("bullmq", lambda port: script("queue_api", str(port), slow, "1000")),
            Measurement("node", lambda port: node_command(str(port), "addBulk", fast, "1000")),
        ],
        "send": [
            Measurement(system, lambda port: script("celery_client", str(port), slow), _broker(system))
            for system in ("bullmq", "redis", "memory")
        ],
        "latency": [
            *(
                Measurement(system, lambda port, system=system: script("kombu_latency", system, str(port), str(sizes.samples)))  # type: ignore[misc]
                for system in ("bullmq", "redis")
            ),
            *(
                Measurement(system, lambda port: script("celery_latency", str(sizes.samples)), _broker(system, result=True))
                for system in ("bullmq", "redis")
            ),
            Measurement("raw", lambda port: script("raw_latency", str(port), str(sizes.samples))),
            Measurement("node", lambda port: node_command(str(port), "latency", str(sizes.samples))),
            Measurement("node", lambda port: node_command(str(port), "trip", str(sizes.samples))),
        ],
    }
    for pool, concurrency in sizes.pools:
        for multiplier in sizes.multipliers:
            found[f"{pool} {concurrency}, multiplier {multiplier}"] = [
                Measurement(
                    system,
                    lambda port, pool=pool, concurrency=concurrency, count=count: script(  # type: ignore[misc]
                        "celery_worker", pool, concurrency, str(port), str(count)
                    ),
                    _broker(system, BENCH_MULTIPLIER=multiplier),
                )
                for system, count in (("bullmq", sizes.tasks), ("redis", sizes.slow_tasks))
            ]
    return found
