"""Node's BullMQ, as a Python object.

One idea: :class:`Node` is one process of ``node/driver.js`` with one major version of BullMQ, and a command of that
file is a call here. The commands and their fields are listed there, under ``commands``; nothing is translated.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import subprocess
import tempfile
import threading
from collections.abc import Mapping
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from servers import Server, end, require, spawn
from waiting import TIMEOUT_S, wait_until

HERE = Path(__file__).parent / "node"
VERSIONS = ("v6", "v5")
"""Directories under ``node/``: each pins one major version of BullMQ."""
V5_VARIABLE = "BULLMQ_KOMBU_V5"
"""Names another directory than ``v5`` for that version: ``v5-oldest`` has the oldest BullMQ that is supported."""

CALL_TIMEOUT_S = 20.0
INSTALL_TIMEOUT_S = 300.0


class NodeError(Exception):
    """An error thrown in Node.

    ``code`` is BullMQ's result code (negative), a system's code (``"ECONNREFUSED"``) or None.
    """

    def __init__(self, name: str, message: str, code: int | str | None = None, stack: str | None = None) -> None:
        super().__init__(name, message, code)
        self.name = name
        self.message = message
        self.code = code
        self.stack = stack

    def __str__(self) -> str:
        return f"{self.name}: {self.message}" + (f" ({self.code})" if self.code is not None else "")


def install_node(version: str) -> Path:
    """The directory of a version, with its node_modules in place.

    That is ``npm ci``, once, and again when the lock file changed.
    """
    folder = HERE / (os.environ.get(V5_VARIABLE, version) if version == "v5" else version)
    name = hashlib.sha256(str(folder).encode()).hexdigest()[:16]
    # Not inside node_modules, which npm deletes, and not beside it, where it would be one more file to ignore.
    with (Path(tempfile.gettempdir()) / f"bullmq-kombu-npm-{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not _installed(folder):
            command = [require("npm"), "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=INSTALL_TIMEOUT_S, check=False)
            if done.returncode != 0:
                raise RuntimeError(f"npm ci failed in {folder}; the tests need the npm registry once:\n{done.stdout}{done.stderr}")
    return folder


def _installed(folder: Path) -> bool:
    # npm writes this file last, so that an installation broken off is none.
    stamp = folder / "node_modules" / ".package-lock.json"
    return stamp.exists() and stamp.stat().st_mtime >= (folder / "package-lock.json").stat().st_mtime


class Node:
    """A running Node, connected to a server of the tests.

    >>> with Node("v6", server) as node:
    ...     job = node.call("add", queue="mail", name="send", data={"to": "a@b.c"})
    ...     node.call("getState", queue="mail", jobId=job["id"])
    'waiting'

    :param connection: further options of ioredis, or other values of ``host``, ``port``, ``db``.
    """

    def __init__(self, version: str, server: Server, *, connection: Mapping[str, Any] | None = None) -> None:
        self.version = version
        self.connection: dict[str, Any] = {"host": server.host, "port": server.port, "db": 0}
        if server.password:
            self.connection["password"] = server.password
        self.connection.update(connection or {})
        self.versions: dict[str, str] = {}
        """Of ``node``, ``bullmq`` and ``ioredis``, once started."""
        self._process: subprocess.Popen[str] | None = None
        self._errors: IO[str] | None = None
        self._reader: threading.Thread | None = None
        self._lock = threading.Lock()
        # Its own: the reader has to go on while a long request is written, or both processes would wait for a pipe to
        # empty.
        self._write_lock = threading.Lock()
        self._last_id = 0
        self._waiting: dict[int, Future[Any]] = {}
        self._notifications: list[dict[str, Any]] = []

    # -- talking

    def call(self, cmd: str, *, timeout: float = CALL_TIMEOUT_S, **fields: Any) -> Any:
        """Have a command done and return its value, or raise :class:`NodeError` with what it threw."""
        future = self.begin(cmd, **fields)
        try:
            return future.result(timeout)
        except FutureTimeoutError:
            if future.done():
                raise
            raise AssertionError(f"Node {self.version} did not answer {cmd} {fields} in {timeout:g} s{self._said()}") from None

    def begin(self, cmd: str, **fields: Any) -> Future[Any]:
        """Have a command done and go on meanwhile: the future has what :meth:`call` would have returned."""
        process = self._running()
        future: Future[Any] = Future()
        with self._lock:
            self._last_id += 1
            request_id = self._last_id
            self._waiting[request_id] = future
        assert process.stdin is not None
        try:
            with self._write_lock:
                process.stdin.write(json.dumps({**fields, "id": request_id, "cmd": cmd}) + "\n")
                process.stdin.flush()
        except OSError as error:
            with self._lock:
                self._waiting.pop(request_id, None)
            raise AssertionError(f"Node {self.version} is gone{self._said()}") from error
        return future

    def job(self, queue: str, job_id: str, **fields: Any) -> dict[str, Any]:
        """All of a job; an AssertionError when there is none, so that it can be waited for."""
        found: dict[str, Any] | None = self.call("getJob", queue=queue, jobId=job_id, **fields)
        assert found is not None, f"no job {job_id} in {queue}"
        return found

    def queue_call(self, queue: str, method: str, *args: Any, **fields: Any) -> Any:
        """``queue.method(*args)`` of BullMQ's Queue."""
        return self.call("queueCall", queue=queue, method=method, args=args, **fields)

    def job_call(self, queue: str, job_id: str, method: str, *args: Any, **fields: Any) -> Any:
        """``job.method(*args)`` of BullMQ's Job."""
        return self.call("jobCall", queue=queue, jobId=job_id, method=method, args=args, **fields)

    def wait_for_state(self, queue: str, job_id: str, state: str, timeout: float = TIMEOUT_S, **fields: Any) -> dict[str, Any]:
        """The job, as soon as BullMQ says it is in this state."""

        def reached() -> bool:
            now = self.call("getState", queue=queue, jobId=job_id, **fields)
            assert now == state, f"it is {now}"
            return True

        wait_until(reached, timeout, f"job {job_id} of {queue} to be {state}")
        return self.job(queue, job_id, **fields)

    def wait_for_event(self, queue: str, event: str, timeout: float = TIMEOUT_S, **args: Any) -> dict[str, Any]:
        """The first event of that name with these arguments, in the stream since ``call("queueEvents", queue=…)``."""

        def seen() -> dict[str, Any] | None:
            events: list[dict[str, Any]] = self.call("events", queue=queue)
            matches = (one for one in events if one["event"] == event and args.items() <= one["args"].items())
            first = next(matches, None)
            assert first is not None, f"only {[one['event'] for one in events]}"
            return first

        found = wait_until(seen, timeout, f"event {event} {args} of {queue}")
        assert found is not None
        return found

    @property
    def notifications(self) -> list[dict[str, Any]]:
        """What happened unasked, in order, each ``{event, at, …}``.

        Events: ``run.started``, ``run.finished``, ``worker.completed``, ``worker.failed``, ``worker.stalled``,
        ``worker.drained``, ``error``.
        """
        with self._lock:
            return list(self._notifications)

    def forget(self) -> None:
        with self._lock:
            self._notifications.clear()

    # -- life

    def start(self) -> Node:
        node = require("node")
        folder = install_node(self.version)
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed by kill()
        self._process = spawn(
            [node, str(HERE / "driver.js"), str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            encoding="utf-8",
            # Ctrl-C is for pytest alone; Node is told when it is time.
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read, args=(self._process,), name=f"node {self.version}", daemon=True)
        self._reader.start()
        try:
            self.versions = self.call("init", connection=self.connection)
        except BaseException:
            self.kill()
            raise
        return self

    def reset(self) -> None:
        """As new: workers, queues and listeners closed, runs and notifications forgotten.

        A Node that died is started again.
        """
        if self._process is None or self._process.poll() is not None:
            self.kill()
            self.start()
        else:
            self.call("reset")
        self.forget()

    def close(self) -> None:
        """Close everything in order, then end the process."""
        process = self._process
        if process is not None and process.poll() is None:
            try:
                self.call("quit")
                process.wait(CALL_TIMEOUT_S)
            except (AssertionError, NodeError, subprocess.TimeoutExpired):
                pass  # then not in order
        self.kill()

    def kill(self) -> None:
        """End at once, leaving jobs active and locks in place: the fault of a host that is gone."""
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        end(process)
        if self._reader is not None:
            self._reader.join()
        for pipe in (process.stdin, process.stdout, self._errors):
            if pipe is not None:
                try:
                    pipe.close()
                except BrokenPipeError:
                    pass  # a request was left in the buffer

    @property
    def pid(self) -> int:
        return self._running().pid

    def __enter__(self) -> Node:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    # -- inside

    def _running(self) -> subprocess.Popen[str]:
        assert self._process is not None, f"Node {self.version} is not started"
        return self._process

    def _read(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            message: dict[str, Any] = json.loads(line)
            if "event" in message:
                with self._lock:
                    self._notifications.append(message)
                continue
            with self._lock:
                future = self._waiting.pop(message["id"], None)
            if future is None:
                continue
            if message["ok"]:
                future.set_result(message["value"])
            else:
                error = message["error"]
                future.set_exception(NodeError(error["name"], error["message"], error["code"], error["stack"]))
        with self._lock:
            left, self._waiting = list(self._waiting.values()), {}
        for future in left:
            future.set_exception(AssertionError(f"Node {self.version} ended without an answer{self._said()}"))

    def _said(self) -> str:
        """The end of its stderr, for messages."""
        if self._errors is None or self._errors.closed:
            return ""
        self._errors.seek(0)
        text = self._errors.read()[-3000:]
        return f"; it said:\n{text}" if text else ""
