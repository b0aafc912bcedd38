"""The shapes of what a user writes as a dictionary, for type checkers and editors. Nothing is checked here: that is job_options' part.

    options: JobsOptions = {"attempts": 5, "backoff": {"type": "exponential", "delay": 1000}}
    send.apply_async(kwargs={"to": "ada@example.org"}, bullmq=options)

Names are BullMQ's. Times are milliseconds, except the `age` of KeepJobs, which is seconds.
"""

from __future__ import annotations

from typing import Literal, TypedDict


class _BackoffType(TypedDict):
    type: Literal["fixed", "exponential"] | str


class Backoff(_BackoffType, total=False):
    """How long a failed attempt waits for the next: `delay` ms each time, or doubled each time; `jitter` from 0 to 1 makes it random."""

    delay: float
    jitter: float


class KeepJobs(TypedDict, total=False):
    """How long finished jobs are kept: `age` seconds, `count` jobs; `limit` bounds how many are removed at a time."""

    age: float
    count: int
    limit: int


class _DeduplicationId(TypedDict):
    id: str


class Deduplication(_DeduplicationId, total=False):
    """A job is ignored while another of this id waits or runs, or for `ttl` ms; `extend` and `replace` as BullMQ has them."""

    ttl: float
    extend: bool
    replace: bool
    reschedule: bool
    keepLastIfActive: bool


class Parent(TypedDict):
    """The parent's id, and its queue as "prefix:name"."""

    id: str
    queue: str


class Telemetry(TypedDict, total=False):
    """The carrier of a trace, as JSON text; `omitContext` leaves it out."""

    metadata: str
    omitContext: bool


class JobsOptions(TypedDict, total=False):
    """BullMQ's JobsOptions: `apply_async(…, bullmq=…)`, a route's `bullmq`, `Queue.add(name, data, opts)`."""

    attempts: int
    backoff: float | Backoff
    deduplication: Deduplication
    delay: float
    failParentOnFailure: bool
    continueParentOnFailure: bool
    ignoreDependencyOnFailure: bool
    removeDependencyOnFailure: bool
    jobId: str
    keepLogs: int
    lifo: bool
    parent: Parent
    priority: int
    removeOnComplete: bool | int | KeepJobs
    removeOnFail: bool | int | KeepJobs
    sizeLimit: int
    stackTraceLimit: int
    telemetry: Telemetry
    timestamp: float
