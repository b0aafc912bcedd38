"""BullMQ's own Python port, beside us: installed once into a folder of its own, run as a process of its own."""

from __future__ import annotations

import fcntl
import hashlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any

from servers import Server, end, spawn

HERE = Path(__file__).parent / "port"
INSTALL_TIMEOUT_S = 300.0


def install_port() -> Path:
    """The folder to put on PYTHONPATH."""
    wanted = (HERE / "requirements.txt").read_bytes() + sys.version.encode()
    folder = Path(tempfile.gettempdir()) / f"bullmq-kombu-port-{hashlib.sha256(wanted).hexdigest()[:16]}"
    with Path(f"{folder}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        stamp = folder / "installed"
        if not stamp.exists():
            # Our own constraints name other releases of what it pins.
            environment = {name: value for name, value in os.environ.items() if name != "PIP_CONSTRAINT"}
            done = subprocess.run(
                [sys.executable, "-m", "pip", "install", "--quiet", "--target", folder, "-r", HERE / "requirements.txt"],
                env=environment, capture_output=True, text=True, timeout=INSTALL_TIMEOUT_S, check=False,
            )  # fmt: skip
            if done.returncode != 0:
                raise RuntimeError(f"BullMQ's Python port could not be installed; the tests need the registry once:\n{done.stderr}")
            stamp.touch()
    return folder


class PythonPort:
    """A process with a worker for each queue, and a producer for the first."""

    def __init__(self, server: Server, *queues: str) -> None:
        argv = [sys.executable, str(HERE / "worker.py"), server.host, str(server.port), *queues]
        environment = {**os.environ, "PYTHONPATH": str(install_port())}
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed by close()
        self._process: Any = spawn(
            argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, text=True, env=environment, cwd=tempfile.gettempdir()
        )
        self._expect("ready")

    def add(self, count: int) -> list[str]:
        """Adds jobs to the first queue; their ids."""
        self._process.stdin.write(f"{count}\n")
        self._process.stdin.flush()
        self._expect("added")
        return [f"port-{number}" for number in range(count)]

    def _expect(self, word: str) -> None:
        said = self._process.stdout.readline().strip()
        if said != word:
            self._errors.seek(0)
            raise AssertionError(f"BullMQ's Python port said {said!r}:\n{self._errors.read()[-3000:]}")

    def close(self) -> None:
        try:
            self._process.stdin.close()
            self._process.wait(10)
        except (BrokenPipeError, subprocess.TimeoutExpired):
            pass
        end(self._process)
        self._process.stdout.close()
        self._errors.close()

    def __enter__(self) -> PythonPort:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()
