"""Waiting for something to become true, with a deadline and a name.

Tests here never sleep for a time that is hoped to be enough: they say what they wait for, and the failure repeats it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

TIMEOUT_S = 10.0
"""Long for a laptop, because a CI machine shares its cores; a passing test never waits for it."""

_FIRST_PAUSE_S = 0.002
_LONGEST_PAUSE_S = 0.05


def wait_until(condition: Callable[[], T], timeout: float = TIMEOUT_S, what: str = "") -> T:
    """Call ``condition`` until it returns something true, and return that.

    :param timeout: seconds, after which it is an AssertionError that tells what was waited for and the last value seen.
    :param what: completes the sentence "waited 10 s for …".

    An AssertionError raised by the condition counts as "not yet"; any other exception is raised at once.
    """
    deadline = time.monotonic() + timeout
    pause = _FIRST_PAUSE_S
    while True:
        last: object
        # Read before the condition is tried, so that it is tried once after the deadline too, however slow the machine.
        late = time.monotonic() >= deadline
        try:
            value = condition()
            if value:
                return value
            last = value
        except AssertionError as error:
            last = error
        if late:
            raise AssertionError(f"waited {timeout:g} s for {what or _name_of(condition)}; last seen: {last!r}")
        time.sleep(pause)
        pause = min(pause * 1.5, _LONGEST_PAUSE_S)


def _name_of(condition: Callable[[], object]) -> str:
    name = getattr(condition, "__qualname__", repr(condition))
    code = getattr(condition, "__code__", None)
    return f"{name} ({code.co_filename}:{code.co_firstlineno})" if code is not None else name
