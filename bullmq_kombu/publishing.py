"""Jobs on their way out: one message or many, stored in one call, and none swallowed.

A task whose id another job has becomes a job of a generated id; the same message again, because an answer was lost, is the job it made.
Knows neither channels nor exchanges.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence
from typing import NamedTuple

from bullmq_kombu import scripts
from bullmq_kombu.codec import Outgoing
from bullmq_kombu.connection import Server
from bullmq_kombu.errors import JobError, job_error
from bullmq_kombu.keys import KombuKeys
from bullmq_kombu.wire import Wire

#: How long it is known which job a task is, where the two have different ids, ms: as long as failed jobs are kept.
ALIAS_KEPT_MS = 7 * 24 * 3_600_000
#: How many ids are tried for a job.
ATTEMPTS = 3
#: Name space of generated job ids.
_GENERATED = uuid.UUID("6f0b1c52-9d1e-4f5e-8f43-0b6c4b9c2f6d")


class Publication(NamedTuple):
    """One message for a queue: its base, the job, when it was published (ms). `carried`: the id of the job that the task publishing it is,
    where the two tasks are the same."""

    base: str
    outgoing: Outgoing
    now: int
    carried: str = ""


class Sent(NamedTuple):
    """A batch on its way."""

    publications: Sequence[Publication]
    jobs: Sequence[scripts.NewJob]
    flight: scripts.Flight


class Publisher:
    """Stores jobs on one server under one prefix."""

    def __init__(self, server: Server, keys: KombuKeys, prefix: str) -> None:
        self.server = server
        self.keys = keys
        self.prefix = prefix

    def store(self, publications: Sequence[Publication]) -> None:
        """All of them, `scripts.BATCH` in a call. Where one is refused the others are stored, and then it is an error."""
        error: JobError | None = None
        for at in range(0, len(publications), scripts.BATCH):
            error = self._store(publications[at : at + scripts.BATCH]) or error
        if error is not None:
            raise error

    def _store(self, publications: Sequence[Publication]) -> JobError | None:
        """Stores a batch. The error of a job that was refused, if any."""
        jobs = [_new_job(one, 0) for one in publications]
        return self._told(publications, jobs, scripts.add(self.server, jobs, publications[-1].now))

    def send(self, wire: Wire, publications: Sequence[Publication]) -> Sent:
        """Has a batch stored; `land` waits for the answer. The wire is for nothing else meanwhile."""
        jobs = [_new_job(one, 0) for one in publications]
        return Sent(publications, jobs, scripts.add_later(wire, jobs, publications[-1].now))

    def land(self, sent: Sent) -> JobError | None:
        """As `_store`, for what was sent."""
        return self._told(sent.publications, sent.jobs, sent.flight.answer())

    def _told(self, left: Sequence[Publication], jobs: Sequence[scripts.NewJob], answers: Sequence[str | int]) -> JobError | None:
        """What the server answered. Jobs whose id is taken are stored under others."""
        error = None
        for attempt in range(1, ATTEMPTS + 1):
            taken = []
            for one, job, answer in zip(left, jobs, answers, strict=True):
                if answer == 0:
                    taken.append(one)
                elif isinstance(answer, int):
                    error = job_error(answer, "addJob", job.id, parent=str(one.outgoing.options.more.get("parentKey")))
                elif answer != one.outgoing.task_id and one.outgoing.task_id is not None:
                    self._tell_id(one, answer)
            if not taken:
                return error
            left, jobs = taken, [_new_job(one, attempt) for one in taken]
            answers = scripts.add(self.server, jobs, left[-1].now)
        return job_error(0, "addJob", left[0].outgoing.job_id)

    def _tell_id(self, one: Publication, job_id: str) -> None:
        """For whoever waits for the task and knows nothing of its job."""
        queue = one.base[len(self.prefix) + 1 : -1]
        self.server.call("SET", self.keys.job(str(one.outgoing.task_id)), f"{queue}:{job_id}", "PX", ALIAS_KEPT_MS)


def _new_job(one: Publication, attempt: int) -> scripts.NewJob:
    base, outgoing, now, carried = one
    options, task_id = outgoing.options, outgoing.task_id
    job_id, more = outgoing.job_id, ""
    if task_id is not None and not options.job_id:
        more = "unique"
        # `carried`: the job could not be carried on, perhaps because it has been and the answer was lost.
        if carried and not attempt:
            job_id = carried
        # A generated id is always the same for the same message.
        elif attempt or not job_id:
            job_id = str(uuid.uuid5(_GENERATED, f"{task_id} {now} {attempt}"))
        if options.more or carried:
            more = json.dumps({**options.more, "unique": True, **({"carried": True} if carried else {})})
    elif options.more:
        more = json.dumps(options.more)
    return scripts.NewJob(
        base, job_id, outgoing.name, outgoing.data, options.stored, now if options.timestamp is None else options.timestamp,
        outgoing.delay, outgoing.priority, outgoing.celery_field(job_id), more,
    )  # fmt: skip
