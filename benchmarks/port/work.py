"""BullMQ's own Python port at the same work: `work.py PORT ADDED CONSUMED [CONCURRENCY …]`.

Runs in a venv of its own (requirements.txt).
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from typing import Any

import redis
from bullmq import Queue, Worker

PAYLOAD = {"n": 1, "text": "x" * 50}
KEPT = {"removeOnComplete": {"age": 86400, "count": 1000}, "removeOnFail": {"age": 604800, "count": 5000}}


def server_cpu(client: redis.Redis) -> float:
    info: Any = client.info("cpu")
    return float(info["used_cpu_user"] + info["used_cpu_sys"])


async def main(port: int, added: int, consumed: int, *concurrencies: int) -> None:
    client = redis.Redis(port=port)
    connection = {"host": "127.0.0.1", "port": port}
    results: dict[str, dict[str, float]] = {}

    async def metered(name: str, jobs: int, body: Any) -> None:
        server, cpu, wall = server_cpu(client), time.process_time(), time.perf_counter()
        await body
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        micro = 1e6 / jobs
        results[name] = {"wall": wall * micro, "client": cpu * micro, "server": (server_cpu(client) - server) * micro}

    async def add_each() -> None:
        for _ in range(added):
            await queue.add("job", PAYLOAD, KEPT)

    async def add_many(count: int) -> None:
        for left in range(count, 0, -1000):
            await queue.addBulk([{"name": "job", "data": PAYLOAD, "opts": KEPT} for _ in range(min(1000, left))])

    async def consume(concurrency: int) -> None:
        done = 0
        all_done = asyncio.Event()

        async def process(job: Any, token: str) -> None:
            return None

        def completed(*_: Any) -> None:
            nonlocal done
            done += 1
            if done == consumed:
                all_done.set()

        worker = Worker("bench", process, {"connection": connection, "concurrency": concurrency})
        worker.on("completed", completed)
        await all_done.wait()
        await worker.close(force=True)

    queue = Queue("bench", {"connection": connection})
    await queue.add("job", PAYLOAD, KEPT)
    await metered("add", added, add_each())
    await metered("addBulk", added, add_many(added))
    for concurrency in concurrencies:
        client.flushall()
        await add_many(consumed)
        await metered(f"worker, concurrency {concurrency}", consumed, consume(concurrency))
    await queue.close()
    sys.stdout.write(json.dumps(results) + "\n")


if __name__ == "__main__":
    asyncio.run(main(*map(int, sys.argv[1:])))
