"""How a task's outcome becomes the end of its job.

The process that executes a task knows its return value; the worker's main process learns everything else: failure, lost child, time
limit, revocation. So the value travels: the tracer's answer, which the pool hands to the main process anyway, carries it as JSON. The
main process alone then ends the job (leases.py), guarded by the delivery's token.

What a task publishes under its own id (retry, replace) does not wait for that: it carries the job on from where it is published
(channel.py), and the end that follows is refused by the token.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from datetime import datetime, timezone
from typing import Any, NamedTuple, cast

from billiard.einfo import ExceptionInfo
from celery import states
from celery.app.trace import TraceInfo, trace_ok_t
from celery.exceptions import Ignore, Reject, Retry, TaskRevokedError, Terminated, TimeLimitExceeded, WorkerLostError
from celery.utils.log import get_logger
from kombu.exceptions import OperationalError
from kombu.utils.imports import symbol_by_name

from bullmq_kombu.carry import Carried, current
from bullmq_kombu.celery.current import RateLimitError, WaitingChildrenError
from bullmq_kombu.codec import to_json
from bullmq_kombu.delivery import Delivery
from bullmq_kombu.errors import UnrecoverableError
from bullmq_kombu.leases import all_leases

logger = get_logger(__name__)


# -- where the task is executed --------------------------------------------------------------------------------------------


class Returned(str):
    """The text of a result, as Celery hands it to the main process, with the value beside it: its JSON, or a note why there is none."""

    returnvalue: str = "null"
    note: str | None = None


class Raised(NamedTuple):
    """What is known of an exception where it was raised."""

    reason: str
    is_unrecoverable: bool


def _returned(text: str, value: Any) -> Returned:
    carrier = Returned(text)
    if value is not None:
        try:
            carrier.returnvalue = to_json(value)
        except Exception as error:  # whatever a user's value does when it is serialized
            carrier.note = f"the result of type {type(value).__name__} is no JSON and was not kept: {error}"
    return carrier


def _wrap(trace: Callable[..., Any]) -> Callable[..., Any]:
    def carrying(uuid: str, args: Any, kwargs: Any, request: Any = None) -> Any:
        job = ((request or {}).get("properties") or {}).get("bullmq")
        if not isinstance(job, dict) or "token" not in job:
            return trace(uuid, args, kwargs, request)
        if _tasks_run_here and not _has_begun(f"{job['token']}:{job['job']}"):
            return _not_run(uuid)
        base = f"{job['prefix']}:{job['queue']}:"
        before = current.set(Carried(base, job["job"], job["token"], uuid))
        try:
            answer = trace(uuid, args, kwargs, request)
        finally:
            current.reset(before)
        if answer.info is None:
            return answer._replace(retstr=_returned(answer.retstr, answer.retval))
        raised = answer.info.retval
        if isinstance(raised, Exception) and hasattr(answer.retval, "exception"):
            # What Celery sends is another exception where the original cannot be pickled.
            answer.retval.raised = Raised(reason_of(raised), isinstance(raised, UnrecoverableError))
        return answer

    carrying.carries_outcome = True  # type: ignore[attr-defined]
    return carrying


#: What a pool says of a task that was ended with its process.
ENDED_FROM_OUTSIDE = (Terminated, WorkerLostError, SystemExit, KeyboardInterrupt)

#: Whether the pool of this worker runs tasks in the worker's own process.
_tasks_run_here = False


def tasks_run_here(value: bool) -> None:
    """Says so; in the worker's main process."""
    global _tasks_run_here
    _tasks_run_here = value


def _has_begun(tag: str) -> bool:
    """Whether the job with this delivery tag was in hand when its task was begun. A pool of threads goes on with what it was given, also
    after the connection was lost or the worker told to stop, when jobs not begun have gone back to the queue."""
    return any(one.has_begun(tag) for one in all_leases())


def _not_run(task_id: str) -> Any:
    reason = Ignore("its job went back to the queue before the task began")
    logger.info("Task %s is not run here: %s", task_id, reason)
    try:
        raise reason
    except Ignore:
        return trace_ok_t(ExceptionInfo(), TraceInfo(states.IGNORED, reason), 0.0, None)


