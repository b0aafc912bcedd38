"""`python -m tests.growth`: what publishing, taking, a result and a shutdown cost beside a million jobs that wait, a hundred thousand
that are delayed and ten thousand queues, compared with the same beside few. About ten minutes.

Few and many take turns, each on a server that stays as it was filled; a ratio is the median of the ratios within a round. The worker is
`celery worker` with one process, its memory that of this process. Ends with 1 where something costs more than BAR times as much.
"""

from __future__ import annotations

import argparse
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

_TESTS = Path(__file__).parent.parent
# Not the checkout: what is installed is what is measured.
sys.path[:] = [str(_TESTS), str(_TESTS / "functional"), *(one for one in sys.path if one not in ("", str(_TESTS.parent)))]

from celery import Celery  # noqa: E402
from servers import Server  # noqa: E402
from waiting import wait_until  # noqa: E402
from worker import Worker  # noqa: E402

from bullmq_kombu import Queue  # noqa: E402

QUEUE = "growth"
#: Of each, few and many.
SIZES = {"waiting": (3000, 1_000_000), "delayed": (100, 100_000), "queues": (10, 10_000)}
BAR = 1.5
#: Published, and taken, in each round.
PUBLISHED, TAKEN = 500, 2000
#: Tasks whose result is waited for, one after the other.
ASKED = 40
#: A worker that has begun is measured from here on.
WARM = 300
DELAY_MS = 24 * 3_600_000
FILLED_AT_ONCE = 500


class Field:
    """One server with so many of one kind, and what is measured there."""

    def __init__(self, server: Server, folder: Path, kind: str, count: int) -> None:
        self.server, self.folder, self.kind = server, folder, kind
        self.app = Celery("sender", broker=server.url, backend=server.url, set_as_current=False)
        self.client = server.client()
        if kind == "queues":
            with self.app.connection_for_write() as connection:
                for number in range(count):
                    connection.default_channel.queue_declare(f"other-{number}", durable=True)
        else:
            self.fill(count, {"delay": DELAY_MS} if kind == "delayed" else {})

    def fill(self, count: int, options: dict[str, Any]) -> None:
        with Queue(QUEUE, self.server.url) as queue:
            jobs = [{"name": "ignored", "data": {}, "opts": {"removeOnComplete": True, **options}}] * FILLED_AT_ONCE
            for left in range(count, 0, -FILLED_AT_ONCE):
                queue.add_bulk(jobs[: min(FILLED_AT_ONCE, left)])

    def measured(self) -> dict[str, float]:
        took = []
        for _ in range(PUBLISHED):
            began = time.perf_counter()
            self.app.send_task("ignored", queue=QUEUE, bullmq={"removeOnComplete": True})
            took.append(time.perf_counter() - began)
        found = {"publish, µs": statistics.median(took) * 1e6}
        if self._waiting() < WARM + TAKEN + 500:
            self.fill(WARM + TAKEN + 500, {})
        settings = {"result_backend": self.server.url, "worker_prefetch_multiplier": 10}
        before = self._waiting()
        worker = Worker(self.server, self.folder, [QUEUE], pool="solo", concurrency=1, settings=settings, arguments=["-l", "ERROR"])
        with worker.start(wait=False) as one:
            wait_until(lambda: self._waiting() <= before - WARM, 60, "the worker to have begun")
            first, cpu, began = self._waiting(), self._cpu(), time.perf_counter()
            wait_until(lambda: self._waiting() <= first - TAKEN, 60, "the jobs to be taken")
            taken = first - self._waiting()
            found["take and finish, µs"] = (time.perf_counter() - began) * 1e6 / taken
            found["of it the server's, µs"] = (self._cpu() - cpu) * 1e6 / taken
            found["memory of the worker, MB"] = _resident_mb(one.pid)
            if self.kind != "waiting":
                wait_until(lambda: self._waiting() == 0, 60, "the queue to be empty")
                found["task and result, µs"] = statistics.median(self._asked()) * 1e6
            began = time.perf_counter()
            one.signal(signal.SIGTERM)
            one.wait()
            found["shutdown, s"] = time.perf_counter() - began
        return found

    def _asked(self) -> Iterator[float]:
        for number in range(ASKED):
            began = time.perf_counter()
            assert self.app.send_task("echo", kwargs={"value": number}, queue=QUEUE).get(timeout=20) == number
            yield time.perf_counter() - began

    def _waiting(self) -> int:
        return int(self.client.llen(f"bull:{QUEUE}:wait"))  # type: ignore[arg-type]

    def _cpu(self) -> float:
        info: Any = self.client.info("cpu")
        return float(info["used_cpu_user"] + info["used_cpu_sys"])

    def close(self) -> None:
        self.client.close()
        self.app.close()


def _resident_mb(pid: int) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) / 1024
    raise AssertionError(pid)


def main() -> int:
    parser = argparse.ArgumentParser("python -m tests.growth", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", choices=SIZES, help="of one kind alone")
    given = parser.parse_args()
    lines = ["| beside | | few | many | ratio |", "| --- | --- | --- | --- | --- |"]
    worst = 0.0
    for kind, (few, many) in SIZES.items():
        if given.only not in (None, kind):
            continue
        print(f"{many:,} {kind}", file=sys.stderr, flush=True)
        with ExitStack() as stack:
            fields = []
            for count in (few, many):
                folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
                fields.append(Field(stack.enter_context(Server()), folder, kind, count))
                stack.callback(fields[-1].close)
            rounds = [[field.measured() for field in fields] for _ in range(given.rounds)]
        for name in rounds[0][0]:
            low, high = (statistics.median(one[at][name] for one in rounds) for at in (0, 1))
            ratio = statistics.median(one[1][name] / one[0][name] for one in rounds)
            worst = max(worst, ratio)
            digits = 2 if name.endswith(" s") else 0
            lines.append(f"| {many:,} {kind}, not {few:,} | {name} | {low:.{digits}f} | {high:.{digits}f} | {ratio:.2f} |")
    print("\n".join(lines))
    return int(worst > BAR)


if __name__ == "__main__":
    sys.exit(main())
