"""Every code block of the documentation is run: a page's Python top to bottom in one process, its JavaScript with BullMQ, its shell."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from configparser import ConfigParser
from pathlib import Path

import pytest
import yaml
from servers import Server, require

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "docs").glob("*.md"))
_FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(page: Path, language: str) -> list[str]:
    return [text for kind, text in _FENCE.findall(page.read_text(encoding="utf-8")) if kind == language]


def with_server(text: str, server: Server) -> str:
    """The documentation says the usual address; here it is the test's."""
    return text.replace("127.0.0.1:6379/0", f"127.0.0.1:{server.port}/0").replace("port: 6379", f"port: {server.port}")


def having(language: str) -> list[object]:
    return [pytest.param(page, id=page.stem) for page in PAGES if blocks(page, language)]


def test_every_block_is_of_a_kind_that_is_run() -> None:
    kinds = {kind for page in PAGES for kind, _ in _FENCE.findall(page.read_text(encoding="utf-8"))}
    assert kinds <= {"python", "js", "sh", "yaml", "text"}


@pytest.mark.parametrize("page", having("python"))
def test_python(page: Path, server: Server, tmp_path: Path) -> None:
    program = tmp_path / "page.py"
    program.write_text(with_server("\n".join(blocks(page, "python")), server), encoding="utf-8")
    done = subprocess.run([sys.executable, program], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("page", having("js"))
def test_javascript(page: Path, server: Server, bullmq: Path) -> None:
    for number, text in enumerate(blocks(page, "js")):
        program = bullmq / f"{page.stem}-{number}.mjs"
        program.write_text(with_server(text, server), encoding="utf-8")
        try:
            done = subprocess.run([require("node"), program], cwd=bullmq, capture_output=True, text=True, timeout=30, check=False)
        finally:
            program.unlink()
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("page", having("sh"))
def test_shell(page: Path, server: Server, bullmq: Path, tmp_path: Path) -> None:
    for line in "\n".join(blocks(page, "sh")).splitlines():
        words = shlex.split(with_server(line, server), comments=True)
        if words[:2] == ["pip", "install"]:
            assert_installable(words[2])
        elif words[:2] == ["npm", "install"]:
            assert set(words[2:]) <= json.loads((bullmq / "package.json").read_text())["dependencies"].keys()
        elif words:
            assert words[0] == "bullmq-kombu", line
            done = subprocess.run(
                [sys.executable, "-m", "bullmq_kombu", *words[1:]], cwd=tmp_path, capture_output=True, text=True, timeout=30, check=False
            )
            assert done.returncode == 0, done.stderr


def assert_installable(requirement: str) -> None:
    """Its extras are extras of ours."""
    config = ConfigParser()
    config.read(ROOT / "setup.cfg")
    name, _, extras = requirement.rstrip("]").partition("[")
    assert name == config["metadata"]["name"]
    assert set(filter(None, extras.split(","))) <= set(config["options.extras_require"])


@pytest.mark.parametrize("page", having("yaml"))
def test_yaml(page: Path) -> None:
    for text in blocks(page, "yaml"):
        assert yaml.safe_load(text)


def test_every_option_is_in_the_generated_table() -> None:
    """The table is made when the pages are built; a page must ask for it."""
    assert "<!-- transport options -->" in (ROOT / "docs" / "options.md").read_text(encoding="utf-8")
