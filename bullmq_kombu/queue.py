"""A BullMQ queue for plain Python: adding jobs and administration, without a Celery app.

    with Queue("mail", "bullmq://redis:6379/0") as queue:
        job = queue.add("send", {"to": "a@b.c"}, {"attempts": 3})
        queue.pause()

Names are those of BullMQ's own Python port in Python's spelling, options are BullMQ's JobsOptions under their own names, times are
milliseconds where the name does not say otherwise. Calls are answered before they return, may be made from any thread, and raise Redis'
own errors when it is away: nobody waits for ever. Knows Kombu's connections only to read addresses from them.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import TracebackType
from typing import Any

from bullmq_kombu import admin_scripts, scripts
from bullmq_kombu.address import address_of
from bullmq_kombu.connection import Server
from bullmq_kombu.errors import BadInput, BullMQError, job_error
from bullmq_kombu.job import Job, to_data
from bullmq_kombu.job_options import JobOptions, check_job_options, check_size, make_job_options
from bullmq_kombu.keys import queue_base
from bullmq_kombu.options import check_limiter, check_options
from bullmq_kombu.queue_view import STATES, QueueView, state_keys
from bullmq_kombu.schedulers import Schedulers

DEFAULT_URL = "bullmq://"
#: How many ids one look through the key space takes at a time.
SCAN_COUNT = 1000
#: BullMQ's `rateLimit` writes a count no limit can be above.
_MORE_THAN_ANY_LIMIT = 9007199254740991

_NOTHING = object()


def now_ms() -> int:
    """Milliseconds since 1970, as BullMQ's clients tell the time."""
    return time.time_ns() // 1_000_000


def server_of(connection: Any, prefix: str | None = None) -> tuple[Server, bool]:
    """The Server behind a URL, a kombu.Connection, a Celery app or a Server; and whether it is the caller's to close."""
    if isinstance(connection, Server):
        return connection, False
    if hasattr(connection, "connection_for_write"):
        connection = connection.connection_for_write()
    if isinstance(connection, str):
        from kombu import Connection

        connection = Connection(connection)
    given = dict(connection.transport_options or {})
    if prefix is not None:
        given["prefix"] = prefix
    address = address_of(connection)
    return Server(address, check_options(given, address.kind)), True


