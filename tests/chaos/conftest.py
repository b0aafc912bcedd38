"""Faults need the functional tests' workers and jobs; those of one place are tried out in one process, one after the other."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

_HERE = Path(__file__).parent
for _folder in (_HERE, _HERE.parent / "functional"):
    if str(_folder) not in sys.path:
        sys.path.insert(0, str(_folder))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """`--dist loadgroup` does nothing with pytest 9.2 and pytest-xdist 3.8: the marks do not reach the names of tests that it goes by."""
    from xdist.scheduler import LoadScopeScheduling

    class ByPlace(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            _, at, place = nodeid.rstrip("]").rpartition("@")
            return place if at else nodeid

    return ByPlace(config, log)
