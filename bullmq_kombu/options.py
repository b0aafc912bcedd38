"""The transport's options: name, unit, default, check. Knows no connection and no queue.

`broker_transport_options` may hold everything here, Kombu's connection level options (passed through), and nothing else: an unknown name
is a warning with the nearest match, a value of the wrong type an error.
"""

from __future__ import annotations

import difflib
import math
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from bullmq_kombu.errors import BadInput
from bullmq_kombu.keys import CLUSTER_PREFIX, DEFAULT_PREFIX

#: BullMQ's `lockDuration`, 30 s: long enough for a garbage collection, short enough to notice a dead worker within a minute.
LOCK_DURATION_S = 30.0
#: BullMQ's `stalledInterval`.
STALLED_INTERVAL_S = 30.0
#: BullMQ's `maxStalledCount`: a job that takes its worker down twice is not tried a third time.
MAX_STALLED_COUNT = 1
#: BullMQ's `drainDelay`: the longest an idle worker trusts the wake-up markers.
DRAIN_DELAY_S = 5.0
#: Retention of what Celery sends: a day of completed jobs, a week of failed ones, both bounded.
REMOVE_ON_COMPLETE: Mapping[str, int] = {"age": 86_400, "count": 1000}
REMOVE_ON_FAIL: Mapping[str, int] = {"age": 604_800, "count": 5000}
#: No answer within this time means the server is gone: a script takes milliseconds.
SOCKET_TIMEOUT_S = 4.0
#: BullMQ's `maxLen` of the event stream.
MAX_LEN_EVENTS = 10_000

#: Options of kombu.Connection itself, which arrive in the same dictionary.
KOMBU_LEVEL = frozenset({
    "max_retries", "interval_start", "interval_step", "interval_max", "connect_retries_timeout", "errback", "callback",
    "polling_interval", "confirm_publish", "confirm_timeout", "deadletter_queue", "body_encoding", "retry_errors", "retry_policy",
})  # fmt: skip

#: Options of Kombu's Redis transport that have no meaning here, because BullMQ needs nothing of the kind: silently accepted, so that a
#: configuration made for `redis://` goes on working.
WITHOUT_MEANING = frozenset({
    "visibility_timeout", "unacked_key", "unacked_index_key", "unacked_mutex_key", "unacked_mutex_expire", "unacked_restore_limit",
    "unacked_restore_interval", "unacked_restore_throttle", "ack_emulation", "priority_steps", "sep", "fanout_prefix", "fanout_patterns",
    "sentinel_fanout_compat", "reauth_check_interval", "retry_on_timeout",
})  # fmt: skip


def _option(default: Any, meaning: str, unit: str = "", *, secret: bool = False) -> Any:
    """One option as a field; the documentation's table is made from these. The value of a `secret` one is never printed."""
    return field(default=default, repr=not secret, metadata={"meaning": meaning, "unit": unit})


