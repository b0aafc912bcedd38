"""What the ledger says: how often each task ran, and what is to be held against the broker. Reads files, starts nothing."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

#: Who was killed so soon after a task wrote its last line had not yet told anybody that it was done, s.
UNTOLD_S = 0.5
#: Nor had who was killed before it was connected again after an outage; Celery pauses before it connects, and looks for neighbours, s.
RECONNECT_S = 5.0


@dataclass
class Run:
    """One execution of a task."""

    task: str
    pid: int
    start: float
    end: float | None = None


@dataclass
class Ledger:
    """The lines, sorted out. `kills`: (when, the process ids that ended then); `events`: how many of each fault there were."""

    sent: dict[str, float] = field(default_factory=dict)
    unsent: set[str] = field(default_factory=set)
    runs: dict[str, list[Run]] = field(default_factory=lambda: defaultdict(list))
    kills: list[tuple[float, frozenset[int]]] = field(default_factory=list)
    #: When the server, or the way to it, was away: from, until.
    outages: list[tuple[float, float]] = field(default_factory=list)

    def read(self, lines: Iterable[str]) -> None:
        going: dict[tuple[str, int], Run] = {}
        for line in lines:
            at, what, task, *more = line.split()
            if what == "sent":
                self.sent[task] = float(at)
            elif what == "unsent":
                self.unsent.add(task)
            elif what == "start":
                run = going[task, int(more[0])] = Run(task, int(more[0]), float(at))
                self.runs[task].append(run)
            elif what == "end":
                going[task, int(more[0])].end = float(at)

    def killed_at(self, run: Run) -> float | None:
        """When the process of this run was killed, if that was while it ran or before it could tell anybody that it was done."""
        last = float("inf")
        if run.end is not None:
            last = max(
                [run.end, *(until + RECONNECT_S for since, until in self.outages if since - UNTOLD_S <= run.end <= until + RECONNECT_S)]
            )
            last = max(last, run.end + UNTOLD_S)
        times = [at for at, pids in self.kills if run.pid in pids and run.start <= at <= last]
        return min(times) if times else None


@dataclass
class Verdict:
    sent: int = 0
    once: int = 0
    lost: list[str] = field(default_factory=list)
    #: Ran more than once, each time but the last in a process that was killed meanwhile.
    rerun: int = 0
    #: Ran more than once, and nobody was killed for it.
    duplicated: list[str] = field(default_factory=list)
    #: From the kill of a process to the next run of what it had been running, s.
    recovery: list[float] = field(default_factory=list)
    #: From the sending to the first run, s.
    latency: list[float] = field(default_factory=list)


def judge(ledger: Ledger) -> Verdict:
    verdict = Verdict(sent=len(ledger.sent))
    for task, sent_at in ledger.sent.items():
        runs = sorted(ledger.runs.get(task, ()), key=lambda run: run.start)
        if runs:
            verdict.latency.append(runs[0].start - sent_at)
        if not any(run.end is not None for run in runs):
            verdict.lost.append(task)
        if len(runs) == 1 and runs[0].end is not None:
            verdict.once += 1
        elif len(runs) > 1:
            killed = [ledger.killed_at(run) for run in runs[:-1]]
            if all(at is not None for at in killed):
                verdict.rerun += 1
            else:
                verdict.duplicated.append(task)
            verdict.recovery += [later.start - at for at, later in zip(killed, runs[1:], strict=True) if at is not None]
    return verdict


def percentile(values: Sequence[float], share: float) -> float:
    if len(values) < 2:
        return values[0] if values else float("nan")
    return statistics.quantiles(values, n=1000, method="inclusive")[min(int(share * 1000) - 1, 998)]
