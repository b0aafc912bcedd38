"""What may go wrong, as a vocabulary: each fault is something that can be done to an arena and lasts until it is over."""

from __future__ import annotations

import contextlib
import enum
import os
import resource
import signal
import threading
from collections.abc import Iterator, Mapping
from typing import Any

import redis
from arena import Arena, ClusterArena, SentinelArena
from waiting import wait_until


class Fault(enum.Enum):
    """Which; the value is for the test's name."""

    RESTART = "server restart"
    LOADING = "server loading for long"
    KILL_CLIENTS = "CLIENT KILL of all"
    KILL_BLOCKED = "CLIENT KILL of who blocks"
    KILL_SUBSCRIBED = "CLIENT KILL of who has subscribed"
    PAUSE = "CLIENT PAUSE"
    FREEZE = "server stops answering"
    SCRIPT_FLUSH = "SCRIPT FLUSH"
    CUT = "connections cut"
    DELAY = "network slow"
    TRICKLE = "network drop by drop"
    HALF_OPEN = "network swallows everything"
    DEAF = "network swallows answers"
    READONLY = "master becomes a replica"
    OOM = "server out of memory"
    BUSY = "server busy with a script"
    DISK_FULL = "disk of the append-only file full"
    WORKER_KILL = "worker SIGKILL"
    WORKER_STOP = "worker SIGSTOP for longer than its locks"
    CHILD_KILL = "pool child SIGKILL"
    CHILD_OOM = "pool child out of memory"
    CLOCK_AHEAD = "worker's clock an hour ahead, and back"
    CLOCK_BEHIND = "worker's clock an hour behind, and back"
    FAILOVER = "Sentinel failover"
    MIGRATION = "cluster slot moved"

    @property
    def slug(self) -> str:
        return self.name.lower().replace("_", "-")


#: The arena of those that need one of their own.
ARENAS: Mapping[Fault, type[Arena]] = {Fault.FAILOVER: SentinelArena, Fault.MIGRATION: ClusterArena}

#: After these, tasks that were running may run again.
KILLS_WORK = frozenset({Fault.WORKER_KILL})


def wait_out(seconds: float) -> None:
    """As long as a fault is meant to last."""
    threading.Event().wait(seconds)


@contextlib.contextmanager
def strike(fault: Fault, arena: Arena, lasting: float) -> Iterator[None]:
    """The fault is there within the block, `lasting` seconds after its end at the latest; then all is well again."""
    with getattr(_Faults, fault.name.lower())(arena, lasting):
        yield


def _admin(arena: Arena, *command: Any) -> None:
    with arena.server.client() as client:
        client.execute_command(*command)


def _kill(arena: Arena, kind: str, **only: Any) -> None:
    with arena.server.client() as client:
        for one in client.client_list():
            if str(one["id"]) != str(client.client_id()) and kind in ("all", one["cmd"].partition("|")[0]):
                with contextlib.suppress(redis.ResponseError):
                    client.execute_command("CLIENT", "KILL", "ID", one["id"])


def _refuses(arena: Arena, code: str) -> bool:
    """Whether the server refuses to write, with this code."""
    with arena.server.client() as client:
        try:
            client.set("filler", "x")
        except redis.ResponseError as error:
            return code in str(error)
        return False


