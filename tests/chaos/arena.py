"""One server, a proxy before it, and a worker that knows only the proxy: where faults are tried out.

What ran is written to files, out of reach of what is broken.
"""

from __future__ import annotations

import json
import secrets
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from celery import Celery
from celery.result import AsyncResult
from jobs import Job
from proxy import Proxy
from servers import Server
from waiting import wait_until
from worker import Worker

LOCK_S = 2.0
#: How soon after the end of a fault a worker has to work again.
BACK_WITHIN_S = 10.0


class Arena:
    """See the module. Tasks are acknowledged late."""

    lock_duration = LOCK_S

    def __init__(self, folder: Path, pool: str = "prefork") -> None:
        self.folder = folder
        self.pool = pool
        self.queue = f"q-{secrets.token_hex(6)}"
        self._stack = ExitStack()
        self._workers: list[Worker] = []

    def __enter__(self) -> Arena:
        self.server = self._stack.enter_context(Server(appendonly=True, extra=["--enable-debug-command", "yes"]))
        self.proxy = self._stack.enter_context(Proxy((self.server.host, self.server.port)))
        self.start_worker()
        return self

    def start_worker(self) -> None:
        options = {"lock_duration": LOCK_S, "stalled_interval": 1.0, "socket_timeout": 1.0, "socket_connect_timeout": 1.0}
        # Prefetching is what makes a worker hold jobs that it has not begun.
        settings = {
            "result_backend": self.proxy.url,
            "result_backend_transport_options": {"socket_timeout": 1.0},
            "worker_prefetch_multiplier": 4,
        }
        self.worker = Worker(self.server, self.folder, [self.queue], pool=self.pool, url=self.proxy.url, options=options, settings=settings)
        self._workers.append(self.worker)
        self.worker.start()

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        for one in self._workers:
            one.stop()
            if error is not None:
                one.show()
        self._stack.close()

    def app(self) -> Celery:
        """To send with, through the proxy, patiently: what it returns from is published."""
        app = Celery("sender", broker=self.proxy.url, backend=self.proxy.url, set_as_current=False)
        app.conf.update(
            broker_transport_options={"socket_timeout": 1.0, "socket_connect_timeout": 1.0},
            result_backend_transport_options={"socket_timeout": 1.0, "retry_policy": {"max_retries": 100, "interval_max": 0.2}},
            task_publish_retry_policy={"max_retries": 100, "interval_start": 0, "interval_step": 0.1, "interval_max": 0.2},
        )
        return app

    # -- tasks, and what became of them

    def send(self, app: Celery, *, held: bool, value: Any = None) -> AsyncResult:
        """A task that notes each of its runs; `held`: until `let_go`."""
        task_id = f"t{secrets.token_hex(8)}"  # all digits would be an id BullMQ refuses
        if not held:
            self.let_go(task_id)
        at = str(self.folder / task_id)
        return app.send_task("hold.late", kwargs={"at": at, "value": value}, queue=self.queue, task_id=task_id)

    def let_go(self, task_id: str) -> None:
        (self.folder / f"{task_id}.go").touch()

    def runs(self, task_id: str) -> int:
        path = self.folder / f"{task_id}.runs"
        return len(path.read_text().splitlines()) if path.exists() else 0

    def wait_for_run(self, task_id: str, timeout: float = BACK_WITHIN_S) -> None:
        wait_until(lambda: self.runs(task_id) > 0, timeout, f"task {task_id} to be run")

    def state(self, task_id: str) -> str | None:
        with self.server.client() as client:
            return Job(client, self.queue, task_id).state

    def wait_for_state(self, task_id: str, *states: str, timeout: float = BACK_WITHIN_S) -> str:
        with self.server.client() as client:
            found = Job(client, self.queue, task_id).wait_for(*states, timeout=timeout).state
        assert found is not None
        return found

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

    def leftovers(self) -> dict[str, Any]:
        """Locks, and jobs in places where none should be when nothing is going on."""
        base = f"bull:{self.queue}:"
        with self.server.client() as client:
            found = {key: client.get(key) for key in client.scan_iter(f"{base}*:lock", 1000)}
            for place in ("active", "wait", "paused"):
                if client.llen(base + place):
                    found[place] = json.dumps(client.lrange(base + place, 0, -1))
        return found
