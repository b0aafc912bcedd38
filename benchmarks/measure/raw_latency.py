"""The floor of latency: our scripts on bare sockets, from the process that adds to one that waits: `raw_latency.py PORT COUNT`.

The consumer is another process, as a worker is: the same file, `… consume`.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time

from kombu_latency import PAUSES_S, WARM
from meter import answer
from raw import BASE, OPTS, Socket


def publish(port: str, count: int) -> None:
    consumer = subprocess.Popen([sys.executable, __file__, port, str(count), "consume"], stdout=subprocess.PIPE, text=True)
    assert consumer.stdout is not None
    raw = Socket(int(port))
    consumer.stdout.readline()
    for _ in range(count + WARM):
        time.sleep(random.uniform(*PAUSES_S))
        sent = time.time()
        now = time.time_ns() // 1_000_000
        raw.run("add", now, 1, "", "job", json.dumps({"sent": sent}), OPTS, now, 0, 0, "", "")
    samples = json.loads(consumer.stdout.readline())
    consumer.wait()
    answer({"latency": {"samples": [one * 1e6 for one in samples[WARM:]]}})


def consume(port: str, count: int) -> None:
    samples: list[float] = []
    raw = Socket(int(port))
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    while len(samples) < count + WARM:
        raw.call("BZPOPMIN", BASE + "marker", 5)
        jobs, _ = raw.run("take", time.time_ns() // 1_000_000, 4, "token", 30000, "", "", "")
        for at in range(1, len(jobs), 3):
            fields = dict(zip(jobs[at + 1][::2], jobs[at + 1][1::2], strict=True))
            samples.append(time.time() - json.loads(fields[b"data"])["sent"])
            end = ("completed", 1, jobs[at], "token", "null", "", 1000, 86400, "", "", "")
            raw.run("finish", time.time_ns() // 1_000_000, 0, 0, "token", 30000, "", "", "", *end)
    sys.stdout.write(json.dumps(samples) + "\n")


if __name__ == "__main__":
    (consume if sys.argv[-1] == "consume" else publish)(sys.argv[1], int(sys.argv[2]))
