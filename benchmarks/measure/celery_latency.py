"""How soon a task starts on an idle queue, and how soon its result is back: `celery_latency.py COUNT`; the broker is in the environment."""

from __future__ import annotations

import os
import random
import sys
import time
from typing import Any

from celery_tasks import latencies, ping, started
from celery_worker import TIMEOUT_S, Worker
from meter import answer, client_of

#: Between two tasks, s: the queue is idle again, and the worker waits.
PAUSES_S = (0.015, 0.035)


def main(count: int) -> None:
    teller = client_of(int(os.environ["BENCH_TELL_PORT"]))
    teller.flushall()
    with Worker("celery", "solo", "1"):
        for _ in range(5):
            ping.delay().get(timeout=TIMEOUT_S)
        trips = []
        for _ in range(count):
            began = time.perf_counter()
            ping.delay().get(timeout=TIMEOUT_S)
            trips.append(time.perf_counter() - began)
        for _ in range(count):
            time.sleep(random.uniform(*PAUSES_S))
            started.apply_async((time.time(),), ignore_result=True)
        time.sleep(PAUSES_S[1])
        latencies.apply_async(ignore_result=True)
        waited: Any = []
        while len(waited) < count:
            found: Any = teller.blpop(["told:latencies"], TIMEOUT_S)
            if found is None:
                raise TimeoutError("the worker did not tell its latencies")
            waited.append(float(found[1]))
    answer({"latency": {"samples": [one * 1e6 for one in waited]}, "round trip": {"samples": [one * 1e6 for one in trips]}})


if __name__ == "__main__":
    main(int(sys.argv[1]))
