"""A job as it stands in Redis, read key by key as BullMQ's documentation describes them: nothing of the package is used to look."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import redis
from waiting import wait_until

TIMEOUT_S = 20.0


class Job:
    """One job of one queue."""

    def __init__(self, client: redis.Redis, queue: str, job_id: str, prefix: str = "bull") -> None:
        self.client = client
        self.id = job_id
        self.base = f"{prefix}:{queue}:"
        self.key = f"{self.base}{job_id}"

    def __repr__(self) -> str:
        return f"<{self.key} {self.state} {self.hash} history={self.history} logs={self.logs}>"

    @property
    def hash(self) -> dict[str, str]:
        found: Any = self.client.hgetall(self.key)
        return found

    @property
    def state(self) -> str | None:
        """The one place where the id is; more than one is an error."""
        with self.client.pipeline() as pipe:
            for zset in ("completed", "failed", "delayed", "prioritized", "waiting-children"):
                pipe.zscore(self.base + zset, self.id)
            for place in ("wait", "paused", "active"):
                pipe.lrange(self.base + place, 0, -1)
            answers = pipe.execute()
        places = ["completed", "failed", "delayed", "prioritized", "waiting-children"]
        found = [name for name, score in zip(places, answers[:5], strict=True) if score is not None]
        for name, ids in zip(["waiting", "waiting", "active"], answers[5:], strict=True):
            found += [name] * ids.count(self.id)
        assert len(found) <= 1, f"job {self.id} is in several places: {found}"
        return found[0] if found else None

    @property
    def is_locked(self) -> bool:
        return bool(self.client.exists(f"{self.key}:lock"))

    @property
    def returnvalue(self) -> Any:
        return json.loads(self.hash["returnvalue"])

    @property
    def reason(self) -> str | None:
        return self.hash.get("failedReason")

    @property
    def stack(self) -> list[str]:
        found: list[str] = json.loads(self.hash.get("stacktrace", "[]"))
        return found

    @property
    def attempts_made(self) -> int:
        return int(self.hash.get("atm", 0))

    @property
    def attempts_started(self) -> int:
        return int(self.hash.get("ats", 0))

    @property
    def opts(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.hash["opts"])
        return found

    @property
    def logs(self) -> list[str]:
        found: Any = self.client.lrange(f"{self.key}:logs", 0, -1)
        return found

    @property
    def history(self) -> list[str]:
        """The events of this job, in order: what it went through, whether or not anybody was looking."""
        stream: Any = self.client.xrange(f"{self.base}events")
        return [event["event"] for _, event in stream if event.get("jobId") == self.id]

    def wait_for(self, *states: str, timeout: float = TIMEOUT_S) -> Job:
        wait_until(lambda: self._is_now(states), timeout, f"job {self.id} to be {' or '.join(states)}")
        return self

    def _is_now(self, states: tuple[str, ...]) -> bool:
        assert self.state in states, repr(self)
        return True

    def wait_until(self, condition: Callable[[Job], Any], what: str, timeout: float = TIMEOUT_S) -> Job:
        def holds() -> bool:
            assert condition(self), repr(self)
            return True

        wait_until(holds, timeout, what)
        return self


def jobs_of(client: redis.Redis, queue: str, place: str) -> list[str]:
    """The ids in one of a queue's lists or sets, in their stored order."""
    key = f"bull:{queue}:{place}"
    found: Any = client.lrange(key, 0, -1) if place in ("wait", "paused", "active") else client.zrange(key, 0, -1)
    return list(found)
