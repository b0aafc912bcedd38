"""The floor: this package's scripts on a bare socket, without Kombu, Celery or redis-py: `raw.py PORT COUNT [BATCH …]`."""

from __future__ import annotations

import json
import socket
import sys
import time
from collections.abc import Sequence
from typing import Any

import hiredis
from meter import PAYLOAD, Meter, answer, client_of

from bullmq_kombu import scripts
from bullmq_kombu.promises import UNREAD

BASE = "bull:bench:"
OPTS = '{"attempts":0,"removeOnComplete":{"age":86400,"count":1000},"removeOnFail":{"age":604800,"count":5000}}'
DATA = json.dumps(PAYLOAD)


class Socket:
    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._reader = hiredis.Reader()
        self._shas = {name: self.call("SCRIPT", "LOAD", scripts.load(name).text) for name in ("add", "take", "commit", "finish")}

    def call(self, *command: Any) -> Any:
        self.send(*command)
        return self.read()

    def send(self, *command: Any) -> None:
        self._socket.sendall(hiredis.pack_command(command))

    def read(self) -> Any:
        while (found := self._reader.gets()) is False:
            self._reader.feed(self._socket.recv(65536))
        return found

    def run(self, script: str, *args: Any) -> Any:
        return self.call("EVALSHA", self._shas[script], 1, BASE, *args)

    def send_run(self, script: str, *args: Any) -> None:
        self.send("EVALSHA", self._shas[script], 1, BASE, *args)


def new_job(now: int) -> tuple[Any, ...]:
    return (1, "", "job", DATA, OPTS, now, 0, 0, "", "")


def consume(raw: Socket, count: int, batch: int) -> None:
    done, ends = 0, []
    while done < count:
        now = time.time_ns() // 1_000_000
        answer_ = raw.run("finish", now, 1, min(batch, count - done), "token", 30000, "", "", "", *ends)
        ends = []
        taken = answer_[1]
        for at in range(1, len(taken), 3):
            ends += ["completed", 1, taken[at], "token", "null", "", 1000, 86400, "", "", ""]
            done += 1
    raw.run("finish", time.time_ns() // 1_000_000, 0, 0, "token", 30000, "", "", "", *ends)


def promise(raw: Socket, ids: Sequence[bytes]) -> None:
    """As promises.py does it: what has been sent arrives, and answers are read some at a time."""
    for at in range(0, len(ids), UNREAD):
        some = ids[at : at + UNREAD]
        for job_id in some:
            raw.send_run("commit", job_id, "token")
        for _ in some:
            assert raw.read() == 0


def main(port: int, count: int, *batches: int) -> None:
    client, raw = client_of(port), Socket(port)
    results = {}
    with Meter(client, count) as cost:
        for _ in range(count):
            now = time.time_ns() // 1_000_000
            raw.run("add", now, *new_job(now))
    results["add"] = cost.result
    client.delete(BASE + "wait")
    with Meter(client, count) as cost:
        add_many(raw, count)
    results["add many"] = cost.result
    client.delete(BASE + "wait")
    add_many(raw, count)
    taken, _ = raw.run("take", time.time_ns() // 1_000_000, count, "token", 30000, "", "", "")
    with Meter(client, count) as cost:
        promise(raw, taken[1::3])
    results["promise"] = cost.result
    client.flushall()
    for batch in batches:
        add_many(raw, count)
        with Meter(client, count) as cost:
            consume(raw, count, batch)
        results[f"finish and take {batch}"] = cost.result
    answer(results)


def add_many(raw: Socket, count: int) -> None:
    for left in range(count, 0, -500):
        now = time.time_ns() // 1_000_000
        jobs = [part for _ in range(min(500, left)) for part in new_job(now)]
        raw.run("add", now, *jobs)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
