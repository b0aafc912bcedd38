"""Where the time of one work goes: Python's share by cProfile, the server's by its statistics and slow log; latency by the clock."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from benchmarks.plan import MEASURE, Sizes
from benchmarks.run import Bench

WORKS = ("publish", "consume", "send", "solo", "threads", "prefork", "latency")
LINES = 40


def profile(work: str, sizes: Sizes) -> str:
    with Bench(sizes, lambda what: None) as bench, bench.server.client() as client:
        client.config_set("slowlog-log-slower-than", 1000)
        port, count = str(bench.server.port), str(sizes.fast)
        environment = {"BENCH_BROKER": bench.server.url, "BENCH_LINES": str(LINES)}
        if work == "latency":
            command = [str(MEASURE / "latency_profile.py"), port, str(sizes.samples)]
        elif work in ("publish", "consume"):
            command = [str(MEASURE / "profiled.py"), "kombu", work, port, count]
        elif work == "send":
            command = [str(MEASURE / "profiled.py"), "celery", work, port, count]
        else:
            command = [str(MEASURE / "profiled.py"), "worker", work, port, str(sizes.tasks)]
        text = str(bench.run([sys.executable, *command], environment)["profile"])
        return f"{text}\n{_statistics(client)}"


def _statistics(client: Any) -> str:
    """What the server did, busiest first: commands of scripts are listed too, and are part of their script's time."""
    rows = sorted(client.info("commandstats").items(), key=lambda item: -item[1]["usec"])
    lines = [f"{'command':30} {'calls':>9} {'µs each':>9} {'ms':>9}"]
    for name, found in rows[:25]:
        lines.append(f"{name.removeprefix('cmdstat_'):30} {found['calls']:>9} {found['usec_per_call']:>9.2f} {found['usec'] / 1000:>9.1f}")
    lines.append("")
    slow = client.slowlog_get(10)
    lines.append(f"slower than 1 ms: {len(slow)}{'' if len(slow) < 10 else ' or more'}")
    lines += [f"{one['duration'] / 1000:9.2f} ms  {str(one['command'])[:100]}" for one in slow]
    return "\n".join(lines) + "\n"


def write(folder: Path, work: str, text: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    folder.joinpath(f"{work}.txt").write_text(text, encoding="utf-8")
