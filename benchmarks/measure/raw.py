"""The floor: this package's scripts on a bare socket, without Kombu, Celery or redis-py: `raw.py PORT COUNT [BATCH …]`."""

from __future__ import annotations

import json
import socket
import sys
import time
from typing import Any

import hiredis
from meter import PAYLOAD, Meter, answer, client_of

from bullmq_kombu import scripts

BASE = "bull:bench:"
OPTS = '{"attempts":0,"removeOnComplete":{"age":86400,"count":1000},"removeOnFail":{"age":604800,"count":5000}}'
DATA = json.dumps(PAYLOAD)


class Socket:
    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._reader = hiredis.Reader()
        self._shas = {name: self.call("SCRIPT", "LOAD", scripts.load(name).text) for name in ("add", "take", "finish")}

    def call(self, *command: Any) -> Any:
        self._socket.sendall(hiredis.pack_command(command))
        while (found := self._reader.gets()) is False:
            self._reader.feed(self._socket.recv(65536))
        return found

    def run(self, script: str, *args: Any) -> Any:
        return self.call("EVALSHA", self._shas[script], 1, BASE, *args)


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
