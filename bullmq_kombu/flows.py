"""Flows: trees of jobs in which a parent runs after its children, with their values at hand.

    with FlowProducer("bullmq://redis:6379/0") as flows:
        flows.add({
            "name": "album", "queueName": "albums", "children": [
                {"name": "resize", "queueName": "images", "data": {"path": "a.png"}, "opts": {"failParentOnFailure": True}},
                resize.s(path="b.png").set(queue="images"),
            ],
        })

A node is a dictionary with BullMQ's names (`queue_name` for `queueName` is as good), a Celery signature, or a dictionary whose `signature`
is one; each may be in a queue of its own, with a prefix of its own. A flow is stored in one step: all of it, or, where one job of it is
refused, nothing. Knows nothing of Celery but that a signature publishes itself.
"""

from __future__ import annotations

import difflib
import json
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, NamedTuple

from bullmq_kombu import scripts
from bullmq_kombu.collect import collect
from bullmq_kombu.errors import BadInput, job_error
from bullmq_kombu.job import Job, to_data
from bullmq_kombu.job_options import JobOptions, check_size, make_job_options, with_parent
from bullmq_kombu.queue import DEFAULT_URL, Queue, now_ms, server_of

#: BullMQ's limits for reading a flow.
DEPTH, MAX_CHILDREN = 10, 20

_NAMES = {"queue_name": "queueName"}
_NODE = frozenset({"name", "queueName", "data", "opts", "children", "prefix", "signature"})


class JobNode(NamedTuple):
    """A job of a flow and those it waits for."""

    job: Job
    children: list[JobNode]


@dataclass
class _Plan:
    """One job before it is stored."""

    queue: Queue
    name: str
    data: str
    options: JobOptions
    delay: int
    priority: int
    job_id: str
    #: The hash field `celery` for the id it gets.
    celery: Callable[[str], str]
    #: A task's id is its own: a finished job of that id makes way, and where another has it the task's job gets another id.
    is_task: bool
    children: list[_Plan] = field(default_factory=list)


class FlowProducer:
    """Adds flows. `connection` is a `bullmq://` URL, a kombu.Connection, a Celery app or a `connection.Server`.

    :param prefix: of nodes that name none; without it that of the connection's options, `bull` by default.
    :param clock: tells the time in ms.
    """

    def __init__(self, connection: Any = DEFAULT_URL, *, prefix: str | None = None, clock: Callable[[], int] = now_ms) -> None:
        self.server, self._is_own = server_of(connection, prefix)
        self.prefix = prefix if prefix is not None else self.server.options.prefix
        self.clock = clock
        self._queues: dict[tuple[str, str], Queue] = {}

    def __enter__(self) -> FlowProducer:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connections that are its own."""
        if self._is_own:
            self.server.close()

    # -- adding

    def add(self, flow: Any, opts: Mapping[str, Any] | None = None) -> JobNode:
        """Adds one flow. `opts` is BullMQ's: {"queuesOptions": {queue name: {"defaultJobOptions": {…}}}}."""
        return self.add_bulk([flow], opts)[0]

    def add_bulk(self, flows: Iterable[Any], opts: Mapping[str, Any] | None = None) -> list[JobNode]:
        """Adds several flows in one step."""
        defaults = _defaults_of(opts or {})
        plans = [self._plan(flow, defaults, is_root=True) for flow in flows]
        if not plans:
            return []
        now = self.clock()
        for _ in range(3):
            laid = [_lay(plan, parent, now) for plan, parent in _by_level(plans)]
            answers = scripts.add(self.server, [job for _, job in laid], now)
            for (plan, _), answer in zip(laid, answers, strict=True):
                if answer == 0:
                    plan.job_id = str(uuid.uuid4())
            if 0 not in answers:
                break
        for (_, job), answer in zip(laid, answers, strict=True):
            if isinstance(answer, int):
                raise job_error(answer, "addFlow", job.id, parent=str(json.loads(job.more).get("parentKey")))
        stored = {id(plan): job for plan, job in laid}
        return [_told(plan, stored) for plan in plans]

    def _plan(self, node: Any, defaults: Mapping[str, Mapping[str, Any]], *, is_root: bool) -> _Plan:
        if _is_signature(node):
            node = {"signature": node}
        if not isinstance(node, Mapping):
            raise BadInput(f"a node of a flow is a dictionary or a Celery signature, not {node!r}")
        node = {_NAMES.get(name, name): value for name, value in node.items()}
        for name in node.keys() - _NODE:
            near = difflib.get_close_matches(name, _NODE, 1)
            raise BadInput(f"unknown key {name!r} in a node of a flow" + (f": did you mean {near[0]!r}?" if near else ""))
        given = {name: value for name, value in (node.get("opts") or {}).items() if is_root or name != "parent"}
        plan = self._plan_task(node, given) if "signature" in node else self._plan_job(node, given, defaults)
        plan.children = [self._plan(child, defaults, is_root=False) for child in node.get("children") or ()]
        if plan.children and "de" in plan.options.more:
            raise BadInput("a job that waits for children cannot be deduplicated")
        check_size(plan.name, plan.data, plan.options.size_limit)
        return plan

    def _plan_job(self, node: Mapping[str, Any], given: Mapping[str, Any], defaults: Mapping[str, Mapping[str, Any]]) -> _Plan:
        name, queue_name = node.get("name"), node.get("queueName")
        if not isinstance(name, str) or not isinstance(queue_name, str):
            raise BadInput(f"a node of a flow has a 'name' and a 'queueName': {dict(node)!r}")
        options = make_job_options(given, defaults.get(queue_name))
        return _Plan(
            self._queue(node.get("prefix") or self.prefix, queue_name), name, to_data(node.get("data", {})), options, options.delay,
            options.priority, options.job_id or str(uuid.uuid4()), lambda job_id: "", is_task=False,
        )  # fmt: skip

    def _plan_task(self, node: Mapping[str, Any], given: Mapping[str, Any]) -> _Plan:
        signature = node["signature"]
        if not _is_signature(signature):
            raise BadInput(f"no Celery signature: {signature!r}")
        for name in sorted(node.keys() & {"name", "queueName", "data", "prefix"}):
            raise BadInput(f"a node with a signature has no {name!r}: the signature says it")
        if signature["subtask_type"]:
            raise BadInput(f"a {signature['subtask_type']} is no single job: make its tasks nodes of the flow")
        with collect(given) as jobs:
            signature.apply_async()
        if len(jobs) != 1:
            raise BadInput(f"{signature['task']} was not sent to a queue of a bullmq:// broker (task_always_eager, or another broker)")
        prefix, queue_name, outgoing = jobs[0]
        return _Plan(
            self._queue(prefix, queue_name), outgoing.name, outgoing.data, outgoing.options, outgoing.delay, outgoing.priority,
            outgoing.job_id or str(uuid.uuid4()), outgoing.celery_field, is_task=not outgoing.options.job_id,
        )  # fmt: skip

    def _queue(self, prefix: str, name: str) -> Queue:
        queue = self._queues.get((prefix, name))
        if queue is None:
            queue = self._queues[prefix, name] = Queue(name, self.server, prefix=prefix, clock=self.clock)
        return queue

    # -- reading

    def get_flow(
        self, job_id: str, queue_name: str, *, prefix: str | None = None, depth: int = DEPTH, max_children: int = MAX_CHILDREN
    ) -> JobNode | None:
        """The job and what it waits or waited for, `depth` levels of it and up to `max_children` of each kind; None where it is gone."""
        job = self._queue(prefix or self.prefix, queue_name).get_job(job_id)
        if job is None:
            return None
        children = []
        if depth > 1:
            found = job.get_dependencies()
            for kind in ("processed", "unprocessed", "failed", "ignored"):
                for key in list(found[kind])[:max_children]:
                    base, _, child_id = key.rpartition(":")
                    child_prefix, _, child_queue = base.rpartition(":")
                    child = self.get_flow(child_id, child_queue, prefix=child_prefix, depth=depth - 1, max_children=max_children)
                    if child is not None:
                        children.append(child)
        return JobNode(job, children)


