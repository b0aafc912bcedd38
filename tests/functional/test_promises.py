"""The promise that a job is run at most once, made by many threads of a pool at the same time."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import redis
from kombu import Connection
from servers import Server
from waiting import wait_until

from bullmq_kombu import Queue as Jobs
from bullmq_kombu.address import address_of
from bullmq_kombu.keys import queue_base
from bullmq_kombu.leases import Leases
from bullmq_kombu.options import check_options
from bullmq_kombu.wire import Wire

THREADS = 8
JOBS = 200
#: How long an answer is waited for that never comes, s.
ANSWER_S = 30.0


@pytest.fixture
def leases(server: Server) -> Iterator[Leases]:
    made = Leases(address_of(Connection(server.url)), check_options({"socket_timeout": ANSWER_S}))
    yield made
    made.leave()


@pytest.mark.parametrize("fault", [None, "cut", "forgotten", "interrupted"])
def test_all_that_threads_make_arrive(
    fault: str | None, leases: Leases, server: Server, redis_client: redis.Redis, queue_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also those that are on their way when the connection breaks, the server forgets its scripts, or the thread that sends is to end."""
    with Jobs(queue_name, server.url) as jobs:
        jobs.add_bulk([{"name": "t"} for _ in range(JOBS)])
    base = queue_base("bull", queue_name)
    deliveries, _ = leases.take(leases._server, (base,), JOBS, lambda delivery: None)
    assert len(deliveries) == JOBS
    sent: list[int] = []
    send_many = Wire.send_many

    def observed(wire: Wire, commands: Any) -> None:
        listed = list(commands)
        sent.append(len(listed))
        if len(sent) == 5 and fault == "forgotten":
            redis_client.script_flush()
        elif len(sent) == 5 and fault == "cut":
            wire.open()._sock.shutdown(socket.SHUT_RDWR)
        elif len(sent) == 5 and fault == "interrupted":
            wire.close()
            raise SystemExit
        send_many(wire, listed)

    monkeypatch.setattr(Wire, "send_many", observed)
    start, began = threading.Barrier(THREADS), time.monotonic()

    def promise(number: int) -> None:
        start.wait(10)
        for delivery in deliveries[number::THREADS]:
            with contextlib.suppress(SystemExit):
                leases.promise(delivery)

    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(promise, range(THREADS)))

    def promised() -> int:
        with redis_client.pipeline() as pipe:
            for one in deliveries:
                pipe.hexists(base + one.id, "defa")
            return sum(pipe.execute())

    wait_until(lambda: promised() == JOBS, what="all promises to arrive")
    assert len(sent) >= 5
    assert time.monotonic() - began < ANSWER_S / 2, "an answer was waited for that could not come"
