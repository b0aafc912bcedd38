"""Rules of cron patterns, by example. That the times are Node's is shown by interop/test_cron.py, over thousands."""

from __future__ import annotations

from datetime import datetime, timezone
from zoneinfo import ZoneInfo

import pytest

from bullmq_kombu.cron import next_ms, zone_of
from bullmq_kombu.errors import BadInput


def ms(text: str, zone: str = "UTC") -> int:
    moment = datetime.fromisoformat(text)
    return round((moment if moment.tzinfo else moment.replace(tzinfo=ZoneInfo(zone))).timestamp() * 1000)


@pytest.mark.parametrize(
    ("pattern", "after", "due"),
    [
        ("* * * * * *", "2024-01-01T00:00:00", "2024-01-01T00:00:01"),
        ("* * * * *", "2024-01-01T00:00:00", "2024-01-01T00:01:00"),
        ("9 1", "2024-10-01T00:00:00", "2025-09-01T00:00:00"),  # of two fields: month and day of the week
        ("0 0 9 * * mon-fri", "2024-01-05T10:00:00", "2024-01-08T09:00:00"),
        ("0 0 0 L * *", "2024-02-01T00:00:00", "2024-02-29T00:00:00"),
        ("0 0 0 * * 5L", "2024-02-01T00:00:00", "2024-02-23T00:00:00"),
        ("0 0 0 * * 5#2", "2024-02-01T00:00:00", "2024-02-09T00:00:00"),
        ("0 0 0 13 * 5", "2024-02-10T00:00:00", "2024-02-13T00:00:00"),  # either day
        ("@daily", "2024-02-10T00:00:01", "2024-02-11T00:00:00"),
        ("0 0 0 29 2 *", "2024-03-01T00:00:00", "2028-02-29T00:00:00"),
        ("0 0 12 ? * *", "2024-02-10T12:00:00", "2024-02-11T12:00:00"),
        ("5/20 * * * * *", "2024-02-10T12:00:25", "2024-02-10T12:00:45"),
    ],
)
def test_the_next_time(pattern: str, after: str, due: str) -> None:
    assert next_ms(pattern, ms(after), "UTC") == ms(due)


@pytest.mark.parametrize(
    ("pattern", "after", "due"),
    [
        ("0 30 2 * * *", "2024-03-30T12:00:00", "2024-03-31T03:30:00+02:00"),  # 2:30 is skipped
        ("0 30 2 * * *", "2024-10-26T12:00:00", "2024-10-27T02:30:00+02:00"),  # the first of two
        ("0 30 2 * * *", "2024-10-27T02:30:00+02:00", "2024-10-28T02:30:00+01:00"),
        ("0 30 * * * *", "2024-10-27T02:30:00+02:00", "2024-10-27T02:30:00+01:00"),  # every hour is every hour
        ("0 0 12 * * *", "2024-03-30T12:00:00", "2024-03-31T12:00:00+02:00"),
    ],
)
def test_around_a_change_of_the_clock(pattern: str, after: str, due: str) -> None:
    assert next_ms(pattern, ms(after, "Europe/Berlin"), "Europe/Berlin") == ms(due)


@pytest.mark.parametrize(
    "pattern",
    ["", "* * * * * * *", "60 * * * * *", "a * * * * *", "*/0 * * * * *", "5-1 * * * * *", "1,1 * * * * *", "0 0 0 31 2 *", "0 0 0 * * 5#6",
     "0 0 0 * * 1-2#1", "H * * * * *", "0 0 0 * foo *", "0 0 0 LW * *", "1,,2 * * * * *"],
)  # fmt: skip
def test_what_is_no_pattern(pattern: str) -> None:
    with pytest.raises(BadInput):
        next_ms(pattern, 0, "UTC")


def test_a_zone_that_is_not_known() -> None:
    with pytest.raises(BadInput, match="unknown time zone 'Europe/Nowhere'"):
        next_ms("* * * * *", 0, "Europe/Nowhere")


def test_without_a_zone_it_is_that_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    zone_of.cache_clear()
    monkeypatch.setenv("TZ", "America/New_York")
    after = ms("2024-06-01T12:00:00")
    assert next_ms("0 0 9 * * *", after) == ms("2024-06-01T13:00:00")
    zone_of.cache_clear()
    monkeypatch.delenv("TZ")
    assert zone_of(None).utcoffset(datetime.now(timezone.utc)) is not None
    zone_of.cache_clear()
