"""The URL schemes are known without an import in the user's code, and making them known can hurt nobody.

Each check runs in a new interpreter, outside the checkout: what is registered, and what is imported for it, can only be
seen in a process that has not done it yet.
"""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from bullmq_kombu import _register

EXPECTED_SCHEMES = {
    "bullmq",
    "bullmqs",
    "bullmq+redis",
    "bullmq+rediss",
    "bullmq+unix",
    "bullmq+socket",
    "bullmq+sentinel",
    "bullmq+sentinels",
    "bullmq+cluster",
    "bullmq+clusters",
    "bullmq-unix",
    "bullmq-sentinel",
    "bullmq-cluster",
}

installed = pytest.mark.skipif(
    not os.environ.get("BULLMQ_KOMBU_WHEEL") and not entry_points(group="kombu.serializers", name="bullmq"),
    reason="bullmq-kombu is not pip-installed here, so it has no entry points",
)


@pytest.fixture
def python(tmp_path: Path):
    """Runs lines of Python in a new interpreter and gives what they print."""

    def run(code: str, *, path: Path | None = None) -> str:
        env = dict(os.environ)
        if path is not None:
            env["PYTHONPATH"] = str(path)
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", code],
            cwd=tmp_path,
            env=env,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        assert done.stderr == ""
        return done.stdout.strip()

    return run


def checkout() -> Path:
    """The folder that holds the package under test, for interpreters in which it may not be installed."""
    return Path(_register.__file__).parent.parent


class TestInstalled:
    @installed
    def test_celery_alone_knows_every_scheme(self, python):
        printed = python(
            "from celery import Celery\n"
            "from kombu.transport import TRANSPORT_ALIASES as known\n"
            "print(*sorted(s for s, where in known.items() if where == 'bullmq_kombu.transport:Transport'))"
        )

        assert set(printed.split()) == EXPECTED_SCHEMES

    @installed
    @pytest.mark.parametrize("module", ["celery", "kombu.serialization", "kombu.messaging"])
    def test_any_way_to_the_serializers_is_enough(self, python, module):
        printed = python(
            f"import {module}\n"
            "import kombu.messaging, celery.app.task\n"
            "from kombu.transport import TRANSPORT_ALIASES\n"
            "print('bullmq' in TRANSPORT_ALIASES)"
        )

        assert printed == "True"

    @installed
    def test_the_serializer_is_one_that_works_and_that_nobody_accepts_unasked(self, python):
        printed = python(
            "from kombu.exceptions import ContentDisallowed\n"
            "from kombu.serialization import dumps, loads\n"
            "content_type, encoding, body = dumps({'a': [1, 'é']}, serializer='bullmq')\n"
            "for data in body, body.encode(), memoryview(body.encode()):\n"
            "    assert loads(data, content_type, encoding, accept={content_type}) == {'a': [1, 'é']}\n"
            "try:\n"
            "    loads(body, content_type, encoding, accept={'application/json'})\n"
            "except ContentDisallowed:\n"
            "    print(content_type, encoding)"
        )

        assert printed == "application/x-bullmq utf-8"

    @installed
    @pytest.mark.parametrize("scheme", ["bullmq", "bullmqs", "bullmq-cluster", "bullmq-sentinel", "bullmq-unix"])
    def test_the_result_backend_is_named(self, scheme):
        (entry_point,) = entry_points(group="celery.result_backends", name=scheme)

        assert entry_point.value == "bullmq_kombu.celery.backend:Backend"


class TestHarmless:
    def test_it_imports_neither_redis_nor_celery_nor_the_transport(self, python):
        """It runs in every process that uses Kombu: it must cost nothing there."""
        printed = python(
            "import sys, kombu.transport\n"
            "before = set(sys.modules)\n"
            "import bullmq_kombu._register\n"
            "new = {name.split('.')[0] for name in set(sys.modules) - before} - sys.stdlib_module_names\n"
            "ours = {name for name in sys.modules if name.startswith('bullmq_kombu')}\n"
            "print(*sorted(new), *sorted(ours))",
            path=checkout(),
        )

        assert printed.split() == ["bullmq_kombu", "bullmq_kombu", "bullmq_kombu._register"]

    def test_a_scheme_that_somebody_registered_first_stays_theirs(self, python):
        printed = python(
            "from kombu.transport import TRANSPORT_ALIASES as known\n"
            "known['bullmq'] = 'theirs:Transport'\n"
            "from bullmq_kombu._register import register\n"
            "print(register(), known['bullmq'], known['bullmqs'])",
            path=checkout(),
        )

        assert printed == "True theirs:Transport bullmq_kombu.transport:Transport"

    @pytest.mark.parametrize(
        "broken",
        ["", "TRANSPORT_ALIASES = None", "TRANSPORT_ALIASES = ()", "raise RuntimeError('broken')", "import no_such"],
        ids=["no aliases", "aliases of no kind", "aliases immutable", "raises", "import fails"],
    )
    def test_a_broken_kombu_is_not_reported_here(self, python, tmp_path, broken):
        package = tmp_path / "broken" / "kombu"
        package.mkdir(parents=True)
        (package / "__init__.py").touch()
        (package / "transport.py").write_text(broken + "\n")

        printed = python(
            f"import sys; sys.path.insert(0, {str(package.parent)!r})\n"
            "from bullmq_kombu._register import register, serializer\n"
            "import kombu; print(register(), serializer[2], kombu.__file__)",
            path=checkout(),
        )

        assert printed == f"False application/x-bullmq {package / '__init__.py'}"
