"""Threads and waits of the operating system, also where gevent or eventlet have put their own in their place.

The locks of running jobs have to be kept while a task blocks the event loop of such a pool. Their threads live in that loop and would be
blocked with it; so what keeps the locks asks here for what the interpreter had before it was patched. Sockets may stay patched: another
thread has a loop of its own.
"""

from __future__ import annotations

import _thread
import logging
import os
import select
import sys
import threading
from collections import deque
from collections.abc import Callable
from typing import Any

#: How many lines of the log are kept at most until an event loop has time for them.
UNSAID = 1000
#: gevent and eventlet may take it away from `select`, and it is the same everywhere.
POLLIN = 1


def is_green() -> bool:
    """Whether this process' sockets are gevent's or eventlet's."""
    return _green() is not None


def _green() -> str | None:
    if "gevent.monkey" in sys.modules and sys.modules["gevent.monkey"].is_module_patched("socket"):
        return "gevent"
    if "eventlet.patcher" in sys.modules and sys.modules["eventlet.patcher"].is_monkey_patched("socket"):
        return "eventlet"
    return None


def _original(module: Any, name: str) -> Any:
    green = _green()
    if green == "gevent":
        return sys.modules["gevent.monkey"].get_original(module.__name__, name)
    if green == "eventlet":
        return getattr(sys.modules["eventlet.patcher"].original(module.__name__), name)
    return getattr(module, name)


def start_thread(run: Callable[[], None], name: str) -> None:
    """A thread that nobody waits for when the interpreter ends."""
    if is_green():
        _original(_thread, "start_new_thread")(run, ())
    else:
        threading.Thread(target=run, name=name, daemon=True).start()


def new_lock() -> Any:
    """For what is done in no time, since it may stop a whole event loop."""
    return _original(_thread, "allocate_lock")()


def new_rlock() -> Any:
    """The same, for a thread that may come back while it holds it."""
    return _original(_thread, "RLock")()


class Logger:
    """What threads of ours have to say. `logging` has locks that belong to the event loop where there is one: eventlet never wakes another
    thread that waits for one. There it is kept until the loop comes by to say it."""

    def __init__(self, logger: logging.Logger) -> None:
        self._logger = logger
        self._unsaid: deque[tuple[int, str, tuple[Any, ...], BaseException | None]] = deque(maxlen=UNSAID)

    def say(self, level: int, text: str, *args: Any, error: BaseException | None = None) -> None:
        if is_green():
            self._unsaid.append((level, text, args, error))
        else:
            self._logger.log(level, text, *args, exc_info=error)

    def speak(self) -> None:
        """For the loop's own thread."""
        while self._unsaid:
            try:
                level, text, args, error = self._unsaid.popleft()
            except IndexError:
                return  # another loop has come by
            self._logger.log(level, text, *args, exc_info=error)


class Bell:
    """Wakes a thread of ours: `ring` from any thread, `wait` in that one."""

    def __init__(self) -> None:
        self._read, self._write, self._poll = _original(os, "read"), _original(os, "write"), _original(select, "poll")
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._reader, False)
        os.set_blocking(self._writer, False)

    def ring(self) -> None:
        try:
            self._write(self._writer, b"\0")
        except OSError:
            pass  # it rings already

    def wait(self, seconds: float) -> None:
        """Until it rings, or has rung since the last time."""
        poll = self._poll()
        poll.register(self._reader, POLLIN)
        poll.poll(max(seconds, 0.0) * 1000)
        try:
            while len(self._read(self._reader, 4096)) == 4096:
                pass
        except OSError:
            pass

    def close(self) -> None:
        for descriptor in (self._reader, self._writer):
            os.close(descriptor)

    def __del__(self) -> None:
        try:
            self.close()
        except (OSError, AttributeError):
            pass