class _Faults:
    @staticmethod
    @contextlib.contextmanager
    def restart(arena: Arena, lasting: float) -> Iterator[None]:
        arena.server.stop()
        yield
        wait_out(lasting)
        arena.server.start()

    @staticmethod
    @contextlib.contextmanager
    def loading(arena: Arena, lasting: float) -> Iterator[None]:
        with arena.server.client() as client:
            client.mset({f"filler:{number}": "x" * 1000 for number in range(100)})
            # The file then has the keys, and not every command there has been.
            client.bgrewriteaof()
            wait_until(lambda: not client.info("persistence")["aof_rewrite_in_progress"], what="the append-only file to be short")
            each_us = int(lasting * 1_000_000 / client.dbsize())
        arena.server.stop()
        usual = arena.server.extra
        arena.server.extra = (*usual, "--key-load-delay", str(each_us), "--loading-process-events-interval-bytes", "1024")
        yield
        arena.server.start()
        arena.server.extra = usual

    @staticmethod
    @contextlib.contextmanager
    def kill_clients(arena: Arena, lasting: float) -> Iterator[None]:
        _kill(arena, "all")
        yield

    @staticmethod
    @contextlib.contextmanager
    def kill_blocked(arena: Arena, lasting: float) -> Iterator[None]:
        _kill(arena, "bzpopmin")
        yield

    @staticmethod
    @contextlib.contextmanager
    def kill_subscribed(arena: Arena, lasting: float) -> Iterator[None]:
        _kill(arena, "psubscribe")
        _kill(arena, "subscribe")
        yield

    @staticmethod
    @contextlib.contextmanager
    def pause(arena: Arena, lasting: float) -> Iterator[None]:
        _admin(arena, "CLIENT", "PAUSE", int(lasting * 1000), "ALL")
        yield
        wait_out(lasting)

    @staticmethod
    @contextlib.contextmanager
    def freeze(arena: Arena, lasting: float) -> Iterator[None]:
        arena.server.freeze()
        try:
            yield
            wait_out(lasting)
        finally:
            arena.server.thaw()

    @staticmethod
    @contextlib.contextmanager
    def script_flush(arena: Arena, lasting: float) -> Iterator[None]:
        _admin(arena, "SCRIPT", "FLUSH")
        yield

    @staticmethod
    @contextlib.contextmanager
    def cut(arena: Arena, lasting: float) -> Iterator[None]:
        arena.proxy.cut()
        yield

    @staticmethod
    @contextlib.contextmanager
    def delay(arena: Arena, lasting: float) -> Iterator[None]:
        arena.proxy.delay = 0.1
        yield
        wait_out(lasting)
        arena.proxy.well()

    @staticmethod
    @contextlib.contextmanager
    def trickle(arena: Arena, lasting: float) -> Iterator[None]:
        arena.proxy.trickles = True
        yield
        wait_out(lasting)
        arena.proxy.well()

    @staticmethod
    @contextlib.contextmanager
    def half_open(arena: Arena, lasting: float) -> Iterator[None]:
        arena.proxy.swallows.set()
        yield
        wait_out(lasting)
        arena.proxy.well()

    @staticmethod
    @contextlib.contextmanager
    def deaf(arena: Arena, lasting: float) -> Iterator[None]:
        arena.proxy.deafens.set()
        yield
        wait_out(lasting)
        arena.proxy.well()

    @staticmethod
    @contextlib.contextmanager
    def readonly(arena: Arena, lasting: float) -> Iterator[None]:
        # A replica of nobody who is there: it keeps its data and refuses to write.
        _admin(arena, "REPLICAOF", "127.0.0.1", "1")
        yield
        wait_out(lasting)
        _admin(arena, "REPLICAOF", "NO", "ONE")

    @staticmethod
    @contextlib.contextmanager
    def oom(arena: Arena, lasting: float) -> Iterator[None]:
        _admin(arena, "CONFIG", "SET", "maxmemory", "1")
        yield
        wait_out(lasting)
        _admin(arena, "CONFIG", "SET", "maxmemory", "0")

    @staticmethod
    @contextlib.contextmanager
    def busy(arena: Arena, lasting: float) -> Iterator[None]:
        _admin(arena, "CONFIG", "SET", "busy-reply-threshold", "100")

        def run() -> None:
            with arena.server.client(socket_timeout=None, retry=None) as client, contextlib.suppress(redis.RedisError):
                client.eval("while true do end", 0)

        thread = threading.Thread(target=run)
        thread.start()
        yield
        wait_out(lasting)
        _admin(arena, "SCRIPT", "KILL")
        thread.join()

    @staticmethod
    @contextlib.contextmanager
    def worker_kill(arena: Arena, lasting: float) -> Iterator[None]:
        arena.worker.kill()
        yield
        arena.start_worker()

    @staticmethod
    @contextlib.contextmanager
    def worker_stop(arena: Arena, lasting: float) -> Iterator[None]:
        os.killpg(arena.worker.pid, signal.SIGSTOP)
        yield
        wait_out(max(lasting, arena.lock_duration + 0.5))
        os.killpg(arena.worker.pid, signal.SIGCONT)

    @staticmethod
    @contextlib.contextmanager
    def child_kill(arena: Arena, lasting: float) -> Iterator[None]:
        for child in arena.children():
            os.kill(child, signal.SIGKILL)
        yield

    @staticmethod
    @contextlib.contextmanager
    def child_oom(arena: Arena, lasting: float) -> Iterator[None]:
        with arena.app() as app:
            # It runs beside whatever the other child does.
            hoarder = arena.send_hoarder(app, killed=True)
            arena.wait_for_run(hoarder.id)
            yield
            arena.wait_for_state(hoarder.id, "failed")
            assert arena.runs(hoarder.id) == 1
            assert "WorkerLostError" in arena.reason(hoarder.id)

    @staticmethod
    @contextlib.contextmanager
    def disk_full(arena: Arena, lasting: float) -> Iterator[None]:
        # With `always`, Redis ends itself at once when it cannot write: that is a restart.
        _admin(arena, "CONFIG", "SET", "appendfsync", "everysec")
        soft, hard = resource.prlimit(arena.server.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(arena.server.pid, resource.RLIMIT_FSIZE, (0, hard))
        wait_until(lambda: _refuses(arena, "MISCONF"), what="the append-only file not to be written")
        yield
        wait_out(lasting)
        resource.prlimit(arena.server.pid, resource.RLIMIT_FSIZE, (soft, hard))
        wait_until(lambda: not _refuses(arena, "MISCONF"), what="the append-only file to be written again")
        _admin(arena, "CONFIG", "SET", "appendfsync", "always")

    @staticmethod
    @contextlib.contextmanager
    def clock_ahead(arena: Arena, lasting: float, by_s: float = 3600) -> Iterator[None]:
        arena.set_clock(by_s)
        yield
        wait_out(lasting)
        arena.set_clock(0)

    @staticmethod
    def clock_behind(arena: Arena, lasting: float) -> contextlib.AbstractContextManager[None]:
        return _Faults.clock_ahead(arena, lasting, by_s=-3600)

    @staticmethod
    @contextlib.contextmanager
    def failover(arena: SentinelArena, lasting: float) -> Iterator[None]:
        arena.sentinels.catch_up()
        yield
        arena.sentinels.fail_over(at_once=True)
        arena.sentinels.heal()

    @staticmethod
    @contextlib.contextmanager
    def migration(arena: ClusterArena, lasting: float) -> Iterator[None]:
        with arena.cluster.moving_slot(arena.prefix):
            yield
            wait_out(lasting)
