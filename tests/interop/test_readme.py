"""The README's first screen is run as it stands: only the server's port is another."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from node_driver import install_node
from servers import Server, end, require, spawn
from waiting import wait_until

README = Path(__file__).parents[2] / "README.md"


def block(language: str) -> str:
    """The first block of this language."""
    found = re.search(rf"^```{language}\n(.*?)^```", README.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    assert found is not None
    return found.group(1)


def answers(what: str) -> str:
    """What the README says is printed."""
    found = re.search(rf"`({what}: [^`]+)`", README.read_text(encoding="utf-8"))
    assert found is not None
    return found.group(1)


def test_the_first_screen_does_what_it_says(tmp_path: Path) -> None:
    node = require("node")
    (tmp_path / "node_modules").symlink_to(install_node("v6") / "node_modules")
    with Server() as server, (tmp_path / "celery.log").open("wb") as celery_log, (tmp_path / "node.log").open("wb") as node_log:
        for name, language in (("app.py", "python"), ("app.mjs", "js")):
            (tmp_path / name).write_text(block(language).replace("6379", str(server.port)))
        worker = spawn(
            [sys.executable, "-W", "ignore", "-m", "celery", "-A", "app", "worker", "-c", "1"], cwd=tmp_path, stdin=subprocess.DEVNULL,
            stdout=celery_log, stderr=subprocess.STDOUT,
        )  # fmt: skip
        service = spawn([node, "app.mjs"], cwd=tmp_path, stdin=subprocess.DEVNULL, stdout=node_log, stderr=subprocess.STDOUT)
        try:
            wanted = answers("Celery's answer")
            wait_until(lambda: wanted in (tmp_path / "node.log").read_text(), 40, f"Node to print {wanted!r}")
            client = subprocess.run([sys.executable, "app.py"], cwd=tmp_path, capture_output=True, text=True, timeout=40, check=False)
            assert client.stdout.strip() == answers("Node's answer"), client.stderr
        finally:
            end(service)
            end(worker)


def test_its_commands_are_those_that_ci_and_the_tests_run() -> None:
    text = README.read_text(encoding="utf-8")
    assert '.venv/bin/pip install -q ".[demo]" && .venv/bin/python -m bullmq_kombu demo' in text
    assert ".venv/bin/pip install -q tox && .venv/bin/tox" in text
    assert "python3 -m tox" in (README.parent / ".ci" / "run").read_text(encoding="utf-8")


def test_its_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\((?!https?://)([^)]+)\)", README.read_text(encoding="utf-8")):
        assert (README.parent / target).exists(), target
