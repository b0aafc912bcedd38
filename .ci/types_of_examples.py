"""mypy --strict over every example in examples/, each by itself: most have a module of the name `tasks`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

EXAMPLES = Path(__file__).parents[1] / "examples"
#: Django has no annotations, and its example is written as Django projects are.
UNTYPED = {"django_shop"}

if __name__ == "__main__":
    failed = 0
    for folder in sorted({path.parent for path in EXAMPLES.glob("*/*.py") if path.parent.name not in UNTYPED}):
        sys.stdout.write(f"{folder.name}: ")
        sys.stdout.flush()
        # Celery has no annotations, so its decorators are untyped whatever an example does; OpenTelemetry's constructor has none either.
        failed += subprocess.run(
            [
                sys.executable, "-m", "mypy", "--strict", "--allow-untyped-decorators", "--untyped-calls-exclude", "opentelemetry",
                "--config-file", "../../setup.cfg",
                *sorted(path.name for path in folder.glob("*.py")),
            ],
            cwd=folder, check=False,
        ).returncode  # fmt: skip
    sys.exit(bool(failed))
