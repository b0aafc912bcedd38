"""Random sequences of everything at once: Hypothesis draws them, both sides do them, and after each step nothing may differ.

`python -m pytest tests/conformance --long` tries 2,000 sequences of 30 steps for each major version; without it, it is 100. A sequence that
fails is shrunk, and the message lists its steps.
"""

from __future__ import annotations

from typing import Any

import pytest
from comparison import Comparison
from conftest import MakeComparison
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test
from keyspace import Picture
from sides import PLAIN, Refused, WorkerOptions

STEPS = 30
QUEUE_STATES = ("waiting", "active", "delayed", "prioritized", "completed", "failed")

# -- what is drawn -----------------------------------------------------------------------------------------------------------------

pick = st.integers(0, 20)
texts = st.sampled_from(["boom", "", "ä", "two\nlines"])
values = st.sampled_from([None, 0, 1.5, "text", {"a": [1, None]}, [], {}])
keeps = st.sampled_from([None, None, None, True, 1, 2, False, {"age": 1}, {"age": 1, "count": 2}, {"count": 1}])
backoffs = st.sampled_from([None, None, 10, {"type": "fixed", "delay": 20}, {"type": "exponential", "delay": 5}])
deduplications = st.builds(
    lambda name, mode: {"id": name, **mode},
    st.sampled_from(["d", "e"]),
    st.sampled_from([
        {}, {"ttl": 900_000}, {"ttl": 900_000, "extend": True}, {"replace": True}, {"ttl": 900_000, "replace": True},
        {"ttl": 900_000, "extend": True, "replace": True}, {"keepLastIfActive": True},
    ]),
)  # fmt: skip
policies = st.sampled_from([
    {}, {"failParentOnFailure": True}, {"ignoreDependencyOnFailure": True}, {"removeDependencyOnFailure": True},
    {"continueParentOnFailure": True},
])  # fmt: skip


@st.composite
def job_options(draw: st.DrawFn) -> dict[str, Any]:
    """Options of one job, mostly few."""
    opts: dict[str, Any] = {}
    if draw(st.booleans()):
        opts["delay"] = draw(st.sampled_from([0, 10, 10, 500]))
    if draw(st.booleans()):
        opts["priority"] = draw(st.sampled_from([0, 1, 1, 3, 2_097_151]))
    if draw(st.booleans()):
        opts["attempts"] = draw(st.integers(0, 3))
        backoff = draw(backoffs)
        if backoff is not None:
            opts["backoff"] = backoff
    for name, strategy in (
        ("lifo", st.sampled_from([None, None, True])), ("removeOnComplete", keeps), ("removeOnFail", keeps),
        ("jobId", st.sampled_from([None, None, None, "a", "b", "x:y:z"])), ("keepLogs", st.sampled_from([None, None, 1])),
        ("stackTraceLimit", st.sampled_from([None, None, 1, 0])), ("deduplication", st.none() | deduplications),
    ):  # fmt: skip
        value = draw(strategy)
        if value is not None:
            opts[name] = value
    return opts


