"""What is released is built from the tracked files, and works where nothing else is installed."""

from __future__ import annotations

import email
import os
import re
import shutil
import subprocess
import tarfile
import venv
import zipfile
from collections.abc import Mapping
from pathlib import Path

import pytest
from servers import Server, missing

ROOT = Path(__file__).parents[2]
TIMEOUT_S = 300

pytestmark = pytest.mark.timeout(TIMEOUT_S)


class Environment:
    """A new virtual environment."""

    def __init__(self, folder: Path) -> None:
        venv.create(folder, with_pip=True)
        self.folder = folder
        # Its path must have no blank, which the clone's may: pip reads a list there.
        constraints = shutil.copy(ROOT / ".ci" / "constraints.txt", folder / "constraints.txt")
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV", "CELERY_"))}
        self.variables = {**kept, "PIP_CONSTRAINT": str(constraints), "PIP_DISABLE_PIP_VERSION_CHECK": "1"}

    def python(self, *arguments: str | Path) -> str:
        done = subprocess.run(
            [self.folder / "bin" / "python", *arguments],
            cwd=self.folder, env=self.variables, capture_output=True, text=True, timeout=TIMEOUT_S, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout


@pytest.fixture(scope="module")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """The sdist of the tracked files, and the wheel of that sdist."""
    if not (ROOT / ".git").exists():
        missing("the tracked files are known in a clone only")
    source = tmp_path_factory.mktemp("source")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():  # not one that is being deleted
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, source / name)
    builder = Environment(tmp_path_factory.mktemp("builder"))
    builder.python("-m", "pip", "install", "-q", "build")
    builder.python("-m", "build", "--outdir", builder.folder / "dist", source)
    (sdist,) = (builder.folder / "dist").glob("*.tar.gz")
    (wheel,) = (builder.folder / "dist").glob("*.whl")
    return {"sdist": sdist, "wheel": wheel}


def test_the_version_stands_in_one_place_and_the_changelog_tells_of_it(distributions: Mapping[str, Path]) -> None:
    text = (ROOT / "bullmq_kombu" / "__init__.py").read_text(encoding="utf-8")
    (version,) = re.findall(r'^__version__ = "([^"]+)"$', text, re.MULTILINE)
    assert distributions["wheel"].name == f"bullmq_kombu-{version}-py3-none-any.whl"
    assert distributions["sdist"].name == f"bullmq_kombu-{version}.tar.gz"
    assert f"\n## [{version}] - 20" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_the_metadata_are_complete(distributions: Mapping[str, Path]) -> None:
    with zipfile.ZipFile(distributions["wheel"]) as wheel:
        (name,) = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
        metadata = email.message_from_string(wheel.read(name).decode())
        assert any(name.endswith("licenses/LICENSE") for name in wheel.namelist())
    for field in ("Name", "Summary", "Author", "Keywords", "Requires-Python", "Classifier", "Requires-Dist", "Provides-Extra"):
        assert metadata[field], field
    assert "MIT" in (metadata["License-Expression"] or metadata["License"])
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert "bullmq-kombu" in metadata.get_payload()


def test_the_sdist_has_the_tests_and_nothing_that_was_installed(distributions: Mapping[str, Path]) -> None:
    with tarfile.open(distributions["sdist"]) as sdist:
        names = {name.partition("/")[2] for name in sdist.getnames()}
    assert {"README.md", "CHANGELOG.md", "LICENSE", "tox.ini", "tests/conftest.py", "bullmq_kombu/lua/add.lua", "docs/index.md"} <= names
    assert not [name for name in names if "node_modules" in name or "__pycache__" in name]


PUBLISH = """
import sys
from celery import Celery
app = Celery(broker=sys.argv[1])
print(app.send_task("mail.send", kwargs={"to": "ada@example.org"}, queue="mail", task_id="the-one").id)
"""


@pytest.mark.parametrize("kind", ["wheel", "sdist"])
def test_it_works_where_nothing_else_is_installed(kind: str, distributions: Mapping[str, Path], server: Server, tmp_path: Path) -> None:
    environment = Environment(tmp_path / "env")
    environment.python("-m", "pip", "install", "-q", f"{distributions[kind]}[celery,cli]")
    environment.python("-m", "pip", "check")
    assert "doctor" in environment.python("-m", "bullmq_kombu", "--help")
    url = server.url_of(db=1 if kind == "wheel" else 2)
    assert environment.python("-c", PUBLISH, url) == "the-one\n"
    shown = environment.python("-m", "bullmq_kombu", "--url", url, "show", "mail", "the-one", "--json")
    assert '"ada@example.org"' in shown
