"""The two sides of the comparison: the same verbs, carried out by Node's BullMQ and by this package.

A verb answers a plain value, or `Refused` with BullMQ's number where it was refused; both are compared. Clock, ids and tokens are
arguments, so that what the two sides write is the same. Who takes a job keeps it in hand, as a worker does, until it ends there.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import redis
from node_driver import Node, NodeError

from bullmq_kombu import scripts
from bullmq_kombu.connection import Server
from bullmq_kombu.delivery import Delivery
from bullmq_kombu.errors import BullMQError, JobError
from bullmq_kombu.flows import FlowProducer, JobNode
from bullmq_kombu.job import Job
from bullmq_kombu.leases import Leases
from bullmq_kombu.queue import Queue
from bullmq_kombu.schedulers import next_iteration
from bullmq_kombu.scripts import Ending, Taken, Worker

LOCK_MS = 600_000
STALLED_INTERVAL_MS = 600_000
#: What both workers are called, in `processedBy`.
WORKER_NAME = "w"


@dataclass(frozen=True)
class Refused:
    """The verb was not done; `code` is BullMQ's, or 0 where it has none."""

    code: int


@dataclass(frozen=True)
class WorkerOptions:
    """Of the worker that takes: BullMQ's limiter, the minutes of metrics, how often a job may stall, retention."""

    limiter: Mapping[str, int] | None = None
    metrics: int | None = None
    max_stalled_count: int = 1
    remove_on_complete: Any = None
    remove_on_fail: Any = None

    @property
    def node(self) -> dict[str, Any]:
        opts: dict[str, Any] = {
            "name": WORKER_NAME, "lockDuration": LOCK_MS, "maxStalledCount": self.max_stalled_count,
            "stalledInterval": STALLED_INTERVAL_MS,
        }  # fmt: skip
        if self.limiter:
            opts["limiter"] = dict(self.limiter)
        if self.metrics:
            opts["metrics"] = {"maxDataPoints": self.metrics}
        if self.remove_on_complete is not None:
            opts["removeOnComplete"] = self.remove_on_complete
        if self.remove_on_fail is not None:
            opts["removeOnFail"] = self.remove_on_fail
        return opts

    @property
    def ours(self) -> dict[str, Any]:
        opts: dict[str, Any] = {"lock_duration": LOCK_MS / 1000, "max_stalled_count": self.max_stalled_count}
        if self.limiter:
            opts["limiter"] = {"max": self.limiter["max"], "duration": self.limiter["duration"] / 1000}
        if self.metrics:
            opts["metrics"] = self.metrics
        opts["remove_on_complete"], opts["remove_on_fail"] = self.remove_on_complete, self.remove_on_fail
        return opts


PLAIN = WorkerOptions()


