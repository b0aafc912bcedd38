"""The examples as type checkers see them: mypy --strict, each example by itself, and pyright, strict, as an editor of a user does.

Celery has no annotations. pyright reads those of `celery-types` (and `django-stubs`), from a folder that is the one argument: in the
environment they would change what mypy says of the package.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

EXAMPLES = Path(__file__).parents[1] / "examples"
FOLDERS = sorted({path.parent for path in EXAMPLES.glob("*/*.py")})
#: Without stubs Django has no annotations, and mypy has none here.
WITHOUT_MYPY = {"django_shop"}


def mypy() -> int:
    failed = 0
    for folder in FOLDERS:
        if folder.name in WITHOUT_MYPY:
            continue
        sys.stdout.write(f"{folder.name}: ")
        sys.stdout.flush()
        # Celery's decorators are untyped whatever an example does; OpenTelemetry's constructor too.
        failed += subprocess.run(
            [
                sys.executable, "-m", "mypy", "--strict", "--allow-untyped-decorators", "--untyped-calls-exclude", "opentelemetry",
                "--config-file", "../../setup.cfg",
                *sorted(path.name for path in folder.glob("*.py")),
            ],
            cwd=folder, check=False,
        ).returncode  # fmt: skip
    return failed


def pyright(stubs: str) -> int:
    if shutil.which("node") is None:
        sys.stdout.write("pyright needs Node, which is missing\n")
        return int("CI" in os.environ)
    # Each folder is a root of its own: most have a module of the name `tasks`. In a copy, as paths must be below the settings.
    settings = {
        "typeCheckingMode": "strict",
        "reportMissingTypeStubs": False,  # OpenTelemetry's instrumentation of Celery has none
        "extraPaths": [stubs],
        "include": [folder.name for folder in FOLDERS],
        "executionEnvironments": [{"root": folder.name} for folder in FOLDERS],
    }
    with tempfile.TemporaryDirectory() as temporary:
        shutil.copytree(EXAMPLES, temporary, ignore=shutil.ignore_patterns("node_modules"), dirs_exist_ok=True)
        (Path(temporary) / "pyrightconfig.json").write_text(json.dumps(settings))
        command = [sys.executable, "-m", "pyright", "--project", temporary, "--pythonpath", sys.executable]
        return subprocess.run(command, check=False).returncode


if __name__ == "__main__":
    sys.exit(bool(mypy() + pyright(str(Path(sys.argv[1]).resolve()))))
