"""How each way a task can end leaves its job, in every pool, acknowledged early and late.

One worker of each pool runs the tasks of all rows at once; each test then looks at its own job. What a job went through is read from its
queue's event stream, so nothing is missed by looking too late.
"""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, NamedTuple

import celery
import pytest
from celery import Celery
from celery.app.defaults import NAMESPACES
from conftest import sender
from jobs import Job
from servers import Server
from worker import Worker

#: Prefork's processes, forked and (since Celery 5.7) spawned.
PROCESSES = ("prefork", "spawn")
POOLS = (*(PROCESSES if "pool_start_method" in NAMESPACES["worker"] else PROCESSES[:1]), "solo", "threads", "gevent", "eventlet")
LONG = "x" * 12_000
#: As long as a test may take, nearly: on a busy machine processes that end are slowly replaced by spawned ones.
TIMEOUT_S = 100.0


class Run(NamedTuple):
    """One row being run: its job, where its files are, and how it was sent."""

    job: Job
    at: str
    pool: str
    is_late: bool

    @property
    def runs(self) -> int:
        return len(Path(f"{self.at}.runs").read_text().splitlines())


class Row(NamedTuple):
    task: str
    args: tuple[Any, ...]
    options: dict[str, Any]
    check: Callable[[Run], None]
    #: Those in which a task can end so; there are no tests for the others.
    pools: tuple[str, ...]


ROWS: dict[str, Row] = {}
AT = object()  # stands for the path of the row's files


def row(task: str, *args: Any, pools: tuple[str, ...] = POOLS, **options: Any) -> Callable[[Callable[[Run], None]], None]:
    """A row: the task to send and how; the decorated function looks at what became of its job."""

    def register(check: Callable[[Run], None]) -> None:
        ROWS[check.__name__] = Row(task, args, options, check, pools)

    return register


# -- running ---------------------------------------------------------------------------------------------------------------


@row("last", 3.0)
def running_for_longer_than_the_lock(run: Run) -> None:
    """`active`, locked, processed by the worker's host name; the promise of an early acknowledgement is there, and goes. On a busy machine
    a lock may be renewed late; that another worker does not get the job for that, test_long_tasks.py sees."""
    run.job.wait_for("active", "completed", timeout=TIMEOUT_S)
    seen = 0
    while True:
        is_locked, state, fields = run.job.is_locked, run.job.state, run.job.hash
        if state != "active":
            break
        assert fields["pb"].endswith("@functional")
        seen += is_locked
    assert state == "completed"
    assert seen > 0 or run.is_late  # by then the late one, which runs beside it, may have ended
    assert run.job.returnvalue == "rested"
    assert run.job.history == ["added", "waiting", "active", "completed"]
    assert "defa" not in run.job.hash


# -- returned ----------------------------------------------------------------------------------------------------------------


@row("echo", {"text": LONG, "list": [1, 2.5, None, True, "ü"]})
def returned(run: Run) -> None:
    """The whole value, however long."""
    run.job.wait_for("completed", timeout=TIMEOUT_S)
    assert run.job.returnvalue == {"text": LONG, "list": [1, 2.5, None, True, "ü"]}
    assert run.job.history == ["added", "waiting", "active", "completed"]
    assert run.job.reason is None
    assert run.job.attempts_made == run.job.attempts_started == 1
    assert not run.job.is_locked
    assert "defa" not in run.job.hash


@row("echo", None)
def returned_nothing(run: Run) -> None:
    run.job.wait_for("completed", timeout=TIMEOUT_S)
    assert run.job.hash["returnvalue"] == "null"
    assert run.job.logs == []


@row("ignored", {"text": LONG})
def returned_with_ignore_result(run: Run) -> None:
    run.job.wait_for("completed", timeout=TIMEOUT_S)
    assert run.job.returnvalue == {"text": LONG}


def _returned_no_json(run: Run) -> None:
    run.job.wait_for("completed", timeout=TIMEOUT_S)
    assert run.job.hash["returnvalue"] == "null"
    (line,) = run.job.logs
    assert "no JSON" in line


for _kind in ("object", "nan", "loop"):
    ROWS[f"returned_{_kind}"] = Row("odd", (_kind,), {}, _returned_no_json, POOLS)


# -- raised ------------------------------------------------------------------------------------------------------------------


@row("boom")
def raised(run: Run) -> None:
    run.job.wait_for("failed", timeout=TIMEOUT_S)
    assert run.job.reason == "ValueError: the message"
    (trace,) = run.job.stack
    assert trace.startswith("Traceback (most recent call last)")
    assert "raise ValueError(message)" in trace
    assert run.job.history == ["added", "waiting", "active", "failed", "retries-exhausted"]
    assert run.job.attempts_made == 1
    assert "returnvalue" not in run.job.hash
    assert "defa" not in run.job.hash
    assert not run.job.is_locked


