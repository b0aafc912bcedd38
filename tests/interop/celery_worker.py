"""Real Celery workers in processes of their own, started where no checkout is, and told by remote control what to consume."""

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

from interop_tasks import app
from servers import Server, end, spawn
from waiting import wait_until

HERE = Path(__file__).parent
#: Long, as a busy machine has been seen to take half a minute for the imports alone.
START_TIMEOUT_S = 90.0
REPLY_TIMEOUT_S = 10.0

QUICK: Mapping[str, Any] = {"lock_duration": 1.0, "stalled_interval": 0.5, "drain_delay": 1.0}
"""Transport options with which the death of a worker is noticed within two seconds."""


class CeleryWorker:
    """One `celery worker` of `interop_tasks`.

    :param queues: consumed from the start; more by :meth:`consume`.
    :param settings: Celery's configuration, over that of `interop_tasks`.
    """

    def __init__(
        self, server: Server, folder: Path, *, pool: str = "prefork", concurrency: int = 2, queues: Sequence[str] = (),
        settings: Mapping[str, Any] | None = None, url: str = "", arguments: Sequence[str] = (),
    ) -> None:  # fmt: skip
        self.name = f"w{secrets.token_hex(4)}@interop"
        self._server = server
        self._folder = folder
        self._url = url or server.url
        self._settings = dict(settings or {})
        self._arguments = [
            "-n",
            self.name,
            "-P",
            pool,
            "-c",
            str(concurrency),
            "-Q",
            ",".join(queues) or f"idle-{self.name[:9]}",
            *arguments,
        ]
        self._process: subprocess.Popen[Any] | None = None
        self._log = folder / f"{self.name}.log"

    def start(self) -> CeleryWorker:
        shutil.copy(HERE / "interop_tasks.py", self._folder)
        own = {"INTEROP_BROKER": self._url, "INTEROP_REDIS": self._server.redis_url, "INTEROP_SETTINGS": json.dumps(self._settings)}
        environment = {**os.environ, **own}
        command = [sys.executable, "-m", "celery", "-A", "interop_tasks", "worker", "-l", "INFO", "--without-gossip", "--without-mingle"]
        with self._log.open("ab") as log:
            self._process = spawn(
                [*command, *self._arguments], cwd=self._folder, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                # So that all of it, its pool included, can be ended at once.
                start_new_session=True,
            )  # fmt: skip
        wait_until(lambda: self._is_ready() or self._process.poll() is not None, START_TIMEOUT_S, "the Celery worker to be ready")  # type: ignore[union-attr]
        assert self._process.poll() is None, f"the worker ended:\n{self.log}"
        return self

    def _is_ready(self) -> bool:
        return f"{self.name} ready." in self.log

    @property
    def log(self) -> str:
        return self._log.read_text(errors="replace")

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def consume(self, queue: str) -> None:
        # A green pool listens for remote control some time after it says that it is ready.
        replies = wait_until(
            lambda: app.control.add_consumer(queue, destination=[self.name], reply=True, timeout=REPLY_TIMEOUT_S / 5),
            REPLY_TIMEOUT_S, f"the worker to answer:\n{self.log[-3000:]}",
        )  # fmt: skip
        assert "ok" in replies[0][self.name], replies

    def cancel(self, queue: str) -> None:
        app.control.cancel_consumer(queue, destination=[self.name], reply=True, timeout=REPLY_TIMEOUT_S)

    def stop(self) -> None:
        """In order: running tasks end first."""
        if self._process is not None:
            end(self._process, 20.0)
            self._end_pool()

    def kill(self) -> None:
        """The whole worker at once, its pool too: the fault of a host that is gone."""
        if self._process is not None:
            self._end_pool()
            self._process.wait()

    def _end_pool(self) -> None:
        try:
            os.killpg(self.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass

    def __enter__(self) -> CeleryWorker:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()
