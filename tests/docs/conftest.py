"""Where the JavaScript of the pages finds BullMQ."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1] / "interop"))


@pytest.fixture(scope="session")
def bullmq() -> Path:
    """A folder with BullMQ 6 in its node_modules."""
    from node_driver import install_node

    return Path(install_node("v6"))
