"""What can be learned of a queue without changing it: counts, jobs, settings, metrics, workers.

The read half of `Queue` (queue.py); every method is one short question to Redis, or two.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from typing import Any

from bullmq_kombu import admin_scripts
from bullmq_kombu.connection import Server
from bullmq_kombu.errors import BadInput
from bullmq_kombu.job import Job

#: Every state by its public name, and its key. `waiting` counts the `paused` list of BullMQ 5 too.
STATES = {
    "active": "active", "completed": "completed", "delayed": "delayed", "failed": "failed", "prioritized": "prioritized",
    "waiting": "wait", "waiting-children": "waiting-children",
}  # fmt: skip
_OTHER_NAMES = {"wait": "waiting", "paused": "waiting"}


def state_keys(states: Sequence[str]) -> dict[str, str]:
    """Public name -> key of each state asked for, all of them when none is; BadInput for a word that is no state."""
    wanted = [_OTHER_NAMES.get(state, state) for state in states] or list(STATES)
    for state in wanted:
        if state not in STATES:
            raise BadInput(f"{state!r} is no state of a job; there are {', '.join(STATES)}")
    return {state: STATES[state] for state in wanted}


class QueueView:
    """The read half of a queue."""

    name: str
    prefix: str
    base: str
    server: Server
    clock: Callable[[], int]

    def _job(self, job_id: str, fields: dict[str, str]) -> Job:
        raise NotImplementedError

    # -- jobs

    def get_job(self, job_id: str) -> Job | None:
        """The job, or None where there is none of this id."""
        flat = self.server.call("HGETALL", f"{self.base}{job_id}")
        return self._job(job_id, dict(zip(flat[::2], flat[1::2], strict=True))) if flat else None

    def get_jobs(self, states: str | Sequence[str] = (), start: int = 0, end: int = -1, asc: bool = False) -> list[Job]:
        """The jobs at places `start` to `end` (both included) of each state, the newest first unless `asc`."""
        found = []
        for key in state_keys([states] if isinstance(states, str) else states).values():
            read = admin_scripts.read_jobs(self.server, self.base, key, start, end, asc)
            found += [self._job(one.id, one.fields) for one in read]
        return found

    def get_waiting(self, start: int = 0, end: int = -1) -> list[Job]:
        return self.get_jobs("waiting", start, end, asc=True)

    def get_active(self, start: int = 0, end: int = -1) -> list[Job]:
        return self.get_jobs("active", start, end, asc=True)

    def get_delayed(self, start: int = 0, end: int = -1) -> list[Job]:
        return self.get_jobs("delayed", start, end, asc=True)

    def get_prioritized(self, start: int = 0, end: int = -1) -> list[Job]:
        return self.get_jobs("prioritized", start, end, asc=True)

    def get_completed(self, start: int = 0, end: int = -1) -> list[Job]:
        return self.get_jobs("completed", start, end)

    def get_failed(self, start: int = 0, end: int = -1) -> list[Job]:
        return self.get_jobs("failed", start, end)

    def get_waiting_children(self, start: int = 0, end: int = -1) -> list[Job]:
        return self.get_jobs("waiting-children", start, end, asc=True)

    def get_job_state(self, job_id: str) -> str:
        """completed, failed, delayed, active, waiting, waiting-children, prioritized, or unknown."""
        return admin_scripts.state_of(self.server, self.base, job_id)

    def get_job_logs(self, job_id: str, start: int = 0, end: int = -1, *, asc: bool = True) -> list[str]:
        """Lines `start` to `end` (both included) of a job's log, the oldest first; with `asc` False the newest."""
        key = f"{self.base}{job_id}:logs"
        if asc:
            lines: list[str] = self.server.call("LRANGE", key, start, end)
            return lines
        return list(reversed(self.server.call("LRANGE", key, -(end + 1), -(start + 1))))

    # -- counts

    def get_job_counts(self, *states: str) -> dict[str, int]:
        """How many jobs there are of each state asked for, of all when none is."""
        keys = state_keys(states)
        return dict(zip(keys, admin_scripts.counts(self.server, self.base, list(keys.values())), strict=True))

    def get_counts_per_priority(self, priorities: Sequence[int]) -> dict[int, int]:
        """How many jobs wait with each of these priorities."""
        return dict(zip(priorities, admin_scripts.priority_counts(self.server, self.base, priorities), strict=True))

    def count(self) -> int:
        """How many jobs have not been started: waiting, prioritized, delayed, and parents whose children are not done."""
        return sum(self.get_job_counts("waiting", "prioritized", "delayed", "waiting-children").values())

    # -- settings

    def is_paused(self) -> bool:
        return bool(self.server.call("HEXISTS", f"{self.base}meta", "paused"))

    def is_maxed(self) -> bool:
        """Whether as many jobs run as the global concurrency allows."""
        concurrency = self.get_global_concurrency()
        return concurrency is not None and int(self.server.call("LLEN", f"{self.base}active")) >= concurrency

    def get_global_concurrency(self) -> int | None:
        found = self.server.call("HGET", f"{self.base}meta", "concurrency")
        return int(found) if found is not None else None

    def get_global_rate_limit(self) -> dict[str, int] | None:
        """{max, duration in ms}, or None."""
        found = self.server.call("HMGET", f"{self.base}meta", "max", "duration")
        return {"max": int(found[0]), "duration": int(found[1])} if None not in found else None

    def get_rate_limit_ttl(self, max_jobs: int | None = None) -> int:
        """For how many ms the rate limit still closes the queue; 0 when it does not, below 0 as Redis' PTTL.

        Without `max_jobs` and without a global rate limit, the time left of the current window.
        """
        key = f"{self.base}limiter"
        limit = max_jobs or int(self.server.call("HGET", f"{self.base}meta", "max") or 0)
        if limit and int(self.server.call("GET", key) or 0) < limit:
            return 0
        return int(self.server.call("PTTL", key))

    def get_deduplication_job_id(self, dedup_id: str) -> str | None:
        """The job that a deduplication id stands for just now."""
        found: str | None = self.server.call("GET", f"{self.base}de:{dedup_id}")
        return found

    def get_meta(self) -> dict[str, str]:
        """The queue's settings as they are stored."""
        flat = self.server.call("HGETALL", f"{self.base}meta")
        return dict(zip(flat[::2], flat[1::2], strict=True))

    # -- what goes on

    def get_metrics(self, state: str, start: int = 0, end: int = -1) -> dict[str, Any]:
        """Of `completed` or `failed` jobs: {meta: {count, prevTS, prevCount}, data: jobs for each minute (the newest first), count}."""
        if state not in ("completed", "failed"):
            raise BadInput(f"metrics are kept of completed and failed jobs, not of {state!r}")
        key = f"{self.base}metrics:{state}"
        found = self.server.call("HMGET", key, "count", "prevTS", "prevCount")
        data = self.server.call("LRANGE", f"{key}:data", start, end)
        return {
            "meta": {name: int(text or 0) for name, text in zip(("count", "prevTS", "prevCount"), found, strict=True)},
            "data": [int(number) for number in data],
            "count": int(self.server.call("LLEN", f"{key}:data")),
        }

    def get_workers(self) -> list[dict[str, str]]:
        """The blocking connections of this queue's workers, whatever they are written in, as Redis describes its clients."""
        own = f"{self.prefix}:{base64.b64encode(self.name.encode()).decode()}"
        workers = []
        for line in str(self.server.call("CLIENT", "LIST")).splitlines():
            client = dict(part.partition("=")[::2] for part in line.split())
            raw = client.get("name", "")
            if raw == own or raw.startswith(f"{own}:w:"):
                workers.append({**client, "name": self.name, "rawname": raw})
        return workers
