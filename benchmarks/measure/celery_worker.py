"""A Celery worker at no-op tasks: `celery_worker.py POOL CONCURRENCY PORT COUNT`; broker and multiplier are in the environment.

Both kinds of task are sent before the worker starts, to a queue each. It consumes the one, then is told to consume the other. Timed is
from the first task's beginning to the beginning of the one sent last.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from celery_tasks import app, early, end, late
from meter import answer, client_of, server_cpu

HERE = Path(__file__).parent
TIMEOUT_S = 120.0
_TICKS = os.sysconf("SC_CLK_TCK")
WORKER_OPTIONS = ("-l", "ERROR", "--without-gossip", "--without-mingle", "--without-heartbeat")


def main(pool: str, concurrency: str, port: int, count: int) -> None:
    client, teller = client_of(port), client_of(int(os.environ["BENCH_TELL_PORT"]))
    teller.flushall()
    with app.producer_pool.acquire(block=True) as producer:
        for task in (early, late):
            for _ in range(count):
                task.apply_async(producer=producer, queue=task.__name__)
            end.apply_async((task.__name__,), producer=producer, queue=task.__name__)
    results: dict[str, Any] = {}
    with Worker("early", pool, concurrency) as process:
        for what in ("early", "late"):
            if what == "late":
                app.control.cancel_consumer("early", reply=True, timeout=1, limit=1)
                app.control.add_consumer("late")
            began = told(teller, f"{what} began")
            tree, server = tree_cpu(process.pid), server_cpu(client)
            ended = told(teller, f"{what} ended")
            micro = 1e6 / count
            results[what] = {
                "wall": (ended - began) * micro,
                "client": (tree_cpu(process.pid) - tree) * micro,
                "server": (server_cpu(client) - server) * micro,
            }
    answer(results)


class Worker:
    """A worker process, ended at the end."""

    def __init__(self, queues: str, pool: str, concurrency: str) -> None:
        self._argv = [
            sys.executable, "-m", "celery", "-A", "celery_tasks", "worker", "-P", pool, "-c", concurrency, "-Q", queues, *WORKER_OPTIONS,
        ]  # fmt: skip
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed at exit

    def __enter__(self) -> subprocess.Popen[bytes]:
        self._process = subprocess.Popen(self._argv, cwd=HERE, stdout=self._log, stderr=self._log)
        return self._process

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        self._process.terminate()
        try:
            self._process.wait(15)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if error is not None:
            self._log.seek(0)
            sys.stderr.write(self._log.read()[-3000:])
        self._log.close()


def told(client: Any, what: str) -> float:
    found = client.blpop(f"told:{what}", TIMEOUT_S)
    if found is None:
        raise TimeoutError(f"waited {TIMEOUT_S} s for: {what}")
    return float(found[1])


def tree_cpu(pid: int) -> float:
    """Seconds of CPU of a process and all below it."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return 0.0
    own = sum(map(int, fields[11:15])) / _TICKS
    return own + sum(tree_cpu(int(child)) for child in children)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
