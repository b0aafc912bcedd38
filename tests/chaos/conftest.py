"""Faults need the functional tests' workers and jobs."""

from __future__ import annotations

import sys
from pathlib import Path

_HERE = Path(__file__).parent
for _folder in (_HERE, _HERE.parent / "functional"):
    if str(_folder) not in sys.path:
        sys.path.insert(0, str(_folder))