class Sequence(RuleBasedStateMachine):
    """One sequence. `both` is set by whoever runs it."""

    both: Comparison

    def __init__(self) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.held: list[tuple[str, str]] = []
        self.tokens = 0
        self.paused = False

    def _done(self) -> None:
        self.both.compare()

    def _know(self, answer: Any) -> None:
        for job_id in answer if isinstance(answer, list) else [answer]:
            if isinstance(job_id, str) and job_id not in self.ids:
                self.ids.append(job_id)

    def _hold(self, answer: Any, token: str) -> None:
        for job_id in answer if isinstance(answer, list) else [answer]:
            if isinstance(job_id, str):
                self.held.append((job_id, token))
                self._know(job_id)  # keepLastIfActive adds jobs of its own

    def _id(self, place: int) -> str:
        return self.ids[place % len(self.ids)] if self.ids else "nobody"

    def _held(self, place: int) -> tuple[str, str]:
        return self.held[-1 - place % len(self.held)]

    def _token(self) -> str:
        self.tokens += 1
        return f"worker:{self.tokens}"

    @property
    def base(self) -> str:
        return f"bull:{self.both.queue}:"

    def _field(self, job_id: str, field: str) -> Any:
        return self.both.our_client.hget(f"{self.base}{job_id}", field)

    def _priority(self, job_id: str) -> int:
        return int(self._field(job_id, "priority") or 0)

    def _ids_of(self, state: str) -> list[str]:
        found: Any = self.both.our_client.zrange(f"{self.base}{state}", 0, -1)
        return list(found)

    @property
    def is_v5(self) -> bool:
        return self.both.version == "v5"

    # -- producing

    @initialize(names=st.lists(st.sampled_from(["n", "m"]), max_size=3))
    def begin(self, names: list[str]) -> None:
        for name in names:
            self._know(self.both.do("add", name, {}, {}))

    @rule(opts=job_options(), data=values)
    def add(self, opts: dict[str, Any], data: Any) -> None:
        self._know(self.both.do("add", "n", {} if data is None else data, opts))
        self._done()

    @rule(opts=job_options())
    def add_more(self, opts: dict[str, Any]) -> None:
        self._know(self.both.do("add", "n", {}, opts))
        self._done()

    @rule(opts=st.lists(job_options(), min_size=1, max_size=3))
    def add_bulk(self, opts: list[dict[str, Any]]) -> None:
        self._know(self.both.do("add_bulk", [{"name": "b", "data": {}, "opts": one} for one in opts]))
        self._done()

    @rule(opts=job_options(), parent=pick, policy=policies)
    def add_child(self, opts: dict[str, Any], parent: int, policy: dict[str, bool]) -> None:
        opts.pop("deduplication", None)
        parent_id = self._id(parent)
        if "x:y:z" in (parent_id, opts.get("jobId")) or self._knows_other_parent(opts.get("jobId"), parent_id):
            return  # full keys are split at their last colon, on both sides alike, and then name another job
        self._know(self.both.do("add", "child", {}, {**opts, **policy, "parent": {"id": parent_id, "queue": f"bull:{self.both.queue}"}}))
        self._done()

    def _knows_other_parent(self, job_id: str | None, parent_id: str) -> bool:
        # BullMQ 5 refuses a new parent also when the old one is gone; 6 and we do not.
        known = self._field(job_id, "parentKey") if job_id else None
        return job_id == parent_id or (self.is_v5 and known is not None and not self.both.our_client.exists(known))

    @rule(name=st.sampled_from(["d", "e"]))
    def free_deduplication(self, name: str) -> None:
        self.both.do("remove_deduplication_key", name)
        self._done()

    # -- working

    @rule(wanted=st.integers(1, 3))
    def take(self, wanted: int) -> None:
        token = self._token()
        self._hold(self.both.do("take", token, wanted), token)
        self._done()

    @rule()
    def take_one(self) -> None:
        self.take(1)

    @precondition(lambda self: self.held)
    @rule(place=pick, value=values, fetch_next=st.booleans())
    def complete(self, place: int, value: Any, fetch_next: bool) -> None:
        job_id, token = self._held(place)
        fetch_next = fetch_next and self._can_end(job_id, token, children=True)
        answer = self.both.do("complete", job_id, token, value, fetch_next)
        self._ended(job_id, token, answer)

    @precondition(lambda self: self.held)
    @rule(place=pick, message=texts, unrecoverable=st.sampled_from([False, False, False, True]), fetch_next=st.booleans())
    def fail(self, place: int, message: str, unrecoverable: bool, fetch_next: bool) -> None:
        job_id, token = self._held(place)
        fetch_next = fetch_next and self._can_end(job_id, token, children=False)
        answer = self.both.do("fail", job_id, token, message, unrecoverable=unrecoverable, fetch_next=fetch_next)
        self._ended(job_id, token, answer)

    def _can_end(self, job_id: str, token: str, *, children: bool) -> bool:
        """Whether the end will be accepted. If not, Node fetches nothing either, and we take the next job all the same, as asked."""
        key = f"{self.base}{job_id}"
        client = self.both.our_client
        if children and client.exists(f"{key}:dependencies", f"{key}:unsuccessful"):
            return False
        return client.get(f"{key}:lock") == token and bool(client.exists(key))

    def _ended(self, job_id: str, token: str, answer: Any) -> None:
        if not isinstance(answer, Refused):
            self.held.remove((job_id, token))
            self._hold(answer, token)
        self._done()

    @precondition(lambda self: self.held)
    @rule(place=pick)
    def end_with_another_token(self, place: int) -> None:
        job_id, _ = self._held(place)
        self.both.do("complete", job_id, "nobody's", 1)
        self._done()

    @precondition(lambda self: self.held)
    @rule(place=pick, ms=st.sampled_from([0, 10, 500]))
    def delay(self, place: int, ms: int) -> None:
        job_id, token = self._held(place)
        if ms > 0:  # a delay of 0 is the next in line here and due at once there
            self._ended(job_id, token, self.both.do("delay", job_id, token, self.both.now + ms))

    @precondition(lambda self: self.held)
    @rule(place=pick)
    def put_back(self, place: int) -> None:
        job_id, token = self._held(place)
        self._ended(job_id, token, self.both.do("put_back", job_id, token))

    @precondition(lambda self: self.held)
    @rule(place=pick)
    def extend(self, place: int) -> None:
        job_id, token = self._held(place)
        self.both.do("extend", job_id, token)
        self._done()

    @precondition(lambda self: self.held)
    @rule(place=pick)
    def lose_lock(self, place: int) -> None:
        self.both.lose_lock(self._held(place)[0])

    @rule()
    def recover(self) -> None:
        picture = Picture(self.both.our_client)
        active = picture.raw.get(f"{self.base}active", ("list", []))[1]
        stalled = [job_id for job_id in active if f"{self.base}{job_id}:lock" not in picture.raw]
        if any(self._priority(job_id) for job_id in stalled):
            return  # upstream puts them into `wait`; we keep their priority (test_administration and protocol 16.12)
        if self.is_v5 and "max" in self._meta():
            return  # BullMQ 5 counts a job that is only to be failed against the rate limit; 6 and we do not
        self.both.recover()
        self._done()

    def _meta(self) -> dict[str, str]:
        found: Any = self.both.our_client.hgetall(f"{self.base}meta")
        return dict(found)

    @rule(ms=st.sampled_from([1, 10, 500, 61_000]))
    def later(self, ms: int) -> None:
        self.both.later(ms)

    # -- the queue

    @rule()
    def pause_or_resume(self) -> None:
        self.both.do("resume" if self.paused else "pause")
        self.paused = not self.paused
        self._done()

    @rule(delayed=st.booleans())
    def drain(self, delayed: bool) -> None:
        self.both.do("drain", delayed)
        self._done()

    @rule(grace=st.sampled_from([0, 5, 600]), limit=st.integers(0, 2), state=st.sampled_from(QUEUE_STATES))
    def clean(self, grace: int, limit: int, state: str) -> None:
        if self.is_v5 and self.paused and state == "waiting":
            return  # there it is a state of its own
        if state in ("active", "waiting"):
            limit = 0  # upstream counts the jobs it may not remove against the limit; we remove as many as there may be
        self.both.do("clean", grace, limit, state)
        self._done()

    @rule(concurrency=st.sampled_from([None, 1, 2]))
    def concurrency(self, concurrency: int | None) -> None:
        self.both.do("set_global_concurrency", concurrency)
        self._done()

    @rule(limit=st.sampled_from([None, (1, 900_000), (3, 900_000)]))
    def global_rate_limit(self, limit: tuple[int, int] | None) -> None:
        if self.is_v5 and any(self._field(job_id, "defa") for job_id in self.ids):
            return
        self.both.do("set_global_rate_limit", limit)
        self._done()

    @rule(closed=st.booleans())
    def rate_limit(self, closed: bool) -> None:
        if closed:
            self.both.do("rate_limit", 900_000)
        else:
            self.both.do("remove_rate_limit_key")
        self._done()

    @rule(state=st.sampled_from(["completed", "failed"]), count=st.sampled_from([1, 1000]), ago=st.sampled_from([0, 10]))
    def retry_jobs(self, state: str, count: int, ago: int) -> None:
        if any(self._priority(job_id) or (self.is_v5 and self._field(job_id, "parentKey")) for job_id in self._ids_of(state)):
            return  # upstream forgets priorities; BullMQ 5 also that a parent waits again
        self.both.do("retry_jobs", state, count, self.both.now - ago)
        self._done()

    @rule()
    def promote_jobs(self) -> None:
        delayed = self._ids_of("delayed")
        if any(self._priority(job_id) for job_id in delayed):
            return
        self.both.do("promote_jobs")
        for job_id in delayed:  # upstream leaves the old delay in the hash
            self.both.node_client.hset(f"{self.base}{job_id}", "delay", 0)
        self._done()

    # -- one job

    @rule(place=pick, children=st.booleans())
    def remove(self, place: int, children: bool) -> None:
        self.both.do("remove", self._id(place), children)
        self._done()

    @rule(place=pick)
    def promote(self, place: int) -> None:
        self.both.do("promote", self._id(place))
        self._done()

    @rule(place=pick, state=st.sampled_from(["completed", "failed"]), made=st.booleans(), started=st.booleans())
    def retry(self, place: int, state: str, made: bool, started: bool) -> None:
        job_id = self._id(place)
        if self.is_v5 and self._priority(job_id):
            return  # BullMQ 5 forgets the priority
        self.both.do("retry", job_id, state, made, started)
        self._done()

    @rule(place=pick, priority=st.sampled_from([0, 1, 3]), lifo=st.booleans())
    def change_priority(self, place: int, priority: int, lifo: bool) -> None:
        self.both.do("change_priority", self._id(place), priority, lifo)
        self._done()

    @rule(place=pick, delay=st.sampled_from([0, 10, 500]))
    def change_delay(self, place: int, delay: int) -> None:
        self.both.do("change_delay", self._id(place), delay)
        self._done()

    @rule(place=pick, value=values, what=st.sampled_from(["update_data", "update_progress"]))
    def update(self, place: int, value: Any, what: str) -> None:
        self.both.do(what, self._id(place), 1 if value is None else value)
        self._done()

    @rule(place=pick, keep=st.sampled_from([None, None, 0, 1]))
    def log(self, place: int, keep: int | None) -> None:
        if keep is None:
            self.both.do("log", self._id(place), "a line")
        else:
            self.both.do("clear_logs", self._id(place), keep)
        self._done()

    @rule(place=pick)
    def look(self, place: int) -> None:
        self.both.do("counts")
        self.both.do("state", self._id(place))
        for state in QUEUE_STATES:
            self.both.do("ids", state, 0, -1, True)


WORKERS = {
    "plain": PLAIN,
    "limited": WorkerOptions(limiter={"max": 2, "duration": 900_000}, metrics=3, remove_on_complete={"count": 3}),
}


@pytest.mark.parametrize("worker", WORKERS)
@pytest.mark.timeout(0)
def test_random_sequences(make_comparison: MakeComparison, sequences: int, worker: str) -> None:
    def start() -> Sequence:
        sequence = Sequence()
        sequence.both = make_comparison(WORKERS[worker])
        return sequence

    run_state_machine_as_test(
        start,
        settings=settings(
            max_examples=sequences // len(WORKERS), stateful_step_count=STEPS, deadline=None, database=None, print_blob=True,
            suppress_health_check=list(HealthCheck), phases=[Phase.generate, Phase.shrink],
        ),
    )  # fmt: skip