@row("awkward")
def raised_what_no_pickle_carries(run: Run) -> None:
    run.job.wait_for("failed", timeout=TIMEOUT_S)
    assert run.job.reason == "Awkward: one/two"
    assert "raise Awkward" in run.job.stack[0]


@row("mute")
def raised_what_has_no_message(run: Run) -> None:
    run.job.wait_for("failed", timeout=TIMEOUT_S)
    assert run.job.reason == "Mute: <KeyError in Mute.__str__>"


@row("surrogate")
def raised_what_is_no_text(run: Run) -> None:
    run.job.wait_for("failed", timeout=TIMEOUT_S)
    assert run.job.reason == "ValueError: half a \\ud83d and a \\udcff"


@row("boom_until", AT, 2, bullmq={"attempts": 3})
def attempts(run: Run) -> None:
    run.job.wait_for("completed", timeout=TIMEOUT_S)
    assert run.job.returnvalue == 3
    assert run.job.history == ["added", "waiting", "active", "waiting", "active", "waiting", "active", "completed"]
    assert run.job.attempts_made == run.job.attempts_started == 3
    assert [trace.splitlines()[-1] for trace in run.job.stack] == ["ValueError: not yet 1", "ValueError: not yet 2"]


@row("boom_until", AT, 9, bullmq={"attempts": 2, "backoff": {"type": "exponential", "delay": 2000}})
def attempts_used_up(run: Run) -> None:
    run.job.wait_for("failed", timeout=TIMEOUT_S)
    assert run.job.history == ["added", "waiting", "active", "delayed", "waiting", "active", "failed", "retries-exhausted"]
    assert run.job.reason == "ValueError: not yet 2"
    assert run.job.attempts_made == 2
    assert len(run.job.stack) == 2
    # The delay counts from the worker's clock before the script, the events from the server's in it.
    (first, _), (second, _) = _events(run.job, "active")
    ((_, delayed),) = _events(run.job, "delayed")
    assert first + 2000 <= int(delayed["delay"]) <= second


def _events(job: Job, name: str) -> list[tuple[int, dict[str, str]]]:
    """When each event of this name was emitted for the job, ms, and its fields."""
    stream: Any = job.client.xrange(f"{job.base}events")
    return [(int(at.split("-")[0]), event) for at, event in stream if event.get("jobId") == job.id and event["event"] == name]


@row("unrecoverable", AT, bullmq={"attempts": 5})
def unrecoverable(run: Run) -> None:
    run.job.wait_for("failed", timeout=TIMEOUT_S)
    assert run.runs == 1
    assert run.job.reason == "UnrecoverableError: no use"
    assert run.job.attempts_made == 1


# -- retry, replace ----------------------------------------------------------------------------------------------------------


@row("again", 2, 1.5)  # s; longer than a process that has just begun takes to publish
def retried(run: Run) -> None:
    """It is the same job, and each try is an attempt of it."""
    run.job.wait_for("completed", timeout=TIMEOUT_S)
    assert run.job.returnvalue == {"retries": 2, "id": run.job.id}
    assert _without_delays(run.job) == ["added", "waiting", *("active", "waiting") * 2, "active", "completed"]
    assert run.job.attempts_made == run.job.attempts_started == 3
    assert run.job.reason == "KeyError: 'try 1'"
    assert [trace.splitlines()[-1] for trace in run.job.stack] == ["KeyError: 'try 0'", "KeyError: 'try 1'"]


def _without_delays(job: Job) -> list[str]:
    """A retry that is due by the time it is published, on a busy machine, waits at once; `attempts_used_up` has one that is not."""
    return [event for event in job.history if event != "delayed"]


@row("again_plainly", 1)
def retried_at_once(run: Run) -> None:
    run.job.wait_for("completed", timeout=TIMEOUT_S)
    assert run.job.returnvalue == 1
    assert _without_delays(run.job) == ["added", "waiting", "active", "waiting", "active", "completed"]
    assert run.job.attempts_made == 2


@row("again_quietly")
def retried_without_throwing(run: Run) -> None:
    """What the first run returns after it has asked for another changes nothing."""
    run.job.wait_for("completed", timeout=TIMEOUT_S)
    assert run.job.returnvalue == "second"
    assert run.job.attempts_made == 2


@row("auto", AT, 2)
def retried_for_autoretry(run: Run) -> None:
    run.job.wait_for("completed", timeout=TIMEOUT_S)
    assert run.job.returnvalue == 2
    assert _without_delays(run.job) == ["added", "waiting", *("active", "waiting") * 2, "active", "completed"]


