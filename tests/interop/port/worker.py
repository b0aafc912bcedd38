"""Workers of BullMQ's own Python port: `worker.py host port queue…`. Says `ready`, works until its input ends."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

from bullmq import Queue, Worker


async def process(job: Any, token: str) -> Any:
    """As the tasks of the same names do (interop_tasks)."""
    if job.name == "fail":
        raise ValueError("no such address")
    if job.name == "fail_until" and job.attemptsMade < job.data["times"]:
        raise ValueError("not yet")
    return job.data.get("value")


async def main(host: str, port: str, *queues: str) -> None:
    connection = {"host": host, "port": int(port)}
    workers = [Worker(queue, process, {"connection": connection, "concurrency": 4}) for queue in queues]
    producer = Queue(queues[0], {"connection": connection})
    print("ready", flush=True)
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        # "n": add so many jobs
        for number in range(int(line)):
            await producer.add("value", {"value": number}, {"jobId": f"port-{number}"})
        print("added", flush=True)
    for worker in workers:
        await worker.close()
    await producer.close()


asyncio.run(main(*sys.argv[1:]))
