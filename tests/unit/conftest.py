"""Hypothesis' settings for the tests of rules: the same examples in every run of CI, new ones on a laptop."""

from __future__ import annotations

import os

from hypothesis import settings

settings.register_profile("rules", deadline=None, database=None, derandomize=bool(os.environ.get("CI")), print_blob=True)
settings.load_profile("rules")
