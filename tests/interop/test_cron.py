"""The next times of cron patterns are those of Node's BullMQ, over patterns drawn at random and around every change of the clock.

A thousand by default, 20,000 with `--long` (or BULLMQ_KOMBU_LONG=1). The seed is drawn anew each time and shown where it fails.
"""

from __future__ import annotations

import os
import random
from calendar import month_abbr, monthrange
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from zoneinfo import ZoneInfo

import pytest
from node_driver import Node

from bullmq_kombu.cron import next_ms
from bullmq_kombu.errors import BadInput

Case = tuple[str, str, int, int]

#: Zones whose clock is set by one hour at a full hour, or never.
ZONES = (
    "UTC", "Europe/Berlin", "Europe/London", "America/New_York", "America/St_Johns", "America/Sao_Paulo", "America/Asuncion",
    "Asia/Kolkata", "Asia/Kathmandu", "Asia/Tokyo", "Pacific/Apia", "Africa/Casablanca",
)  # fmt: skip
#: A day begins without midnight where the clock is set at 0:00; BullMQ 6 then starts some hour lists at 1:00 that 5 and we do not.
WITHOUT_MIDNIGHT = ("America/Asuncion",)
TIMES = 3
BATCH = 500


@pytest.fixture(scope="session")
def how_many(request: pytest.FixtureRequest) -> int:
    return 20_000 if request.config.getoption("--long", False) or os.environ.get("BULLMQ_KOMBU_LONG") else 1000


def _field(draw: random.Random, lowest: int, highest: int, names: str = "", wild: float = 0.4) -> str:
    if draw.random() < wild:
        return draw.choice("***?") if highest in (6, 31) else "*"

    def value() -> str:
        number = draw.randint(lowest, highest)
        words = names.split()
        return draw.choice((str.upper, str.lower, str.title))(words[number - lowest]) if words and draw.random() < 0.3 else str(number)

    low, high = sorted((draw.randint(lowest, highest), draw.randint(lowest, highest)))
    return draw.choice([
        value(), value(), f"*/{draw.randint(1, highest)}", f"{low}-{high}", f"{low}-{high}/{draw.randint(1, highest)}",
        f"{low}/{draw.randint(1, highest)}",
        ",".join(map(str, draw.sample(range(lowest, highest + 1), min(draw.randint(2, 4), highest - lowest)))),
    ])  # fmt: skip


def any_pattern(draw: random.Random) -> str:
    if draw.random() < 0.02:
        return draw.choice(["@yearly", "@monthly", "@weekly", "@daily", "@hourly"])
    fields = [
        _field(draw, 0, 59, wild=0.2), _field(draw, 0, 59, wild=0.2), _field(draw, 0, 23, wild=0.3), _field(draw, 1, 31, wild=0.6),
        _field(draw, 1, 12, "jan feb mar apr may jun jul aug sep oct nov dec", wild=0.6),
        _field(draw, 0, 6, "sun mon tue wed thu fri sat", wild=0.6),
    ]  # fmt: skip
    if draw.random() < 0.06:
        fields[3] = "L"
    if draw.random() < 0.06:
        fields[5] = f"{draw.randint(0, 7)}L"
    return " ".join(fields[draw.choice([0, 0, 1]) :])


def is_another_in_5(pattern: str) -> bool:
    """Ours is what BullMQ 6 means by it. In 5 a day field that lists all days is no different from `*`, and `4/2` goes around the week; 31
    November is an error, also where a weekday would do."""
    if pattern.startswith("@"):
        return False
    day, month, weekday = pattern.split()[-3:]
    if "/" in weekday or weekday in ("0-6", "sun-sat") or day in ("*/1", "1/1", "1-31", "1-31/1"):
        return True
    months = listed(month, 1, 12)
    return len(months) == 1 and day != "L" and min(listed(day, 1, 31)) > (29 if months == {2} else monthrange(2023, *months)[1])


def listed(field: str, low: int, high: int) -> set[int]:
    """What a field of the day or the month lists."""
    found: set[int] = set()
    for part in field.split(","):
        span, _, step = part.partition("/")
        first, _, last = span.partition("-")
        begin = low if first in ("*", "?") else number_of(first)
        end = number_of(last) if last else high if step or first in ("*", "?") else begin
        found.update(range(begin, end + 1, int(step or 1)))
    return found


