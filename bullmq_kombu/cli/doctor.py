"""What may be wrong with a server or the queues on it. Finds and says; changes nothing."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from redis.exceptions import RedisError, ResponseError

from bullmq_kombu.connection import Server
from bullmq_kombu.discovery import queue_names
from bullmq_kombu.queue import Queue

#: Clocks of clients decide when delayed jobs are due; this much apart is noticed by users, ms.
TOLERATED_SKEW_MS = 1000

#: How many thousand keys are looked at for jobs that are in no state.
ORPHAN_LOOKS = 10

OK, WARNING, FAILED, UNKNOWN = "ok", "warning", "failed", "unknown"


class Finding(NamedTuple):
    """One thing looked at: ok, warning, failed or unknown, and what to do."""

    check: str
    status: str
    message: str


def examine(server: Server) -> Iterator[Finding]:
    """Every check, one after the other."""
    try:
        server.call("PING")
    except (RedisError, OSError) as error:
        yield Finding("connection", FAILED, f"no answer from {server.address.where}: {error}")
        return
    yield Finding("connection", OK, f"{server.address.where} answers")
    yield from _examine_server(server)
    yield Finding("prefix", OK, f"keys begin with {server.options.prefix!r}")
    yield _clock(server)
    queues = [Queue(name, server) for name in queue_names(server)]
    yield _majors(queues)
    for queue in queues:
        yield from _examine_queue(queue)


def _guarded(check: str, look: Callable[[], Finding]) -> Finding:
    try:
        return look()
    except ResponseError as error:
        return Finding(check, UNKNOWN, f"the server does not say: {error}")


def _info(server: Server, section: str) -> dict[str, str]:
    lines = str(server.call("INFO", section)).splitlines()
    return dict(line.split(":", 1) for line in lines if ":" in line and not line.startswith("#"))


def _examine_server(server: Server) -> Iterator[Finding]:
    def version() -> Finding:
        info = _info(server, "server")
        name = "Valkey" if "valkey_version" in info else "Dragonfly" if "dragonfly_version" in info else "Redis"
        text = info.get("valkey_version") or info.get("dragonfly_version") or info["redis_version"]
        numbers = tuple(int(part) for part in info["redis_version"].split(".")[:2])
        if name == "Redis" and numbers < (5, 0):
            return Finding("version", FAILED, f"Redis {text}: 5.0 or newer is needed")
        if name == "Redis" and numbers < (6, 2):
            return Finding("version", WARNING, f"Redis {text}: 6.2 or newer is recommended")
        return Finding("version", OK, f"{name} {text}")

    def eviction() -> Finding:
        policy = _info(server, "memory").get("maxmemory_policy", "noeviction")
        if policy == "noeviction":
            return Finding("eviction policy", OK, policy)
        return Finding("eviction policy", FAILED, f'maxmemory-policy is {policy}: jobs may vanish. Set it to "noeviction"')

    def persistence() -> Finding:
        info = _info(server, "persistence")
        if info.get("aof_enabled") == "1":
            if info.get("aof_last_write_status", "ok") != "ok":
                return Finding("persistence", FAILED, "the last write of the append only file failed: look at the server's disk")
            return Finding("persistence", OK, "append only file")
        if info.get("rdb_last_bgsave_status", "ok") != "ok":
            return Finding("persistence", FAILED, "the last snapshot failed: look at the server's disk")
        return Finding("persistence", WARNING, "no append only file: a crash loses the jobs since the last snapshot. Set appendonly yes")

    yield _guarded("version", version)
    yield _guarded("eviction policy", eviction)
    yield _guarded("persistence", persistence)


def _clock(server: Server) -> Finding:
    def look() -> Finding:
        before = time.time_ns() // 1_000_000
        seconds, micros = server.call("TIME")
        after = time.time_ns() // 1_000_000
        skew = int(seconds) * 1000 + int(micros) // 1000 - (before + after) // 2
        if abs(skew) > TOLERATED_SKEW_MS:
            return Finding("clock", WARNING, f"this machine and the server differ by {skew} ms: delayed jobs come early or late. Use NTP")
        return Finding("clock", OK, f"within {abs(skew)} ms of the server's")

    return _guarded("clock", look)


def _majors(queues: Iterable[Queue]) -> Finding:
    """From what BullMQ's `Queue` leaves in a queue's `meta`: the last one that was made counts; a worker leaves nothing."""
    opened: dict[str, list[str]] = {}
    for queue in queues:
        version = str(queue.server.call("HGET", f"{queue.base}meta", "version") or "")
        if version.startswith("bullmq:"):
            opened.setdefault(version.removeprefix("bullmq:").partition(".")[0], []).append(queue.name)
    said = "; ".join(f"{major} ({', '.join(names[:5])}{', …' if len(names) > 5 else ''})" for major, names in sorted(opened.items()))
    if {"5", "6"} <= opened.keys():
        return Finding("BullMQ", WARNING, f"versions {said} last opened the queues: pause and resume from 6 or from here, never from 5")
    return Finding("BullMQ", OK, f"version {said} last opened its queues" if said else "no queue was opened by Node so far")


def _examine_queue(queue: Queue) -> Iterator[Finding]:
    check = f"queue {queue.name}"
    call: Callable[..., Any] = queue.server.call
    parked = int(call("LLEN", f"{queue.base}paused"))
    if parked and not queue.is_paused():
        yield Finding(
            check, FAILED, f"{parked} jobs lie in BullMQ 5's list `paused` and the queue is not paused: resume it once to free them"
        )
    elif parked:
        yield Finding(
            check,
            WARNING,
            f"paused by BullMQ 5, which keeps {parked} jobs in a list of its own: BullMQ 6 does not count them until a resume",
        )
    ghosts = _ghosts(queue)
    if ghosts:
        yield Finding(check, WARNING, f"{ghosts} of the first jobs that wait have no data: removed by hand, or by an eviction policy")
    unlocked = sum(1 for job_id in call("LRANGE", f"{queue.base}active", 0, 999) if not call("EXISTS", f"{queue.base}{job_id}:lock"))
    if unlocked:
        yield Finding(
            check,
            WARNING,
            f"{unlocked} active jobs without a lock: their workers are gone; a worker of this queue puts them back within a minute",
        )
    try:
        orphans = _orphans(queue)
    except ResponseError:
        orphans = 0  # the server does not say
    if orphans:
        yield Finding(check, WARNING, f"{orphans} jobs are in no state, of those looked at: `Queue.remove_orphaned_jobs()` removes such")
    counts = queue.get_job_counts()
    waiting = counts.get("waiting", 0) + counts.get("prioritized", 0)
    is_idle = bool(waiting) and not parked and (queue.is_paused() or not _has_workers(queue))
    if is_idle and queue.is_paused():
        yield Finding(check, WARNING, f"paused, and {waiting} jobs wait: `resume {queue.name}` lets them run")
    elif is_idle:
        yield Finding(check, WARNING, f"{waiting} jobs wait and no worker listens: start one, or look at its queues")
    if not (parked or ghosts or unlocked or orphans or is_idle):
        said = [*(["paused"] if queue.is_paused() else []), *(f"{number} {state}" for state, number in counts.items() if number)]
        yield Finding(check, OK, ", ".join(said) or "empty")


def _orphans(queue: Queue) -> int:
    """Jobs whose data are there and whose id is in no state, among the first hashes that Redis finds: a whole look may take minutes."""
    found, cursor, looks = 0, "0", 0
    pattern = "".join(f"\\{char}" if char in "*?[]\\^" else char for char in queue.base) + "*"
    while looks < ORPHAN_LOOKS:
        cursor, keys = queue.server.call("SCAN", cursor, "MATCH", pattern, "COUNT", 1000)
        looks += 1
        for key in keys:
            job_id = key.removeprefix(queue.base)
            if ":" not in job_id and queue.server.call("TYPE", key) == "hash" and queue.server.call("HEXISTS", key, "timestamp"):
                found += queue.get_job_state(job_id) == "unknown"
        if str(cursor) == "0":
            break
    return found


def _ghosts(queue: Queue) -> int:
    ids = queue.server.call("LRANGE", f"{queue.base}wait", -100, -1)
    return sum(1 for job_id in ids if not queue.server.call("EXISTS", queue.base + job_id))


def _has_workers(queue: Queue) -> bool:
    try:
        return bool(queue.get_workers())
    except ResponseError:
        return True  # the server does not say
