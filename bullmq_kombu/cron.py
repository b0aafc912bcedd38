"""When a cron pattern is due next, as BullMQ's schedulers say it.

A pattern has six fields, seconds first, or fewer, then those at the front are 0, * … as in BullMQ; names of months and days, ranges, steps,
lists, `?`, `L`, `5L` and `5#2` are known, and `@daily` and its like. Days: where both day fields say something, one of them is enough.

cronsim finds the next time by the calendar. Three things are BullMQ's own and done here: what the fields may say, what becomes of a time
that the clock skips (it runs in the hour the clock lands in) and of one that it repeats (once, unless the pattern runs every hour).

Known to differ, within the hours of a change of the clock only: Lord Howe, the Chatham Islands and Troll, where it is not set by an hour
at a full hour, and Havana, which repeats midnight; BullMQ 5 and 6 differ there from each other too. `H`, which 6 chooses by chance, is
refused; so is what only BullMQ 5 takes (a value said twice).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from datetime import datetime, timedelta, timezone, tzinfo
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError

from bullmq_kombu.errors import BadInput

_ALIASES = {
    "@yearly": "0 0 0 1 1 *", "@annually": "0 0 0 1 1 *", "@monthly": "0 0 0 1 * *", "@weekly": "0 0 0 * * 0", "@daily": "0 0 0 * * *",
    "@hourly": "0 0 * * * *", "@minutely": "0 * * * * *", "@secondly": "* * * * * *", "@weekdays": "0 0 0 * * 1-5",
    "@weekends": "0 0 0 * * 0,6",
}  # fmt: skip
_DEFAULTS = ("0", "*", "*", "*", "*", "*")
_MONTH_NAMES = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_MONTHS = {name: number for number, name in enumerate(_MONTH_NAMES, 1)}
_DAYS = {name: number for number, name in enumerate(("sun", "mon", "tue", "wed", "thu", "fri", "sat"))}
_NONE = timedelta()
_LONGEST_MONTH = (31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)


class _Field(NamedTuple):
    name: str
    lowest: int
    highest: int


_FIELDS = (
    _Field("second", 0, 59), _Field("minute", 0, 59), _Field("hour", 0, 23), _Field("day of month", 1, 31), _Field("month", 1, 12),
    _Field("day of week", 0, 7),
)  # fmt: skip
_HOUR, _DAY, _MONTH, _WEEKDAY = 2, 3, 4, 5


class Pattern(NamedTuple):
    """A pattern in cronsim's words, with every list written out."""

    text: str
    every_hour: bool


@lru_cache(maxsize=512)
def parse(pattern: str) -> Pattern:
    """BadInput where BullMQ refuses the pattern."""
    given = _ALIASES.get(pattern, pattern).split()
    if not given or len(given) > len(_FIELDS):
        raise BadInput(f"a cron pattern has up to six fields: {pattern!r}")
    parts = [*_DEFAULTS[: len(_FIELDS) - len(given)], *given]
    fields = [_write_out(field, part, pattern) for field, part in zip(_FIELDS, parts, strict=True)]
    _check_day(fields, pattern)
    try:
        CronSim(" ".join(fields), datetime(2000, 1, 1))  # noqa: DTZ001  (a clock on no wall)
    except CronSimError as error:
        raise BadInput(f"{pattern!r} is no cron pattern: {error}") from None
    return Pattern(" ".join(fields), fields[_HOUR] == "*" or fields[_HOUR].count(",") == 23)


def _check_day(fields: list[str], pattern: str) -> None:
    if fields[_WEEKDAY] == "*" and fields[_MONTH].isdigit() and re.fullmatch(r"[\d,]+", fields[_DAY]):
        longest = _LONGEST_MONTH[int(fields[_MONTH]) - 1]
        if all(int(day) > longest for day in fields[_DAY].split(",")):
            raise BadInput(f"no such day in month {fields[_MONTH]}: {pattern!r}")


