"""`python -m benchmarks`: see README.md."""

from __future__ import annotations

import argparse
import os
import platform
import sys
import time
from datetime import datetime, timezone
from pathlib import Path

from benchmarks import peers, profiles, report
from benchmarks.plan import SMOKE, Sizes, areas
from benchmarks.run import Bench, Results

ROOT = Path(__file__).parent.parent
ROUNDS = 5
#: What is measured besides the areas that take turns.
ONCE = ("bytes", "idle", "scale")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m benchmarks", description="Measures bullmq:// beside its peers.")
    parser.add_argument("--rounds", type=int, default=0, help=f"how often each measurement is made ({ROUNDS}; 1 with --smoke)")
    parser.add_argument("--runs", type=int, default=1, help="how often all of it is done (1); a bar is looked at in each")
    parser.add_argument("--only", metavar="TEXT", action="append", help="areas whose name contains TEXT; may be repeated")
    parser.add_argument("--list", action="store_true", help="name the areas and stop")
    parser.add_argument("--smoke", action="store_true", help="some seconds of everything, to see that it works; the figures mean nothing")
    parser.add_argument("--profile", metavar="WORK", choices=profiles.WORKS, help=f"where the time goes: {', '.join(profiles.WORKS)}")
    parser.add_argument("--write", action="store_true", help="write docs/benchmarks.md, and profiles beside it")
    given = parser.parse_args(argv)
    sizes = SMOKE if given.smoke else Sizes()
    if given.profile:
        text = profiles.profile(given.profile, sizes)
        print(text)
        if given.write:
            profiles.write(ROOT / "docs" / "profiles", given.profile, text)
        return 0
    rounds = given.rounds or (1 if given.smoke else ROUNDS)
    wanted = [name for name in (*areas(sizes), *ONCE) if not given.only or any(text in name for text in given.only)]
    if given.list:
        print("\n".join(wanted))
        return 0
    started = time.monotonic()
    runs: list[Results] = []
    while len(runs) < given.runs:
        runs.append(_measured(sizes, rounds, wanted))
        head, tables = _head(len(runs), rounds, time.monotonic() - started, given.smoke), report.tables(runs)
        if given.write:  # after each: of a long series that is broken off, what was measured stays
            page = ROOT / "docs" / "benchmarks.md"
            page.parent.mkdir(exist_ok=True)
            page.write_text(f"# Benchmarks\n\n{head}\n{tables}\n{_text('notes.md')}\n{_method()}", encoding="utf-8")
    print(f"{head}\n{tables}")
    return 0


def _measured(sizes: Sizes, rounds: int, wanted: list[str]) -> Results:
    taking_turns = {name: measurements for name, measurements in areas(sizes).items() if name in wanted}
    current = ""

    def log(what: str) -> None:
        print(f"{current}{what}", file=sys.stderr, flush=True)

    with Bench(sizes, log) as bench:
        for number in range(1, rounds + 1):
            current = f"round {number} of {rounds}: "
            bench.round(taking_turns)
            if "bytes" in wanted:
                bench.memory()
        current = ""
        if "idle" in wanted:
            log("idle workers")
            bench.idle()
        if "scale" in wanted:
            bench.scale(rounds)
        return bench.results


def _head(runs: int, rounds: int, seconds: float, is_smoke: bool) -> str:
    minutes = f"{seconds / 60:.0f} minutes, {rounds} rounds" if runs == 1 else f"{seconds / 60:.0f} minutes, {runs} runs of {rounds} rounds"
    lines = [
        f"Measured on {datetime.now(timezone.utc):%Y-%m-%d %H:%M} UTC in {minutes}, by `python -m benchmarks`.",
        f"Machine: {os.cpu_count()} cores, {_processor()}, {platform.system()} {platform.release()}.",
        ", ".join(f"{name} {version}" for name, version in peers.versions().items()) + ".",
    ]
    if is_smoke:
        lines.append("A smoke run: the figures mean nothing.")
    return "\n".join(lines) + "\n"


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _text(name: str) -> str:
    return (Path(__file__).parent / name).read_text(encoding="utf-8")


def _method() -> str:
    text = _text("README.md")
    return text[text.index("## Method") :]


sys.exit(main())
