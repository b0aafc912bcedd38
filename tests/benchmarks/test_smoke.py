"""Every benchmark still works: a run of some seconds, whose figures nobody looks at."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from servers import require

ROOT = Path(__file__).parents[2]
TITLES = (
    "Kombu publish, one by one", "Kombu publish, many", "Kombu consume+ack, prefetch 1", "Kombu consume+ack, prefetch 10",
    "Kombu consume+ack, prefetch 100", "Queue.add", "Queue.add_bulk, 1000", "Celery apply_async", "Celery group of 500",
    "Celery no-op, solo 1, early ack", "Celery no-op, solo 1, late ack", "Kombu, publish → received, p99",
    "Celery, apply_async → task begins, p50", "Celery, delay() → get() returns, p50",
    "server, a job's whole life", "client, Celery no-op, solo 1", "a waiting job", "a job kept when done",
    "idle worker, 1 queues: commands", "beside waiting jobs", "beside kept jobs", "beside held jobs",
)  # fmt: skip


@pytest.mark.timeout(300)
def test_a_smoke_run_measures_everything() -> None:
    for tool in ("redis-server", "node", "npm"):
        require(tool)

    # `-m` looks in the checkout for `benchmarks`; what is measured is imported by processes of their own, elsewhere.
    done = subprocess.run([sys.executable, "-m", "benchmarks", "--smoke"], cwd=ROOT, capture_output=True, text=True)

    assert done.returncode == 0, done.stderr
    for title in TITLES:
        assert title in done.stdout, f"no row for {title}:\n{done.stdout}"


@pytest.mark.timeout(120)
@pytest.mark.parametrize("work", ["consume", "send", "solo"])
def test_a_profile_says_where_the_time_goes(work: str) -> None:
    require("redis-server")

    done = subprocess.run([sys.executable, "-m", "benchmarks", "--smoke", "--profile", work], cwd=ROOT, capture_output=True, text=True)

    assert done.returncode == 0, done.stderr
    assert "tottime" in done.stdout
    assert "evalsha" in done.stdout
