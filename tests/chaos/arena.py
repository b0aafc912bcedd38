"""Where faults are tried out: a server, a proxy before it and a worker that knows only the proxy; or Sentinels, or a Cluster, and a worker.

What ran is written to files, out of reach of what is broken.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from celery import Celery
from celery.result import AsyncResult
from jobs import Job
from proxy import Proxy
from servers import Server
from topologies import Cluster, Sentinels
from waiting import wait_until
from worker import Worker

#: On a worker's path, its clock is the arena's to move.
CLOCK = Path(__file__).parent / "clock"
LOCK_S = 2.0
#: How soon after the end of a fault a worker has to work again.
BACK_WITHIN_S = 10.0


class Arena:
    """See the module. Tasks are acknowledged late."""

    lock_duration = LOCK_S
    prefix = "bull"
    #: Of every connection, the worker's and the sender's.
    options: Mapping[str, Any] = {"socket_timeout": 1.0, "socket_connect_timeout": 1.0}

    def __init__(self, folder: Path, pool: str = "prefork") -> None:
        self.folder = folder
        self.pool = pool
        self.queue = f"q-{secrets.token_hex(6)}"
        self.base = f"{self.prefix}:{self.queue}:"
        self._stack = ExitStack()
        self._workers: list[Worker] = []

    def __enter__(self) -> Arena:
        self.set_clock(0)
        try:
            self._open()
            self.start_worker()
        except BaseException:
            self._stack.close()
            raise
        return self

    def _open(self) -> None:
        self._server = self._stack.enter_context(Server(appendonly=True, extra=["--enable-debug-command", "yes"]))
        self.proxy = self._stack.enter_context(Proxy((self._server.host, self._server.port)))
        self.url = self.proxy.url

    @property
    def server(self) -> Server:
        """The one that has the jobs now."""
        return self._server

    def start_worker(self) -> None:
        options = {**self.options, "lock_duration": LOCK_S, "stalled_interval": 1.0}
        # Prefetching is what makes a worker hold jobs that it has not begun.
        settings = {"result_backend": self.url, "result_backend_transport_options": self.options, "worker_prefetch_multiplier": 4}
        environment = {"PYTHONPATH": str(CLOCK), "CHAOS_CLOCK": str(self._clock)}
        self.worker = Worker(
            self.server, self.folder, [self.queue], pool=self.pool, url=self.url,
            options=options, settings=settings, environment=environment,
        )  # fmt: skip
        self._workers.append(self.worker)
        self.worker.start()

    @property
    def _clock(self) -> Path:
        return self.folder / "clock"

    def set_clock(self, ahead_s: int) -> None:
        """The worker's, compared with everybody else's."""
        new = self.folder / "clock.new"
        new.write_text(str(ahead_s))
        new.replace(self._clock)

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        for one in self._workers:
            one.stop()
            if error is not None:
                one.show()
        self._stack.close()

    def app(self) -> Celery:
        """To send with, patiently: what it returns from is published."""
        app = Celery("sender", broker=self.url, backend=self.url, set_as_current=False)
        app.conf.update(
            broker_transport_options=self.options,
            result_backend_transport_options={**self.options, "retry_policy": {"max_retries": 100, "interval_max": 0.2}},
            task_publish_retry_policy={"max_retries": 100, "interval_start": 0, "interval_step": 0.1, "interval_max": 0.2},
        )
        return app

    # -- tasks, and what became of them

    def send(self, app: Celery, *, held: bool, value: Any = None, early: bool = False, **options: Any) -> AsyncResult:
        """A task that notes each of its runs; `held`: until `let_go`. Acknowledged late, unless `early`."""
        task_id = f"t{secrets.token_hex(8)}"  # all digits would be an id BullMQ refuses
        if not held:
            self.let_go(task_id)
        at = str(self.folder / task_id)
        name = "hold" if early else "hold.late"
        return app.send_task(name, kwargs={"at": at, "value": value}, queue=self.queue, task_id=task_id, **options)

    def send_hoarder(self, app: Celery, *, killed: bool) -> AsyncResult:
        """A task that takes all the memory its process may have, and then fails, or is killed as the kernel would."""
        task_id = f"t{secrets.token_hex(8)}"
        at = str(self.folder / task_id)
        return app.send_task("hoard.late", kwargs={"at": at, "killed": killed}, queue=self.queue, task_id=task_id)

    def let_go(self, task_id: str) -> None:
        (self.folder / f"{task_id}.go").touch()

    def runs(self, task_id: str) -> int:
        path = self.folder / f"{task_id}.runs"
        return len(path.read_text().splitlines()) if path.exists() else 0

    def wait_for_run(self, task_id: str, timeout: float = BACK_WITHIN_S) -> None:
        wait_until(lambda: self.runs(task_id) > 0, timeout, f"task {task_id} to be run")

    def reason(self, task_id: str) -> str:
        """Why it failed."""
        with self.server.client() as client:
            return Job(client, self.queue, task_id, self.prefix).reason or ""

    def wait_for_state(self, task_id: str, *states: str, timeout: float = BACK_WITHIN_S) -> str:
        with self.server.client() as client:
            found = Job(client, self.queue, task_id, self.prefix).wait_for(*states, timeout=timeout).state
        assert found is not None
        return found

    def ping(self, app: Celery) -> Any:
        """What the worker answers."""

        def answer() -> Any:
            found = app.control.inspect([self.worker.name], timeout=1).ping()
            return found and found[self.worker.name]

        return wait_until(answer, BACK_WITHIN_S, "remote control to work")

    # -- what is left when all is over

    def children(self) -> list[int]:
        listed = Path(f"/proc/{self.worker.pid}/task/{self.worker.pid}/children").read_text()
        return [int(one) for one in listed.split()]

    def connections(self) -> int:
        """Of the worker, its main process alone."""
        links = Path(f"/proc/{self.worker.pid}/fd").iterdir()
        found = 0
        for link in links:
            try:
                found += str(link.readlink()).startswith("socket:")
            except OSError:
                pass
        return found

    def in_hand(self) -> int:
        """How many jobs are active."""
        with self.server.client() as client:
            return int(client.llen(f"{self.base}active"))  # type: ignore[arg-type]

    def leftovers(self) -> dict[str, Any]:
        """Locks, and jobs in places where none should be when nothing is going on."""
        base = self.base
        with self.server.client() as client:
            found: dict[str, Any] = {key: client.get(key) for key in client.scan_iter(f"{base}*:lock", 1000)}
            for place in ("active", "wait", "paused"):
                if client.llen(base + place):
                    found[place] = json.dumps(client.lrange(base + place, 0, -1))
        return found


class SentinelArena(Arena):
    """A master, its replica and three Sentinels; a worker that knows the Sentinels."""

    options: Mapping[str, Any] = {**Arena.options, "master_name": "mymaster"}

    def _open(self) -> None:
        # On a busy machine a master may be silent for a second. One that is replaced while it goes on loses what it is told then.
        self.sentinels = self._stack.enter_context(Sentinels(patience_ms=20_000))
        self.url = self.sentinels.url

    @property
    def server(self) -> Server:
        return self.sentinels.master


class ClusterArena(Arena):
    """Six nodes, and a worker that knows three of them."""

    prefix = "{bull}"

    def _open(self) -> None:
        self.cluster = self._stack.enter_context(Cluster())
        self.url = self.cluster.url

    @property
    def server(self) -> Server:
        return self.cluster.owner_of(self.prefix)