class Queue(QueueView, Schedulers):
    """One queue. `connection` is a `bullmq://` URL, a kombu.Connection or a `connection.Server` (shared, never closed here).

    :param prefix: BullMQ's prefix; without it that of the connection's options, `bull` by default.
    :param default_job_options: BullMQ's JobsOptions for jobs that bring none of their own.
    :param clock: tells the time in ms.
    """

    def __init__(
        self, name: str, connection: Any = DEFAULT_URL, *, prefix: str | None = None,
        default_job_options: Mapping[str, Any] | None = None, clock: Callable[[], int] = now_ms,
    ) -> None:  # fmt: skip
        self.server, self._is_own = server_of(connection, prefix)
        self.name = name
        self.prefix = prefix if prefix is not None else self.server.options.prefix
        self.base = queue_base(self.prefix, name)
        self.clock = clock
        check_job_options(default_job_options or {})
        self.default_job_options = dict(default_job_options or {})
        #: Those of a job that brings none.
        self._usual_options = make_job_options({}, self.default_job_options)

    def __repr__(self) -> str:
        return f"<Queue {self.prefix}:{self.name} at {self.server.address.where}>"

    def __enter__(self) -> Queue:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connections that are its own; those of a Server that was passed in stay open."""
        if self._is_own:
            self.server.close()

    def _job(self, job_id: str, fields: dict[str, str]) -> Job:
        return Job(self, job_id, fields)

    # -- adding

    def add(self, name: str, data: Any = _NOTHING, opts: Mapping[str, Any] | None = None) -> Job:
        """Adds a job. `data` is any JSON value, {} when left out; `opts` are BullMQ's JobsOptions.

        With a jobId or a deduplication id that a job has already, that job stands for this one: the answer has its id.
        """
        return self.add_bulk([{"name": name, "data": {} if data is _NOTHING else data, "opts": opts}])[0]

    def add_bulk(self, jobs: Iterable[Mapping[str, Any]]) -> list[Job]:
        """Adds many jobs, each {name, data, opts}, in one step: nobody sees some of them without the others."""
        now = self.clock()
        made = [self._new_job(job, now) for job in jobs]
        if not made:
            return []
        answers = scripts.add(self.server, [new for new, _ in made], now)
        for answer, (_, options) in zip(answers, made, strict=True):
            if isinstance(answer, int):
                raise job_error(answer, "addJob", options.job_id, parent=str(options.more.get("parentKey")))
        return [
            Job(self, str(answer), {
                "name": new.name, "data": new.data, "opts": new.opts, "timestamp": str(new.timestamp), "delay": str(new.delay),
                "priority": str(new.priority), **_told(options),
            })
            for answer, (new, options) in zip(answers, made, strict=True)
        ]  # fmt: skip

    def _new_job(self, job: Mapping[str, Any], now: int) -> tuple[scripts.NewJob, JobOptions]:
        unknown = set(job) - {"name", "data", "opts"}
        if unknown or not isinstance(job.get("name"), str):
            raise BadInput(f"a job is {{'name': text, 'data': …, 'opts': {{…}}}}, not {job!r}")
        name, data = job["name"], to_data(job.get("data", {}))
        given = job.get("opts")
        options = make_job_options(given, self.default_job_options) if given else self._usual_options
        check_size(name, data, options.size_limit)
        timestamp = options.timestamp if options.timestamp is not None else now
        more = json.dumps(options.more) if options.more else ""
        new = scripts.NewJob(self.base, options.job_id, name, data, options.stored, timestamp, options.delay, options.priority, "", more)
        return new, options

    # -- the queue as a whole

    def pause(self) -> None:
        """From now on no job is taken, by whatever worker; those in hand go on."""
        admin_scripts.pause(self.server, self.base)

    def resume(self) -> None:
        admin_scripts.resume(self.server, self.base)

    def drain(self, delayed: bool = False) -> None:
        """Removes the jobs that wait, the delayed ones too if asked to; what a scheduler will do next stays."""
        admin_scripts.drain(self.server, self.base, self.clock(), delayed)

    def clean(self, grace_ms: int, limit: int, state: str = "completed") -> list[str]:
        """Removes up to `limit` jobs (0: all) of one state that are older than `grace_ms`. Returns their ids."""
        ((public, key),) = state_keys([state]).items()
        if public == "waiting-children":
            raise BadInput("jobs that wait for their children cannot be cleaned; remove them")
        before = self.clock() - grace_ms
        cleaned: list[str] = []
        while True:
            wanted = min(limit - len(cleaned), admin_scripts.CHUNK) if limit > 0 else admin_scripts.CHUNK
            ids = admin_scripts.clean(self.server, self.base, key, before, wanted)
            cleaned += ids
            if len(ids) < wanted or len(cleaned) == limit:
                return cleaned

    def obliterate(self, force: bool = False) -> None:
        """Pauses the queue and removes all of it, jobs and settings. Refused while jobs are active, unless forced."""
        self.pause()
        if admin_scripts.obliterate(self.server, self.base, force) < 0:
            raise BullMQError("Cannot obliterate queue with active jobs: wait for them, or use force=True")

    def retry_jobs(self, state: str = "failed", *, count: int = 1000, before_ms: int | None = None) -> int:
        """All jobs that are `state` (failed or completed), and were so at `before_ms`, wait again by their priority.

        `count` is how many a call of Redis moves. Returns how many were moved.
        """
        if state not in ("failed", "completed"):
            raise BadInput(f"only failed and completed jobs can be retried, not {state!r}")
        return self._move_to_wait(state, count, self.clock() if before_ms is None else before_ms)

    def promote_jobs(self, *, count: int = 1000) -> int:
        """All delayed jobs wait now, by their priority. Returns how many they were."""
        return self._move_to_wait("delayed", count, "")

    def _move_to_wait(self, state: str, count: int, before: int | str) -> int:
        moved = 0
        while True:
            step = admin_scripts.move_to_wait(self.server, self.base, state, count, before)
            moved += step
            if step < count:
                return moved

    def trim_events(self, max_length: int) -> int:
        """Shortens the event stream to about `max_length`. Returns how many events went."""
        return int(self.server.call("XTRIM", f"{self.base}events", "MAXLEN", "~", max_length))

    def remove_orphaned_jobs(self, limit: int = 0) -> int:
        """Deletes the keys of up to `limit` jobs (0: all) that no state of the queue knows. Returns how many jobs."""
        removed = 0
        for ids in self._key_ids():
            wanted = ids if limit <= 0 else ids[: limit - removed]
            removed += admin_scripts.forget_orphans(self.server, self.base, wanted)
            if 0 < limit <= removed:
                break
        return removed

    def _key_ids(self) -> Iterator[list[str]]:
        pattern = "".join(f"\\{char}" if char in "*?[]\\^" else char for char in self.base) + "*"
        cursor, parts = "0", (":lock", ":logs", ":dependencies", ":processed", ":failed", ":unsuccessful")
        while True:
            cursor, keys = self.server.call("SCAN", cursor, "MATCH", pattern, "COUNT", SCAN_COUNT)
            ids = set()
            for key in keys:
                name = key.removeprefix(self.base)
                ids.add(next((name.removesuffix(part) for part in parts if name.endswith(part)), name))
            if ids:
                yield sorted(ids)
            if str(cursor) == "0":
                return

    # -- settings

    def set_global_concurrency(self, concurrency: int) -> None:
        """At most so many jobs run at once, all workers together."""
        if type(concurrency) is not int or concurrency < 1:
            raise BadInput(f"the global concurrency must be an integer above 0, not {concurrency!r}")
        self.server.call("HSET", f"{self.base}meta", "concurrency", concurrency)

    def remove_global_concurrency(self) -> None:
        self.server.call("HDEL", f"{self.base}meta", "concurrency")

    def set_global_rate_limit(self, max_jobs: int, duration_ms: int) -> None:
        """At most `max_jobs` are started within `duration_ms`, all workers together."""
        check_limiter({"max": max_jobs, "duration": duration_ms})
        self.server.call("HSET", f"{self.base}meta", "max", int(max_jobs), "duration", int(duration_ms))

    def remove_global_rate_limit(self) -> None:
        self.server.call("HDEL", f"{self.base}meta", "max", "duration")

    def rate_limit(self, expire_ms: int) -> None:
        """Closes the queue for `expire_ms`. Only where a rate limit is set, global or by a worker, do workers look at it."""
        self.server.call("SET", f"{self.base}limiter", _MORE_THAN_ANY_LIMIT, "PX", int(expire_ms))

    def remove_rate_limit_key(self) -> bool:
        """Opens the queue again. Returns whether it was limited."""
        return bool(self.server.call("DEL", f"{self.base}limiter"))

    # -- one job by its id

    def remove(self, job_id: str, *, remove_children: bool = True) -> bool:
        """Removes a job, with its children unless told otherwise; False where one of them is being worked on."""
        code = admin_scripts.remove(self.server, self.base, job_id, remove_children)
        if code < 0:
            raise job_error(code, "removeJob", job_id)
        return code == 1

    def update_job_progress(self, job_id: str, progress: Any) -> None:
        code = scripts.update_progress(self.server, self.base, job_id, to_data(progress))
        if code < 0:
            raise job_error(code, "updateProgress", job_id)

    def add_job_log(self, job_id: str, line: str, keep_logs: int | None = None) -> int:
        """One line more in a job's log, of which the newest `keep_logs` stay. Returns how many there are."""
        count = scripts.add_log(self.server, self.base, job_id, line, keep_logs)
        if count < 0:
            raise job_error(count, "addLog", job_id)
        return count

    def remove_deduplication_key(self, dedup_id: str) -> bool:
        """Frees a deduplication id, whoever has it. Returns whether somebody had."""
        return admin_scripts.release_deduplication(self.server, self.base, dedup_id) == 1


def _told(options: JobOptions) -> dict[str, str]:
    """What the hash of a new job holds besides its usual fields."""
    more = options.more
    told = {name: str(more[name]) for name in ("parentKey", "parent") if name in more}
    if "de" in more:
        told["deid"] = str(more["de"]["id"])
    return told


__all__ = ["STATES", "Job", "Queue", "now_ms", "server_of"]
