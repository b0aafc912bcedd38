"""BullMQ's JobsOptions: checked as BullMQ checks them, and spelled as they are stored. Values in, values out.

Source: BullMQ's documented job options; the stored spelling is that of the job hash's `opts` field.
"""

from __future__ import annotations

import difflib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

from bullmq_kombu.errors import BadInput
from bullmq_kombu.options import check_keep

#: BullMQ packs priority into 21 bits.
MAX_PRIORITY = 2_097_151

#: Public name -> name in the stored JSON.
_STORED_AS = {
    "deduplication": "de",
    "failParentOnFailure": "fpof",
    "continueParentOnFailure": "cpof",
    "ignoreDependencyOnFailure": "idof",
    "removeDependencyOnFailure": "rdof",
    "keepLogs": "kl",
}

_INTEGER = ("attempts", "priority", "keepLogs", "stackTraceLimit", "sizeLimit")
_NUMBER = ("delay", "timestamp")
_BOOLEAN = ("lifo", "failParentOnFailure", "continueParentOnFailure", "ignoreDependencyOnFailure", "removeDependencyOnFailure")
_POLICIES = ("failParentOnFailure", "continueParentOnFailure", "ignoreDependencyOnFailure", "removeDependencyOnFailure")
_DEDUPLICATION = {"id": str, "ttl": float, "extend": bool, "replace": bool, "reschedule": bool, "keepLastIfActive": bool}
KNOWN = frozenset({
    *_INTEGER, *_NUMBER, *_BOOLEAN, "backoff", "deduplication", "jobId", "parent", "removeOnComplete", "removeOnFail", "telemetry",
})  # fmt: skip


@dataclass(frozen=True, slots=True)
class JobOptions:
    """One job's checked options, ready for the add script. Times are milliseconds.

    `stored` is the JSON for the hash; `more` is what the script has to know besides (lifo, parent, deduplication).
    """

    stored: str
    job_id: str = ""
    delay: int = 0
    priority: int = 0
    timestamp: int | None = None
    size_limit: int | None = None
    telemetry: Mapping[str, Any] | None = None
    more: Mapping[str, Any] = field(default_factory=dict)


def check_job_options(given: Mapping[str, Any]) -> None:
    """BadInput for an unknown or ill-typed option; the message names the nearest known one, or the rule."""
    for name, value in given.items():
        if name not in KNOWN:
            near = difflib.get_close_matches(name, KNOWN, 1)
            hint = f": did you mean {near[0]!r}?" if near else f"; known are {', '.join(sorted(KNOWN))}"
            raise BadInput(f"unknown job option {name!r}{hint}")
        if value is None:
            continue
        if name in _INTEGER and (not isinstance(value, int) or isinstance(value, bool)):
            if name == "priority" and isinstance(value, float):
                raise BadInput(f"Priority should not be float: {value!r}")
            raise BadInput(f"job option {name!r} must be an integer, not {value!r}")
        if name in _NUMBER and not _is_number(value):
            raise BadInput(f"job option {name!r} must be a number of milliseconds, not {value!r}")
        if name in _BOOLEAN and not isinstance(value, bool):
            raise BadInput(f"job option {name!r} must be true or false, not {value!r}")
    _check_values(given)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _check_values(given: Mapping[str, Any]) -> None:
    priority = given.get("priority") or 0
    if not 0 <= priority <= MAX_PRIORITY:
        raise BadInput(f"Priority should be between 0 and {MAX_PRIORITY}, not {priority}")
    for name in ("attempts", "delay", "keepLogs", "stackTraceLimit"):
        if (given.get(name) or 0) < 0:
            raise BadInput(f"job option {name!r} must not be negative: {given[name]!r}")
    for name in ("removeOnComplete", "removeOnFail"):
        if given.get(name) is not None:
            check_keep(name, given[name])
    if given.get("jobId") is not None:
        check_job_id(given["jobId"])
    policies = [name for name in _POLICIES if given.get(name)]
    if len(policies) > 1:
        raise BadInput(f"The following options cannot be used together: {', '.join(policies)}")
    _check_backoff(given.get("backoff"))
    _check_deduplication(given.get("deduplication"), given.get("parent"))
    parent = given.get("parent")
    if parent is not None and not (isinstance(parent, Mapping) and set(parent) == {"id", "queue"} and all(map(_is_text, parent.values()))):
        raise BadInput(f"job option 'parent' must be {{'id': …, 'queue': 'prefix:queue'}}, not {parent!r}")
    telemetry = given.get("telemetry")
    if telemetry is not None and not _is_telemetry(telemetry):
        raise BadInput(f"job option 'telemetry' must be {{'metadata': text, 'omitContext': true or false}}, not {telemetry!r}")


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and value != ""


