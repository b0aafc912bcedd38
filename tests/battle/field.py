"""Where the battle takes place: one server behind a proxy, workers and producers in sessions of their own, and what befalls them."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from proxy import Proxy
from servers import Server, end, spawn
from waiting import wait_until

#: How long after the last fault everything has time to be done, s.
AFTERMATH_S = 120.0


@dataclass(frozen=True)
class Broker:
    """One contender: the interpreter that has it, what its URL begins with, what to import, and its options."""

    name: str
    python: str
    scheme: str
    options: dict[str, Any] = field(default_factory=dict)
    imports: str = ""


class Battlefield:
    def __init__(self, folder: Path, broker: Broker, pool: str, workers: int, concurrency: int, rate: float, acks: str, seed: str) -> None:
        self.folder, self.broker, self.pool = folder, broker, pool
        self._concurrency, self._rate, self._acks = concurrency, rate, acks
        self.random = random.Random(seed)
        self.ledger_file = folder / "ledger"
        self.server = Server(appendonly=True, extra=["--loglevel", "warning"])
        self._wanted = workers
        self._number = 0
        self.workers: list[subprocess.Popen[Any]] = []
        self.producers: list[subprocess.Popen[Any]] = []
        self.kills: list[tuple[float, frozenset[int]]] = []
        self.outages: list[tuple[float, float]] = []
        self.counts = {"kills": 0, "restarts": 0, "cuts": 0}

    def __enter__(self) -> Battlefield:
        self.server.start()
        self.proxy = Proxy((self.server.host, self.server.port))
        shutil.copy(Path(__file__).with_name("fighters.py"), self.folder)
        for _ in range(self._wanted):
            self._start_worker()
        for number in range(2):
            self.producers.append(self._spawn(f"producer{number}", ["fighters.py", str(self._rate / 2), f"{self.random.random()}"]))
        return self

    def __exit__(self, *_: object) -> None:
        for process in (*self.producers, *self.workers):
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        self.proxy.close()
        self.server.close()

    def _spawn(self, name: str, arguments: Sequence[str]) -> subprocess.Popen[Any]:
        environment = {
            **os.environ, "PYTHONPATH": "", "BATTLE_LEDGER": str(self.ledger_file), "BATTLE_ACKS": self._acks,
            "BATTLE_BROKER": f"{self.broker.scheme}://127.0.0.1:{self.proxy.port}/0",
            "BATTLE_OPTIONS": json.dumps(self.broker.options), "BATTLE_IMPORT": self.broker.imports,
        }  # fmt: skip
        with (self.folder / f"{name}.log").open("ab") as log:
            streams = {"stdin": subprocess.DEVNULL, "stdout": log, "stderr": log}
            return spawn([self.broker.python, *arguments], cwd=self.folder, env=environment, start_new_session=True, **streams)

    def _start_worker(self) -> None:
        self._number += 1
        name = f"w{self._number}"
        self.workers.append(self._spawn(name, [
            "-m", "celery", "-A", "fighters", "worker", "-l", "INFO", "-P", self.pool, "-c", str(self._concurrency), "-n", f"{name}@battle",
            "--without-gossip", "--without-mingle",
        ]))  # fmt: skip

    # -- what befalls them

    def kill_worker(self) -> None:
        """One at random, with its pool; another takes its place."""
        victim = self.workers.pop(self.random.randrange(len(self.workers)))
        pids = frozenset([victim.pid, *self._session(victim.pid)])
        self.kills.append((time.time(), pids))
        os.killpg(victim.pid, signal.SIGKILL)
        victim.wait()
        self.counts["kills"] += 1
        self._start_worker()

    def restart_server(self) -> None:
        """As after a power cut, every other time; in order the others."""
        since = time.time()
        if self.random.random() < 0.5:
            self.server.kill()
        else:
            self.server.stop()
        time.sleep(self.random.uniform(0, 1.5))
        self.server.start()
        self.outages.append((since, time.time()))
        self.counts["restarts"] += 1

    def cut(self) -> None:
        self.proxy.cut()
        self.outages.append((time.time(), time.time()))
        self.counts["cuts"] += 1

    def replace_the_dead(self) -> int:
        """Workers that ended by themselves; each is one too many."""
        dead = [one for one in self.workers if one.poll() is not None]
        for one in dead:
            self.workers.remove(one)
            self.kills.append((time.time(), frozenset([one.pid])))
            self._start_worker()
        return len(dead)

    def _session(self, leader: int) -> list[int]:
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    if os.getsid(int(entry.name)) == leader:
                        found.append(int(entry.name))
                except ProcessLookupError:
                    pass
        return found

    # -- the end

    def finish(self, missing: Any) -> None:
        """Producers stop; then there is time until nothing is missing."""
        for one in self.producers:
            end(one, 60)
        deadline = time.monotonic() + AFTERMATH_S
        while missing() and time.monotonic() < deadline:
            wait_until(lambda: True)
            time.sleep(0.5)
        for one in self.workers:
            one.send_signal(signal.SIGTERM)
        for one in self.workers:
            end(one, 30)
