"""Runs Celery's own integration suite over `redis://` and over `bullmq://`, and compares: `tox -e upstream-celery`.

The suite is in Celery's source distribution (`t/integration`), fetched when this runs. A test that passes with `redis://` as broker and
backend must pass with `bullmq://` as both; those that do not are named in `known_differences.txt`, each with its reason, and so are the
files that are not run.

    python tests/upstream/celery_suite.py [--only bullmq] [--save file.json] [pytest arguments, for a part of the suite]
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ET
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from servers import Server  # noqa: E402
from upstream.sources import source_of  # noqa: E402

#: With fewer that pass over `redis://` nothing was tested: Celery 5.7.0's suite has 382.
ENOUGH = 300

Outcomes = dict[str, str]
"""Of each test, by its name: passed, failed or skipped."""


def outcomes(scheme: str, arguments: list[str]) -> Outcomes:
    """Runs the suite with `scheme` as broker and backend; each test's outcome."""
    source = source_of("celery")
    with Server() as server, tempfile.TemporaryDirectory() as scratch:
        report = Path(scratch) / "report.xml"
        url = server.url_of(scheme)
        environment = {
            **os.environ, "TEST_BROKER": url, "TEST_BACKEND": url, "REDIS_HOST": "127.0.0.1", "REDIS_PORT": str(server.port),
            "PYTHONPATH": scratch, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        }  # fmt: skip
        # The tests alone: what they test is the Celery that is installed. Many ask whether the backend's URL begins with "redis", and are
        # skipped where it does not; here they mean ours too.
        shutil.copytree(source / "t", Path(scratch) / "t")
        for path in (Path(scratch) / "t" / "integration").glob("*.py"):
            text = path.read_text(encoding="utf-8")
            text = re.sub(r"""startswith\((['"])redis\1\)""", 'startswith(("redis", "bullmq"))', text)
            path.write_text(re.sub(r"""startswith\(\((['"])redis\1""", 'startswith(("bullmq", "redis"', text), encoding="utf-8")
        ignored = [f"--ignore={name.replace('.', '/')}.py" for name in sorted(files_left_out(known_differences()))]
        subprocess.run(
            [sys.executable, "-m", "pytest", "t/integration", "-q", "-x" if "-x" in arguments else "-ra", f"--junitxml={report}",
             "-p", "celery.contrib.pytest", "-p", "no:cacheprovider", "-c", os.devnull, "-o", "python_classes=test_*",
             "--rootdir", scratch, *ignored, *[one for one in arguments if one != "-x"]],
            cwd=scratch, env=environment, check=False,
        )  # fmt: skip
        found = {}
        for case in ET.parse(report).getroot().iter("testcase"):
            kinds = {child.tag for child in case}
            outcome = "failed" if kinds & {"failure", "error"} else "skipped" if "skipped" in kinds else "passed"
            found[f"{case.get('classname')}::{case.get('name')}"] = outcome
        return found


def known_differences() -> set[str]:
    """Names from the file; what follows the blank is the reason. A name without `::` is a file that is not run at all."""
    lines = (HERE / "known_differences.txt").read_text(encoding="utf-8").splitlines()
    return {line.split()[0] for line in lines if line.strip() and not line.startswith("#")}


def files_left_out(known: set[str]) -> set[str]:
    return {name for name in known if "::" not in name}


def findings(redis: Outcomes, bullmq: Outcomes, known: set[str], files: set[str], *, is_whole: bool) -> tuple[list[str], list[str]]:
    """What is wrong, and what somebody should look at.

    A known difference that passes is no error: such a test may pass by chance. One that is not there is, when the whole suite was run.

    :param files: the modules of the suite, left out or not.
    """
    wrong, look = [], []
    passed = {name for name, outcome in redis.items() if outcome == "passed"}
    wrong += [f"passes with redis:// and not with bullmq://: {name}" for name in passed - known if bullmq.get(name) != "passed"]
    least = ENOUGH if is_whole else 1
    if len(passed) < least:
        wrong.append(f"only {len(passed)} tests passed with redis://, of at least {least}: this has tested nothing")
    if is_whole:
        gone = {name for name in known if name not in (redis.keys() | bullmq.keys() if "::" in name else files)}
        wrong += [f"is in known_differences.txt and not in the suite: {name}" for name in gone]
    look += [f"is in known_differences.txt and passes: {name}" for name in known if bullmq.get(name) == "passed"]
    look += [f"fails with both: {name}" for name, outcome in redis.items() if outcome == bullmq.get(name) == "failed"]
    return sorted(wrong), sorted(look)


def main(arguments: list[str]) -> int:
    schemes = ["redis", "bullmq"]
    if "--only" in arguments:
        at = arguments.index("--only")
        schemes = [arguments[at + 1]]
        del arguments[at : at + 2]
    saved = Path(arguments.pop(arguments.index("--save") + 1)) if "--save" in arguments else None
    arguments = [one for one in arguments if one != "--save"]
    results = {scheme: outcomes(scheme, list(arguments)) for scheme in schemes}
    for scheme, found in results.items():
        counts = {kind: sum(1 for one in found.values() if one == kind) for kind in ("passed", "failed", "skipped")}
        print(f"{scheme}: {counts['passed']} passed, {counts['failed']} failed, {counts['skipped']} skipped")
    if saved is not None:
        saved.write_text(json.dumps(results, indent=1), encoding="utf-8")
    if len(results) < 2:
        return 0
    files = {f"t.integration.{path.stem}" for path in (source_of("celery") / "t" / "integration").glob("test_*.py")}
    wrong, look = findings(results["redis"], results["bullmq"], known_differences(), files, is_whole=not arguments)
    for line in (*look, *wrong):
        print(line)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