def _is_telemetry(value: Any) -> bool:
    if not isinstance(value, Mapping) or not set(value) <= {"metadata", "omitContext"}:
        return False
    return isinstance(value.get("metadata", ""), str) and isinstance(value.get("omitContext", False), bool)


def _check_backoff(backoff: Any) -> None:
    if backoff is None or (_is_number(backoff) and backoff >= 0):
        return
    delay: Any = backoff.get("delay", 0) if isinstance(backoff, Mapping) else None
    if not _is_number(delay) or delay < 0 or not isinstance(backoff.get("type"), str):
        raise BadInput(f"job option 'backoff' must be milliseconds or {{'type': 'fixed' or 'exponential', 'delay': ms}}, not {backoff!r}")
    jitter = backoff.get("jitter")
    if jitter is not None and not (isinstance(jitter, (int, float)) and 0 <= jitter <= 1):
        raise BadInput(f"backoff.jitter must be between 0 and 1, not {jitter!r}")


def _check_deduplication(given: Any, parent: Any) -> None:
    if given is None:
        return
    if not isinstance(given, Mapping) or not given.get("id"):
        raise BadInput("Deduplication id must be provided: deduplication={'id': …}")
    for name, value in given.items():
        if name not in _DEDUPLICATION:
            raise BadInput(f"unknown key {name!r} in deduplication; known are {', '.join(_DEDUPLICATION)}")
        if not (_is_number(value) if name == "ttl" else isinstance(value, _DEDUPLICATION[name])):
            raise BadInput(f"deduplication[{name!r}] has the wrong type: {value!r}")
    if parent is not None:
        raise BadInput("Deduplication and parent options cannot be used together")


def check_job_id(job_id: Any) -> None:
    """BullMQ's rules for ids of the user's own."""
    if not isinstance(job_id, str) or not job_id:
        raise BadInput(f"jobId must be a text that is not empty, not {job_id!r}")
    if job_id == "0" or job_id.startswith("0:"):
        raise BadInput("JobId cannot be '0' or start with '0:'")
    if job_id in _KEYS_OF_A_QUEUE:
        raise BadInput(f"jobId {job_id!r} is the name of one of the queue's own keys; BullMQ would write the job over it")
    if not is_own_id(job_id):
        if ":" in job_id:
            raise BadInput(f"Custom Id cannot contain ':': {job_id!r}")
        raise BadInput(f"Custom Id cannot be integers (BullMQ numbers the others itself): {job_id!r}")


#: A job's key is the queue's base and its id. BullMQ does not refuse these, and the queue would not survive one.
_KEYS_OF_A_QUEUE = frozenset({
    "id", "meta", "wait", "paused", "active", "prioritized", "pc", "priority", "delayed", "delay", "waiting-children", "completed",
    "failed", "marker", "events", "stalled", "stalled-check", "limiter", "repeat", "metrics:completed:data", "metrics:failed:data",
})  # fmt: skip
_INTEGER_TEXT = re.compile(r"(?:0|-?[1-9]\d*)\Z", re.ASCII)


def is_own_id(job_id: str) -> bool:
    """Whether BullMQ accepts this id from a user: not an integer, no colon except in three parts, as schedulers make them."""
    if not job_id or _INTEGER_TEXT.match(job_id) or job_id in _KEYS_OF_A_QUEUE:
        return False
    return ":" not in job_id or (job_id.count(":") == 2 and not job_id.startswith("0:"))


