"""Two key spaces, one carried by Node and one by this package, and what may differ between them.

Each side has a Redis database of its own, so that every key and every value that names a key can be compared as it is. A difference that
is allowed has its entry in `ALLOWED`, with the reason, and is taken out of both sides by `Picture`; nowhere else is anything overlooked.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import redis

ALLOWED: Mapping[str, str] = {
    "meta.version": "says which library last opened the queue",
    "meta.opts.maxLenEvents": "written by whoever needs it first; Node's Queue does so when made, ours when it trims. Absent is 10000",
    "JSON text": "order of keys, blanks and escapes inside a JSON value are the encoder's; the values are compared",
    "opts: {} for []": "Node's options go through Redis' JSON encoder, which knows no empty list",
    "stream ids": "Redis makes them from its own clock",
    "debounced": "an event of BullMQ 5 alone, always beside `deduplicated`",
    "drained": "BullMQ 5 says it also while jobs wait in a paused queue, because it keeps them elsewhere; compared with 6 only",
    "paused list": "BullMQ 5 parks what waits in a list of its own while a queue is paused; here, as in 6, it stays in `wait`",
    "base marker": (
        "a hint: Node sets one after every job it takes, also when nothing is left, and sets none where it should in the cases of protocol "
        "4.1. Instead of being compared, ours must be there whenever a job could be taken"
    ),
    "delay marker": (
        "a hint too: Node sets none when a job is delayed by a call that fetches the next one, so a job due soon may wait for the poll. "
        "Where Node has one, ours is there and no later than the first delayed job is due"
    ),
    "expiry": "real time passes between the two sides: either both keys expire or none does, at about the same time",
    "nrjid": "a note of BullMQ 5 on the job that made a scheduler's next one; 6 no longer writes it",
}

#: What the random sequences do not draw, because the two sides are known to differ there. The named scenarios say what ours does.
LEFT_OUT: Mapping[str, str] = {
    "colon in a parent's id": "full keys are split at their last colon, by both sides alike, and then name another job",
    "parent gone, 5": "BullMQ 5 refuses a job another parent also where the first is gone; 6 and we do not",
    "several of a scheduler": (
        "Node makes a scheduler's next iteration before the same worker takes another job; we take several, then make theirs, as two "
        "workers of Node's do that take at once"
    ),
    "next after a refused end": "where an end is refused Node fetches nothing; we take the next job all the same, as asked",
    "expired lock extended": "a worker of ours whose lock has expired takes it again while nobody else has the job; Node's gives it up",
    "stalled with a priority": "upstream puts them into `wait`; we keep their priority (protocol 16.12)",
    "limit and a job to fail, 5": "BullMQ 5 counts a job that is only to be failed against the rate limit; 6 and we do not",
    "drain beside a scheduler": "upstream's takes the wrong ids out of `wait` (protocol 8.2)",
    "clean waiting while paused, 5": "there that is a state of its own",
    "clean with a limit": "upstream counts the jobs it may not remove against the limit; we remove as many as there may be",
    "many moved with priorities": "upstream forgets the priority when it retries or promotes many, BullMQ 5 also that a parent waits again",
    "upsert while paused": "upstream looks for the iteration that waits in the wrong list (protocol 1.4, H5)",
    "pattern after an early iteration": "upstream writes over the job that was done early, which is then in two states",
    "retry with a priority, 5": "BullMQ 5 forgets the priority",
    "reschedule, 5": "BullMQ 5 does not know this kind of deduplication yet",
}


def left_out(what: str) -> None:
    """Marks the place in the sequences where something of `LEFT_OUT` is."""
    assert what in LEFT_OUT, what


JSON_FIELDS = ("opts", "data", "parent", "returnvalue", "progress", "stacktrace")
EXPIRY_TOLERANCE_MS = 15_000

_DUMP = """
local out = {}
for _, key in ipairs(redis.call('KEYS', '*')) do
  local kind = redis.call('TYPE', key).ok
  local value
  if kind == 'string' then value = redis.call('GET', key)
  elseif kind == 'hash' then value = redis.call('HGETALL', key)
  elseif kind == 'list' then value = redis.call('LRANGE', key, 0, -1)
  elseif kind == 'set' then value = redis.call('SMEMBERS', key)
  elseif kind == 'zset' then value = redis.call('ZRANGE', key, 0, -1, 'WITHSCORES')
  else value = redis.call('XRANGE', key, '-', '+') end
  out[#out + 1] = {key, kind, redis.call('PTTL', key), value}
end
return out
"""


class Picture:
    """One side at one moment: `keys` is key -> value with the allowed differences taken out, `expiries` key -> ms."""

    def __init__(self, client: redis.Redis, version: str = "v6") -> None:
        self._unheard = ("debounced", "drained") if version == "v5" else ("debounced",)
        self.raw: dict[str, tuple[str, Any]] = {}
        self.expiries: dict[str, int] = {}
        dumped: Any = client.eval(_DUMP, 0)
        for key, kind, ttl, value in dumped:
            self.raw[key] = (kind, _read(kind, value))
            if ttl >= 0:
                self.expiries[key] = ttl
        self.keys = {
            key: value for key, value in (self._without_allowed(key, *found) for key, found in self.raw.items()) if value is not None
        }
        self._merge_paused()

    def _without_allowed(self, key: str, kind: str, value: Any) -> tuple[str, Any]:
        last = key.rpartition(":")[2]
        if kind == "hash":
            return key, self._hash(last, value)
        if kind == "stream":
            return key, [_event(fields) for _, fields in value if fields["event"] not in self._unheard]
        if kind == "zset" and last == "marker":
            return key, None  # see `asleep` and `due`
        return key, value

    def _hash(self, last: str, value: dict[str, str]) -> dict[str, Any] | None:
        if last == "meta":
            kept = {name: text for name, text in value.items() if name != "version"}
            if kept.get("opts.maxLenEvents") == "10000":
                del kept["opts.maxLenEvents"]
            return kept or None
        fields: dict[str, Any] = {name: text for name, text in value.items() if name != "nrjid"}
        for name in JSON_FIELDS:
            if name in fields:
                fields[name] = _json(fields[name], name == "opts")
        if last == "processed":
            fields = {name: _json(text) for name, text in fields.items()}
        return fields

    def _merge_paused(self) -> None:
        for key in [key for key, (kind, _) in self.raw.items() if kind == "list" and key.endswith(":paused")]:
            waiting = key.removesuffix("paused") + "wait"
            self.keys[waiting] = [*self.keys.get(waiting, []), *self.keys.pop(key)]

    def queues(self) -> set[str]:
        return {key.rpartition(":")[0] + ":" for key in self.raw if key.endswith((":id", ":meta"))}

    def asleep(self) -> list[str]:
        """Queues where a job could be taken and no marker says so: a worker would find it only by its poll."""
        found = []
        for base in self.queues():
            meta = self.raw.get(f"{base}meta", ("hash", {}))[1]
            active = len(self.raw.get(f"{base}active", ("list", ()))[1])
            blocked = "paused" in meta or ("concurrency" in meta and active >= int(meta["concurrency"]))
            has_job = f"{base}wait" in self.raw or f"{base}prioritized" in self.raw
            if has_job and not blocked and "0" not in self.raw.get(f"{base}marker", ("zset", {}))[1]:
                found.append(base)
        return found

    def due(self, base: str) -> float | None:
        """What the delay marker of a queue says."""
        found: float | None = self.raw.get(f"{base}marker", ("zset", {}))[1].get("1")
        return found

    def first_due(self, base: str) -> float | None:
        """When its first delayed job is due."""
        delayed = self.raw.get(f"{base}delayed", ("zset", {}))[1]
        return min(delayed.values()) / 4096 if delayed else None


def _read(kind: str, value: Any) -> Any:
    if kind == "hash":
        return dict(zip(value[::2], value[1::2], strict=True))
    if kind == "zset":
        return {member: float(score) for member, score in zip(value[::2], value[1::2], strict=True)}
    if kind == "set":
        return sorted(value)
    if kind == "stream":
        return [(entry, dict(zip(fields[::2], fields[1::2], strict=True))) for entry, fields in value]
    return value


def _json(text: str, lists_may_be_objects: bool = False) -> Any:
    try:
        value = json.loads(text)
    except ValueError:
        return ("no JSON", text)
    return _lists_as_objects(value) if lists_may_be_objects else value


def _lists_as_objects(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _lists_as_objects(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_lists_as_objects(item) for item in value] or {}
    return value


def _event(fields: dict[str, str]) -> dict[str, Any]:
    read: dict[str, Any] = dict(fields)
    if read["event"] == "removed" and read["prev"] == "paused":
        read["prev"] = "wait"
    for name in ("returnvalue", "data"):
        if name in read:
            read[name] = _json(read[name])
    return read


def differences(node: Picture, ours: Picture) -> list[str]:
    """One line for each key that differs, and what differs in it."""
    lines = []
    for key in sorted(node.keys.keys() | ours.keys.keys()):
        theirs, mine = node.keys.get(key), ours.keys.get(key)
        if theirs != mine:
            lines += _explain(key, theirs, mine)
    for key in sorted(node.expiries.keys() | ours.expiries.keys()):
        if key not in node.keys or key not in ours.keys:
            continue
        theirs_ms, mine_ms = node.expiries.get(key), ours.expiries.get(key)
        if theirs_ms is None or mine_ms is None or abs(theirs_ms - mine_ms) > EXPIRY_TOLERANCE_MS:
            lines.append(f"{key}: Node's expires in {theirs_ms} ms, ours in {mine_ms} ms")
    lines += [f"{base}: a job could be taken and there is no base marker" for base in ours.asleep()]
    for base in node.queues():
        theirs_due, ours_due, first_due = node.due(base), ours.due(base), ours.first_due(base)
        if None not in (theirs_due, first_due) and (ours_due is None or ours_due > first_due):
            lines.append(f"{base}: the delay marker is {theirs_due} in Node's, {ours_due} in ours, the first job is due at {first_due}")
    return lines


def _explain(key: str, theirs: Any, mine: Any) -> list[str]:
    if isinstance(theirs, dict) and isinstance(mine, dict):
        names = sorted(name for name in theirs.keys() | mine.keys() if theirs.get(name) != mine.get(name))
        return [f"{key}[{name}]: Node {theirs.get(name)!r}, ours {mine.get(name)!r}" for name in names]
    if key.endswith(":events") and theirs and mine:
        at = next((at for at, (one, other) in enumerate(zip(theirs, mine, strict=False)) if one != other), min(len(theirs), len(mine)))
        return [f"{key}, from event {at} on: Node {theirs[at : at + 6]}, ours {mine[at : at + 6]}"]
    return [f"{key}: Node {theirs!r}, ours {mine!r}"]
