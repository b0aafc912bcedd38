"""How long to go on trying: a worker for ever, with BullMQ's pauses; a producer in bounded time, however the server is away.

Kombu decides how often a publication is tried again, and makes a new transport for each try. What bounds the whole is kept beside it, for
each thread and server: how much time the attempts without a pause between them have used up. Each gets what is left; so a server that
accepts connections and never answers costs the budget once, not with every try. A pause, as a worker makes one, begins anew.

Knows no connection.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Mapping
from typing import Any

from kombu.exceptions import OperationalError

#: For all attempts of one publication, s: with Kombu's pauses between them less than five.
BUDGET_S = 3.5
#: What each attempt adds to it where `max_retries_per_request` says how many there are, s: two are less than one second.
BUDGET_PER_ATTEMPT_S = 0.35
#: An attempt beyond the budget, s: enough where the server is near and well again.
LAST_CHANCE_S = 0.1
#: After so long without an attempt the next one is no longer the same publication's, s.
PAUSE_S = 0.9
#: Nor is one so long after the first: a producer that makes no pauses must not be short of time for ever, s.
EPISODE_S = 5.0
#: What Kombu older than 5.5, which keeps the publish's retry policy from the first connection, is told of it instead of its own pauses of
#: two and four seconds.
FIRST_CONNECTION: Mapping[str, Any] = {"max_retries": 17, "interval_start": 0.0, "interval_step": 0.2, "interval_max": 0.2}
#: A pause after the first refusal of a server that is there, s, and the longest one after more of them.
BREATH_S = 0.1
LONGEST_BREATH_S = 0.5


def reconnect_delay_s(failures: int) -> float:
    """BullMQ's pause after the n-th failure in a row: exponential, at least one second, at most twenty."""
    return max(min(math.exp(min(failures, 10)) / 1000, 20.0), 1.0)


class _Troubles(threading.local):
    """Of this thread: server -> (failed attempts, seconds they took, when the first one ended, and the last)."""

    def __init__(self) -> None:
        self.known: dict[Any, tuple[int, float, float, float]] = {}


_troubles = _Troubles()


class Patience:
    """With one server; `retries` is `max_retries_per_request`."""

    def __init__(self, server: Any, where: str, retries: int | None) -> None:
        self._server = server
        self._where = where
        self._retries = retries
        self.budget = BUDGET_S if retries is None else min(BUDGET_S, BUDGET_PER_ATTEMPT_S * (retries + 1))

    def left(self) -> float | None:
        """How many seconds the next attempt may take; None where none has failed."""
        found = _troubles.known.get(self._server)
        if found is None:
            return None
        _, spent, first, last = found
        now = time.monotonic()
        if now - last > PAUSE_S or now - first > EPISODE_S:
            self.over()
            return None
        return max(self.budget - spent, LAST_CHANCE_S)

    def failed(self, took: float, error: BaseException) -> None:
        """An attempt failed. Raises OperationalError, which nobody tries again, where it was the last that the user allows."""
        now = time.monotonic()
        failures, spent, first, _ = _troubles.known.get(self._server, (0, 0.0, now, now))
        failures += 1
        if self._retries is not None and failures > self._retries:
            self.over()
            limit = f"max_retries_per_request is {self._retries}"
            raise OperationalError(f"no answer from Redis at {self._where} after {failures} attempts, {limit}: {error}") from error
        _troubles.known[self._server] = (failures, spent + took, first, now)

    def breath_s(self) -> float:
        """What to wait before the next attempt where the server refused at once: Kombu pauses only while it cannot connect."""
        found = _troubles.known.get(self._server)
        return 0.0 if found is None else min(BREATH_S * found[0], LONGEST_BREATH_S)

    def over(self) -> None:
        """The server answers, or nobody waits for it any more."""
        _troubles.known.pop(self._server, None)
