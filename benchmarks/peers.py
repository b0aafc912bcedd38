"""What is measured beside this package, installed where it disturbs nobody: Node's BullMQ and its Python port.

The servers and Node's installation are those of the tests.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.metadata
import platform
import subprocess
import sys
import tempfile
import venv
from functools import cache
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent / "tests"), str(HERE.parent / "tests" / "interop")]

from node_driver import install_node  # type: ignore[import-not-found]  # noqa: E402
from servers import Server, require  # type: ignore[import-not-found]  # noqa: E402

__all__ = ["Server", "node_command", "port_command", "versions"]


def node_command(*args: str) -> list[str]:
    return [require("node"), str(HERE / "node" / "work.js"), str(install_node("v6")), *args]


@cache
def port_python() -> str:
    """A Python with the official port, made once."""
    requirements = HERE / "port" / "requirements.txt"
    mark = hashlib.sha256(f"{requirements.read_text()}{sys.version}".encode()).hexdigest()[:16]
    folder = Path(tempfile.gettempdir()) / f"bullmq-kombu-port-{mark}"
    python, done = folder / "bin" / "python", folder / "done"
    with folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.exists():
            venv.create(folder, with_pip=True, clear=True)
            subprocess.run([python, "-m", "pip", "install", "--quiet", "--requirement", requirements], check=True)
            done.touch()
    return str(python)


def port_command(*args: str) -> list[str]:
    return [port_python(), str(HERE / "port" / "work.py"), *args]


def versions() -> dict[str, str]:
    """What was measured, on what."""
    found = {name: importlib.metadata.version(name) for name in ("bullmq-kombu", "celery", "kombu", "redis", "hiredis") if _has(name)}
    found["Python"] = platform.python_version()
    found["Node"] = _said([require("node"), "--version"]).lstrip("v")
    found["Redis"] = _said([require("redis-server"), "--version"]).partition("v=")[2].split()[0]
    found["BullMQ (Node)"] = _pinned(HERE.parent / "tests/interop/node/v6/package.json", '"bullmq": "')
    found["bullmq (Python port)"] = _pinned(HERE / "port" / "requirements.txt", "bullmq==")
    return found


def _has(name: str) -> bool:
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _said(argv: list[str]) -> str:
    return subprocess.run(argv, capture_output=True, text=True, check=True).stdout.strip()


def _pinned(path: Path, before: str) -> str:
    return path.read_text().partition(before)[2].split()[0].strip('",')
