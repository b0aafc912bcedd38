"""Sending through Celery: `celery_client.py PORT COUNT`; the broker is in the environment (celery_tasks.py)."""

from __future__ import annotations

import sys
from typing import Any

from celery import group
from celery_tasks import app, early
from kombu_client import batch_of
from meter import Meter, answer, client_of

GROUP = 500


def main(port: int, count: int) -> None:
    client = client_of(port)
    results: dict[str, Any] = {}
    with app.producer_pool.acquire(block=True) as producer:
        for _ in range(50):
            early.apply_async(producer=producer)
        with Meter(client, count) as cost:
            for _ in range(count):
                early.apply_async(producer=producer)
        results["apply_async"] = cost.result
        with Meter(client, count) as cost:
            with batch_of(producer):
                for _ in range(count):
                    early.apply_async(producer=producer)
        results["apply_async, many"] = cost.result
        groups = [group(early.s() for _ in range(GROUP)) for _ in range(max(1, count // GROUP))]
        with Meter(client, GROUP * len(groups)) as cost:
            for one in groups:
                with batch_of(producer):
                    one.apply_async(producer=producer)
        results["group"] = cost.result
    answer(results)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