@dataclass(frozen=True)
class Options:
    """Checked transport options. Times are seconds."""

    prefix: str = _option(DEFAULT_PREFIX, "BullMQ's prefix; `{bull}` on Redis Cluster, where it must be a hash tag")
    lock_duration: float = _option(LOCK_DURATION_S, "for how long a job stays a dead worker's", "s")
    lock_renew_time: float | None = _option(None, "how often locks are renewed at least; half of the lock's duration", "s")
    stalled_interval: float = _option(STALLED_INTERVAL_S, "how often jobs of dead workers are looked for", "s")
    max_stalled_count: int = _option(MAX_STALLED_COUNT, "how often a job may lose its worker before it is failed")
    drain_delay: float = _option(DRAIN_DELAY_S, "the longest an idle worker waits without looking", "s")
    remove_on_complete: Any = _option(None, "kept of completed jobs: true (none), false (all), a count, or {age (s), count}")
    remove_on_fail: Any = _option(None, "the same of failed jobs")
    max_retries_per_request: int | None = _option(
        None, "for producers: how often a command is tried again; BullMQ's rule for workers is for ever"
    )
    limiter: Mapping[str, Any] | None = _option(None, "this worker's rate limit: {max (jobs), duration (s)}")
    metrics: int | Mapping[str, Any] | None = _option(None, "for how many minutes BullMQ's metrics are kept", "min")
    max_len_events: int = _option(MAX_LEN_EVENTS, "about how many events a new queue's stream keeps")
    skip_version_check: bool = _option(False, "do not ask the server for its version and eviction policy")
    connection: Any = _option(None, "a redis-py client or pool to share; blocking commands use connections of their own", secret=True)
    socket_timeout: float | None = _option(SOCKET_TIMEOUT_S, "the longest an answer may take", "s")
    socket_connect_timeout: float | None = _option(SOCKET_TIMEOUT_S, "the longest connecting may take", "s")
    socket_keepalive: bool | None = _option(None, "TCP keepalive")
    socket_keepalive_options: Mapping[Any, Any] | None = _option(None, "its options, as redis-py's")
    health_check_interval: float | None = _option(None, "accepted; every blocking wait is guarded by a clock of its own", "s")
    max_connections: int | None = _option(None, "the most connections that short commands use at a time; one more is an error")
    client_name: str | None = _option(None, "CLIENT name of connections that BullMQ does not name")
    queue_order_strategy: str = _option("round_robin", "which of several queues is asked first: round_robin, sorted, priority (as listed)")
    master_name: str | None = _option(None, "Sentinel's name of the master")
    min_other_sentinels: int = _option(0, "how many other sentinels must agree")
    sentinel_kwargs: Mapping[str, Any] | None = _option(
        None, "options of the connections to the sentinels, their password for one", secret=True
    )

    @property
    def lock_ms(self) -> int:
        return _ms(self.lock_duration)

    @property
    def renew_after(self) -> float:
        """Age in seconds at which a lock is renewed: a third of `lock_renew_time`, so that a stop of the process of half the lock's
        duration (a long garbage collection, a blocked interpreter) costs no lock."""
        return (self.lock_renew_time or self.lock_duration / 2) / 3

    @property
    def stalled_ms(self) -> int:
        return _ms(self.stalled_interval)

    @property
    def limiter_max(self) -> int | str:
        return self.limiter["max"] if self.limiter else ""

    @property
    def limiter_ms(self) -> int | str:
        return _ms(self.limiter["duration"]) if self.limiter else ""

    @property
    def metrics_points(self) -> int | None:
        if isinstance(self.metrics, Mapping):
            return int(self.metrics.get("max_data_points", 0)) or None
        return self.metrics or None


def _ms(seconds: float) -> int:
    """At least one: Redis knows no expiry of 0 ms."""
    return max(int(seconds * 1000), 1)


_POSITIVE = ("lock_duration", "lock_renew_time", "stalled_interval", "drain_delay", "socket_timeout", "socket_connect_timeout")
_NUMBERS = (*_POSITIVE, "health_check_interval")
_INTEGERS = ("max_stalled_count", "max_retries_per_request", "max_len_events", "max_connections", "min_other_sentinels")
_BOOLEANS = ("skip_version_check", "socket_keepalive")
_MAPPINGS = ("sentinel_kwargs", "socket_keepalive_options")
_ORDERS = ("round_robin", "sorted", "priority")


def check_options(given: Mapping[str, Any], kind: str = "tcp") -> Options:
    """`broker_transport_options` as Options, for a server of this `kind`. Unknown names warn; wrong types and values raise BadInput."""
    known = {field.name for field in fields(Options)}
    accepted: dict[str, Any] = {"prefix": CLUSTER_PREFIX} if kind == "cluster" else {}
    for name, value in given.items():
        if name == "global_keyprefix":
            if value:
                raise BadInput("global_keyprefix would put every key where Node's BullMQ does not look: use the option 'prefix' instead")
        elif name in known:
            if value is not None:
                accepted[name] = value
            elif name in ("socket_timeout", "socket_connect_timeout"):
                accepted[name] = None
        elif name not in KOMBU_LEVEL and name not in WITHOUT_MEANING:
            near = difflib.get_close_matches(name, known, 1)
            hint = f": did you mean {near[0]!r}?" if near else ""
            warnings.warn(f"unknown broker transport option {name!r}{hint}", UserWarning, stacklevel=3)
    _check_types(accepted)
    return Options(**accepted)