def make_job_options(given: Mapping[str, Any], defaults: Mapping[str, Any] | None = None) -> JobOptions:
    """Checks `given` (BullMQ's JobsOptions), lays it over `defaults` and spells it as the job hash does."""
    merged = _said({**(defaults or {}), **_said(given)})
    # Together: what each of the two may say, they may not say both. With the names of those that are None, as one may be misspelled.
    check_job_options({**dict.fromkeys(given), **merged})
    if "ttl" in merged.get("deduplication", ()):  # Redis takes no fractions of a millisecond
        merged["deduplication"] = {**merged["deduplication"], "ttl": int(merged["deduplication"]["ttl"])}
    stored: dict[str, Any] = {"attempts": 0}
    more: dict[str, Any] = {}
    for name, value in merged.items():
        if name == "telemetry":
            if value.get("metadata"):
                stored["tm"] = value["metadata"]
            if value.get("omitContext"):
                stored["omc"] = True
        elif name == "backoff" and not isinstance(value, Mapping):
            stored["backoff"] = {"type": "fixed", "delay": value}
        else:
            stored[_STORED_AS.get(name, name)] = value
    if merged.get("lifo"):
        more["lifo"] = True
    if "deduplication" in merged:
        more["de"] = dict(merged["deduplication"])
    if "parent" in merged:
        more |= _parent_of(stored)
    return JobOptions(
        stored=json.dumps(stored, separators=(",", ":"), allow_nan=False),
        job_id=merged.get("jobId", ""),
        delay=int(merged.get("delay", 0)),
        priority=merged.get("priority", 0),
        timestamp=int(merged["timestamp"]) if "timestamp" in merged else None,
        size_limit=merged.get("sizeLimit"),
        telemetry=merged.get("telemetry"),
        more=more,
    )


def _said(options: Mapping[str, Any]) -> dict[str, Any]:
    """Without those that are None, which is as if they were not given."""
    return {name: value for name, value in options.items() if value is not None}


def _parent_of(stored: Mapping[str, Any]) -> dict[str, str]:
    """What the script has to know of the parent that the stored options name: its key, and the JSON kept with the child."""
    parent = stored["parent"]
    flags = {flag: True for flag in (_STORED_AS[name] for name in _POLICIES) if stored.get(flag)}
    kept = json.dumps({"id": parent["id"], "queueKey": parent["queue"], **flags}, separators=(",", ":"))
    return {"parentKey": f"{parent['queue']}:{parent['id']}", "parent": kept}


def with_parent(options: JobOptions, parent_id: str, parent_queue: str) -> JobOptions:
    """The same options for a child of the job `parent_id` in `parent_queue` ("prefix:queue")."""
    if "de" in options.more:
        raise BadInput("Deduplication and parent options cannot be used together")
    stored = {**json.loads(options.stored), "parent": {"id": parent_id, "queue": parent_queue}}
    text = json.dumps(stored, separators=(",", ":"), allow_nan=False)
    return replace(options, stored=text, more={**options.more, **_parent_of(stored)})


def with_metadata(options: JobOptions, metadata: str) -> JobOptions:
    """The same options with telemetry metadata, unless they say something of it themselves."""
    if options.telemetry is not None or not metadata:
        return options
    return replace(options, stored=f'{options.stored[:-1]},"tm":{json.dumps(metadata)}}}')


def check_size(name: str, data: str, limit: int | None) -> None:
    """BullMQ's sizeLimit: the UTF-8 bytes of the data's JSON."""
    if limit is not None and len(data.encode("utf-8", "surrogateescape")) > limit:
        raise BadInput(f"The size of job {name} exceeds the limit {limit} bytes")


@lru_cache(maxsize=512)
def read_stored(text: str) -> Mapping[str, Any]:
    """The stored `opts` JSON; {} where it is none. Cached by text, because the jobs of a queue mostly share theirs; never change it."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


_PUBLIC_NAMES = {stored: public for public, stored in _STORED_AS.items()}


def public_options(stored: Mapping[str, Any]) -> dict[str, Any]:
    """A job's stored options under BullMQ's public names."""
    options = {_PUBLIC_NAMES.get(name, name): value for name, value in stored.items() if name not in ("tm", "omc")}
    if "tm" in stored or "omc" in stored:
        options["telemetry"] = {public: stored[name] for name, public in (("tm", "metadata"), ("omc", "omitContext")) if name in stored}
    return options