class NodeSide:
    """Node's BullMQ; `queue` is a queue that only this side uses, in a database of its own."""

    def __init__(self, node: Node, worker: WorkerOptions = PLAIN) -> None:
        self.node = node
        self.worker = worker
        self._opened: set[str] = set()

    def set_clock(self, now: int) -> None:
        self.node.call("clock", now=now)

    def let_go(self) -> None:
        """Nothing is in hand any more."""
        self.node.call("letGo")

    def _call(self, cmd: str, queue: str, **fields: Any) -> Any:
        if queue not in self._opened:
            self._opened.add(queue)
            self.node.call("manualWorker", queue=queue, opts=self.worker.node)
        try:
            return self.node.call(cmd, queue=queue, **fields)
        except NodeError as error:
            return Refused(error.code if isinstance(error.code, int) else 0)

    def _queue(self, queue: str, method: str, *args: Any) -> Any:
        return self._call("queueCall", queue, method=method, args=list(args))

    def _job(self, queue: str, job_id: str, method: str, *args: Any) -> Any:
        return self._call("jobCall", queue, jobId=job_id, method=method, args=list(args))

    # -- producing

    def add(self, queue: str, name: str, data: Any, opts: Mapping[str, Any]) -> Any:
        return _id(self._call("add", queue, name=name, data=data, opts=dict(opts)))

    def add_bulk(self, queue: str, jobs: Sequence[Mapping[str, Any]]) -> Any:
        added = self._call("addBulk", queue, jobs=list(jobs))
        return added if isinstance(added, Refused) else [job["id"] for job in added]

    def add_flow(self, queue: str, flow: Mapping[str, Any]) -> Any:
        """The ids, parents before their children."""
        try:
            return _flow_ids(self.node.call("flowAdd", flow=flow))
        except NodeError as error:
            return Refused(error.code if isinstance(error.code, int) else 0)

    def upsert_scheduler(self, queue: str, scheduler: str, repeat: Mapping[str, Any], template: Mapping[str, Any]) -> Any:
        """The id of the next iteration, or None."""
        made = self._queue(queue, "upsertJobScheduler", scheduler, dict(repeat), dict(template))
        return made["id"] if isinstance(made, dict) else made

    def remove_scheduler(self, queue: str, scheduler: str) -> Any:
        return self._queue(queue, "removeJobScheduler", scheduler)

    def schedulers(self, queue: str) -> Any:
        """(id, next, iterations) of each, the first due first."""
        found = self._queue(queue, "getJobSchedulers", 0, -1, True)
        return [(one["key"], one["next"], one["iterationCount"]) for one in found]

    # -- working

    def wait_children(self, queue: str, job_id: str, token: str) -> Any:
        """Whether it waits now."""
        return self._call("moveToWaitingChildren", queue, jobId=job_id, token=token)

    def take(self, queue: str, token: str, wanted: int = 1) -> Any:
        """The ids of the jobs taken. One that carries a deferred failure is failed at once, as every worker does."""
        taken = self._call("take", queue, token=token, wanted=wanted)
        for job in taken:
            self._fail_deferred(queue, job, token)
        return [job["id"] for job in taken]

    def _fail_deferred(self, queue: str, job: Mapping[str, Any], token: str) -> None:
        if job["deferredFailure"]:
            self.fail(queue, job["id"], token, job["deferredFailure"], unrecoverable=True)

    def complete(self, queue: str, job_id: str, token: str, value: Any, fetch_next: bool = False) -> Any:
        return self._next(queue, token, self._call("moveToCompleted", queue, jobId=job_id, token=token, value=value, fetchNext=fetch_next))

    def fail(self, queue: str, job_id: str, token: str, message: str, *, unrecoverable: bool = False, fetch_next: bool = False) -> Any:
        answer = self._call(
            "moveToFailed", queue, jobId=job_id, token=token, message=message, stack=f"trace of {message}", unrecoverable=unrecoverable,
            fetchNext=fetch_next,
        )  # fmt: skip
        return self._next(queue, token, answer)

    def _next(self, queue: str, token: str, answer: Any) -> Any:
        if isinstance(answer, Refused):
            return answer
        if answer["next"] is None:
            return None
        self._fail_deferred(queue, answer["next"], token)
        return answer["next"]["id"]

    def delay(self, queue: str, job_id: str, token: str, due: int) -> Any:
        """What a processor does with moveToDelayed: no attempt is counted."""
        return self._done(self._call("moveToDelayed", queue, jobId=job_id, token=token, timestamp=due))

    def put_back(self, queue: str, job_id: str, token: str) -> Any:
        return self._done(self._call("moveToWait", queue, jobId=job_id, token=token))

    def extend(self, queue: str, job_id: str, token: str) -> Any:
        answer = self._call("extendLock", queue, jobId=job_id, token=token, duration=LOCK_MS)
        return answer if isinstance(answer, Refused) else bool(answer)

    def recover(self, queue: str) -> Any:
        """The stalled check; its answer is in the key space."""
        return self._done(self._call("manualCall", queue, method="moveStalledJobsToWait"))

    # -- administration

    def pause(self, queue: str) -> Any:
        return self._done(self._queue(queue, "pause"))

    def resume(self, queue: str) -> Any:
        return self._done(self._queue(queue, "resume"))

    def drain(self, queue: str, delayed: bool) -> Any:
        return self._done(self._queue(queue, "drain", delayed))

    def clean(self, queue: str, grace_ms: int, limit: int, state: str) -> Any:
        return _sorted(self._queue(queue, "clean", grace_ms, limit, "wait" if state == "waiting" else state))

    def obliterate(self, queue: str, force: bool) -> Any:
        return self._done(self._queue(queue, "obliterate", {"force": force}))

    def remove(self, queue: str, job_id: str, children: bool = True) -> Any:
        answer = self._queue(queue, "remove", job_id, {"removeChildren": children})
        return answer if isinstance(answer, Refused) else bool(answer)

    def promote(self, queue: str, job_id: str) -> Any:
        return self._done(self._job(queue, job_id, "promote"))

    def retry(self, queue: str, job_id: str, state: str, reset_made: bool = False, reset_started: bool = False) -> Any:
        opts = {"resetAttemptsMade": reset_made, "resetAttemptsStarted": reset_started}
        return self._done(self._job(queue, job_id, "retry", state, opts))

    def retry_jobs(self, queue: str, state: str, count: int, before: int) -> Any:
        return self._done(self._queue(queue, "retryJobs", {"state": state, "count": count, "timestamp": before}))

    def promote_jobs(self, queue: str) -> Any:
        return self._done(self._queue(queue, "promoteJobs"))

    def change_priority(self, queue: str, job_id: str, priority: int, lifo: bool) -> Any:
        return self._done(self._job(queue, job_id, "changePriority", {"priority": priority, "lifo": lifo}))

    def change_delay(self, queue: str, job_id: str, delay: int) -> Any:
        return self._done(self._job(queue, job_id, "changeDelay", delay))

    def update_data(self, queue: str, job_id: str, data: Any) -> Any:
        return self._done(self._job(queue, job_id, "updateData", data))

    def update_progress(self, queue: str, job_id: str, progress: Any) -> Any:
        return self._done(self._job(queue, job_id, "updateProgress", progress))

    def log(self, queue: str, job_id: str, line: str) -> Any:
        return self._job(queue, job_id, "log", line)

    def clear_logs(self, queue: str, job_id: str, keep: int) -> Any:
        return self._done(self._job(queue, job_id, "clearLogs", keep))

    def remove_deduplication_key(self, queue: str, dedup_id: str) -> Any:
        answer = self._queue(queue, "removeDeduplicationKey", dedup_id)
        return answer if isinstance(answer, Refused) else bool(answer)

    def set_global_concurrency(self, queue: str, concurrency: int | None) -> Any:
        method = ("removeGlobalConcurrency",) if concurrency is None else ("setGlobalConcurrency", concurrency)
        return self._done(self._queue(queue, *method))

    def set_global_rate_limit(self, queue: str, limit: tuple[int, int] | None) -> Any:
        method = ("removeGlobalRateLimit",) if limit is None else ("setGlobalRateLimit", *limit)
        return self._done(self._queue(queue, *method))

    def rate_limit(self, queue: str, expire_ms: int) -> Any:
        return self._done(self._queue(queue, "rateLimit", expire_ms))

    def remove_rate_limit_key(self, queue: str) -> Any:
        answer = self._queue(queue, "removeRateLimitKey")
        return answer if isinstance(answer, Refused) else bool(answer)

    # -- looking

    def state(self, queue: str, job_id: str) -> Any:
        return self._queue(queue, "getJobState", job_id)

    def counts(self, queue: str) -> Any:
        found = dict(self._queue(queue, "getJobCounts"))
        # BullMQ 5 counts what waits in a paused queue as a state of its own
        found["waiting"] = found.get("waiting", 0) + found.pop("paused", 0)
        return found

    def ids(self, queue: str, state: str, start: int, end: int, asc: bool) -> Any:
        return [job["id"] for job in self._queue(queue, "getJobs", [state], start, end, asc)]

    def counts_per_priority(self, queue: str, priorities: Sequence[int]) -> Any:
        return {int(name): count for name, count in self._queue(queue, "getCountsPerPriority", list(priorities)).items()}

    def logs(self, queue: str, job_id: str, start: int, end: int, asc: bool) -> Any:
        return self._queue(queue, "getJobLogs", job_id, start, end, asc)["logs"]

    def metrics(self, queue: str, state: str) -> Any:
        found = self._queue(queue, "getMetrics", state)
        return [found["meta"]["count"], [int(number) for number in found["data"]], found["count"]]

    def rate_limit_ttl(self, queue: str, max_jobs: int | None) -> Any:
        ttl = self._queue(queue, "getRateLimitTtl", *([] if max_jobs is None else [max_jobs]))
        return ttl > 0

    @staticmethod
    def _done(answer: Any) -> Any:
        return answer if isinstance(answer, Refused) else None


