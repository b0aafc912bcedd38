"""What a job's stored options mean when an attempt ends: how long to wait before the next one, and how long to keep the job.

The formulas are BullMQ's. Knows no connection; the random number is an argument.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

#: How many stack traces BullMQ keeps when `stackTraceLimit` says nothing.
NO_LIMIT: int | None = None
#: The greatest integer that Lua tells from the next one; it writes greater ones as Redis reads no integer.
_GREATEST = 2**53


class Keep(NamedTuple):
    """How many finished jobs stay: `count` -1 for all and 0 for none, `age` in seconds, `limit` jobs removed at a time."""

    count: int = -1  # type: ignore[assignment]  # hides tuple.count, which nobody asks a policy for
    age: int | str = ""
    limit: int | str = ""


KEEP_ALL = Keep()


def keep_of(option: Any, default: Any = None) -> Keep:
    """removeOnComplete or removeOnFail of the job, else the worker's own, else BullMQ's default: keep all."""
    if option is None:
        option = default
    if option is None or option is False:
        return KEEP_ALL
    if option is True:
        return Keep(0)
    if isinstance(option, Mapping):
        limit = int(_number(option.get("limit"), 0))
        return Keep(_count(option.get("count")), _number(option.get("age"), ""), min(limit, _GREATEST) if limit >= 1 else "")
    return Keep(_count(option))


def _count(value: Any) -> int:
    count = int(_number(value, -1))
    return count if 0 <= count <= _GREATEST else -1


def _number(value: Any, default: Any) -> Any:
    """A number, as which Node takes some texts too; the default for whatever else a client may have stored."""
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        return default
    if not math.isfinite(number):
        return default
    return value if isinstance(value, int) else number


def backoff_ms(backoff: Any, attempt: int, random: float, custom: Callable[[int, str], float] | None = None) -> int:
    """Milliseconds to wait after failure number `attempt` (1 for the first); 0 for at once, -1 for not at all.

    `backoff` is a number or {type, delay, jitter}; `random` is in [0, 1).
    """
    if not backoff:
        return 0
    if not isinstance(backoff, Mapping):
        return max(int(backoff), 0)
    kind, delay, jitter = backoff.get("type"), backoff.get("delay") or 0, backoff.get("jitter") or 0
    if kind == "fixed":
        base = delay
    elif kind == "exponential":
        base = math.floor(2 ** (attempt - 1) * delay + 0.5)
    elif custom is not None:
        return int(custom(attempt, str(kind)))
    else:
        raise ValueError(f"Unknown backoff strategy {kind}. If a custom backoff strategy is used, specify it when the queue is consumed.")
    if jitter:
        return math.floor(random * base * jitter + base * (1 - jitter))
    return int(base)


def has_attempt_left(opts: Mapping[str, Any], made: int) -> bool:
    """Whether the attempt that just failed, number `made` + 1, is not the last."""
    try:
        attempts = float(opts.get("attempts") or 0)
    except (TypeError, ValueError, OverflowError):
        return False
    return made + 1 < attempts


def add_trace(previous: str | None, trace: str, limit: Any) -> str:
    """The JSON list of stack traces with one more, cut to the newest `limit` (None for all)."""
    try:
        traces = json.loads(previous) if previous else []
    except (ValueError, RecursionError):
        traces = []
    if not isinstance(traces, list):
        traces = []
    if trace:
        traces.append(trace)
    if isinstance(limit, int):
        traces = traces[-limit:] if limit else []
    return json.dumps(traces)
