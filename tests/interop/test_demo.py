"""The demo, run as the README says: with Node, without, and where something is wrong; it ends by itself and leaves nothing."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from importlib import resources
from pathlib import Path

import pytest
from node_driver import install_node
from servers import Server, end, require, spawn
from waiting import wait_until

# Celery's half takes about five seconds, both about eight, and the machine may be shared.
WITHIN_S = 90.0


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """For what the demo installs, once."""
    require("node")
    require("npm")
    return tmp_path_factory.mktemp("cache")


def start(*arguments: str, **environment: str) -> subprocess.Popen[str]:
    return spawn(
        [sys.executable, "-m", "bullmq_kombu", "demo", *arguments], env={**os.environ, **environment}, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip


def play(*arguments: str, **environment: str) -> tuple[int, str]:
    process = start(*arguments, **environment)
    try:
        output, _ = process.communicate(timeout=WITHIN_S)
    finally:
        end(process)
    return process.returncode, output


def without_node(tmp_path: Path) -> str:
    """A PATH with nothing on it but a shell."""
    folder = tmp_path / "bin"
    folder.mkdir()
    shell = shutil.which("sh")
    assert shell is not None
    folder.joinpath("sh").symlink_to(shell)
    return str(folder)


def processes_with(mark: str) -> list[str]:
    """Command lines of running processes that contain the mark."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            line = folder.joinpath("cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            environment = folder.joinpath("environ").read_bytes().decode(errors="replace")
        except OSError:
            continue
        if mark in line or mark in environment:
            found.append(line)
    return found


@pytest.mark.timeout(240)
def test_jobs_go_both_ways_on_a_server_of_its_own(cache: Path) -> None:
    mark = f"demo-test-{os.getpid()}"

    code, output = play(XDG_CACHE_HOME=str(cache), DEMO_TEST_MARK=mark)

    assert code == 0, output
    for line in (
        'node    job.waitUntilFinished() gives "Hello Ada"',
        "celery  demo.flaky() runs, attempt 3",
        'node    job.waitUntilFinished() throws "ZeroDivisionError: division by zero"',
        'python  AsyncResult.get() gives {"sent": "ada@example.org"}',
    ):
        assert line in output
    assert "Traceback" not in output
    assert processes_with(mark) == []


@pytest.mark.timeout(240)
def test_on_a_server_that_is_given_it_leaves_nothing_but_what_expires(cache: Path) -> None:
    with Server() as server, server.client() as client:
        code, output = play("--url", server.url_of("redis", db=1), XDG_CACHE_HOME=str(cache))
        assert code == 0, output
        with server.client(db=1) as used:
            assert [key for key in used.scan_iter() if used.ttl(key) == -1] == []
        assert client.dbsize() == 0


def test_without_node_celerys_half_is_shown(tmp_path: Path) -> None:
    code, output = play(PATH=without_node(tmp_path))

    assert code == 0, output
    assert "node    node is not installed: only Celery's half is shown" in output
    assert 'python  AsyncResult.get() gives "Hello Ada"' in output
    assert 'redis   returnvalue "Hello Ada"' in output


def test_a_server_that_does_not_answer_is_an_error_that_says_so(tmp_path: Path) -> None:
    with Server() as server:
        url = server.url
    code, output = play("--url", url, PATH=without_node(tmp_path))
    assert code == 1
    assert "Connection refused" in output
    assert "Traceback" not in output


@pytest.mark.parametrize(("url", "why"), [("amqp://localhost", "bullmq:// or redis://"), ("bullmq+sentinel://h:1/0", "single server")])
def test_a_url_it_cannot_use_is_refused(url: str, why: str, tmp_path: Path) -> None:
    code, output = play("--url", url, PATH=without_node(tmp_path))
    assert code == 2
    assert why in output


def test_told_to_stop_it_stops_all_it_started(tmp_path: Path) -> None:
    mark = f"demo-stop-{os.getpid()}"
    process = start(PATH=without_node(tmp_path), DEMO_TEST_MARK=mark)
    try:
        wait_until(lambda: len(processes_with(mark)) >= 4, 60, "the demo to have started its processes")
        process.terminate()
        process.communicate(timeout=WITHIN_S)
    finally:
        end(process)
    assert process.returncode == 143
    assert processes_with(mark) == []


def test_its_lock_file_is_of_the_version_the_tests_use() -> None:
    folder = resources.files("bullmq_kombu.celery.demo").joinpath("npm")
    own = json.loads(folder.joinpath("package-lock.json").read_text())["packages"]
    tested = json.loads((install_node("v6") / "package-lock.json").read_text())["packages"]
    # The tests have more packages, for telemetry.
    assert {name: entry for name, entry in own.items() if name} == {name: tested.get(name) for name in own if name}
    wanted = json.loads(folder.joinpath("package.json").read_text())["dependencies"]
    assert own[""]["dependencies"] == wanted
