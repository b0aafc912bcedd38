"""One work under cProfile: `profiled.py (kombu | celery | worker) WORK PORT COUNT`; the broker is in the environment."""

from __future__ import annotations

import cProfile
import io
import os
import pstats
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import kombu
from celery_tasks import app, early, end
from celery_worker import HERE, WORKER_OPTIONS, told
from kombu_client import QUEUE, publish_many
from meter import PAYLOAD, answer, client_of

POOLS = {"solo": "1", "prefork": "2", "threads": "4"}


def main(how: str, work: str, port: int, count: int) -> None:
    run = {"kombu": through_kombu, "celery": through_celery, "worker": in_worker}[how]
    answer({"profile": run(work, port, count)})


def through_kombu(work: str, port: int, count: int) -> str:
    profile = cProfile.Profile()
    with kombu.Connection(os.environ["BENCH_BROKER"]) as connection:
        channel, queue = connection.default_channel, kombu.Queue(QUEUE)
        queue(channel).declare()
        producer = kombu.Producer(channel)
        if work == "publish":
            with profile:
                for _ in range(count):
                    producer.publish(PAYLOAD, routing_key=QUEUE, serializer="json")
            return text_of(profile)
        publish_many(producer, count)
        client_of(port).config_resetstat()
        got = 0

        def received(body: Any, message: Any) -> None:
            nonlocal got
            message.ack()
            got += 1

        with kombu.Consumer(channel, [queue], callbacks=[received]) as consumer, profile:
            consumer.qos(prefetch_count=int(os.environ.get("BENCH_PREFETCH", "100")))
            while got < count:
                connection.drain_events(timeout=20)
    return text_of(profile)


def through_celery(work: str, port: int, count: int) -> str:
    profile = cProfile.Profile()
    with app.producer_pool.acquire(block=True) as producer:
        early.apply_async(producer=producer)
        with profile:
            for _ in range(count):
                early.apply_async(producer=producer)
    return text_of(profile)


def in_worker(pool: str, port: int, count: int) -> str:
    """The worker's main process; children of a pool are others."""
    teller = client_of(int(os.environ["BENCH_TELL_PORT"]))
    with app.producer_pool.acquire(block=True) as producer:
        for _ in range(count):
            early.apply_async(producer=producer)
        end.apply_async(("early",), producer=producer)
    client_of(port).config_resetstat()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "profile"
        argv = [sys.executable, "-m", "cProfile", "-o", str(path), "-m", "celery", "-A", "celery_tasks", "worker", "-P", pool]
        process = subprocess.Popen([*argv, "-c", POOLS[pool], *WORKER_OPTIONS], cwd=HERE, stdout=subprocess.DEVNULL)
        told(teller, "early ended")
        process.terminate()
        process.wait(30)
        return text_of(str(path))


def text_of(profile: Any) -> str:
    text = io.StringIO()
    pstats.Stats(profile, stream=text).strip_dirs().sort_stats("tottime").print_stats(int(os.environ.get("BENCH_LINES", "40")))
    return text.getvalue()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
