"""Job schedulers: jobs that come again, every so often or by a cron pattern.

A scheduler has one iteration at a time in its queue; whoever takes it, here or in Node, makes the next one before it runs. `every` is
counted by the script, where nothing can come between; a pattern's next time is worked out here (cron.py).

`Schedulers` is the part of `Queue` that makes and removes them; `next_iteration` is what a worker owes them.
"""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

from bullmq_kombu import scripts
from bullmq_kombu.connection import Server
from bullmq_kombu.cron import next_ms
from bullmq_kombu.errors import BadInput, job_error
from bullmq_kombu.job import Job, to_data
from bullmq_kombu.job_options import make_job_options, public_options, read_stored

_REPEAT = frozenset({"every", "pattern", "tz", "limit", "startDate", "endDate", "offset", "immediately"})
_TEMPLATE = frozenset({"name", "data", "opts"})
#: What an iteration has from its scheduler and no template may say.
_OWN = ("jobId", "delay", "timestamp", "repeat", "repeatJobKey", "prevMillis")


@dataclass(frozen=True)
class JobScheduler:
    """A scheduler as it is. `next` is when its current iteration is due (which may be running), times are ms."""

    id: str
    name: str
    next: int | None
    every: int | None
    pattern: str | None
    tz: str | None
    limit: int | None
    start_date: int | None
    end_date: int | None
    offset: int | None
    iteration_count: int | None
    data: Any
    opts: Mapping[str, Any]


class Schedulers:
    """The schedulers of a queue."""

    base: str
    server: Server
    clock: Callable[[], int]
    default_job_options: Mapping[str, Any]

    def _job(self, job_id: str, fields: dict[str, str]) -> Job:
        raise NotImplementedError

    def upsert_job_scheduler(self, scheduler_id: str, repeat: Mapping[str, Any], template: Mapping[str, Any] | None = None) -> Job | None:
        """Makes a scheduler, or changes the one of that id; the iteration that waits is replaced. Returns the next iteration, or None where
        there will be none (`endDate` has passed, `limit` is 0).

        `repeat` is BullMQ's: `every` (ms) or `pattern` (cron, seconds first) with `tz`; `limit`, `startDate`, `endDate` (ms, datetime or
        ISO 8601), `offset` (ms), `immediately`. `template` is {name, data, opts} of the jobs; the name is the scheduler's id if not given.
        """
        rule = _rule_of(scheduler_id, repeat)
        template = template or {}
        _known(template, _TEMPLATE, "the template of a scheduler")
        given = {**self.default_job_options, **(template.get("opts") or {})}
        for name in _OWN:
            if name in given:
                raise BadInput(f"the template of a scheduler has no option {name!r}: its jobs get theirs from the scheduler")
        now = self.clock()
        if rule.get("limit", 1) < 1 or now > rule.get("endDate", now):
            return None
        due: int | str = ""
        if "pattern" in rule:
            found = now if repeat.get("immediately") else _next(rule, now)
            if found is None:
                return None
            due = max(found, now)
        data, options = to_data(template.get("data", {})), _stored(given)
        name = template.get("name") or scheduler_id
        answer = scripts.upsert_scheduler(
            self.server, self.base, scheduler_id, now, due, json.dumps({"name": name, **rule}), data, json.dumps(options),
            json.dumps(_iteration(options, rule, 1, due)),
        )  # fmt: skip
        if isinstance(answer, int):
            raise job_error(answer, "addJobScheduler", scheduler_id)
        job_id, delay = answer
        fields = {"name": name, "data": data, "opts": json.dumps(options), "timestamp": str(now), "delay": str(delay), "rjk": scheduler_id}
        return self._job(job_id, fields)

    def remove_job_scheduler(self, scheduler_id: str) -> bool:
        """No further iteration is made, and the one that is delayed is removed. Returns whether there was such a scheduler."""
        return scripts.remove_scheduler(self.server, self.base, scheduler_id) == 1

    def get_job_scheduler(self, scheduler_id: str) -> JobScheduler | None:
        score = self.server.call("ZSCORE", f"{self.base}repeat", scheduler_id)
        return self._scheduler(scheduler_id, score) if score is not None else None

    def get_job_schedulers(self, start: int = 0, end: int = -1, asc: bool = False) -> list[JobScheduler]:
        """Those at places `start` to `end` (both included), the one that is due last first unless `asc`."""
        flat = self.server.call("ZRANGE" if asc else "ZREVRANGE", f"{self.base}repeat", start, end, "WITHSCORES")
        found = (self._scheduler(flat[at], flat[at + 1]) for at in range(0, len(flat), 2))
        return [one for one in found if one is not None]

    def get_job_schedulers_count(self) -> int:
        return int(self.server.call("ZCARD", f"{self.base}repeat"))

    def _scheduler(self, scheduler_id: str, score: str) -> JobScheduler | None:
        flat = self.server.call("HGETALL", f"{self.base}repeat:{scheduler_id}")
        if not flat:
            return None
        fields = dict(zip(flat[::2], flat[1::2], strict=True))

        def number(name: str) -> int | None:
            return int(float(fields[name])) if fields.get(name) else None

        return JobScheduler(
            scheduler_id, fields.get("name", ""), int(float(score)), number("every"), fields.get("pattern"), fields.get("tz"),
            number("limit"), number("startDate"), number("endDate"), number("offset"), number("ic"), json.loads(fields.get("data", "{}")),
            public_options(read_stored(fields.get("opts", "{}"))),
        )  # fmt: skip


