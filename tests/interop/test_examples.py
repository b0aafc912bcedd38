"""The examples between Celery and Node are run by the commands of their own READMEs, and print what those say."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from node_driver import VERSIONS, install_node
from servers import Server, end, require, spawn
from waiting import wait_until

EXAMPLES = Path(__file__).parents[2] / "examples"


def blocks(folder: Path) -> tuple[list[str], str]:
    """The commands of the README's first block, and what its second says is printed."""
    commands, printed = re.findall(r"^```\w*\n(.*?)^```", (folder / "README.md").read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    return commands.splitlines(), printed


def argv(command: str) -> Sequence[str]:
    program, *arguments = command.split()
    programs = {"python": [sys.executable], "celery": [sys.executable, "-m", "celery"], "node": [require("node")]}
    return [*programs[program], *arguments]


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", ["node_to_celery", "celery_to_node"])
def test_an_example_does_what_its_readme_says(name: str, version: str, tmp_path: Path) -> None:
    folder = shutil.copytree(EXAMPLES / name, tmp_path / name)
    (folder / "node_modules").symlink_to(install_node(version) / "node_modules")
    commands, printed = blocks(folder)
    assert commands[:2] == ['pip install "bullmq-kombu[celery]"', "npm install"]
    serve, send = (argv(command) for command in commands[2:])
    # A server of its own: an example's queues have the names a reader would choose.
    with Server() as server, (tmp_path / "log").open("wb") as log:
        environment = {**os.environ, "CELERY_BROKER_URL": server.url, "CELERY_RESULT_BACKEND": server.url, "REDIS_PORT": str(server.port)}
        service = spawn(serve, cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT)
        try:
            sent = subprocess.run(send, cwd=folder, env=environment, capture_output=True, text=True, timeout=60, check=False)
            assert sent.stdout == printed, f"{sent.stderr}\n{(tmp_path / 'log').read_text()}"
        finally:
            end(service)
        if name == "celery_to_node":
            wait_until(lambda: (tmp_path / "log").read_text().splitlines() == ["to ada@example.org: Hello", "to bob@example.org: Later"])


@pytest.mark.parametrize("name", ["node_to_celery", "celery_to_node"])
def test_an_example_asks_for_the_bullmq_it_is_tested_with(name: str) -> None:
    wished = json.loads((EXAMPLES / name / "package.json").read_text())["dependencies"]
    tested = json.loads((install_node("v6") / "package.json").read_text())["dependencies"]
    assert wished == {package: f"^{version}" for package, version in tested.items()}
