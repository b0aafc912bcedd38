"""Random sequences of everything at once: Hypothesis draws them, both sides do them, and after each step nothing may differ.

`python -m pytest tests/conformance --long` tries 2,000 sequences of 30 steps for each major version; without it, it is 100. A sequence that
fails is shrunk, and the message lists its steps.
"""

from __future__ import annotations

import os
from typing import Any

import pytest
from comparison import Comparison, MakeComparison
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test
from keyspace import Picture, left_out
from sides import PLAIN, Refused, WorkerOptions

STEPS = 30
#: To shrink a long sequence takes minutes; whoever is in a hurry reads it as it was drawn.
PHASES = [Phase.generate] if os.environ.get("BULLMQ_KOMBU_UNSHRUNK") else [Phase.generate, Phase.shrink]
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
        {"ttl": 900_000, "extend": True, "replace": True}, {"keepLastIfActive": True}, {"reschedule": True},
    ]),
)  # fmt: skip
policies = st.sampled_from([
    {}, {"failParentOnFailure": True}, {"ignoreDependencyOnFailure": True}, {"removeDependencyOnFailure": True},
    {"continueParentOnFailure": True},
])  # fmt: skip
repeats = st.sampled_from([
    None, {"every": 10}, {"every": 500, "offset": 20}, {"every": 500, "limit": 2}, {"pattern": "*/7 * * * * *"}, {"pattern": "* * * * *"},
])  # fmt: skip
templates = st.sampled_from([{}, {"name": "tick", "data": {"n": 1}}, {"opts": {"priority": 1, "attempts": 2}}])


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
        self.flows = 0
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

    def _fit(self, opts: dict[str, Any]) -> dict[str, Any]:
        if self.is_v5 and "deduplication" in opts:
            left_out("reschedule, 5")
            opts["deduplication"].pop("reschedule", None)
        return opts

    # -- producing

    @initialize(names=st.lists(st.sampled_from(["n", "m"]), max_size=3))
    def begin(self, names: list[str]) -> None:
        for name in names:
            self._know(self.both.do("add", name, {}, {}))

    @rule(opts=job_options(), data=values)
    def add(self, opts: dict[str, Any], data: Any) -> None:
        self._know(self.both.do("add", "n", {} if data is None else data, self._fit(opts)))
        self._done()

    @rule(opts=st.lists(job_options(), min_size=1, max_size=3))
    def add_bulk(self, opts: list[dict[str, Any]]) -> None:
        self._know(self.both.do("add_bulk", [{"name": "b", "data": {}, "opts": self._fit(one)} for one in opts]))
        self._done()

    @rule(opts=job_options(), parent=pick, policy=policies)
    def add_child(self, opts: dict[str, Any], parent: int, policy: dict[str, bool]) -> None:
        opts.pop("deduplication", None)
        parent_id = self._id(parent)
        if ":" in parent_id or opts.get("jobId") == "x:y:z" or self._knows_other_parent(opts.get("jobId"), parent_id):
            left_out("colon in a parent's id")
            return
        self._know(self.both.do("add", "child", {}, {**opts, **policy, "parent": {"id": parent_id, "queue": f"bull:{self.both.queue}"}}))
        self._done()

    @rule(families=st.lists(st.tuples(job_options(), policies, st.booleans()), min_size=1, max_size=3), opts=job_options())
    def add_flow(self, families: list[tuple[dict[str, Any], dict[str, bool], bool]], opts: dict[str, Any]) -> None:
        """A parent with children; some of them have a child of their own."""
        self.flows += 1
        parent = f"f{self.flows}"
        children = []
        for number, (child_opts, policy, has_child) in enumerate(families):
            child_id = f"{parent}-{number}"
            child = self._node(child_id, {**child_opts, **policy})
            if has_child:
                child["children"] = [self._node(f"{child_id}-0", policy)]
            children.append(child)
        self._know(self.both.do("add_flow", {**self._node(parent, opts), "children": children}))
        self._done()

    def _node(self, job_id: str, opts: dict[str, Any]) -> dict[str, Any]:
        kept = {name: value for name, value in opts.items() if name not in ("deduplication", "jobId")}
        return {"name": "f", "queueName": self.both.queue, "data": {}, "opts": {**kept, "jobId": job_id}}

    def _knows_other_parent(self, job_id: str | None, parent_id: str) -> bool:
        left_out("parent gone, 5")
        known = self._field(job_id, "parentKey") if job_id else None
        return job_id == parent_id or (self.is_v5 and known is not None and not self.both.our_client.exists(known))

    # -- working

    @rule(wanted=st.integers(1, 3))
    def take(self, wanted: int) -> None:
        token = self._token()
        if self._ids_of("repeat"):
            left_out("several of a scheduler")
            wanted = 1
        self._hold(self.both.do("take", token, wanted), token)
        self._done()

    def _work(self, outcome: str = "complete", value: Any = 1, message: str = "boom", fetch_next: bool = False) -> None:
        """A worker takes a job and ends it, and with `fetch_next` has the next one in hand."""
        token = self._token()
        taken = self.both.do("take", token, 1)
        self._hold(taken, token)
        if taken and self._can_end(taken[0], token, children=False):  # else it was failed as it was taken
            if outcome == "complete":
                self._complete(taken[0], token, value, fetch_next)
            else:
                self._fail(taken[0], token, message, outcome == "unrecoverable", fetch_next)
        self._done()

    @rule(outcome=st.sampled_from(["complete", "fail", "unrecoverable"]), value=values, message=texts, fetch_next=st.booleans())
    def work(self, outcome: str, value: Any, message: str, fetch_next: bool) -> None:
        self._work(outcome, value, message, fetch_next)

    @precondition(lambda self: self.held)
    @rule(place=pick, value=values, fetch_next=st.booleans())
    def complete(self, place: int, value: Any, fetch_next: bool) -> None:
        self._complete(*self._held(place), value, fetch_next)

    def _complete(self, job_id: str, token: str, value: Any, fetch_next: bool) -> None:
        fetch_next = fetch_next and self._can_end(job_id, token, children=True)
        answer = self.both.do("complete", job_id, token, value, fetch_next)
        self._ended(job_id, token, answer)

    @precondition(lambda self: self.held)
    @rule(place=pick, message=texts, unrecoverable=st.sampled_from([False, False, False, True]), fetch_next=st.booleans())
    def fail(self, place: int, message: str, unrecoverable: bool, fetch_next: bool) -> None:
        self._fail(*self._held(place), message, unrecoverable, fetch_next)

    def _fail(self, job_id: str, token: str, message: str, unrecoverable: bool, fetch_next: bool) -> None:
        fetch_next = fetch_next and self._can_end(job_id, token, children=False)
        answer = self.both.do("fail", job_id, token, message, unrecoverable=unrecoverable, fetch_next=fetch_next)
        self._ended(job_id, token, answer)

    def _can_end(self, job_id: str, token: str, *, children: bool) -> bool:
        """Whether the end will be accepted."""
        left_out("next after a refused end")
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
    @rule(place=pick, what=st.sampled_from(["delay", "put_back", "extend", "end_with_another_token"]), ms=st.sampled_from([1, 10, 500]))
    def keep_or_leave(self, place: int, what: str, ms: int) -> None:
        job_id, token = self._held(place)
        if what == "delay":
            self._ended(job_id, token, self.both.do("delay", job_id, token, self.both.now + ms))
        elif what == "put_back":
            self._ended(job_id, token, self.both.do("put_back", job_id, token))
        elif what == "extend":
            left_out("expired lock extended")
            if self.both.our_client.exists(f"{self.base}{job_id}:lock"):
                self.both.do("extend", job_id, token)
        else:
            self.both.do("complete", job_id, "nobody's", 1)
        self._done()

    @precondition(lambda self: self.held)
    @rule(place=pick)
    def wait_children(self, place: int) -> None:
        job_id, token = self._held(place)
        before = self._field(job_id, "name"), self.both.our_client.zscore(f"{self.base}waiting-children", job_id)
        self.both.do("wait_children", job_id, token)
        if before[1] is None and self.both.our_client.zscore(f"{self.base}waiting-children", job_id) is not None:
            self.held.remove((job_id, token))
        self._done()

    @precondition(lambda self: self.held)
    @rule(place=pick, checks=st.integers(0, 2))
    def lose_lock(self, place: int, checks: int) -> None:
        self.both.lose_lock(self._held(place)[0])
        for _ in range(checks):
            self.recover()

    @rule()
    def recover(self) -> None:
        picture = Picture(self.both.our_client)
        active = picture.raw.get(f"{self.base}active", ("list", []))[1]
        stalled = [job_id for job_id in active if f"{self.base}{job_id}:lock" not in picture.raw]
        if any(self._priority(job_id) for job_id in stalled):
            left_out("stalled with a priority")
            return
        if self.is_v5 and "max" in self._meta():
            left_out("limit and a job to fail, 5")
            return
        self.both.recover()
        self._done()

    def _meta(self) -> dict[str, str]:
        found: Any = self.both.our_client.hgetall(f"{self.base}meta")
        return dict(found)

    @rule(ms=st.sampled_from([1, 10, 500, 61_000]))
    def later(self, ms: int) -> None:
        self.both.later(ms)

    # -- the queue

    @rule(rarely=st.integers(0, 2))
    def pause_or_resume(self, rarely: int) -> None:
        if self.paused or rarely == 0:
            self.both.do("resume" if self.paused else "pause")
            self.paused = not self.paused
        else:
            self._work()
        self._done()

    @rule(what=st.sampled_from(["concurrency", "global_rate_limit", "rate_limit", "free_deduplication"]), choice=st.integers(0, 2))
    def configure(self, what: str, choice: int) -> None:
        if what == "concurrency":
            self.both.do("set_global_concurrency", (None, 1, 2)[choice])
        elif what == "free_deduplication":
            self.both.do("remove_deduplication_key", "de"[choice % 2])
        elif what == "rate_limit":
            self.both.do(*(("rate_limit", 900_000) if choice == 0 else ("remove_rate_limit_key",)))
        elif not (self.is_v5 and any(self._field(job_id, "defa") for job_id in self.ids)):
            self.both.do("set_global_rate_limit", (None, (1, 900_000), (3, 900_000))[choice])
        self._done()

    @rule(delayed=st.booleans(), rarely=st.integers(0, 2))
    def drain(self, delayed: bool, rarely: int) -> None:
        left_out("drain beside a scheduler")
        if rarely == 0 and not self._ids_of("repeat"):
            self.both.do("drain", delayed)
        else:
            self._work()
        self._done()

    @rule(grace=st.sampled_from([0, 5, 600]), limit=st.integers(0, 2), state=st.sampled_from(QUEUE_STATES))
    def clean(self, grace: int, limit: int, state: str) -> None:
        if self.is_v5 and self.paused and state == "waiting":
            left_out("clean waiting while paused, 5")
            return
        if state not in ("completed", "failed"):
            left_out("clean with a limit")
            limit = 0
        self.both.do("clean", grace, limit, state)
        self._done()

    @rule(state=st.sampled_from(["completed", "failed", "delayed"]), count=st.sampled_from([1, 1000]), ago=st.sampled_from([0, 10]))
    def move_many(self, state: str, count: int, ago: int) -> None:
        ids = self._ids_of(state)
        if any(self._priority(job_id) or (self.is_v5 and self._field(job_id, "parentKey")) for job_id in ids):
            left_out("many moved with priorities")
            return
        if state == "delayed":
            self.both.promote_jobs(ids)
        else:
            self.both.do("retry_jobs", state, count, self.both.now - ago)
        self._done()

    @rule(name=st.sampled_from(["s", "t"]), template=templates, repeat=repeats)
    def schedule(self, name: str, repeat: dict[str, Any] | None, template: dict[str, Any]) -> None:
        if self.paused:
            left_out("upsert while paused")
            return
        if repeat is not None and "pattern" in repeat and self._did_early(name):
            left_out("pattern after an early iteration")
            return
        if repeat is None:
            self.both.do("remove_scheduler", name)
        else:
            self.both.do("upsert_scheduler", name, repeat, template)
        self._done()

    def _did_early(self, scheduler: str) -> bool:
        """Whether an iteration other than the current one is there whose time has not come."""
        current: Any = self.both.our_client.zscore(f"{self.base}repeat", scheduler)
        keys: Any = self.both.our_client.keys(f"{self.base}repeat:{scheduler}:*")
        times = {int(key.split(":")[4]) for key in keys} - {int(current or 0)}
        return any(time > self.both.now for time in times)

    # -- one job

    def _one_of(self, states: tuple[str, ...], place: int) -> str:
        """A job that is in one of the states, if there is any; else any job."""
        ids = [job_id for state in states for job_id in self._ids_of(state)]
        return ids[place % len(ids)] if ids and place % 5 else self._id(place)

    @rule(place=pick, children=st.booleans())
    def remove(self, place: int, children: bool) -> None:
        self.both.do("remove", self._id(place), children)
        self._done()

    @rule(place=pick, delay=st.sampled_from([None, 0, 10, 500]))
    def promote_or_change_delay(self, place: int, delay: int | None) -> None:
        job_id = self._one_of(("delayed",), place)
        if delay is None:
            self.both.do("promote", job_id)
        else:
            self.both.do("change_delay", job_id, delay)
        self._done()

    @rule(place=pick, other=st.sampled_from([False, False, True]), made=st.booleans(), started=st.booleans())
    def retry(self, place: int, other: bool, made: bool, started: bool) -> None:
        job_id = self._one_of(("completed", "failed"), place)
        if self.is_v5 and self._priority(job_id):
            left_out("retry with a priority, 5")
            return
        is_failed = self.both.our_client.zscore(f"{self.base}failed", job_id) is not None
        self.both.do("retry", job_id, "failed" if is_failed != other else "completed", made, started)
        self._done()

    @rule(place=pick, priority=st.sampled_from([0, 1, 3]), lifo=st.booleans())
    def change_priority(self, place: int, priority: int, lifo: bool) -> None:
        self.both.do("change_priority", self._id(place), priority, lifo)
        self._done()

    @rule(place=pick, value=values, what=st.sampled_from(["update_data", "update_progress", "log", "clear_logs"]), keep=st.integers(0, 1))
    def tell(self, place: int, value: Any, what: str, keep: int) -> None:
        argument = {"log": "a line", "clear_logs": keep}.get(what, 1 if value is None else value)
        self.both.do(what, self._id(place), argument)
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
        both = make_comparison(WORKERS[worker])
        if both.version == "v5":
            left_out("limit and a job to fail, 5")
            both = make_comparison(WorkerOptions(metrics=3, remove_on_complete={"count": 3}) if worker == "limited" else WORKERS[worker])
        sequence.both = both
        return sequence

    run_state_machine_as_test(
        start,
        settings=settings(
            max_examples=sequences // len(WORKERS), stateful_step_count=STEPS, deadline=None, database=None, print_blob=True,
            suppress_health_check=list(HealthCheck), phases=PHASES,
        ),
    )  # fmt: skip
