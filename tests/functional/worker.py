"""A real Celery worker in a process of its own, as a user would start it.

It runs a copy of one of `apps/` in a folder of its own, so that no checkout is on its path, and dies with the tests.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from servers import Server, end, spawn
from waiting import wait_until

APPS = Path(__file__).parent / "apps"
#: Long, as a busy machine has been seen to take half a minute for the imports alone.
START_TIMEOUT_S = 90.0
STOP_TIMEOUT_S = 20.0

QUICK: Mapping[str, Any] = {"lock_duration": 1.0, "stalled_interval": 1.0, "drain_delay": 1.0}
"""Transport options with which a lost worker is noticed within three seconds, and a lock not renewed within one."""


class Worker:
    """One `celery worker`.

    :param app: a module of `apps/`.
    :param settings: Celery's configuration, over the app's own.
    :param options: `broker_transport_options` over QUICK.
    :param arguments: of the command line.
    :param url: where the broker is; the server itself when left out.
    :param environment: over everything else of it.
    :param neighbours: look for other workers and talk with them; that costs a second at the start.
    """

    def __init__(
        self, server: Server, folder: Path, queues: Sequence[str], *, app: str = "tasks", pool: str = "prefork", concurrency: int = 2,
        settings: Mapping[str, Any] | None = None, options: Mapping[str, Any] | None = None, arguments: Sequence[str] = (), url: str = "",
        neighbours: bool = False, environment: Mapping[str, str] | None = None,
    ) -> None:  # fmt: skip
        self.name = f"w{secrets.token_hex(4)}@functional"
        self.pool = pool
        self.folder = folder / self.name
        self._app = app
        self._environment = {**environment_of(server, settings, options, url), "PYTHONFAULTHANDLER": "1", **(environment or {})}
        self._arguments = ["-n", self.name, "-P", pool, "-c", str(concurrency), "-Q", ",".join(queues), *arguments]
        if not neighbours:
            self._arguments += ["--without-mingle", "--without-gossip"]
        self._log = folder / f"{self.name}.log"
        self.process: subprocess.Popen[Any] | None = None

    def start(self, *, wait: bool = True) -> Worker:
        self.folder.mkdir(parents=True)
        shutil.copy(APPS / f"{self._app}.py", self.folder)
        command = [sys.executable, "-m", "celery", "-A", self._app, "worker", "-l", "INFO", *self._arguments]
        with self._log.open("ab") as log:
            # A session of its own, so that all of it, its pool included, can be ended at once.
            self.process = spawn(
                command, cwd=self.folder, env=self._environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        if wait:
            self.wait_until_ready()
        return self

    def wait_until_ready(self) -> None:
        try:
            wait_until(lambda: f"{self.name} ready." in self.log or self._has_ended, START_TIMEOUT_S, "the worker to be ready")
        except AssertionError:
            self.signal(signal.SIGABRT)  # with PYTHONFAULTHANDLER its log then says where every thread stood
            raise
        assert not self._has_ended, f"the worker ended:\n{self.log}"

    @property
    def _has_ended(self) -> bool:
        return self.process is None or self.process.poll() is not None

    @property
    def log(self) -> str:
        return self._log.read_text(errors="replace")

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def signal(self, number: signal.Signals) -> None:
        """To the main process alone."""
        os.kill(self.pid, number)

    def wait(self, timeout: float = STOP_TIMEOUT_S) -> int:
        """Until it has ended; its exit code."""
        assert self.process is not None
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"the worker is still there after {timeout} s:\n{self.log}") from None

    def kill(self) -> None:
        """The main process and its pool at once: a host that is gone."""
        if self.process is not None:
            self._kill_session()
            self.wait()

    def stop(self) -> None:
        """Warm shutdown, as by SIGTERM; what is left of it then is killed."""
        if self.process is not None:
            end(self.process, STOP_TIMEOUT_S)
            self._kill_session()

    def _kill_session(self) -> None:
        try:
            os.killpg(self.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass

    def __enter__(self) -> Worker:
        return self if self.process is not None else self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()
        if error is not None:
            self.show()

    def show(self) -> None:
        """What pytest prints with a failure."""
        print(f"--- the log of {self.name} ({self.pool}) ---\n{self.log[-8000:]}")


def environment_of(
    server: Server, settings: Mapping[str, Any] | None = None, options: Mapping[str, Any] | None = None, url: str = ""
) -> dict[str, str]:  # fmt: skip
    """What a module of `apps/` reads when it is imported in another process."""
    configuration = {"broker_transport_options": {**QUICK, **(options or {})}, **(settings or {})}
    return {
        **os.environ,
        "APP_BROKER": url or server.url,
        "APP_REDIS": server.redis_url,
        "APP_SETTINGS": json.dumps(configuration),
        # A checkout beside the tests would hide the installed package.
        "PYTHONPATH": "",
    }