def _write_out(field: _Field, part: str, pattern: str) -> str:
    if part in ("*", "?"):
        return "*"
    index = _FIELDS.index(field)
    names = {_MONTH: _MONTHS, _WEEKDAY: _DAYS}.get(index, {})
    text = re.sub("[a-z]{3}", lambda found: str(names.get(found[0].lower(), found[0])), part, flags=re.IGNORECASE)
    text = re.sub(r"[*?]", f"{field.lowest}-{field.highest}", text)
    nth = ""
    if index == _WEEKDAY and "#" in text:
        text, _, number = text.partition("#")
        if not re.fullmatch("[1-5]", number) or not text.isdigit():
            raise BadInput(f"{part!r} names no day of the month, as 5#2 does: {pattern!r}")
        nth = f"#{number}"
    values: list[str] = []
    for item in text.split(","):
        if (index == _DAY and item == "L") or (index == _WEEKDAY and re.fullmatch("[0-7]L", item)):
            values.append(item)
        else:
            values += (f"{value}{nth}" for value in _values(field, item, pattern))
    if len(set(values)) < len(values):
        # BullMQ 5 takes such a list, 6 does not, and its workers would end the schedule.
        raise BadInput(f"{part!r} says a {field.name} twice: {pattern!r}")
    return ",".join(values)


def _values(field: _Field, item: str, pattern: str) -> Iterable[int]:
    found = re.fullmatch(r"(\d+)(?:-(\d+))?(?:/(\d+))?", item)
    if found is None:
        raise BadInput(f"{item!r} is no {field.name}: {pattern!r}")
    first, step = int(found[1]), int(found[3] or 1)
    last = int(found[2]) if found[2] else field.highest if found[3] else first
    if not field.lowest <= first <= last <= field.highest or step < 1:
        raise BadInput(f"{item!r} is no {field.name} of {field.lowest}-{field.highest}: {pattern!r}")
    values = range(first, last + 1, step)
    return values if field.highest != _FIELDS[_WEEKDAY].highest else sorted({value % 7 for value in values})


@lru_cache(maxsize=64)
def zone_of(name: str | None) -> tzinfo:
    """The time zone; without a name that of this machine, as in BullMQ. BadInput for one that is not known."""
    try:
        if name or os.environ.get("TZ"):
            return ZoneInfo((name or os.environ["TZ"]).lstrip(":"))
        with Path("/etc/localtime").open("rb") as file:
            return ZoneInfo.from_file(file)
    except (KeyError, ValueError, OSError):
        if name:
            raise BadInput(f"unknown time zone {name!r}") from None
        return timezone.utc


def next_ms(pattern: str, after_ms: int, tz: str | None = None) -> int | None:
    """The first time after `after_ms`, in ms since 1970; None where there will be none."""
    parsed, zone = parse(pattern), zone_of(tz)
    after = datetime.fromtimestamp(after_ms // 1000, timezone.utc)
    here = after.astimezone(zone)
    wall, repeats = here.replace(tzinfo=None, fold=0), parsed.every_hour or here.fold == 1
    # In an hour that comes again, times that the clock has shown are still to come.
    again = (here.utcoffset() or _NONE) - (here.replace(fold=1).utcoffset() or _NONE)
    found: list[datetime] = []
    for candidate in CronSim(parsed.text, wall - again):
        found += (moment for moment in _moments(candidate, zone, repeats) if moment > after)
        if found and candidate > wall:
            break
    return round(min(found).timestamp() * 1000) if found else None


def _moments(wall: datetime, zone: tzinfo, repeats: bool) -> list[datetime]:
    """When the clock on the wall says so, or would."""
    first, second = (wall.replace(tzinfo=zone, fold=fold).astimezone(timezone.utc) for fold in (0, 1))
    if first > second:
        # Skipped: as far into the hour after; but a day that has no midnight simply begins later.
        return [first] if wall.hour else []
    return [first, second] if repeats and first < second else [first]