def _check_types(accepted: Mapping[str, Any]) -> None:
    for name, value in accepted.items():
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
        if name in _NUMBERS and value is not None and not is_number:
            raise BadInput(f"broker transport option {name!r} must be a number of seconds, not {value!r}")
        if name in _POSITIVE and value is not None and value <= 0:
            raise BadInput(f"broker transport option {name!r} must be greater than 0, not {value!r}")
        if name in _INTEGERS and not (isinstance(value, int) and is_number and value >= 0):
            raise BadInput(f"broker transport option {name!r} must be an integer of at least 0, not {value!r}")
        if name == "prefix" and (not isinstance(value, str) or not value):
            raise BadInput(f"broker transport option 'prefix' must be a text that is not empty, not {value!r}")
        if name == "queue_order_strategy" and value not in _ORDERS:
            raise BadInput(f"broker transport option {name!r} must be one of {', '.join(_ORDERS)}, not {value!r}")
        if name in _BOOLEANS and not isinstance(value, bool):
            raise BadInput(f"broker transport option {name!r} must be true or false, not {value!r}")
        if name in _MAPPINGS and not isinstance(value, Mapping):
            raise BadInput(f"broker transport option {name!r} must be a dictionary, not a {type(value).__name__}")
        if name == "master_name" and not isinstance(value, str):
            raise BadInput(f"broker transport option 'master_name' must be a text, not {value!r}")
        if name == "metrics":
            _check_metrics(value)
        if name == "limiter":
            check_limiter(value)
        if name in ("remove_on_complete", "remove_on_fail"):
            check_keep(name, value)
        if name == "client_name" and (not isinstance(value, str) or re.search(r"\s", value)):
            raise BadInput(f"broker transport option 'client_name' must be a text without blanks, not {value!r}")
    renew, lock = accepted.get("lock_renew_time"), accepted.get("lock_duration", LOCK_DURATION_S)
    if renew is not None and renew >= lock:
        raise BadInput(f"broker transport option 'lock_renew_time' must be less than 'lock_duration' ({lock} s), not {renew!r}")


def _check_metrics(value: Any) -> None:
    points = value.get("max_data_points") if isinstance(value, Mapping) and set(value) == {"max_data_points"} else value
    if not isinstance(points, int) or isinstance(points, bool) or points < 0:
        raise BadInput(f"metrics must be how many minutes to keep, or {{'max_data_points': minutes}}, not {value!r}")


def check_limiter(value: Any) -> None:
    if not isinstance(value, Mapping) or set(value) != {"max", "duration"}:
        raise BadInput(f"limiter must be {{'max': jobs, 'duration': seconds}}, not {value!r}")
    for name in ("max", "duration"):
        number = value[name]
        if not isinstance(number, (int, float)) or isinstance(number, bool) or number <= 0:
            raise BadInput(f"limiter[{name!r}] must be a number greater than 0, not {number!r}")


def check_keep(name: str, value: Any) -> None:
    """BullMQ's removeOnComplete/removeOnFail: true, false, a count, or {age (seconds), count, limit}."""
    if isinstance(value, Mapping):
        unknown = set(value) - {"age", "count", "limit"}
        if unknown:
            raise BadInput(f"{name}: unknown key {sorted(unknown)[0]!r}; known are age (seconds), count, limit")
        for key, number in value.items():
            is_integer = isinstance(number, int) and not isinstance(number, bool)
            if not is_integer and (key != "age" or not isinstance(number, float) or not math.isfinite(number)):
                raise BadInput(f"{name}[{key!r}] must be {'a number of seconds' if key == 'age' else 'an integer'}, not {number!r}")
    elif not isinstance(value, (bool, int)):
        raise BadInput(f"{name} must be true, false, a count or {{age, count, limit}}, not {value!r}")
