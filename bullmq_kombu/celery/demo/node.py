"""The Node half of the demo: finds Node, installs BullMQ beside nobody's project, and has `npm/demo.js` do things.

That script is told what to do by lines on its input, and answers with JSON lines: `say` is for whoever watches, `done` and `error` end
what it was told to do. It ends when its input does.
"""

from __future__ import annotations

import json
import os
import queue
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from types import TracebackType
from typing import Any

import click

from bullmq_kombu.address import Address

#: The first start of Node on a cold machine.
START_WITHIN_S = 30.0
INSTALL_WITHIN_S = 180.0
_FILES = ("demo.js", "package.json", "package-lock.json")


class NodeMissing(Exception):
    """There is no Node, or no npm; the text says which."""


def install(say: Callable[[str], None]) -> Path:
    """The folder with the script and its `node_modules`, made on the first run: `npm ci`, which needs the npm registry."""
    for tool in ("node", "npm"):
        if shutil.which(tool) is None:
            raise NodeMissing(f"{tool} is not installed")
    source = resources.files(__package__).joinpath("npm")
    texts = {name: source.joinpath(name).read_text(encoding="utf-8") for name in _FILES}
    wanted = json.loads(texts["package.json"])["dependencies"]
    mark = "-".join(f"{name}-{version}" for name, version in sorted(wanted.items()))
    home = _cache() / f"demo-{mark}"
    if not home.joinpath("node_modules").is_dir():
        say(f"npm installs {' and '.join(wanted)} into {home}, once")
        _npm_ci(home, texts)
    home.joinpath("demo.js").write_text(texts["demo.js"], encoding="utf-8")
    return home


def _npm_ci(home: Path, texts: dict[str, str]) -> None:
    # In a folder of its own that is then given its name: one that is there is whole, also when two demos start at once.
    with tempfile.TemporaryDirectory(prefix="demo-", dir=home.parent) as temporary:
        folder = Path(temporary) / "home"
        folder.mkdir()
        for name, text in texts.items():
            folder.joinpath(name).write_text(text, encoding="utf-8")
        command = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
        try:
            done = subprocess.run(
                command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=INSTALL_WITHIN_S, check=False
            )
        except subprocess.TimeoutExpired:
            raise click.ClickException(f"{' '.join(command)} did not end within {INSTALL_WITHIN_S:.0f} s") from None
        if done.returncode != 0:
            raise click.ClickException(f"{' '.join(command)} failed; it needs the npm registry once:\n{done.stdout}")
        try:
            folder.rename(home)
        except OSError:
            if not home.joinpath("node_modules").is_dir():
                raise


def _cache() -> Path:
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "bullmq-kombu"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if os.access(folder, os.W_OK):
            return folder
    except (OSError, RuntimeError):
        pass
    folder = Path(tempfile.gettempdir()) / f"bullmq-kombu-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder


def connection_of(address: Address) -> dict[str, Any]:
    """ioredis' options for an address."""
    options: dict[str, Any] = {"db": address.db, "username": address.username, "password": address.password}
    if address.kind == "unix":
        options["path"] = address.path
    else:
        options["host"], options["port"] = address.nodes[0]
    if address.tls is not None:
        options["tls"] = {"rejectUnauthorized": address.tls.get("ssl_check_hostname", True)}
        if address.tls.get("ssl_ca_certs"):
            options["tls"]["ca"] = Path(address.tls["ssl_ca_certs"]).read_text(encoding="utf-8")
    return {name: value for name, value in options.items() if value is not None}


class Node:
    """The running script."""

    def __init__(self, home: Path, address: Address, celery_queue: str, node_queue: str, say: Callable[[str], None]) -> None:
        self._say = say
        self._answers: queue.Queue[dict[str, Any]] = queue.Queue()
        self._process = subprocess.Popen(
            ["node", str(home / "demo.js"), celery_queue, node_queue],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, encoding="utf-8", start_new_session=True,
        )  # fmt: skip
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        # Not an argument, which everybody on the machine could read: it may hold a password.
        self._write(json.dumps(connection_of(address)))

    def do(self, what: str, within: float) -> None:
        """Has it done, and returns when it is."""
        self._write(what)
        self._wait(within)

    def _write(self, line: str) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise click.ClickException("Node ended early") from None

    def _wait(self, within: float) -> None:
        try:
            answer = self._answers.get(timeout=within)
        except queue.Empty:
            raise click.ClickException(f"Node did not answer within {within:.0f} s") from None
        if "error" in answer:
            raise click.ClickException(f"Node: {answer['error']}")

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            message = json.loads(line)
            if "say" in message:
                self._say(message["say"])
            else:
                self._answers.put(message)
        self._answers.put({"error": "it ended"})

    def __enter__(self) -> Node:
        try:
            self._wait(START_WITHIN_S)
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._end()

    def _end(self) -> None:
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.close()
        except BrokenPipeError:
            pass
        try:
            process.wait(5.0)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        self._reader.join()
        process.stdout.close()