def number_of(text: str) -> int:
    return int(text) if text.isdigit() else [name.lower() for name in month_abbr].index(text.lower())


def pattern_of_hours(draw: random.Random) -> str:
    """Something that may well be due while the clock is changed."""
    hours = draw.choice(["*", "*/2", "0-4", "0", "1", "2", "3", "2,3", "1,2", "23", "1-3", "0-23"])
    seconds, minutes = draw.choice(["0", "30", "*/20", "*"]), draw.choice(["0", "30", "*/15", "10,50", "*"])
    return f"{seconds} {minutes} {hours} {draw.choice(['*', '*', '3'])} * {draw.choice(['*', '*', '0'])}"


def changes(zone: str) -> list[int]:
    """When the clock of the zone is changed, s since 1970."""
    tz, found = ZoneInfo(zone), []
    day = datetime(2020, 1, 1, tzinfo=timezone.utc)
    while day.year < 2029:
        low, high = day, day + timedelta(hours=12)
        if low.astimezone(tz).utcoffset() != high.astimezone(tz).utcoffset():
            while high - low > timedelta(seconds=1):
                middle = low + (high - low) / 2
                same = middle.astimezone(tz).utcoffset() == low.astimezone(tz).utcoffset()
                low, high = (middle, high) if same else (low, middle)
            found.append(round(high.timestamp()))
        day += timedelta(hours=12)
    return found


def ours(case: Case) -> list[int | None] | str:
    pattern, zone, at, count = case
    times: list[int | None] = []
    try:
        while len(times) < count:
            after = next_ms(pattern, at, zone)
            times.append(after)
            if after is None:
                break
            at = after
    except BadInput as error:
        return str(error)
    return times


def check(node: Node, make: Callable[[random.Random], Case], how_many: int) -> None:
    seed = random.randrange(2**32)
    draw = random.Random(seed)
    cases = [make(draw) for _ in range(how_many)]
    understood = 0
    for at in range(0, len(cases), BATCH):
        batch = cases[at : at + BATCH]
        for case, theirs in zip(batch, node.call("cron", cases=batch, timeout=120), strict=True):
            mine = ours(case)
            if isinstance(theirs, str) or isinstance(mine, str):
                assert isinstance(mine, str), f"seed {seed}: {case} is refused by Node: {theirs}"
                # For a day that never comes Node has no error, and no job.
                allowed = isinstance(theirs, str) or theirs == [None] or "twice" in mine
                assert allowed, f"seed {seed}: {case} is no pattern to us: {mine}; Node: {theirs}"
            else:
                understood += 1
                assert mine == theirs, f"seed {seed}: {case}"
    assert understood > how_many * 0.8, "most patterns mean something"


def test_any_pattern_at_any_time(node: Node, how_many: int) -> None:
    def make(draw: random.Random) -> Case:
        while True:
            pattern = any_pattern(draw)
            if node.version == "v6" or not is_another_in_5(pattern):
                at = draw.randrange(1577836800, 1893456000) * 1000 + draw.choice([0, draw.randrange(1000)])
                return pattern, draw.choice(ZONES), at, TIMES

    check(node, make, how_many if node.version == "v6" else how_many // 4)


def test_patterns_around_a_change_of_the_clock(node: Node, how_many: int) -> None:
    moments = {zone: found for zone in ZONES if zone not in WITHOUT_MIDNIGHT and (found := changes(zone))}
    assert len(moments) >= 5

    def make(draw: random.Random) -> Case:
        zone = draw.choice(list(moments))
        return pattern_of_hours(draw), zone, (draw.choice(moments[zone]) + draw.randint(-7 * 3600, 3 * 3600)) * 1000, TIMES

    check(node, make, how_many // (4 if node.version == "v6" else 8))


@pytest.mark.parametrize("node", ["v6"], indirect=True)
def test_the_second_friday_and_its_like(node: Node) -> None:
    """`5#2` with a day of the month is another thing in BullMQ 5."""

    def make(draw: random.Random) -> Case:
        days = f"{draw.choice(['*', '13'])} * {draw.randint(0, 6)}#{draw.randint(1, 5)}"
        return f"0 {draw.randint(0, 59)} {draw.randint(0, 23)} {days}", draw.choice(ZONES), 1_700_000_000_000, TIMES

    check(node, make, 100)