@row("auto", AT, 9)
def autoretry_used_up(run: Run) -> None:
    run.job.wait_for("failed", timeout=TIMEOUT_S)
    assert run.runs == 4
    assert run.job.reason == "ValueError: not yet 4"
    assert run.job.attempts_made == 4
    assert len(run.job.stack) == 4


@row("too_often", with_kwargs={"with_cause": False})
def max_retries_exceeded(run: Run) -> None:
    run.job.wait_for("failed", timeout=TIMEOUT_S)
    assert run.job.reason is not None
    assert run.job.reason.startswith("MaxRetriesExceededError: Can't retry too_often")
    assert run.job.attempts_made == 2


@row("too_often", with_kwargs={"with_cause": True})
def max_retries_exceeded_with_a_cause(run: Run) -> None:
    run.job.wait_for("failed", timeout=TIMEOUT_S)
    assert run.job.reason == "KeyError: 'the cause'"
    assert len(run.job.stack) == 2


@row("replaced", "other")
def replaced(run: Run) -> None:
    """The same job carries on as the replacement; that is no attempt."""
    run.job.wait_for("completed", timeout=TIMEOUT_S)
    assert run.job.returnvalue == "other"
    assert run.job.hash["name"].startswith("echo")
    assert run.job.history == ["added", "waiting", "active", "waiting", "active", "completed"]
    assert run.job.attempts_made == 1


# -- ignored, rejected -------------------------------------------------------------------------------------------------------


@row("ignore")
def ignored(run: Run) -> None:
    run.job.wait_for("completed", timeout=TIMEOUT_S)
    assert run.job.hash["returnvalue"] == "null"


@row("reject")
def rejected(run: Run) -> None:
    run.job.wait_for("failed", timeout=TIMEOUT_S)
    assert run.job.reason == "Reject: not for me"


@row("reject", None, bullmq={"attempts": 3})
def rejected_without_a_word(run: Run) -> None:
    """Rejecting is final."""
    run.job.wait_for("failed", timeout=TIMEOUT_S)
    assert run.job.reason == "Reject: rejected"
    assert run.job.attempts_made == 1


@row("reject_once", AT)
def rejected_and_requeued(run: Run) -> None:
    run.job.wait_for("completed", timeout=TIMEOUT_S)
    assert run.job.returnvalue == "later"
    assert run.job.history == ["added", "waiting", "active", "waiting", "active", "completed"]
    assert run.job.attempts_made == 1
    assert run.job.attempts_started == 2


# -- never begun -------------------------------------------------------------------------------------------------------------


@row("echo", "too late", expires=datetime(2020, 1, 1, tzinfo=timezone.utc))
def expired(run: Run) -> None:
    run.job.wait_for("failed", timeout=TIMEOUT_S)
    assert run.job.reason == "TaskRevokedError: expired"


@row("two", 1, 2, 3)
def called_with_wrong_arguments(run: Run) -> None:
    run.job.wait_for("failed", timeout=TIMEOUT_S)
    assert run.job.reason is not None
    assert run.job.reason.startswith("TypeError: two() takes from 2 to 3 positional arguments but 4 were given")


# -- ended from outside ------------------------------------------------------------------------------------------------------


@row("soft", pools=PROCESSES)
def soft_time_limit(run: Run) -> None:
    run.job.wait_for("failed", timeout=TIMEOUT_S)
    assert run.job.reason is not None
    assert run.job.reason.startswith("SoftTimeLimitExceeded")
    assert "time.sleep(30)" in run.job.stack[0]


@row("hard", pools=(*PROCESSES, "gevent"))
def hard_time_limit(run: Run) -> None:
    run.job.wait_for("failed", timeout=TIMEOUT_S)
    assert run.job.reason is not None
    assert run.job.reason.startswith("TimeLimitExceeded")
    assert run.job.attempts_started == 1


@row("hard_again", AT, pools=(*PROCESSES, "gevent"))
def hard_time_limit_not_acknowledged(run: Run) -> None:
    """`acks_on_timeout=False` puts a task acknowledged late back. With a process Celery rejects it for good before 5.5."""
    if run.is_late and (run.pool not in PROCESSES or celery.VERSION >= (5, 5)):
        run.job.wait_for("completed", timeout=TIMEOUT_S)
        assert run.job.returnvalue == "in time"
        assert run.job.attempts_made == 1
    else:
        run.job.wait_for("failed", timeout=TIMEOUT_S)
        assert run.runs == 1


