"""What a stretch of work costs: its wall time, this process' CPU time, and the server's.

One import shared by the measuring scripts of this folder, which are run as files, each in a process of its own.
"""

from __future__ import annotations

import json
import sys
import time
from types import TracebackType
from typing import Any

import redis

PAYLOAD = {"n": 1, "text": "x" * 50}


class Meter:
    """`with Meter(client, jobs) as cost: …` leaves µs per job in `cost.result`."""

    def __init__(self, client: redis.Redis, jobs: int) -> None:
        self.client = client
        self.jobs = jobs
        self.result: dict[str, float] = {}

    def __enter__(self) -> Meter:
        self._server = server_cpu(self.client)
        self._client = time.process_time()
        self._wall = time.perf_counter()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        wall, client = time.perf_counter() - self._wall, time.process_time() - self._client
        server = server_cpu(self.client) - self._server
        micro = 1e6 / self.jobs
        self.result = {"wall": wall * micro, "client": client * micro, "server": server * micro}


def server_cpu(client: redis.Redis) -> float:
    """Seconds of CPU the server has used."""
    info: Any = client.info("cpu")
    return float(info["used_cpu_user"] + info["used_cpu_sys"])


def client_of(port: int) -> redis.Redis:
    # Some wait for long.
    return redis.Redis(port=port, decode_responses=True, socket_timeout=None)


def answer(results: dict[str, Any]) -> None:
    """The one line of output that the caller reads."""
    sys.stdout.write(json.dumps(results) + "\n")
