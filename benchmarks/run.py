"""Runs measurements one after the other and keeps what they say, round by round.

Nothing here knows what a figure means. Every measurement gets an empty server; tellers (what workers say to whoever times them) have one
of their own.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from benchmarks.measure import task
from benchmarks.peers import Server, node_command
from benchmarks.plan import MEASURE, Measurement, Sizes, script

TIMEOUT_S = 600.0

#: (area, system, metric) -> what each round said: {wall, client, server} in µs per job, {samples}, {bytes} or {commands, …}.
Results = dict[tuple[str, str, str], list[dict[str, Any]]]


class Bench:
    """The servers of one run, and what was measured on them."""

    def __init__(self, sizes: Sizes, log: Callable[[str], None]) -> None:
        self.sizes = sizes
        self.log = log
        self.results: Results = defaultdict(list)
        self.server = Server(extra=("--maxmemory-policy", "noeviction"))
        self.teller = Server()

    def __enter__(self) -> Bench:
        self.server.start()
        self.teller.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.server.close()
        self.teller.close()

    # -- one measurement -----------------------------------------------------------------------------------------------------

    def measure(self, area: str, system: str, command: list[str], environment: Mapping[str, str], server: Server | None = None) -> None:
        """Runs it on an empty server (or on `server` as it is) and keeps what it says."""
        if server is None:
            self._empty()
        for metric, values in self.run(command, environment).items():
            self.results[area, system, metric].append(values)

    def run(self, command: list[str], environment: Mapping[str, str]) -> dict[str, Any]:
        own = {"BENCH_TELL_PORT": str(self.teller.port), "PYTHONPATH": str(MEASURE), "PYTHONWARNINGS": "ignore"}
        with tempfile.TemporaryDirectory(prefix="bullmq-kombu-bench-") as folder:
            whole = {**os.environ, **own, **environment}
            done = subprocess.run(command, env=whole, cwd=folder, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
        if done.returncode != 0:
            raise RuntimeError(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr[-4000:]}")
        answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return answer

    def _empty(self) -> None:
        with self.server.client() as client:
            client.flushall()
            client.script_flush()
            client.config_resetstat()

    # -- rounds --------------------------------------------------------------------------------------------------------------

    def round(self, areas: Mapping[str, Iterable[Measurement]]) -> None:
        for area, measurements in areas.items():
            self.log(area)
            for one in measurements:
                self.measure(area, one.system, one.command(self.server.port), one.environment(self.server.port))

    def memory(self) -> None:
        """Bytes of a task's job; Node's has the same name, data and options, and ids of the same kind or numbers."""
        count, area = self.sizes.bytes, "bytes"
        for system in ("bullmq", "redis"):
            command = script("memory", system, str(self.server.port), str(count))
            self.measure(area, system, command, {"BENCH_BROKER": f"{system}://127.0.0.1:{self.server.port}/0"})
        for ids, suffix in (("uuid", ""), ("number", ", numbered")):
            self._empty()
            fill = (ids, task.NAME, json.dumps(task.KWARGS), json.dumps(task.KEPT))
            port = str(self.server.port)
            with self.server.client() as client:
                self.run(node_command(port, "fill", "1", *fill), {})
                before = _used(client)
                self.run(node_command(port, "fill", str(count), *fill), {})
                self.results[area, "node", f"waiting{suffix}"].append({"bytes": (_used(client) - before) / count})
                self.run(node_command(port, "drain", str(count + 1)), {})
                self.results[area, "node", f"kept{suffix}"].append({"bytes": (_used(client) - before) / count})

    def idle(self) -> None:
        """All at the same time, each with a server of its own: they do next to nothing."""
        sizes = self.sizes
        cases = [(system, queues) for queues in sizes.idle_queues for system in ("bullmq", "redis", "node")]
        servers = [Server().start() for _ in cases]
        try:
            with ThreadPoolExecutor(len(cases)) as pool:
                pending = []
                for (system, queues), server in zip(cases, servers, strict=True):
                    node = node_command(str(server.port), "idle", str(queues)) if system == "node" else []
                    command = script("idle", system, str(server.port), str(queues), str(sizes.idle_s), str(sizes.idle_warm_s), *node)
                    environment = {"BENCH_BROKER": f"{system}://127.0.0.1:{server.port}/0"}
                    pending.append((system, pool.submit(self.run, command, environment)))
                for system, future in pending:
                    for metric, values in future.result().items():
                        self.results["idle", system, metric].append(values)
        finally:
            for server in servers:
                server.close()

    def scale(self, rounds: int) -> None:
        """Few and many take turns, each on a server that stays as it was filled."""
        sizes = self.sizes
        for kind, many in (("waiting", sizes.waiting), ("kept", sizes.kept), ("held", sizes.held)):
            self.log(f"beside {many:,} {kind}")
            with Server() as few_server, Server() as many_server:
                both = ((few_server, sizes.few, "few"), (many_server, many, "many"))
                if kind != "held":
                    for server, count, _ in both:
                        self.run(script("scale", str(server.port), "fill", kind, str(count)), {})
                for _ in range(rounds):
                    for server, count, name in both:
                        held = [str(count)] if kind == "held" else []
                        command = script("scale", str(server.port), "measure", kind, str(sizes.few), *held)
                        self.measure(f"beside {name}", "bullmq", command, {}, server)


def _used(client: Any) -> int:
    client.execute_command("MEMORY", "PURGE")
    return int(client.info("memory")["used_memory"])
