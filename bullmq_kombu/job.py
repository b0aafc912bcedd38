"""One job as plain Python sees it: what its hash said when it was read, and the things an administrator may do to it.

Values are read once; a method that changes the job in Redis changes this copy too, where the new value is known. Times are milliseconds,
names are BullMQ's in Python's spelling. Knows neither Kombu nor Celery.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

from bullmq_kombu import admin_scripts, scripts
from bullmq_kombu.errors import BadInput, LockMismatch, job_error
from bullmq_kombu.job_options import MAX_PRIORITY, public_options, read_stored

if TYPE_CHECKING:
    from bullmq_kombu.queue import Queue
    from bullmq_kombu.queue_events import QueueEvents


def _value(text: str | None, default: Any = None) -> Any:
    """The value of a JSON field; what is no JSON is shown as it is."""
    if text is None:
        return default
    try:
        return json.loads(text)
    except ValueError:
        return text


def _number(text: str | None) -> int | None:
    if not text:
        return None
    try:
        return int(text)
    except ValueError:
        try:
            return int(float(text))
        except (ValueError, OverflowError):
            return None


#: `json.dumps` makes one for each text.
_encode = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode


def to_data(value: Any) -> str:
    """The JSON text of data, progress or a result; BadInput where there is none."""
    try:
        text = _encode(value)
        text.encode()
    except UnicodeEncodeError:
        text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise BadInput(f"BullMQ keeps values as JSON, and this one has none: {error}") from None
    return text


class Job:
    """A job of a queue. `opts` are its options under BullMQ's public names."""

    def __init__(self, queue: Queue, job_id: str, fields: Mapping[str, str]) -> None:
        self.queue = queue
        self.id = job_id
        self.name = fields.get("name", "")
        self._data = fields.get("data")
        self.opts: dict[str, Any] = public_options(read_stored(fields.get("opts", "{}")))
        self.timestamp = _number(fields.get("timestamp")) or 0
        self.delay = _number(fields.get("delay")) or 0
        self.priority = _number(fields.get("priority")) or 0
        self.progress: Any = _value(fields.get("progress"), 0)
        self.returnvalue: Any = _value(fields.get("returnvalue"))
        self.failed_reason = fields.get("failedReason")
        #: The job is to be failed with this text by whoever takes it next.
        self.deferred_failure = fields.get("defa")
        traces = _value(fields.get("stacktrace"), [])
        self.stacktrace: list[str] = traces if isinstance(traces, list) else []
        self.attempts_made = _number(fields.get("attemptsMade") or fields.get("atm")) or 0
        self.attempts_started = _number(fields.get("ats")) or 0
        self.stalled_counter = _number(fields.get("stc")) or 0
        self.processed_on = _number(fields.get("processedOn"))
        self.finished_on = _number(fields.get("finishedOn"))
        self.processed_by = fields.get("pb")
        self.parent_key = fields.get("parentKey")
        self.parent: Any = _value(fields.get("parent"))
        self.repeat_job_key = fields.get("rjk")
        self.deduplication_id = fields.get("deid")
        #: The JSON beside BullMQ's fields that makes it a Celery message (codec.py), where a Celery app has sent it.
        self.celery: Any = _value(fields.get("celery"))

    def __repr__(self) -> str:
        return f"<Job {self.id} {self.name!r} of {self.queue.name}>"

    @cached_property
    def data(self) -> Any:
        """The job's data."""
        return _value(self._data, {})

    @property
    def queue_name(self) -> str:
        return self.queue.name

    @property
    def prefix(self) -> str:
        return self.queue.prefix

    @property
    def key(self) -> str:
        """The full key: what parents and children call it."""
        return f"{self.queue.base}{self.id}"

    # -- where it is

    def get_state(self) -> str:
        """completed, failed, delayed, active, waiting, waiting-children, prioritized, or unknown."""
        return self.queue.get_job_state(self.id)

    def is_completed(self) -> bool:
        return self.get_state() == "completed"

    def is_failed(self) -> bool:
        return self.get_state() == "failed"

    def is_delayed(self) -> bool:
        return self.get_state() == "delayed"

    def is_active(self) -> bool:
        return self.get_state() == "active"

    def is_waiting(self) -> bool:
        return self.get_state() == "waiting"

    def is_waiting_children(self) -> bool:
        return self.get_state() == "waiting-children"

    def refresh(self) -> Job:
        """Reads it again, into this object. JobMissing where it is gone."""
        fresh = self.queue.get_job(self.id)
        if fresh is None:
            raise job_error(-1, "getJob", self.id)
        self.__dict__.pop("data", None)
        self.__dict__.update(fresh.__dict__)
        return self

    def wait_until_finished(self, queue_events: QueueEvents, timeout: float | None = None) -> Any:
        """The return value once it is completed, or JobFailed; TimeoutError after `timeout` seconds."""
        return queue_events.wait_until_finished(self.id, timeout, self.name)

    # -- what an administrator may do

    def retry(self, state: str = "failed", *, reset_attempts_made: bool = False, reset_attempts_started: bool = False) -> None:
        """A job that is `state` (failed or completed) waits again, by its priority."""
        code = admin_scripts.requeue(
            self.queue.server, self.queue.base, self.id, state,
            lifo=bool(self.opts.get("lifo")), reset_made=reset_attempts_made, reset_started=reset_attempts_started,
        )  # fmt: skip
        self._check(code, "reprocessJob", state)
        self.failed_reason = self.returnvalue = self.finished_on = self.processed_on = None
        if reset_attempts_made:
            self.attempts_made = 0
        if reset_attempts_started:
            self.attempts_started = 0

    def promote(self) -> None:
        """A delayed job waits now."""
        self._check(admin_scripts.promote(self.queue.server, self.queue.base, self.id), "promote", "delayed")
        self.delay = 0

    def remove(self, *, remove_children: bool = True) -> None:
        """It is gone, with its children unless told otherwise. LockMismatch where somebody works on it or on one of them."""
        if not self.queue.remove(self.id, remove_children=remove_children):
            raise LockMismatch(f"Job {self.id} could not be removed because it is locked by another worker")

    def remove_unprocessed_children(self) -> None:
        """Its children go that have not ended and that nobody works on."""
        admin_scripts.remove_unprocessed_children(self.queue.server, self.queue.base, self.id)

    def remove_child_dependency(self) -> bool:
        """Its parent waits for it no longer, and it is nobody's child. False where no parent waits for it."""
        if not self.parent_key:
            return False
        code = admin_scripts.remove_child_dependency(self.queue.server, self.queue.base, self.id, self.parent_key)
        if code < 0:
            raise job_error(code, "removeChildDependency", self.id, parent=self.parent_key)
        if code == 0:
            self.parent = self.parent_key = None
        return code == 0

    def change_priority(self, priority: int = 0, *, lifo: bool = False) -> None:
        """0 runs before all others; `lifo` puts it before the others of its priority."""
        if type(priority) is not int or not 0 <= priority <= MAX_PRIORITY:
            raise BadInput(f"Priority should be an integer between 0 and {MAX_PRIORITY}, not {priority!r}")
        code = admin_scripts.change_priority(self.queue.server, self.queue.base, self.id, priority, lifo)
        self._check(code, "changePriority")
        self.priority = priority

    def change_delay(self, delay_ms: int) -> None:
        """A delayed job becomes due `delay_ms` from now."""
        if delay_ms < 0:
            raise BadInput(f"delay must not be negative: {delay_ms!r}")
        code = admin_scripts.change_delay(self.queue.server, self.queue.base, self.id, delay_ms, self.queue.clock())
        self._check(code, "changeDelay", "delayed")
        self.delay = delay_ms

    def update_data(self, data: Any) -> None:
        """For the next run; a Celery task finds its arguments there."""
        self._check(scripts.update_data(self.queue.server, self.queue.base, self.id, to_data(data)), "updateData")
        self.data = data

    def update_progress(self, progress: Any) -> None:
        """A number or any JSON value; whoever listens to the queue's events is told."""
        self.queue.update_job_progress(self.id, progress)
        self.progress = progress

    def log(self, line: str) -> int:
        """One line more in its log; the newest `keepLogs` stay. Returns how many there are."""
        return self.queue.add_job_log(self.id, line, self.opts.get("keepLogs"))

    def get_logs(self, start: int = 0, end: int = -1, *, asc: bool = True) -> list[str]:
        return self.queue.get_job_logs(self.id, start, end, asc=asc)

    def clear_logs(self, keep: int = 0) -> None:
        """The newest `keep` lines stay."""
        key = f"{self.key}:logs"
        if keep > 0:
            self.queue.server.call("LTRIM", key, -keep, -1)
        else:
            self.queue.server.call("DEL", key)

    def remove_deduplication_key(self) -> bool:
        """Frees its deduplication id, if it has one and still owns it."""
        if not self.deduplication_id:
            return False
        return admin_scripts.release_deduplication(self.queue.server, self.queue.base, self.deduplication_id, self.id) == 1

    # -- its children

    def get_children_values(self) -> dict[str, Any]:
        """What the children have returned, by their full key."""
        return {key: _value(text) for key, text in self._hash("processed").items()}

    def get_ignored_children_failures(self) -> dict[str, str]:
        """Why children failed whose failure is tolerated, by their full key."""
        return self._hash("failed")

    def get_failed_children(self) -> list[str]:
        """The full keys of the children whose failure fails this job."""
        keys: list[str] = self.queue.server.call("ZRANGE", f"{self.key}:unsuccessful", 0, -1)
        return keys

    def get_dependencies(self) -> dict[str, Any]:
        """`processed` (full key -> value), `unprocessed` (full keys), `ignored` (full key -> reason), `failed` (full keys)."""
        unprocessed: list[str] = self.queue.server.call("SMEMBERS", f"{self.key}:dependencies")
        return {
            "processed": self.get_children_values(),
            "unprocessed": sorted(unprocessed),
            "ignored": self.get_ignored_children_failures(),
            "failed": self.get_failed_children(),
        }

    def get_dependencies_count(self) -> dict[str, int]:
        """How many of each kind; see `get_dependencies`."""
        call = self.queue.server.call
        return {
            "processed": call("HLEN", f"{self.key}:processed"),
            "unprocessed": call("SCARD", f"{self.key}:dependencies"),
            "ignored": call("HLEN", f"{self.key}:failed"),
            "failed": call("ZCARD", f"{self.key}:unsuccessful"),
        }

    def _hash(self, part: str) -> dict[str, str]:
        flat = self.queue.server.call("HGETALL", f"{self.key}:{part}")
        return dict(zip(flat[::2], flat[1::2], strict=True))

    def _check(self, code: int, command: str, state: str = "active") -> None:
        if code < 0:
            raise job_error(code, command, self.id, state)
