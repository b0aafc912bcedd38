"""Celery's result backend: `result_backend = "bullmq://…"`.

What a worker stores is kept behind BullMQ's prefix and published to those who wait. A task that no Celery worker has told of is looked for
among the jobs of the queues Celery knows: a job that Node runs has the state, the value and the failure of its job. So has one whose
worker could store nothing any more.

    job                                 task
    waiting, prioritized, delayed       PENDING, or RETRY when it was tried before
    active                              STARTED; its `info` is the job's progress. With a Celery worker it is PENDING unless the job has
                                        progress or the task is one that Celery tracks, as with `redis://`
    completed                           SUCCESS with the return value
    failed                              FAILURE: a bullmq_kombu.JobFailed with the reason; the stack trace is the traceback

A job whose task or result is ignored, or that has gone on as another, tells nothing: the field `silent` of its hash says so.

`result_backend_transport_options` are those of the broker that have to do with the connection, and `retry_policy`, as with `redis://`. The
prefix and Sentinel's options are the broker's where they are not given.
"""

from __future__ import annotations

import json
import logging
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from datetime import datetime, timezone
from typing import Any

from billiard.exceptions import TimeLimitExceeded, WorkerLostError
from celery import states
from celery.backends.asynchronous import AsyncBackendMixin
from celery.backends.base import BaseKeyValueStoreBackend
from celery.canvas import maybe_signature
from celery.exceptions import ChordError
from celery.exceptions import TimeoutError as ResultTimeoutError
from celery.result import GroupResult, allow_join_result
from celery.signals import after_task_publish
from celery.utils.functional import _regen
from kombu import Connection
from kombu.utils.encoding import bytes_to_str
from kombu.utils.functional import LRUCache, retry_over_time
from kombu.utils.url import maybe_sanitize_url
from redis import exceptions

from bullmq_kombu.address import address_of
from bullmq_kombu.attempts import has_attempt_left
from bullmq_kombu.celery.current import current_job
from bullmq_kombu.celery.result_consumer import ResultConsumer
from bullmq_kombu.codec import arguments_of
from bullmq_kombu.connection import Server
from bullmq_kombu.errors import BullMQError, JobFailed, UnrecoverableError
from bullmq_kombu.job_options import read_stored
from bullmq_kombu.options import check_options
from bullmq_kombu.results import FORGOTTEN, FoundJob, Known, Results

logger = logging.getLogger(__name__)

#: Taken from the broker's options where the backend's own say nothing: without them the two would not find each other.
_SHARED_OPTIONS = ("prefix", "master_name", "min_other_sentinels", "sentinel_kwargs")
#: Options of Celery's Redis backend that are not the connection's.
_BACKEND_OPTIONS = ("retry_policy", "result_chord_ordered", "additional_connection_errors")
#: Of how many tasks the queue is remembered.
HINTS = 10_000
#: How long the one who completes a chord has for publishing its callback, s: the publish retries within it.
PUBLISH_WITHIN_S = 60.0
#: How long it is remembered that a chord has gone on, s: parts that are run again after a lost worker come within it.
CHORD_REMEMBERED_S = 300.0
#: An attempt that ends so is the last, whatever attempts are left.
_FINAL_ERRORS = (UnrecoverableError, WorkerLostError, TimeLimitExceeded)
#: What Celery itself says of a task that is not done; whatever else is stored there was set by the task.
_USUAL_STATES = frozenset({states.PENDING, states.RECEIVED, states.STARTED, states.RETRY})
_UNKNOWN: Mapping[str, Any] = {"status": states.PENDING, "result": None}


