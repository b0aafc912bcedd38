"""The example with bull-board, running, and a browser to look at it."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from node_driver import install_node
from servers import Server, free_port, require, spawn
from waiting import wait_until

sys.path.insert(0, str(Path(__file__).parent))

from browser import EXAMPLE, PACKAGES, Board, Browser


@pytest.fixture(scope="module")
def board(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Board]:
    """The example as its README starts it, by `npm start`, filled by its `fill.py`."""
    require("chromium")
    folder = shutil.copytree(EXAMPLE, tmp_path_factory.mktemp("board") / "bull_board", ignore=shutil.ignore_patterns("node_modules"))
    (folder / "node_modules").symlink_to(install_node(str(PACKAGES)) / "node_modules")
    port = free_port()
    with Server() as server, server.client() as client, (folder / "log").open("wb") as log:
        environment = {
            **os.environ,
            "CELERY_BROKER_URL": server.url,
            "REDIS_PORT": str(server.port),
            "PORT": str(port),
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        }
        # A group of its own: npm, Node and the worker end together.
        started = spawn(
            [require("npm"), "start"],
            cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        try:
            subprocess.run([sys.executable, "fill.py"], cwd=folder, env=environment, check=True, timeout=60)
            wait_until(lambda: client.zcard("bull:reports:failed") and client.zcard("bull:reports:completed"), 60, "the jobs to end")
            wait_until(lambda: b"page 1" in "".join(client.lrange("bull:reports:active-one:logs", 0, -1)).encode(), 30, "the long task")
            yield Board(f"http://127.0.0.1:{port}", client)
        finally:
            print((folder / "log").read_text(errors="replace")[-5000:])
            os.killpg(started.pid, signal.SIGKILL)
            started.wait()


@pytest.fixture(scope="module")
def browser(board: Board) -> Iterator[Browser]:
    opened = Browser()
    yield opened
    opened.close()
