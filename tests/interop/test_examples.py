"""The examples are run by the commands of their own READMEs, and print what those say; files for other tools are read and compared."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import yaml
from node_driver import VERSIONS, install_node
from servers import Server, end, free_port, require, spawn
from waiting import wait_until

EXAMPLES = Path(__file__).parents[2] / "examples"
WITH_NODE = ["node_to_celery", "celery_to_node", "flow_across_languages", "opentelemetry"]
PYTHON = ["priorities", "delays_and_retries", "deduplication", "schedules", "progress_bar", "fastapi_send", "django_shop"]
TO_READ = ["docker_compose", "kubernetes", "grafana"]
ELSEWHERE = ["bull_board"]  # tests/dashboards


def blocks(folder: Path) -> tuple[list[str], str]:
    """The commands of the README's first block, and what its second says is printed."""
    commands, printed = re.findall(r"^```\w*\n(.*?)^```", (folder / "README.md").read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    return commands.splitlines(), printed


def argv(command: str) -> Sequence[str]:
    program, *arguments = command.split()
    of_python = {"celery": ["-m", "celery"], "uvicorn": ["-m", "uvicorn"], "python": []}
    return [require("node"), *arguments] if program == "node" else [sys.executable, *of_python[program], *arguments]


def run(name: str, tmp_path: Path, version: str | None = None) -> Path:
    """Does what the README says; the log of what went on beside is the answer."""
    ignored = shutil.ignore_patterns("__pycache__", "node_modules")
    folder = shutil.copytree(EXAMPLES / name, tmp_path / name, ignore=ignored)
    if version is not None:
        (folder / "node_modules").symlink_to(install_node(version) / "node_modules")
    commands, printed = blocks(folder)
    installs = [shlex.split(command) for command in commands if command.split()[1] == "install"]
    assert [words[0] for words in installs] == ["pip", "npm"][: len(installs)]
    assert installs[0][2].startswith("bullmq-kombu[celery")
    assert len(installs) == (1 if version is None else 2)
    *services, send = (argv(command) for command in commands[len(installs) :])
    log_path = tmp_path / "log"
    # A server of its own: an example's queues have the names a reader would choose.
    with Server() as server, log_path.open("wb") as log, ExitStack() as running:
        port = free_port()
        environment = {
            **os.environ,
            "CELERY_BROKER_URL": server.url,
            "CELERY_RESULT_BACKEND": server.url,
            "REDIS_PORT": str(server.port),
            "UVICORN_PORT": str(port),
        }
        for service in services:
            started = spawn(service, cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT)
            running.callback(end, started)
            if "uvicorn" in service:
                wait_until(lambda: listens(port), 30, "uvicorn to listen")
        sent = subprocess.run(send, cwd=folder, env=environment, capture_output=True, text=True, timeout=60, check=False)
        assert sent.stdout == printed, f"{sent.stderr}\n{log_path.read_text()}"
    return log_path


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_every_example_is_tested() -> None:
    there = {path.parent.name for path in EXAMPLES.glob("*/README.md")}
    assert there == {*WITH_NODE, *PYTHON, *TO_READ, *ELSEWHERE}


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", WITH_NODE)
def test_an_example_with_node_does_what_its_readme_says(name: str, version: str, tmp_path: Path) -> None:
    log = run(name, tmp_path, version)
    if name == "celery_to_node":
        assert log.read_text().splitlines() == ["to ada@example.org: Hello", "to bob@example.org: Later"]


@pytest.mark.parametrize("name", PYTHON)
def test_an_example_does_what_its_readme_says(name: str, tmp_path: Path) -> None:
    run(name, tmp_path)


@pytest.mark.parametrize("name", WITH_NODE)
def test_an_example_asks_for_the_bullmq_it_is_tested_with(name: str) -> None:
    wished = json.loads((EXAMPLES / name / "package.json").read_text())["dependencies"]
    tested = json.loads((install_node("v6") / "package.json").read_text())["dependencies"]
    assert {"bullmq", "ioredis"} <= set(wished)
    assert wished == {package: f"^{tested[package]}" for package in wished}


# -- files for other tools


def test_docker_compose_is_yaml_of_services() -> None:
    found = yaml.safe_load((EXAMPLES / "docker_compose" / "compose.yaml").read_text(encoding="utf-8"))
    assert set(found["services"]) == {"redis", "celery", "metrics"}
    assert "noeviction" in found["services"]["redis"]["command"]
    context = EXAMPLES / "docker_compose" / found["services"]["celery"]["build"]["context"]
    assert (context / "tasks.py").is_file()


def test_kubernetes_scales_by_the_keys_that_are_there(server: Server) -> None:
    from bullmq_kombu import Queue

    documents = list(yaml.safe_load_all((EXAMPLES / "kubernetes" / "worker.yaml").read_text(encoding="utf-8")))
    assert [one["kind"] for one in documents] == ["Deployment", "ScaledObject"]
    deployment, scaled = documents
    assert scaled["spec"]["scaleTargetRef"]["name"] == deployment["metadata"]["name"]
    by_list, by_metric = (trigger["metadata"] for trigger in scaled["spec"]["triggers"])
    with Queue("invoices", server.url_of(db=9)) as queue, server.client(db=9) as client:
        queue.add("invoice.total")
        assert client.llen(by_list["listName"]) == 1
    assert metrics_in(by_metric["query"]) <= exported(server)


def test_grafana_shows_metrics_that_there_are(server: Server) -> None:
    dashboard = json.loads((EXAMPLES / "grafana" / "dashboard.json").read_text(encoding="utf-8"))
    asked = {target["expr"] for panel in dashboard["panels"] for target in panel["targets"]}
    asked |= {variable["definition"] for variable in dashboard["templating"]["list"] if "definition" in variable}
    assert asked
    shown = set().union(*map(metrics_in, asked))
    assert shown <= exported(server), "of the names that are exported"
    assert {panel["id"] for panel in dashboard["panels"]} == set(range(1, len(dashboard["panels"]) + 1))


def metrics_in(expression: str) -> set[str]:
    return set(re.findall(r"\bbullmq_\w+", expression))


def exported(server: Server) -> set[str]:
    """The names of the samples of the queues' and of a worker's metrics."""
    from prometheus_client import CollectorRegistry

    from bullmq_kombu import Queue
    from bullmq_kombu.celery.metrics import WorkerMetrics
    from bullmq_kombu.metrics import QueueCollector

    registry = CollectorRegistry()
    worker = WorkerMetrics(registry)
    worker.ended.labels("q", "n", "completed").inc()
    worker.took.labels("q", "n").observe(1)
    with Queue("exported", server.url_of(db=9)) as queue:
        queue.add("any")
        families: list[Any] = [*registry.collect(), *QueueCollector(queue.server, ["exported"]).collect()]
        return {sample.name for family in families for sample in family.samples}
