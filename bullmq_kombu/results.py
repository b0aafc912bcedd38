"""What is known of tasks, in Redis: what a worker stored, or the job itself where Node ran it. Knows neither Kombu nor Celery.

Stored results are hashes `result:<task id>` behind `prefix::kombu:`; storing one publishes it on a channel of that name. A task without
one may still be a job: its queue is found among those that Celery has declared, the set `queues`. A chord is one hash, `chord:<group id>`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from bullmq_kombu import scripts
from bullmq_kombu.keys import KombuKeys, queue_base
from bullmq_kombu.scripts import Server

#: Tasks asked for in one call, so that the server is never busy with one for long.
BATCH = 200
#: Left instead of a result that was to be forgotten, so that the job does not tell it.
FORGOTTEN = "FORGOTTEN"

_FIELDS = ("name", "data", "returnvalue", "failedReason", "stacktrace", "atm", "progress", "pb", "finishedOn")


class FoundJob(NamedTuple):
    """The job of a task: its queue, its state (completed, failed, active with Node, taken by us, or waiting) and some of its hash."""

    queue: str
    state: str
    fields: Mapping[str, str]


class Known(NamedTuple):
    """What is known of one task: the status and text that were stored ("" for nothing), and its job, where that may say more."""

    task_id: str
    status: str
    meta: str
    job: FoundJob | None


class Results:
    """The results behind one prefix, and where its jobs were last seen."""

    def __init__(self, server: Server, prefix: str) -> None:
        self.server = server
        self.prefix = prefix
        self.base = KombuKeys(prefix).base

    def channel(self, task_id: str) -> str:
        """Where a result is published when it is stored; also its key."""
        return f"{self.base}result:{task_id}"

    def events_key(self, queue: str) -> str:
        return queue_base(self.prefix, queue) + "events"

    def record(self, task_id: str, status: str, meta: str | bytes, keep_ms: int) -> bool:
        """Stores and publishes; False where a success is known already."""
        return bool(scripts.run(self.server, "record", (self.base,), (task_id, status, meta, keep_ms)))

    def look_up(self, task_ids: Sequence[str], hints: Mapping[str, str], ends: bool = False) -> tuple[list[Known], dict[str, str]]:
        """What is known of each task, and, if wanted, the last event of each queue where an unfinished one is or may yet come.

        `hints` are the queues where tasks were seen before.
        """
        known: list[Known] = []
        last: dict[str, str] = {}
        for at in range(0, len(task_ids), BATCH):
            batch = task_ids[at : at + BATCH]
            args: list[Any] = [int(ends)]
            for task_id in batch:
                queue, job_id = job_of(task_id)
                args += (task_id, job_id, f":{queue}" if queue else hints.get(task_id, ""))
            tasks, flat = scripts.run(self.server, "look_up", (self.base,), args)
            known.extend(_known(task_id, about) for task_id, about in zip(batch, tasks, strict=True))
            for queue, event in zip(flat[::2], flat[1::2], strict=True):
                last.setdefault(queue, event)
        return known, last

    def forget(self, task_id: str, keep_ms: int) -> None:
        """As if there had never been a result, for as long as the job may be kept."""
        key = self.channel(task_id)
        self.server.call("DEL", key)
        (known,), _ = self.look_up((task_id,), {})
        if known.job is not None:
            self.server.call("HSET", key, "status", FORGOTTEN, "meta", "")
            if keep_ms:
                self.server.call("PEXPIRE", key, keep_ms)

    # -- texts of groups ---------------------------------------------------------------------------------------------------

    def group_key(self, group_id: str) -> str:
        return f"{self.base}group:{group_id}"

    # -- chords ------------------------------------------------------------------------------------------------------------

    def open_chord(self, group_id: str, size: int, keep_ms: int) -> None:
        scripts.run(self.server, "chord_open", (self.base,), (group_id, size, keep_ms))

    def extend_chord(self, group_id: str) -> None:
        """One part more."""
        self.server.call("HINCRBY", f"{self.base}chord:{group_id}", "more", 1)

    def add_to_chord(
        self, group_id: str, place: Any, task_id: str, outcome: str | bytes, now: int, token: str, hold_ms: int, keep_ms: int,
        keep_group_ms: int,
    ) -> bool:  # fmt: skip
        """One part has ended; True where that was the last, and the chord is the caller's to go on with."""
        part = f"{'' if place is None else place}:{task_id}"
        args = (group_id, part, outcome, now, token, hold_ms, keep_ms, keep_group_ms)
        return bool(scripts.run(self.server, "chord_add", (self.base,), args))

    def chord_parts(self, group_id: str) -> list[str]:
        """The outcomes of all parts, in the order of their places; those without a place last."""
        flat = self.server.call("HGETALL", f"{self.base}chord:{group_id}")
        parts = [(name[5:].partition(":")[0], value) for name, value in zip(flat[::2], flat[1::2], strict=True) if name.startswith("part:")]
        return [value for _, value in sorted(parts, key=lambda part: (not part[0], int(part[0] or 0)))]

    def hold_chord(self, group_id: str, token: str, until: int) -> bool:
        return bool(scripts.run(self.server, "chord_hold", (self.base,), (group_id, token, until)))

    def close_chord(self, group_id: str, token: str, keep_ms: int) -> bool:
        return bool(scripts.run(self.server, "chord_close", (self.base,), (group_id, token, keep_ms)))

    def drop_chord_size(self, group_id: str) -> None:
        """A chord that has failed does so once: a part that is run again does not complete it a second time."""
        self.server.call("HDEL", f"{self.base}chord:{group_id}", "size")


def job_of(task_id: str) -> tuple[str, str]:
    """(queue, job id) as the task id tells: "mail:17" is job 17 of mail. No queue: it is to be looked for. No job id: there is none."""
    queue, colon, job_id = task_id.rpartition(":")
    if colon:
        return (queue, job_id) if queue and ":" not in queue else ("", "")
    # A number alone is the id of a job in every queue.
    return "", "" if task_id.isdigit() else task_id


def _known(task_id: str, about: Sequence[Any]) -> Known:
    status, meta, *job = about
    if len(job) < 2 or job[0] is None:
        return Known(task_id, status, meta, None)
    fields = {name: value for name, value in zip(_FIELDS, job[2:], strict=False) if value is not None}
    return Known(task_id, status, meta, FoundJob(job[0], job[1], fields))
