"""The marks that the upstream suites use."""

from __future__ import annotations

import pytest


def pytest_configure(config: pytest.Config) -> None:
    for name in ("env(name): the service a test needs", "flaky(reruns): run again when it fails"):
        config.addinivalue_line("markers", name)
