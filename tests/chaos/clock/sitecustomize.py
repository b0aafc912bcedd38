"""On the path of a worker, this moves its wall clock: as many seconds as the file CHAOS_CLOCK says, read anew each time it is looked at.

What runs in Python sees the moved one, whichever of `time` and `datetime` it asks.
"""

import datetime
import os
import time
from pathlib import Path

_where, _time, _time_ns, _datetime = Path(os.environ["CHAOS_CLOCK"]), time.time, time.time_ns, datetime.datetime


def _ahead() -> int:
    return int(_where.read_text())


class _Kind(type):
    def __instancecheck__(cls, one: object) -> bool:
        return isinstance(one, _datetime)


class _Moved(_datetime, metaclass=_Kind):
    """Makes plain datetimes."""

    @classmethod
    def now(cls, tz: "datetime.tzinfo | None" = None) -> _datetime:  # type: ignore[override]
        return _datetime.fromtimestamp(time.time(), tz)

    @classmethod
    def utcnow(cls) -> _datetime:  # type: ignore[override]
        return _datetime.fromtimestamp(time.time(), datetime.timezone.utc).replace(tzinfo=None)

    def __new__(cls, *args: object, **kwargs: object) -> _datetime:  # type: ignore[misc]
        return _datetime(*args, **kwargs)  # type: ignore[arg-type]


time.time = lambda: _time() + _ahead()
time.time_ns = lambda: _time_ns() + _ahead() * 10**9
datetime.datetime = _Moved  # type: ignore[misc]
