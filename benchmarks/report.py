"""Results as tables: medians over the rounds, ratios of the same round, and whether a bar is reached."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from benchmarks.bars import NAMES, SCALE_BAR, SECTIONS, SYSTEMS, Bar, Row
from benchmarks.run import Results


def values(results: Results, row: Row, system: str) -> list[float]:
    """What each round said of this row."""
    parts = [results.get((area, system, metric), []) for area, metric in row.of.get(system, ())]
    if not parts or not all(parts):
        return []
    return [sum(_value(one, row.take) for one in same_round) for same_round in zip(*parts, strict=False)]


def _value(one: dict[str, Any], take: str) -> float:
    if take in one:
        return float(one[take])
    # All rounds' samples would be one big sample; a ratio needs one for each round.
    ordered = sorted(one["samples"])
    return float(ordered[min(len(ordered) - 1, int(len(ordered) * int(take[1:]) / 100))])


def ratio(results: Results, row: Row, other: str) -> float | None:
    """The median of other/ours, round by round."""
    pairs = list(zip(values(results, row, other), values(results, row, "bullmq"), strict=False))
    return statistics.median(theirs / ours for theirs, ours in pairs) if pairs and all(ours for _, ours in pairs) else None


def reached(results: Results, row: Row, bar: Bar) -> bool | None:
    """None where it was not measured."""
    if not bar.vs:
        ours = values(results, row, "bullmq")
        return statistics.median(ours) <= bar.at_most if ours else None
    found = ratio(results, row, bar.vs)
    if found is None:
        return None
    return found >= bar.at_least if bar.at_least else 1 / found <= bar.at_most


def tables(runs: Sequence[Results]) -> str:
    """Medians and ratios over all rounds of all runs; whether a bar is reached is asked of each run."""
    results: Results = defaultdict(list)
    for run in runs:
        for key, values_of_rounds in run.items():
            results[key] += values_of_rounds
    parts = [_table(title, rows, results, runs) for title, rows in SECTIONS.items()]
    parts.append(_scale(results, runs))
    return "\n".join(part for part in parts if part)


def _table(title: str, rows: Sequence[Row], results: Results, runs: Sequence[Results]) -> str:
    shown = [row for row in rows if values(results, row, "bullmq")]
    if not shown:
        return ""
    systems = [system for system in SYSTEMS if any(values(results, row, system) for row in shown)]
    per_job = " per job" if rows[0].take in ("wall", "client", "server") else ""
    unit = "" if len({row.unit for row in rows}) > 1 else f", {rows[0].unit}{per_job}"
    heads = [title + unit, *(NAMES[system] for system in systems), *(f"{NAMES[one]} / ours" for one in ("redis", "node") if one in systems)]
    has_bars = any(row.bars for row in shown)
    lines = [heads + (["bar", "reached"] if has_bars else [])]
    for row in shown:
        cells = [row.title]
        for system in systems:
            found = values(results, row, system)
            cells.append(_figure(statistics.median(found), row.unit) if found else "")
        for other in ("redis", "node"):
            if other in systems:
                found_ratio = ratio(results, row, other)
                cells.append(f"{found_ratio:.2f} ×" if found_ratio is not None else "")
        if has_bars:
            cells.append("; ".join(bar.text for bar in row.bars))
            cells.append("; ".join(_yes([reached(run, row, bar) for run in runs]) for bar in row.bars))
        lines.append(cells)
    return _markdown(lines)


def _scale(results: Results, runs: Sequence[Results]) -> str:
    lines = [["Beside many jobs, µs per job", "1,000", "many", "server, many / 1,000", "wall, many / 1,000", "bar", "reached"]]
    for area, _, kind in list(results):
        if area != "beside many":
            continue
        medians = (statistics.median(one["wall"] for one in results[side, "bullmq", kind]) for side in ("beside few", "beside many"))
        server, wall = _growth(results, kind)
        lines.append([
            f"publish and consume beside {kind} jobs", *(f"{one:.0f}" for one in medians), f"{server:.2f} ×", f"{wall:.2f} ×",
            f"≤ {SCALE_BAR:g} ×", _yes([max(_growth(run, kind)) <= SCALE_BAR for run in runs]),
        ])  # fmt: skip
    return _markdown(lines) if len(lines) > 1 else ""


def _growth(results: Results, kind: str) -> list[float]:
    """The server's time and the clock's beside many, over those beside few."""
    few, many = results["beside few", "bullmq", kind], results["beside many", "bullmq", kind]
    return [statistics.median(b[of] / a[of] for a, b in zip(few, many, strict=True)) for of in ("server", "wall")]


def _yes(found: Sequence[bool | None]) -> str:
    known = [one for one in found if one is not None]
    if len(known) > 1:
        return f"{sum(known)} of {len(known)}" if all(known) else f"**{sum(known)} of {len(known)}**"
    return "" if not known else "yes" if known[0] else "**no**"


def _figure(value: float, unit: str) -> str:
    return f"{value:.2f}" if unit == "/s" else f"{value:.0f}"


def _markdown(lines: Sequence[Sequence[str]]) -> str:
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]

    def text(line: Sequence[str]) -> str:
        cells = [cell.ljust(width) if at == 0 else cell.rjust(width) for at, (cell, width) in enumerate(zip(line, widths, strict=True))]
        return "| " + " | ".join(cells) + " |"

    rule = "| " + " | ".join("-" * width if at == 0 else "-" * (width - 1) + ":" for at, width in enumerate(widths)) + " |"
    return "\n".join([text(lines[0]), rule, *(text(line) for line in lines[1:])]) + "\n"
