"""The table's rows: which metrics of which systems are the same work, and the bars that issue 6 sets.

A bar is a ratio in which more is better for us: `vs` a system, by a factor; or at most so much of a quantity.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

#: System -> the areas and metrics that are its share of a row, to be added up.
Of = dict[str, tuple[tuple[str, str], ...]]


class Bar(NamedTuple):
    """`at_least`: the other's cost is so many times ours. `at_most`: ours is so much of the other's, or of one (`vs` '')."""

    vs: str
    at_least: float = 0.0
    at_most: float = 0.0

    @property
    def text(self) -> str:
        if self.vs:
            return f"≥ {self.at_least:g} × {NAMES[self.vs]}" if self.at_least else f"≤ {self.at_most:g} × {NAMES[self.vs]}"
        return f"≤ {self.at_most:g}"


@dataclass(frozen=True)
class Row:
    """`take` names the value to take of each metric."""

    title: str
    of: Of
    bars: tuple[Bar, ...] = ()
    take: str = "wall"
    unit: str = "µs"


NAMES = {
    "bullmq": "bullmq://", "redis": "redis://", "node": "Node BullMQ", "port": "Python port", "raw": "raw scripts", "memory": "memory://",
}  # fmt: skip
SYSTEMS = tuple(NAMES)


def _one(area: str, **metrics: str) -> Of:
    return {system: ((area, metric),) for system, metric in metrics.items()}


def _kombu(metric: str, **others: str) -> Of:
    return _one("kombu", bullmq=metric, redis=metric, memory=metric, **others)


def _consume(prefetch: int) -> Of:
    worker = f"worker, concurrency {prefetch}"
    return _kombu(f"consume+ack, prefetch {prefetch}", node=worker, port=worker, raw=f"finish and take {prefetch}")


PUBLISH = _kombu("publish one by one", node="add", port="add", raw="add")
WORK = [
    Row("Kombu publish, one by one", PUBLISH, (Bar("redis", 1.5),)),
    Row("Kombu publish, many", _kombu("publish many", node="addBulk", port="addBulk", raw="add many"), (Bar("redis", 1.1),)),
    Row("Kombu consume+ack, prefetch 1", _consume(1), (Bar("redis", 3), Bar("node", 1))),
    Row("Kombu consume+ack, prefetch 10", _consume(10), (Bar("redis", 9), Bar("node", 1.6))),
    Row("Kombu consume+ack, prefetch 100", _consume(100), (Bar("redis", 14), Bar("node", 1.3))),
    Row("Queue.add", {**_one("queue", bullmq="add"), **_one("kombu", node="add", port="add", raw="add")}),
    Row(
        "Queue.add_bulk, 1000",
        {**_one("queue", bullmq="add_bulk", node="addBulk"), **_one("kombu", port="addBulk", raw="add many")},
        (Bar("node", 2),),
    ),
    Row("Promise of an early acknowledgement", _one("kombu", raw="promise")),
    Row("Celery apply_async", _one("send", bullmq="apply_async", redis="apply_async", memory="apply_async"), (Bar("redis", 1.3),)),
    Row(
        "Celery apply_async, many",
        _one("send", bullmq="apply_async, many", redis="apply_async, many", memory="apply_async, many"),
        (Bar("redis", 1.1),),
    ),
    Row("Celery group of 500", _one("send", bullmq="group", redis="group", memory="group"), (Bar("redis", 1.1),)),
]
_POOL_BARS = {"solo 1": 3.2, "prefork 2": 2.5, "threads 4": 2.7}
TASKS = [
    Row(
        f"Celery no-op, {pool}, {acks} ack, multiplier {multiplier}",
        _one(f"{pool}, multiplier {multiplier}", bullmq=acks, redis=acks),
        (Bar("redis", bar),) if (acks, multiplier) == ("early", "4") else (),
    )
    for pool, bar in _POOL_BARS.items()
    for multiplier in ("4", "1", "100")
    for acks in ("early", "late")
]
_BEGUN = (
    (
        "Kombu, publish → received",
        _one("latency", bullmq="kombu latency", redis="kombu latency", node="latency", raw="latency"),
        ("redis", "node"),
    ),
    ("Celery, apply_async → task begins", _one("latency", bullmq="latency", redis="latency", node="latency"), ()),
    ("Celery, delay() → get() returns", _one("latency", bullmq="round trip", redis="round trip", node="round trip"), ()),
)
LATENCY = [
    Row(f"{title}, p{p}", of, tuple(Bar(other, at_most=0.7) for other in others), f"p{p}") for title, of, others in _BEGUN for p in (50, 99)
]


def _life(first: Of, second: Of) -> Of:
    return {system: (*first[system], *second[system]) for system in first if system in second}


CPU = [
    Row("server, publish one by one", PUBLISH, take="server"),
    Row("server, consume+ack at 10", _consume(10), take="server"),
    Row("server, a job's whole life", _life(PUBLISH, _consume(10)), (Bar("node", at_most=0.6),), "server"),
    Row("client, publish one by one", PUBLISH, take="client"),
    Row("client, consume+ack at 10", _consume(10), take="client"),
    Row("client, Celery apply_async", _one("send", bullmq="apply_async", redis="apply_async", memory="apply_async"), take="client"),
    *(
        Row(f"{side}, Celery no-op, {pool}", _one(f"{pool}, multiplier 4", bullmq="early", redis="early"), take=side)
        for side in ("client", "server")
        for pool in _POOL_BARS
    ),
]
BYTES = [
    Row("a waiting job", _one("bytes", bullmq="waiting", redis="waiting", node="waiting"), (Bar("node", at_most=1.15),), "bytes", "B"),
    Row("a waiting job; Node's with a number for its id", _one("bytes", bullmq="waiting", node="waiting, numbered"), (), "bytes", "B"),
    Row("a job kept when done", _one("bytes", bullmq="kept", node="kept"), (), "bytes", "B"),
    Row("a job kept when done; Node's with a number for its id", _one("bytes", bullmq="kept", node="kept, numbered"), (), "bytes", "B"),
]


def _idle(queues: int, what: str, unit: str, bars: tuple[Bar, ...] = ()) -> Row:
    metric = f"idle, {queues} queues"
    return Row(f"idle worker, {queues} queues: {what}", _one("idle", bullmq=metric, redis=metric, node=metric), bars, what, unit)


IDLE = [
    *(_idle(queues, "commands", "/s", (Bar("", at_most=0.5),) if queues != 10 else ()) for queues in (1, 10, 100)),
    *(_idle(queues, "connections", "") for queues in (1, 10, 100)),
    *(_idle(queues, "memory", "MB") for queues in (1, 10, 100)),
]
#: Kind -> how many, for the rows that compare the same work beside few and beside many.
SCALE_BAR = 1.1
SECTIONS = {"Work": WORK, "Celery tasks": TASKS, "Latency": LATENCY, "CPU": CPU, "Bytes": BYTES, "Idle": IDLE}
