"""`bullmq_kombu.Queue`: `queue_api.py PORT ADDED BATCH`."""

from __future__ import annotations

import sys

from meter import PAYLOAD, Meter, answer, client_of

from bullmq_kombu import Queue


def main(port: int, added: int, batch: int) -> None:
    client = client_of(port)
    results = {}
    with Queue("bench", f"bullmq://127.0.0.1:{port}/0") as queue:
        queue.add_bulk([{"name": "job", "data": PAYLOAD}] * 10)
        with Meter(client, added) as cost:
            for _ in range(added):
                queue.add("job", PAYLOAD)
        results["add"] = cost.result
        jobs = [{"name": "job", "data": PAYLOAD} for _ in range(batch)]
        rounds = max(1, added // batch) * 4
        with Meter(client, batch * rounds) as cost:
            for _ in range(rounds):
                queue.add_bulk(jobs)
        results["add_bulk"] = cost.result
    answer(results)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