def wrap_tracers(app: Any) -> None:
    """Every task of the app hands its return value over. Celery rebuilds tracers, so this may run more than once."""
    for task in app.tasks.values():
        trace = task.__trace__
        if trace is not None and not getattr(trace, "carries_outcome", False):
            task.__trace__ = _wrap(trace)
        if not getattr(task.on_replace, "rejects_unpublished", False):
            task.on_replace = _rejecting(task.on_replace)


def _rejecting(on_replace: Callable[..., Any]) -> Callable[..., Any]:
    """A replacement that cannot be published rejects its task, as Celery lets a retry do; see `_job_rejected`."""

    def replacing(*args: Any, **kwargs: Any) -> Any:
        try:
            return on_replace(*args, **kwargs)
        except OperationalError as error:
            raise Reject(error, requeue=False) from error

    replacing.rejects_unpublished = True  # type: ignore[attr-defined]
    return replacing


# -- the worker's main process -----------------------------------------------------------------------------------------------


def _take_off_lists(request: Any) -> None:
    """Celery does it for tasks that end, not for one that does not begin."""
    from celery.worker.state import task_ready

    task_ready(request)


class JobRequest:
    """Mixed into the task's Request class: ends the job as the task ended."""

    _delivery: Delivery | None = None
    _rejected: bool | None = None  # by the request itself; the value is `requeue`
    _stored: Any = None  # what the task had stored before its process was lost
    _is_stopped = False  # Celery is about to end the task from outside

    def __init_subclass__(cls, **kwargs: Any) -> None:
        # Celery generates the class it uses from ours, with an `on_success` that calls no other: it is wrapped here.
        super().__init_subclass__(**kwargs)
        generated = cls.__dict__.get("on_success")
        if generated is not None:

            def on_success(self: Any, failed__retval__runtime: Any, **kwargs: Any) -> Any:
                failed, retval, runtime = failed__retval__runtime
                if not failed:
                    # What Celery makes of a greenlet that was killed: no text, no time.
                    if retval is None and runtime is None:
                        self._job_killed()
                    else:
                        self._job_returned(retval)
                return generated(self, failed__retval__runtime, **kwargs)

            cls.on_success = on_success  # type: ignore[attr-defined]

        execute = cls.__dict__.get("execute_using_pool")
        if execute is not None:

            def execute_using_pool(self: Any, pool: Any, **kwargs: Any) -> Any:
                delivery = self._delivery
                if delivery is not None and delivery.lose_if_lost():
                    _take_off_lists(self)
                    raise TaskRevokedError(self.id)  # given back meanwhile, or taken over
                result = execute(self, pool, **kwargs)
                if delivery is not None and not _tasks_run_here:
                    delivery.handed = result
                return result

            cls.execute_using_pool = execute_using_pool  # type: ignore[attr-defined]

    def __init__(self, message: Any, *args: Any, **kwargs: Any) -> None:
        cast("Any", super()).__init__(message, *args, **kwargs)
        delivery = getattr(message, "delivery", None)
        if delivery is not None:
            self._delivery = delivery
            delivery.managed = True
            request = self._request
            if request._eta is not None and request._eta <= datetime.now(timezone.utc):
                # It has been waited for. Celery would do so once more, and hold another task meanwhile.
                request._eta = None

    @property
    def _request(self) -> Any:
        """This object as the Celery request it is mixed into."""
        return self

    @property
    def _is_ignored(self) -> bool:
        """Whether Celery stores no result: then the job tells it none either. One that it stores all the same is what counts."""
        return bool(self._request.ignore_result or self._request.task.ignore_result)

    def on_accepted(self, pid: int, time_accepted: float) -> Any:
        if self._delivery is not None:
            self._delivery.start(at_most_once=not self._request.task.acks_late, here=_tasks_run_here)
        return cast("Any", super()).on_accepted(pid, time_accepted)

    def _job_returned(self, retval: Any) -> None:
        if self._delivery is not None:
            if isinstance(retval, Returned):
                self._delivery.complete(retval.returnvalue, retval.note, silent=self._is_ignored)
            else:
                self._delivery.complete(log="the return value did not reach the worker's main process")

    def _job_killed(self) -> None:
        # Celery itself says why where it did so, but only after the greenlet has gone.
        if self._delivery is not None and not self._is_stopped:
            self._delivery.fail("Terminated: the greenlet of the task was killed", final=True)

    def terminate(self, *args: Any, **kwargs: Any) -> Any:
        self._is_stopped = True
        return cast("Any", super()).terminate(*args, **kwargs)

    def cancel(self, *args: Any, **kwargs: Any) -> Any:
        self._is_stopped = True
        return cast("Any", super()).cancel(*args, **kwargs)

    def on_failure(self, exc_info: Any, send_failed_event: bool = True, return_ok: bool = False) -> Any:
        # First Celery's own part: it may publish the task again, which carries the job on, or decide to put it back.
        with self._carrying():
            try:
                return cast("Any", super()).on_failure(exc_info, send_failed_event=send_failed_event, return_ok=return_ok)
            finally:
                self._job_raised(exc_info)

    def _success_was_stored(self) -> Any:
        """Celery 5.7's, for a lost process: then the task has succeeded for it, and so has the job."""
        self._stored = cast("Any", super())._success_was_stored()
        return self._stored

    def _job_raised(self, exc_info: Any) -> None:
        delivery = self._delivery
        if delivery is None or delivery.settled:
            return
        exc, trace = _bare(exc_info.exception), str(exc_info.traceback or "")
        if isinstance(exc, Retry):
            # Published elsewhere, or in place: then the token is no longer ours, and this is refused.
            delivery.complete(log=f"retried: {exc}", silent=True)
        elif isinstance(exc, Reject):
            self._job_rejected(exc, trace)
        elif isinstance(exc, WaitingChildrenError):
            delivery.forget()
        elif isinstance(exc, RateLimitError):
            delivery.limit()
        elif isinstance(exc, Ignore):
            # By a task that goes on as others, or one that nobody is to hear of: Celery stores no result.
            delivery.complete(silent=True)
        elif self._stored:
            carrier = _returned("", self._stored.get("result"))
            delivery.complete(carrier.returnvalue, carrier.note, silent=self._is_ignored)
        elif isinstance(exc, ENDED_FROM_OUTSIDE) and self._request._already_cancelled:
            self._job_cancelled()
        elif isinstance(exc, Terminated):
            delivery.fail(reason_of(exc), final=True)
        elif self._rejected:
            delivery.release()
        else:
            if isinstance(exc, (SystemExit, KeyboardInterrupt)):
                exc = WorkerLostError(f"Worker exited prematurely: {type(exc).__name__} {exc}".rstrip())
            raised = getattr(exc_info, "raised", None) or Raised(reason_of(exc), isinstance(exc, UnrecoverableError))
            final = raised.is_unrecoverable or isinstance(exc, (WorkerLostError, TimeLimitExceeded))
            delivery.fail(raised.reason, trace, final=final, silent=self._is_ignored)

    def _job_rejected(self, exc: Any, trace: str) -> None:
        delivery = cast("Delivery", self._delivery)
        unpublished = isinstance(exc.reason, OperationalError)
        if exc.requeue or (unpublished and self._request.task.acks_late):
            delivery.release()
        else:
            reason = exc.reason if exc.reason is not None else "rejected"
            text = reason_of(reason) if isinstance(reason, BaseException) else f"Reject: {reason}"
            delivery.fail(f"retry or replacement could not be published: {text}" if unpublished else text, trace, final=True)

    def _job_cancelled(self) -> None:
        delivery = cast("Delivery", self._delivery)
        if delivery.settled:
            return
        if self._request.task.acks_late:
            delivery.release()
        else:
            delivery.fail("cancelled by Celery: the worker was stopped while the task ran", final=True)

    def on_timeout(self, soft: bool, timeout: float) -> Any:
        try:
            return cast("Any", super()).on_timeout(soft, timeout)
        finally:
            delivery = self._delivery
            if not soft and delivery is not None and not delivery.settled:
                # Celery before 5.7 leaves what is not to be acknowledged as it is.
                if self._rejected or not self._request.acknowledged:
                    delivery.release()
                else:
                    delivery.fail(reason_of(TimeLimitExceeded(timeout)), final=True)

    def _announce_revoked(self, reason: str, terminated: bool, signum: Any, expired: bool) -> Any:
        if self._delivery is not None:
            self._delivery.fail(f"TaskRevokedError: {reason}", final=True)
        return cast("Any", super())._announce_revoked(reason, terminated, signum, expired)

    def _announce_cancelled(self, *args: Any, **kwargs: Any) -> Any:
        """A cold shutdown, or a connection lost with worker_cancel_long_running_tasks_on_connection_loss. The task may be done already:
        during a soft shutdown Celery reads no outcomes. So the job is left to `end_cancelled`."""
        if self._delivery is not None:
            _cancelled.append(self)
        return cast("Any", super())._announce_cancelled(*args, **kwargs)

    def reject(self, requeue: bool = False) -> Any:
        self._rejected = requeue
        result = cast("Any", super()).reject(requeue)
        delivery = self._delivery
        if delivery is not None and not delivery.started and not delivery.settled:
            if requeue:
                delivery.release()
            else:
                delivery.fail(delivery.reason or "rejected", final=True)
        return result

    @contextlib.contextmanager
    def _carrying(self) -> Any:
        delivery = self._delivery
        if delivery is None:
            yield
            return
        before = current.set(Carried(delivery.base, delivery.id, delivery.token, self._request.id))
        try:
            yield
        finally:
            current.reset(before)


