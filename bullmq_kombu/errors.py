"""What can go wrong, as one tree, and the codes the scripts answer with.

    BullMQError
    ├── BadInput (ValueError)        a name, option or id that BullMQ refuses; raised at the call
    ├── JobError                     a script refused a transition
    │   ├── JobMissing       -1
    │   ├── LockMissing      -2
    │   ├── NotInState       -3
    │   ├── PendingChildren  -4
    │   ├── ParentMissing    -5
    │   ├── LockMismatch     -6
    │   ├── ParentConflict   -7
    │   ├── BelongsToScheduler -8
    │   ├── FailedChildren   -9
    │   └── SlotTaken        -10, -11
    ├── JobFailed                    the job that was waited for has failed, wherever it ran
    └── UnrecoverableError           raised by a task: fail now, whatever attempts are left

Two more end a task without an outcome, RateLimitError and WaitingChildrenError; Celery has to know them as its own, so they are in
celery/current.py.

Redis' own errors stay what they are; Kombu expects them.
"""

from __future__ import annotations


class BullMQError(Exception):
    """Root of everything this package raises."""


class BadInput(BullMQError, ValueError):
    """A name, option or id that BullMQ refuses. The message says the rule."""


class JobError(BullMQError):
    """A script refused to move a job; `code` is BullMQ's number."""

    code = 0


class JobMissing(JobError):
    code = -1


class LockMissing(JobError):
    code = -2


class NotInState(JobError):
    code = -3


class PendingChildren(JobError):
    code = -4


class ParentMissing(JobError):
    code = -5


class LockMismatch(JobError):
    code = -6


class ParentConflict(JobError):
    code = -7


class BelongsToScheduler(JobError):
    code = -8


class FailedChildren(JobError):
    code = -9


class SlotTaken(JobError):
    code = -10


class JobFailed(BullMQError):
    """The job that was waited for has failed; the message is its failedReason."""


class UnrecoverableError(BullMQError):
    """Raise it in a task: the job becomes failed at once, whatever attempts are left."""


_BY_CODE: dict[int, tuple[type[JobError], str]] = {
    -1: (JobMissing, "Missing key for job {job}. {command}"),
    -2: (LockMissing, "Missing lock for job {job}. {command}"),
    -3: (NotInState, "Job {job} is not in the {state} state. {command}"),
    -4: (PendingChildren, "Job {job} has pending dependencies. {command}"),
    -5: (ParentMissing, "Missing key for parent job {parent}. {command}"),
    -6: (LockMismatch, "Lock mismatch for job {job}. Cmd {command} from {state}"),
    -7: (ParentConflict, "The parent job {parent} cannot be replaced. {command}"),
    -8: (BelongsToScheduler, "Job {job} belongs to a job scheduler and cannot be removed directly. {command}"),
    -9: (FailedChildren, "Cannot complete job {job} because it has at least one failed child. {command}"),
    -10: (SlotTaken, "Cannot create job scheduler iteration - job ID already exists. {command}"),
    -11: (SlotTaken, "Cannot create job scheduler iteration - current and next time slots already have jobs. {command}"),
}


def shown(text: object) -> str:
    """A text of somebody else's, for a log line: what would begin another line, or speak to a terminal, is escaped."""
    found = str(text)
    return found if found.isprintable() else "".join(one if one.isprintable() else repr(one)[1:-1] for one in found)


def job_error(code: int, command: str, job: str = "", state: str = "active", parent: str = "") -> JobError:
    """The exception for a script's code, with BullMQ's own text."""
    kind, text = _BY_CODE.get(code, (JobError, "Unknown code {code} for job {job}. {command}"))
    error = kind(text.format(code=code, job=job, command=command, state=state, parent=parent))
    error.code = code
    return error