class Backend(BaseKeyValueStoreBackend, AsyncBackendMixin):
    """Results in the Redis of BullMQ; see the module."""

    key_t = str
    supports_autoexpire = True
    supports_native_join = True
    supports_result_compression = True
    supports_failure_expires = True

    connection_errors = (exceptions.ConnectionError, exceptions.TimeoutError, exceptions.ReadOnlyError, OSError)

    def __init__(self, url: str | None = None, expires: Any = None, **kwargs: Any) -> None:
        super().__init__(url=url, expires=expires, expires_type=int, **kwargs)
        conf = self.app.conf
        failure_expires = conf.get("result_failure_expires")
        self.failure_expires = self.expires if failure_expires is None else self.prepare_expires(failure_expires, type=int)
        given: Mapping[str, Any] = conf.get("result_backend_transport_options") or {}
        brokers: Mapping[str, Any] = conf.get("broker_transport_options") or {}
        wanted = {name: brokers[name] for name in _SHARED_OPTIONS if name in brokers}
        wanted.update((name, value) for name, value in given.items() if name not in _BACKEND_OPTIONS)
        self._retry_policy = {**self.retry_policy, **(given.get("retry_policy") or {})}
        with Connection(_full_url(url), ssl=conf.get("redis_backend_use_ssl") or False) as connection:
            address = address_of(connection)
            others = []
            for _ in range(len(connection.alt or ()) - 1 if address.kind in ("tcp", "unix") else 0):
                connection.maybe_switch_next()
                others.append(address_of(connection))
        options = check_options(wanted, address.kind)
        self.server = Server(address, options, others=others)
        self.results = Results(self.server, options.prefix)
        self.group_keyprefix = self.results.group_key("")
        self.task_keyprefix = self.results.channel("")
        self._hints = LRUCache(limit=HINTS)
        # Before Celery 5.7 all backends of a process are one receiver unless they say that they are not.
        after_task_publish.connect(self._note_queue, dispatch_uid=object())
        self.result_consumer = ResultConsumer(self, self.app, self.accept, self._pending_results, self._pending_messages)

    def as_uri(self, include_password: bool = False) -> str:
        if include_password:
            return self.url or ""
        parts = [str(maybe_sanitize_url(part)) for part in _full_url(self.url).split(";")]
        return ";".join(part[:-1] if part.endswith(":///") else part for part in parts)

    def __reduce__(self, args: Any = (), kwargs: Any = None) -> Any:
        return super().__reduce__(args, {**(kwargs or {}), "url": self.url, "expires": self.expires})

    # -- errors of the connection --------------------------------------------------------------------------------------

    def exception_safe_to_retry(self, exc: BaseException) -> bool:
        return isinstance(exc, self.connection_errors)

    def ensure(self, call: Callable[..., Any], args: Sequence[Any]) -> Any:
        """Calls again, as the retry policy says, while Redis is away."""
        return retry_over_time(call, self.connection_errors, args, {}, self._on_connection_error, **self._retry_policy)

    def _on_connection_error(self, exc: BaseException, intervals: Iterator[float], retries: int) -> float:
        pause = next(intervals)
        logger.error("the result backend lost Redis at %s, retry %d in %.1f s: %s", self.server.address.where, retries, pause, exc)
        return pause

    # -- storing ---------------------------------------------------------------------------------------------------------

    def mark_as_failure(
        self, task_id: str, exc: BaseException, traceback: Any = None, request: Any = None, store_result: bool = True,
        call_errbacks: bool = True, state: str = states.FAILURE,
    ) -> None:  # fmt: skip
        """While the job has an attempt left, this one's failure is no end: neither for those who wait nor for a chord, chain or errback."""
        if state == states.FAILURE and _has_attempt_left(exc, request):
            if store_result:
                self.store_result(task_id, exc, states.RETRY, traceback=traceback, request=request)
            return
        super().mark_as_failure(
            task_id, exc, traceback=traceback, request=request, store_result=store_result, call_errbacks=call_errbacks, state=state
        )

    def _store_result(self, task_id: Any, result: Any, state: str, traceback: Any = None, request: Any = None, **kwargs: Any) -> Any:
        task_id = bytes_to_str(task_id)
        if state not in states.ALL_STATES and request is not None and getattr(request, "id", None) == task_id:
            self._show_progress(result)
        meta = self._get_result_meta(result=result, state=state, traceback=traceback, request=request)
        meta["task_id"] = task_id
        expires = self.failure_expires if state == states.FAILURE else self.expires
        self.ensure(self.results.record, (task_id, state, self.encode(meta), _ms(expires)))
        return result

    def _show_progress(self, value: Any) -> None:
        """What the task says of itself, also where BullMQ's users look for it."""
        try:
            current_job().update_progress(value)
        except (BullMQError, TypeError, ValueError) as error:
            logger.debug("not shown as the job's progress: %s", error)
        except self.connection_errors as error:
            logger.warning("could not be shown as the job's progress: %s", error)

    def _forget(self, task_id: str) -> None:
        self.results.forget(bytes_to_str(task_id), _ms(max(self.expires or 0, self.failure_expires or 0)))

    def forget(self, task_id: str) -> None:
        super().forget(task_id)
        self.result_consumer.cancel_for(task_id)

    def remove_pending_result(self, result: Any) -> Any:
        """Before Celery 5.7 a result that is thrown away takes another with it that waits for the same task, as those of a group do."""
        for waiting in self._pending_results:
            found = waiting.get(result.id)
            if found is not None and found is not result and not isinstance(found, MutableMapping):
                return result
        return super().remove_pending_result(result)

    # -- what is known of a task --------------------------------------------------------------------------------------------

    def _note_queue(self, headers: Any = None, routing_key: Any = None, **kwargs: Any) -> None:
        """What this process has sent need not be looked for in all queues: a routing key is mostly the queue's name."""
        task_id = headers.get("id") if isinstance(headers, dict) else None
        if task_id and routing_key and ":" not in routing_key:
            self._hints[task_id] = routing_key

    def look_up(self, task_ids: Sequence[str], ends: bool = False) -> tuple[list[Known], dict[str, str]]:
        """See Results.look_up; remembers where the jobs are."""
        known, last = self.results.look_up(task_ids, self._hints, ends)
        for one in known:
            if one.job is not None:
                self._hints[one.task_id] = one.job.queue
        return known, last

    def meta_of(self, known: Known) -> dict[str, Any]:
        """The task's meta, as Celery has it, from what is known."""
        job = known.job
        if job is not None and job.state in ("completed", "failed") and self._is_expired(job):
            job = None
        if known.status == FORGOTTEN:
            return {**_UNKNOWN}
        if job is not None and (not known.meta or _says_more(job, known.status)):
            return self._meta_of_job(known.task_id, job)
        if known.meta:
            meta: dict[str, Any] = self.decode_result(known.meta.encode("utf-8", "surrogateescape"))
            return meta
        return {**_UNKNOWN}

    def _is_expired(self, job: FoundJob) -> bool:
        expires = self.failure_expires if job.state == "failed" else self.expires
        return bool(expires) and float(job.fields["finishedOn"]) / 1000 + expires < time.time()

    def _meta_of_job(self, task_id: str, job: FoundJob) -> dict[str, Any]:
        fields = job.fields
        tried = fields.get("atm", "0") not in ("", "0") and bool(fields.get("failedReason"))
        meta: dict[str, Any] = {"task_id": task_id, "result": None, "traceback": None, "children": None, "date_done": None}
        if job.state == "completed":
            meta.update(status=states.SUCCESS, result=_json(fields.get("returnvalue")))
        elif job.state == "failed" or (job.state == "waiting" and tried):
            traces = _json(fields.get("stacktrace"))
            meta.update(
                status=states.FAILURE if job.state == "failed" else states.RETRY,
                result=JobFailed(fields.get("failedReason", "")),
                traceback=str(traces[-1]) if isinstance(traces, list) and traces else None,
            )
        elif job.state == "active" or (job.state == "taken" and "progress" in fields):
            meta.update(status=states.STARTED, result=_json(fields.get("progress")))
        else:
            meta.update(status=states.PENDING)
        if "finishedOn" in fields:
            meta["date_done"] = datetime.fromtimestamp(int(fields["finishedOn"]) / 1000, timezone.utc).isoformat()
        if self.app.conf.find_value_for_key("extended", "result"):
            args, kwargs = arguments_of(_json(fields.get("data")))
            meta.update(
                name=fields.get("name"),
                args=args,
                kwargs=kwargs,
                worker=fields.get("pb"),
                retries=int(fields.get("atm") or 0),
                queue=job.queue,
            )
        return meta

    def _get_task_meta_for(self, task_id: Any) -> dict[str, Any]:
        (known,), _ = self.look_up((bytes_to_str(task_id),))
        return self.meta_of(known)

    def task_result_exists(self, task_id: Any) -> bool:
        return bool(self._get_task_meta_for(task_id)["status"] != states.PENDING)

    def get_many(
        self, task_ids: Any, timeout: float | None = None, interval: float | None = 0.5, no_ack: bool = True,
        on_message: Callable[[Any], None] | None = None, on_interval: Callable[[], None] | None = None,
        max_iterations: int | None = None, READY_STATES: Any = states.READY_STATES,
    ) -> Iterator[tuple[str, dict[str, Any]]]:  # fmt: skip
        """(id, meta) of each task as it is found ready; waits for those that are not, unless `max_iterations` forbids."""
        left = dict.fromkeys(bytes_to_str(task_id) for task_id in task_ids)
        until = None if timeout is None else time.monotonic() + timeout
        turns = 0
        while left:
            unknown = []
            for task_id in list(left):
                cached = self._cache.get(task_id)
                if cached is not None and cached["status"] in READY_STATES:
                    del left[task_id]
                    yield task_id, cached
                else:
                    unknown.append(task_id)
            for known in self.look_up(unknown)[0]:
                meta = self.meta_of(known)
                if meta["status"] not in READY_STATES:
                    continue
                del left[known.task_id]
                self._cache[known.task_id] = meta
                if on_message is not None:
                    on_message(meta)
                yield known.task_id, meta
            turns += 1
            if not left or (max_iterations and turns >= max_iterations):
                return
            pause = 0.5 if interval is None else interval
            if until is not None:
                pause = min(pause, until - time.monotonic())
                if pause <= 0:
                    raise ResultTimeoutError(f"Operation timed out ({timeout})")
            if on_interval is not None:
                on_interval()
            time.sleep(pause)

    # -- groups ------------------------------------------------------------------------------------------------------------

    def get(self, key: str) -> bytes | None:
        value = self.server.call("GET", key)
        return None if value is None else value.encode("utf-8", "surrogateescape")

    def set(self, key: str, value: str | bytes) -> None:
        expires = ("PX", _ms(self.expires)) if self.expires else ()
        self.ensure(self.server.call, ("SET", key, value, *expires))

    def delete(self, key: str) -> None:
        self.server.call("DEL", key)

    def expire(self, key: str, value: int) -> None:
        self.server.call("EXPIRE", key, value)

    # -- chords -------------------------------------------------------------------------------------------------------------

    def set_chord_size(self, group_id: str, chord_size: int) -> None:
        self.ensure(self.results.open_chord, (group_id, chord_size, _ms(self._chord_kept)))

    def add_to_chord(self, chord_id: str, result: Any) -> None:
        self.ensure(self.results.extend_chord, (chord_id,))

    def apply_chord(self, header_result_args: Any, body: Any, **kwargs: Any) -> None:
        # Parts that are groups of their own are joined by the header's result; else the parts themselves are all there is to join.
        if isinstance(header_result_args[1], _regen):
            return
        header = self.app.GroupResult(*header_result_args)
        if any(isinstance(part, GroupResult) for part in header.results):
            self.save_group(header.id, header)

    @property
    def _chord_kept(self) -> int:
        """Seconds; Celery has a setting of its own for it since 5.7."""
        expires = getattr(self, "chord_expires", self.expires)
        return int(expires or 0)

    def on_chord_part_return(self, request: Any, state: str, result: Any, propagate: Any = None, **kwargs: Any) -> Any:
        task_id, group_id = request.id, request.group
        if not group_id or not task_id:
            return None
        outcome = self.encode([1, task_id, state, self.encode_result(result, state)])
        token = uuid.uuid4().hex
        join_s = self.app.conf.result_chord_join_timeout or 5.0
        kept = self._chord_kept
        kept_group = max(kept, self.expires or 0) if kept else 0
        claim = (_now_ms(), token, _ms(max(5.0, join_s * 2)))
        part = (group_id, request.group_index, task_id, outcome, *claim, _ms(kept), _ms(kept_group))
        if not self.ensure(self.results.add_to_chord, part):
            return None
        callback = maybe_signature(request.chord, app=self.app)
        try:
            values = self._chord_values(group_id)
        except Exception as error:
            failure = error if isinstance(error, ChordError) else ChordError(f"Join error: {error!r}")
            logger.error("chord %s failed: %s", group_id, failure)
            try:
                return self.chord_error_from_stack(callback, failure)
            finally:
                self.ensure(self.results.drop_chord_size, (group_id,))
        if not self.ensure(self.results.hold_chord, (group_id, token, _now_ms() + _ms(PUBLISH_WITHIN_S))):
            logger.warning("the callback of chord %s was left to another worker, which has taken it over", group_id)
            return None
        # Celery since 5.7 lets a callback's publishing take its time.
        publish = getattr(self.app.amqp, "_retry_publish", None)
        try:
            if publish is not None:
                publish(callback.delay, values)
            else:
                callback.delay(values)
        except Exception as error:
            logger.exception("the callback of chord %s could not be published", group_id)
            return self.chord_error_from_stack(callback, ChordError(f"Callback error: {error!r}"))
        finally:
            self.ensure(self.results.close_chord, (group_id, token, _ms(CHORD_REMEMBERED_S)))
        return None

    def _chord_values(self, group_id: str) -> list[Any]:
        header = GroupResult.restore(group_id, app=self.app, backend=self)
        if header is not None:
            header.on_ready()
            with allow_join_result():
                joined: list[Any] = header.join_native(timeout=self.app.conf.result_chord_join_timeout, propagate=True)
            return joined
        return [self._value_of_part(text) for text in self.results.chord_parts(group_id)]

    def _value_of_part(self, text: str) -> Any:
        _, task_id, state, value = self.decode(text.encode("utf-8", "surrogateescape"))
        if state in states.EXCEPTION_STATES:
            value = self.exception_to_python(value)
        if state in states.PROPAGATE_STATES:
            error = ChordError(f"Dependency {task_id} raised {value!r}")
            if isinstance(value, Exception):
                error.__cause__ = value
            raise error
        return value


def _full_url(url: str | None) -> str:
    """Celery takes "bullmq+" away from the front; the first address of a list lacks it then."""
    if not url:
        return "bullmq://"
    return url if url.startswith("bullmq") else f"bullmq+{url}"


def _says_more(job: FoundJob, stored: str) -> bool:
    """Whether the job tells how the task ended, where what was stored does not. What a task has set itself, it may have set for good."""
    return job.state == "failed" or (job.state == "completed" and stored in _USUAL_STATES)


def _has_attempt_left(exc: BaseException, request: Any) -> bool:
    about = (getattr(request, "properties", None) or {}).get("bullmq")
    if not isinstance(about, Mapping) or isinstance(exc, _FINAL_ERRORS):
        return False
    made = about.get("attemptsMade") or about.get("atm") or 0
    return has_attempt_left(read_stored(about.get("opts", "{}")), int(made))


def _json(text: str | None) -> Any:
    """The value of one of a job's fields; text that is no JSON is kept as it is."""
    if text is None:
        return None
    try:
        return json.loads(text)
    except ValueError:
        return text


def _ms(seconds: float | None) -> int:
    return int((seconds or 0) * 1000)


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