#: What Celery has cancelled since `end_cancelled`.
_cancelled: list[JobRequest] = []


def end_cancelled() -> None:
    """What Celery has cancelled, and whose outcome has not been read since, is put back or failed."""
    while _cancelled:
        _cancelled.pop(0)._job_cancelled()


def return_unstarted(*, handed: bool = False) -> None:
    """The worker stops: its jobs that no task was begun for go back to the head of their queues, the last one first. `handed`: also those
    that a pool had been given."""
    for leases in all_leases():
        for delivery in reversed(leases.held()):
            if delivery.managed and (handed or delivery.handed is None):
                delivery.return_unstarted()


def use_job_request(task: Any) -> None:
    """The task's Request, whichever class its author chose, with JobRequest mixed in."""
    request = symbol_by_name(task.Request)
    if not issubclass(request, JobRequest):
        task.Request = type("JobRequest", (JobRequest, request), {"__module__": __name__})


def _bare(exc: Any) -> Any:
    """The exception itself, where billiard has wrapped it to carry the traceback."""
    return exc.exc if type(exc).__name__ == "ExceptionWithTraceback" else exc


def reason_of(exc: BaseException) -> str:
    """The text of `failedReason`: class and message."""
    name = type(exc).__name__
    try:
        text = str(exc)
    except Exception as error:  # whatever a user's exception does when it is asked for its message
        text = f"<{type(error).__name__} in {name}.__str__>"
    return f"{name}: {text}" if text else name


def explain_rejections(consumer: Any) -> None:
    """A message that Celery refuses becomes a job failed for that reason."""

    def explain(method: str, reason: Callable[..., str]) -> None:
        original = getattr(consumer, method)

        def explaining(*args: Any) -> Any:
            message = next((one for one in args if hasattr(one, "delivery_tag")), None)
            delivery = getattr(message, "delivery", None)
            if delivery is not None:
                delivery.reason = reason(*args)
            return original(*args)

        setattr(consumer, method, explaining)

    explain("on_unknown_task", lambda body, message, exc: f"NotRegistered: {message.headers.get('task')}")
    explain("on_unknown_message", lambda body, message: "InvalidTaskError: the message names no task")
    explain("on_invalid_task", lambda body, message, exc: reason_of(exc))
    explain("on_decode_error", lambda message, exc: reason_of(exc))
