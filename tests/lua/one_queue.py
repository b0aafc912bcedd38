"""One queue on a real server, looked at key by key: what the script tests act on and what they compare.

Scripts run through `bullmq_kombu.scripts`, as everywhere else. The clock is an argument of theirs, so that a test's "now" is `NOW` and a
test about time passes another one instead of waiting. Ids, scores and events are then known beforehand, and a test compares all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import redis

from bullmq_kombu import connection, scripts
from bullmq_kombu.scripts import Ending, NewJob, QueueState, Taken, Worker

#: Now, in milliseconds, for every test that says nothing else.
NOW = 1_795_491_304_286
LOCK_MS = 30_000
WORKER = Worker("worker:1", LOCK_MS, "host")
OPTS = '{"attempts":0}'


class Queue:
    """A queue's keys as Redis holds them, and the shortest way to each script."""

    def __init__(self, client: redis.Redis, server: connection.Server, name: str) -> None:
        self.redis: Any = client
        self.server = server
        self.name = name
        self.base = f"bull:{name}:"
        self._seen = "-"

    # -- looking

    def picture(self) -> dict[str, Any]:
        """Every key of the queue but the event stream, without its base: text, list, set, or dictionary of a hash or sorted set."""
        found = {key.removeprefix(self.base): self.value(key.removeprefix(self.base)) for key in self.redis.scan_iter(f"{self.base}*", 500)}
        found.pop("events", None)
        return found

    def value(self, suffix: str) -> Any:
        key = self.base + suffix
        kind = self.redis.type(key)
        if kind == "string":
            return self.redis.get(key)
        if kind == "list":
            return self.redis.lrange(key, 0, -1)
        if kind == "set":
            return self.redis.smembers(key)
        if kind == "hash":
            return self.redis.hgetall(key)
        if kind == "zset":
            return dict(self.redis.zrange(key, 0, -1, withscores=True))
        return None

    def without_meta(self) -> dict[str, Any]:
        """`picture` of a queue whose settings are not the point."""
        return {suffix: value for suffix, value in self.picture().items() if suffix != "meta"}

    def ttl(self, suffix: str) -> int:
        """Milliseconds; -1 for none."""
        return int(self.redis.pttl(self.base + suffix))

    def events(self) -> list[str]:
        """What was added to the stream since the last time, field by field in the stream's order: `added jobId 1 name n`."""
        entries = self.redis.xrange(self.base + "events", self._seen, "+")
        if entries:
            self._seen = f"({entries[-1][0]}"
        texts = []
        for _, fields in entries:
            assert next(iter(fields)) == "event", "the first field of every entry is `event`"
            texts.append(" ".join([fields.pop("event"), *(f"{name} {value}" for name, value in fields.items())]))
        return texts

    # -- acting

    def set(self, suffix: str, kind: str, *values: Any) -> None:
        """Puts a key there with one plain command: `set("meta", "HSET", "paused", 1)`."""
        self.redis.execute_command(kind, self.base + suffix, *values)

    def pause(self) -> None:
        self.set("meta", "HSET", "paused", 1)

    def add(self, *jobs: NewJob, now: int = NOW) -> list[str | int]:
        return scripts.add(self.server, jobs, now)

    def take(self, wanted: int = 1, now: int = NOW, worker: Worker = WORKER) -> list[Taken]:
        return self.ask(wanted, now, worker)[0]

    def ask(self, wanted: int = 1, now: int = NOW, worker: Worker = WORKER) -> tuple[list[Taken], list[QueueState]]:
        """As `take`, with what it says of the queue."""
        return scripts.take(self.server, [self.base], now, wanted, worker)

    def end(self, *endings: Ending, now: int = NOW) -> list[int]:
        """Ends deliveries, takes nothing."""
        return list(scripts.finish(self.server, endings, now)[0])

    def active(self, *jobs: NewJob, now: int = NOW, worker: Worker = WORKER) -> None:
        """Adds jobs and takes exactly them; their events are not told any more."""
        self.add(*jobs, now=now)
        assert len(self.take(len(jobs), now, worker)) == len(jobs)
        self.events()

    # -- building

    def job(self, job_id: str = "", name: str = "n", data: str = "{}", opts: str = OPTS, timestamp: int = NOW, delay: int = 0,
            priority: int = 0, celery: str = "", more: str = "") -> NewJob:  # fmt: skip
        return NewJob(self.base, job_id, name, data, opts, timestamp, delay, priority, celery, more)

    def ending(self, what: str, job_id: str, text: str = "", stack: str = "", keep: Sequence[Any] = (-1, "", ""), number: int | str = "",
               more: str = "", token: str = WORKER.token) -> Ending:  # fmt: skip
        return Ending(what, self.base, job_id, token, text, stack, *keep, number, more)

    def key(self, job_id: str) -> str:
        return self.base + job_id


def stored(**changed: str) -> dict[str, str]:
    """The hash of a plain job, with other or further fields."""
    return {"name": "n", "data": "{}", "opts": OPTS, "timestamp": str(NOW), "delay": "0", "priority": "0", **changed}


def started(**changed: str) -> dict[str, str]:
    """The hash of a plain job that was taken once."""
    return stored(processedOn=str(NOW), ats="1", pb="host", **changed)
