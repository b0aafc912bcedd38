"""What a worker without work costs: `idle.py SYSTEM PORT QUEUES SECONDS WARM_SECONDS`; the command of a worker for Node follows.

Counted is what the worker's connections send, as MONITOR tells it; what scripts call on the server is not. The server has no other client.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import redis
from celery_worker import Worker
from meter import answer

READY_TIMEOUT_S = 60.0
_BLOCKING = {"bullmq": "BZPOPMIN", "node": "BZPOPMIN", "redis": "BRPOP"}


def main(system: str, port: int, queues: int, seconds: float, warm: float, argv: list[str]) -> None:
    names = ",".join(f"q{number}" for number in range(queues))
    holder = Worker(names, "solo", "1") if system != "node" else NodeWorker(argv)
    with redis.Redis(port=port, decode_responses=True) as client, holder as process:
        wait_ready(client, system)
        time.sleep(warm)
        sent = listen(port, seconds)
        clients: Any = client.client_list()
        answer({
            f"idle, {queues} queues": {
                "commands": sum(sent.values()) / seconds,
                "connections": len(clients) - 1,
                "memory": resident_mb(process.pid),
                "names": dict(sent),
            }
        })  # fmt: skip


class NodeWorker:
    def __init__(self, argv: list[str]) -> None:
        self._argv = argv

    def __enter__(self) -> subprocess.Popen[bytes]:
        self._process = subprocess.Popen(self._argv, stdout=subprocess.DEVNULL)
        return self._process

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        self._process.kill()
        self._process.wait()


def wait_ready(client: Any, system: str) -> None:
    """Until the worker waits for work."""
    deadline = time.monotonic() + READY_TIMEOUT_S
    while not any(one["cmd"].upper() == _BLOCKING[system] for one in client.client_list()):
        if time.monotonic() > deadline:
            raise TimeoutError("the worker did not begin to wait for work")
        time.sleep(0.1)


def listen(port: int, seconds: float) -> Counter[str]:
    """How often each command came in that time."""
    found: Counter[str] = Counter()
    with redis.Redis(port=port) as client, client.monitor() as monitor:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            if not monitor.connection.can_read(timeout=0.1):
                continue
            command = monitor.next_command()
            if command["client_type"] != "lua":
                found[command["command"].split()[0].upper()] += 1
    return found


def resident_mb(pid: int) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    return 0.0


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4]), float(sys.argv[5]), sys.argv[6:])