class _Told(Leases):
    """Leases whose deliveries' ends are told to the comparison, which sends them with its own clock."""

    def __init__(self, server: Server) -> None:
        super().__init__(server.address, server.options)
        self.told: list[Ending] = []

    def note(self, delivery: Delivery, ending: Ending) -> None:
        self.told.append(ending)

    def drop(self, delivery: Delivery) -> None:
        pass


class OurSide:
    """This package: its scripts, its `Queue`, and the decisions of its `Delivery`."""

    def __init__(self, make_server: Callable[..., Server], client: redis.Redis, worker: WorkerOptions = PLAIN) -> None:
        self.server = make_server(**worker.ours)
        self.client = client
        self.max_stalled_count = worker.max_stalled_count
        self.now = 0
        self._leases = _Told(self.server)
        self._held: dict[tuple[str, str], Delivery] = {}
        self._queues: dict[str, Queue] = {}

    def set_clock(self, now: int) -> None:
        self.now = now

    def let_go(self) -> None:
        self._held.clear()

    def close(self) -> None:
        self.server.close()
        self._leases._server.close()

    def queue(self, name: str) -> Queue:
        if name not in self._queues:
            self._queues[name] = Queue(name, self.server, clock=lambda: self.now)
        return self._queues[name]

    def _base(self, queue: str) -> str:
        return self.queue(queue).base

    # -- producing

    def add(self, queue: str, name: str, data: Any, opts: Mapping[str, Any]) -> Any:
        with refusals() as refused:
            return self.queue(queue).add(name, data, opts).id
        return refused[0]

    def add_bulk(self, queue: str, jobs: Sequence[Mapping[str, Any]]) -> Any:
        with refusals() as refused:
            return [job.id for job in self.queue(queue).add_bulk(jobs)]
        return refused[0]

    def add_flow(self, queue: str, flow: Mapping[str, Any]) -> Any:
        with refusals() as refused:
            added = FlowProducer(self.server, clock=lambda: self.now).add(flow)
            return _flow_ids(_as_node(added))
        return refused[0]

    def upsert_scheduler(self, queue: str, scheduler: str, repeat: Mapping[str, Any], template: Mapping[str, Any]) -> Any:
        made = self._queue(queue, "upsert_job_scheduler", scheduler, repeat, template)
        return made.id if isinstance(made, Job) else made

    def remove_scheduler(self, queue: str, scheduler: str) -> Any:
        return self._queue(queue, "remove_job_scheduler", scheduler)

    def schedulers(self, queue: str) -> Any:
        return [(one.id, one.next, one.iteration_count) for one in self._queue(queue, "get_job_schedulers", asc=True)]

    # -- working

    def wait_children(self, queue: str, job_id: str, token: str) -> Any:
        code = scripts.wait_children(self.server, self._base(queue), job_id, token, self.now)
        return Refused(code) if code < 0 else code == 0

    def _worker(self, token: str) -> Worker:
        options = self.server.options
        return Worker(token, options.lock_ms, WORKER_NAME, options.limiter_max, options.limiter_ms)

    def _hold(self, queue: str, taken: Sequence[Taken], token: str) -> list[str]:
        for one in taken:
            self._held[queue, one.id] = Delivery(self._leases, one, token, 0.0, lambda delivery: None)
            if "rjk" in one.fields:
                next_iteration(self.server, one.base, one.id, one.fields, self.now)
        return [one.id for one in taken]

    def take(self, queue: str, token: str, wanted: int = 1) -> Any:
        taken, _ = scripts.take(self.server, [self._base(queue)], self.now, wanted, self._worker(token))
        ids = self._hold(queue, taken, token)
        for job_id in ids:
            self._fail_deferred(queue, job_id, token)
        return ids

    def _fail_deferred(self, queue: str, job_id: str, token: str) -> None:
        reason = self._held[queue, job_id].fields.get("defa")
        if reason:
            self.fail(queue, job_id, token, reason, unrecoverable=True)

    def _end(self, queue: str, job_id: str, token: str, end: Callable[[Delivery], object], fetch_next: bool = False) -> Any:
        delivery = self._held.get((queue, job_id))
        if delivery is None:
            return Refused(0)
        # Asked for an end again and again, as the other side is: what guards it is in Redis.
        fresh = Delivery(self._leases, Taken(delivery.base, delivery.id, delivery.fields), token, 0.0, lambda delivery: None)
        end(fresh)
        ending = self._leases.told.pop()
        # Node fetches no next job with a retry at once; ours would, which only makes the queue faster.
        fetch_next = fetch_next and not (ending.what == "retry" and ending.number == 0)
        take_from = [self._base(queue)] if fetch_next else []
        codes, taken, _ = scripts.finish(self.server, [ending], self.now, take_from, int(fetch_next), self._worker(token))
        if codes[0] != 0:
            return Refused(codes[0])
        ids = self._hold(queue, taken, token)
        for one in ids:
            self._fail_deferred(queue, one, token)
        return ids[0] if ids else None

    def complete(self, queue: str, job_id: str, token: str, value: Any, fetch_next: bool = False) -> Any:
        from bullmq_kombu.job import to_data

        return self._end(queue, job_id, token, lambda delivery: delivery.complete(to_data(value)), fetch_next)

    def fail(self, queue: str, job_id: str, token: str, message: str, *, unrecoverable: bool = False, fetch_next: bool = False) -> Any:
        return self._end(
            queue, job_id, token, lambda delivery: delivery.fail(message, f"trace of {message}", final=unrecoverable), fetch_next
        )

    def delay(self, queue: str, job_id: str, token: str, due: int) -> Any:
        delivery = self._held.get((queue, job_id))
        if delivery is None:
            return Refused(0)
        return _code(scripts.retry(self.server, delivery.base, job_id, token, self.now, max(0, due - self.now), more='{"skip":true}'))

    def put_back(self, queue: str, job_id: str, token: str) -> Any:
        return self._end(queue, job_id, token, lambda delivery: delivery.release())

    def extend(self, queue: str, job_id: str, token: str) -> Any:
        delivery = self._held.get((queue, job_id))
        if delivery is None:
            return Refused(0)
        asked = Delivery(self._leases, Taken(delivery.base, job_id, {}), token, 0.0, lambda delivery: None)
        return scripts.extend(self.server, [asked], LOCK_MS) == []

    def recover(self, queue: str) -> Any:
        scripts.recover(self.server, [self._base(queue)], self.now, self.max_stalled_count, STALLED_INTERVAL_MS)

    # -- administration

    def _queue(self, queue: str, method: str, *args: Any, **named: Any) -> Any:
        with refusals() as refused:
            return getattr(self.queue(queue), method)(*args, **named)
        return refused[0]

    def _job(self, queue: str, job_id: str, method: str, *args: Any, **named: Any) -> Any:
        job = self.queue(queue).get_job(job_id)
        if job is None:
            return Refused(0)
        with refusals() as refused:
            return getattr(job, method)(*args, **named)
        return refused[0]

    def pause(self, queue: str) -> Any:
        return self._queue(queue, "pause")

    def resume(self, queue: str) -> Any:
        return self._queue(queue, "resume")

    def drain(self, queue: str, delayed: bool) -> Any:
        return self._queue(queue, "drain", delayed)

    def clean(self, queue: str, grace_ms: int, limit: int, state: str) -> Any:
        return _sorted(self._queue(queue, "clean", grace_ms, limit, state))

    def obliterate(self, queue: str, force: bool) -> Any:
        return self._queue(queue, "obliterate", force)

    def remove(self, queue: str, job_id: str, children: bool = True) -> Any:
        return self._queue(queue, "remove", job_id, remove_children=children)

    def promote(self, queue: str, job_id: str) -> Any:
        return self._job(queue, job_id, "promote")

    def retry(self, queue: str, job_id: str, state: str, reset_made: bool = False, reset_started: bool = False) -> Any:
        return self._job(queue, job_id, "retry", state, reset_attempts_made=reset_made, reset_attempts_started=reset_started)

    def retry_jobs(self, queue: str, state: str, count: int, before: int) -> Any:
        answer = self._queue(queue, "retry_jobs", state, count=count, before_ms=before)
        return answer if isinstance(answer, Refused) else None

    def promote_jobs(self, queue: str) -> Any:
        answer = self._queue(queue, "promote_jobs")
        return answer if isinstance(answer, Refused) else None

    def change_priority(self, queue: str, job_id: str, priority: int, lifo: bool) -> Any:
        return self._job(queue, job_id, "change_priority", priority, lifo=lifo)

    def change_delay(self, queue: str, job_id: str, delay: int) -> Any:
        return self._job(queue, job_id, "change_delay", delay)

    def update_data(self, queue: str, job_id: str, data: Any) -> Any:
        return self._job(queue, job_id, "update_data", data)

    def update_progress(self, queue: str, job_id: str, progress: Any) -> Any:
        return self._job(queue, job_id, "update_progress", progress)

    def log(self, queue: str, job_id: str, line: str) -> Any:
        return self._job(queue, job_id, "log", line)

    def clear_logs(self, queue: str, job_id: str, keep: int) -> Any:
        return self._job(queue, job_id, "clear_logs", keep)

    def remove_deduplication_key(self, queue: str, dedup_id: str) -> Any:
        return self._queue(queue, "remove_deduplication_key", dedup_id)

    def set_global_concurrency(self, queue: str, concurrency: int | None) -> Any:
        if concurrency is None:
            return self._queue(queue, "remove_global_concurrency")
        return self._queue(queue, "set_global_concurrency", concurrency)

    def set_global_rate_limit(self, queue: str, limit: tuple[int, int] | None) -> Any:
        if limit is None:
            return self._queue(queue, "remove_global_rate_limit")
        return self._queue(queue, "set_global_rate_limit", *limit)

    def rate_limit(self, queue: str, expire_ms: int) -> Any:
        return self._queue(queue, "rate_limit", expire_ms)

    def remove_rate_limit_key(self, queue: str) -> Any:
        return self._queue(queue, "remove_rate_limit_key")

    # -- looking

    def state(self, queue: str, job_id: str) -> Any:
        return self._queue(queue, "get_job_state", job_id)

    def counts(self, queue: str) -> Any:
        return self._queue(queue, "get_job_counts")

    def ids(self, queue: str, state: str, start: int, end: int, asc: bool) -> Any:
        return [job.id for job in self._queue(queue, "get_jobs", [state], start, end, asc)]

    def counts_per_priority(self, queue: str, priorities: Sequence[int]) -> Any:
        return self._queue(queue, "get_counts_per_priority", priorities)

    def logs(self, queue: str, job_id: str, start: int, end: int, asc: bool) -> Any:
        return self._queue(queue, "get_job_logs", job_id, start, end, asc=asc)

    def metrics(self, queue: str, state: str) -> Any:
        found = self._queue(queue, "get_metrics", state)
        return [found["meta"]["count"], found["data"], found["count"]]

    def rate_limit_ttl(self, queue: str, max_jobs: int | None) -> Any:
        return self._queue(queue, "get_rate_limit_ttl", max_jobs) > 0


@contextlib.contextmanager
def refusals() -> Iterator[list[Refused]]:
    """What is refused inside goes into the list, with its code."""
    refused: list[Refused] = []
    try:
        yield refused
    except JobError as error:
        refused.append(Refused(error.code))
    except BullMQError:
        refused.append(Refused(0))


def _code(code: int) -> Refused | None:
    return Refused(code) if code < 0 else None


def _as_node(node: JobNode) -> dict[str, Any]:
    return {"job": {"id": node.job.id}, "children": [_as_node(child) for child in node.children]}


def _flow_ids(node: Mapping[str, Any]) -> list[str]:
    return [node["job"]["id"], *(one for child in node.get("children") or () for one in _flow_ids(child))]


def _id(job: Any) -> Any:
    return job if isinstance(job, Refused) else job["id"]


def _sorted(ids: Any) -> Any:
    return ids if isinstance(ids, Refused) else sorted(ids)