def _is_signature(node: Any) -> bool:
    return isinstance(node, Mapping) and "subtask_type" in node and hasattr(node, "apply_async")


def _defaults_of(opts: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Queue name -> default job options."""
    unknown = opts.keys() - {"queuesOptions", "queues_options"}
    if unknown:
        raise BadInput(f"unknown option {sorted(unknown)[0]!r} of a flow; known is 'queuesOptions'")
    per_queue = opts.get("queuesOptions") or opts.get("queues_options") or {}
    return {name: one.get("defaultJobOptions") or one.get("default_job_options") or {} for name, one in per_queue.items()}


def _by_level(plans: Iterable[_Plan]) -> Iterator[tuple[_Plan, _Plan | None]]:
    """All jobs with their parents, in the order in which Node adds them: all roots, then all their children, and so on."""
    level: list[tuple[_Plan, _Plan | None]] = [(plan, None) for plan in plans]
    while level:
        yield from level
        level = [(child, plan) for plan, _ in level for child in plan.children]


def _lay(plan: _Plan, parent: _Plan | None, now: int) -> tuple[_Plan, scripts.NewJob]:
    """The job as the script gets it."""
    options = plan.options
    if parent is not None:
        options = with_parent(options, parent.job_id, parent.queue.base.removesuffix(":"))
    more = {**options.more, "in_flow": True}
    if plan.is_task:
        more["unique"] = True
    if plan.children:
        more["children"] = True
    timestamp = options.timestamp if options.timestamp is not None else now
    return plan, scripts.NewJob(
        plan.queue.base, plan.job_id, plan.name, plan.data, options.stored, timestamp, plan.delay, plan.priority, plan.celery(plan.job_id),
        json.dumps(more),
    )  # fmt: skip


def _told(plan: _Plan, stored: Mapping[int, scripts.NewJob]) -> JobNode:
    new = stored[id(plan)]
    more = json.loads(new.more)
    fields = {
        "name": new.name, "data": new.data, "opts": new.opts, "timestamp": str(new.timestamp), "delay": str(new.delay),
        "priority": str(new.priority), **{name: more[name] for name in ("parentKey", "parent") if name in more},
    }  # fmt: skip
    return JobNode(Job(plan.queue, new.id, fields), [_told(child, stored) for child in plan.children])