@row("die", AT, pools=PROCESSES)
def child_killed(run: Run) -> None:
    run.job.wait_for("failed", timeout=TIMEOUT_S)
    assert run.job.reason is not None
    assert run.job.reason.startswith("WorkerLostError: Worker exited prematurely: signal 9 (SIGKILL)")
    assert run.runs == 1
    assert "defa" not in run.job.hash


@row("die_requeued", AT, pools=PROCESSES)
def child_killed_with_reject_on_worker_lost(run: Run) -> None:
    if run.is_late:
        run.job.wait_for("completed", timeout=TIMEOUT_S)
        assert run.job.returnvalue == "alive"
        assert run.job.history == ["added", "waiting", "active", "waiting", "active", "completed"]
    else:
        run.job.wait_for("failed", timeout=TIMEOUT_S)
        assert run.runs == 1


@row("die_retried", AT, pools=PROCESSES)
def child_killed_with_retry_on_worker_lost(run: Run) -> None:
    """The worker's main process publishes the retry: still the same job. Celery before 5.7 does not know this option."""
    run.job.wait_for("failed" if celery.VERSION < (5, 7) else "completed", timeout=TIMEOUT_S)
    if celery.VERSION < (5, 7):
        return
    assert run.job.returnvalue == "alive"
    assert _without_delays(run.job) == ["added", "waiting", "active", "waiting", "active", "completed"]
    assert run.job.attempts_made == 2


@row("leave", pools=PROCESSES)
def left(run: Run) -> None:
    """sys.exit() in a task."""
    run.job.wait_for("failed", timeout=TIMEOUT_S)
    assert run.job.reason is not None
    assert run.job.reason.startswith("WorkerLostError: Worker exited prematurely")


# -- running them ------------------------------------------------------------------------------------------------------------


class Pool:
    """A worker of one pool, with every row sent to it once early and once late."""

    def __init__(self, server: Server, folder: Path, app: Celery, pool: str) -> None:
        self.queue = f"q-{pool}-{secrets.token_hex(4)}"
        # Looking for stalled jobs must not be what keeps the locks.
        options = {"lock_duration": 2.0, "stalled_interval": 5.0}
        # How long after a spawned process what its task had to say may still come, and how long one may take to begin, s.
        spawn = {"worker_pool_start_method": "spawn", "worker_lost_wait": 1.0, "worker_proc_alive_timeout": 60.0}
        self.worker = Worker(
            server, folder, [self.queue], pool="prefork" if pool in PROCESSES else pool, concurrency=1 if pool == "solo" else 4,
            options=options, settings=spawn if pool == "spawn" else {},
        )  # fmt: skip
        self._client = server.client()
        self._folder = folder
        self.name = pool
        self.runs = {}
        for name, one in ROWS.items():
            if pool in one.pools:
                for is_late in (False, True):
                    self.runs[name, is_late] = self._send(app, name, one, is_late)

    def _send(self, app: Celery, name: str, one: Row, is_late: bool) -> Run:
        at = str(self._folder / f"{name}-{'late' if is_late else 'early'}")
        options = dict(one.options)
        sent = app.send_task(
            f"{one.task}.late" if is_late else one.task,
            args=[at if value is AT else value for value in one.args],
            kwargs=options.pop("with_kwargs", None),
            queue=self.queue,
            **options,
        )
        return Run(Job(self._client, self.queue, sent.id), at, self.name, is_late)

    def close(self) -> None:
        self.worker.stop()
        self._client.close()


@pytest.fixture(scope="module")
def pool_of(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Pool]]:
    """`pool_of(name)`: the pool of that name. It is closed when another is asked for, as the tests come pool by pool."""
    with contextlib.ExitStack() as current, sender(server) as app:
        opened: list[Pool] = []

        def get(name: str) -> Pool:
            if not opened or opened[-1].name != name:
                current.close()
                one = Pool(server, tmp_path_factory.mktemp(name), app, name)
                current.enter_context(one.worker.start())
                current.callback(one.close)
                opened.append(one)
            return opened[-1]

        yield get


CASES = [(pool, name, is_late) for pool in POOLS for name in ROWS if pool in ROWS[name].pools for is_late in (False, True)]


@pytest.mark.parametrize(
    ("pool", "name", "is_late"), CASES, ids=[f"{pool}-{name}-{'late' if is_late else 'early'}" for pool, name, is_late in CASES]
)  # fmt: skip
def test_row(pool_of: Callable[[str], Pool], pool: str, name: str, is_late: bool) -> None:
    one = pool_of(pool)
    try:
        ROWS[name].check(one.runs[name, is_late])
    except BaseException:
        print(one.runs[name, is_late].job)
        one.worker.show()
        raise