def next_iteration(server: Server, base: str, job_id: str, fields: Mapping[str, str], now: int) -> str:
    """What a worker owes the scheduler of a job it has taken: the next iteration. Returns its id, or '' where there is none to make.

    BadInput where the scheduler's rule cannot be understood, other errors where it is none at all: then the schedule ends with this job.
    """
    stored = read_stored(fields.get("opts", "{}"))
    rule: Mapping[str, Any] = stored.get("repeat") or {}
    count = int(rule.get("count") or 0) + 1
    if count > _number(rule.get("limit")) or (rule.get("endDate") and now > _ms(rule["endDate"], "endDate")):
        return ""
    due: int | str = ""
    if rule.get("pattern"):
        after = max(now, int(stored.get("prevMillis") or 0))
        found = _next(rule, after)
        if found is None:
            return ""
        due = max(found, after)
    options = {"attempts": 0, **{name: value for name, value in stored.items() if name not in _OWN}}
    if isinstance(options.get("backoff"), (int, float)):
        options["backoff"] = {"type": "fixed", "delay": options["backoff"]}
    opts = _iteration(options, rule, count, due)
    return scripts.next_iteration(server, base, fields["rjk"], job_id, now, due, json.dumps(opts))


def _number(value: Any) -> float:
    """As JavaScript compares it: a text may be a number, and nothing is more or less than what is none."""
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return math.nan


def _next(rule: Mapping[str, Any], after: int) -> int | None:
    """When the rule's pattern is due after `after`, within its dates."""
    start, end = (_ms(rule[name], name) if rule.get(name) else None for name in ("startDate", "endDate"))
    found = next_ms(rule["pattern"], max(after, start or 0), rule.get("tz"))
    return None if found is None or (end is not None and found > end) else found


def _iteration(options: Mapping[str, Any], rule: Mapping[str, Any], count: int, due: int | str) -> dict[str, Any]:
    """The options of an iteration, but for what the script knows."""
    repeat = {name: value for name, value in rule.items() if value is not None and name != "immediately"}
    made = {**options, "repeat": {**repeat, "count": count}}
    return {**made, "prevMillis": due} if due != "" else made


def _stored(given: Mapping[str, Any]) -> dict[str, Any]:
    """Job options as they are stored, without those that nobody gave."""
    stored: dict[str, Any] = json.loads(make_job_options(given).stored)
    if "attempts" not in given:
        del stored["attempts"]
    if "backoff" in given:
        stored["backoff"] = given["backoff"]
    return stored


def _rule_of(scheduler_id: str, repeat: Mapping[str, Any]) -> dict[str, Any]:
    """`repeat`, checked, with times in ms."""
    if not scheduler_id:
        raise BadInput("a job scheduler has an id")
    _known(repeat, _REPEAT, "the rule of a scheduler")
    given = {name: value for name, value in repeat.items() if value is not None}
    if ("every" in given) == ("pattern" in given):
        raise BadInput("a job scheduler has either .pattern or .every")
    if given.pop("immediately", False) and "startDate" in given:
        raise BadInput("Both .immediately and .startDate options are defined for this job scheduler")
    for name in ("every", "limit", "offset"):
        if name in given and (isinstance(given[name], bool) or not isinstance(given[name], int) or given[name] < (name == "every")):
            raise BadInput(f"{name!r} of a job scheduler is an integer, not {given[name]!r}")
    for name in ("startDate", "endDate"):
        if name in given:
            given[name] = _ms(given[name], name)
    if "pattern" in given:
        given.pop("offset", None)
        next_ms(given["pattern"], 0, given.get("tz"))  # says what is wrong with it, if anything is
    return given


def _ms(moment: Any, name: str) -> int:
    """A time as JavaScript's Date takes it: ms, ISO 8601 (UTC where it names only a day), or a datetime."""
    if isinstance(moment, (int, float)) and not isinstance(moment, bool):
        return int(moment)
    try:
        found = moment if isinstance(moment, datetime) else datetime.fromisoformat(str(moment).replace("Z", "+00:00"))
    except ValueError:
        raise BadInput(f"{name!r} of a job scheduler is a time, not {moment!r}") from None
    if found.tzinfo is None and not isinstance(moment, datetime) and len(str(moment)) <= len("2000-01-01"):
        found = found.replace(tzinfo=timezone.utc)
    return round(found.timestamp() * 1000)


def _known(given: Mapping[str, Any], known: frozenset[str], what: str) -> None:
    for name in given.keys() - known:
        near = difflib.get_close_matches(name, known, 1)
        hint = f": did you mean {near[0]!r}?" if near else f"; known are {', '.join(sorted(known))}"
        raise BadInput(f"unknown key {name!r} in {what}{hint}")
