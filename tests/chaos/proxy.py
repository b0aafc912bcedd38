"""A TCP proxy between the package and Redis that misbehaves on demand: it cuts, delays, lets through drop by drop, or swallows.

A thread for each direction of each connection; nothing of it knows Redis.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from types import TracebackType

#: Of a trickle: how many bytes, how often.
DROP_BYTES = 16
DROP_EVERY_S = 0.002


class Proxy:
    """Listens on `port` and passes on to `target`."""

    def __init__(self, target: tuple[str, int]) -> None:
        self._target = target
        self._listening = socket.socket()
        self._listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._listening.bind(("127.0.0.1", 0))
        self._listening.listen(128)
        self.port: int = self._listening.getsockname()[1]
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._lock = threading.Lock()
        self._closed = False
        #: Seconds that everything takes longer.
        self.delay = 0.0
        #: Only a few bytes at a time.
        self.trickles = False
        #: Nothing gets through any more, and nobody is told: a firewall that has forgotten the connection.
        self.swallows = threading.Event()
        #: Answers are swallowed, questions arrive.
        self.deafens = threading.Event()
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def url(self) -> str:
        return f"bullmq://127.0.0.1:{self.port}/0"

    def cut(self) -> None:
        """Every connection there is ends; new ones are welcome."""
        with self._lock:
            pairs, self._pairs = self._pairs, []
        for pair in pairs:
            for one in pair:
                with contextlib.suppress(OSError):
                    one.shutdown(socket.SHUT_RDWR)

    def well(self) -> None:
        """Behaves again. What was swallowed is lost, and its connections stay dead."""
        self.delay, self.trickles = 0.0, False
        self.swallows.clear()
        self.deafens.clear()

    def _accept(self) -> None:
        while not self._closed:
            try:
                near, _ = self._listening.accept()
                far = socket.create_connection(self._target)
            except OSError:
                if self._closed:
                    return
                with contextlib.suppress(OSError, UnboundLocalError):
                    near.close()
                continue
            for one in (near, far):
                one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self._lock:
                self._pairs.append((near, far))
            # A connection that has lost something is never whole again.
            dead = threading.Event()
            threading.Thread(target=self._pass, args=(near, far, dead, False), daemon=True).start()
            threading.Thread(target=self._pass, args=(far, near, dead, True), daemon=True).start()

    def _pass(self, source: socket.socket, target: socket.socket, dead: threading.Event, is_answer: bool) -> None:
        try:
            while True:
                data = source.recv(65536)
                if not data:
                    break
                if self.swallows.is_set() or (is_answer and self.deafens.is_set()):
                    dead.set()
                if dead.is_set() and (is_answer or self.swallows.is_set()):
                    continue
                if self.delay:
                    time.sleep(self.delay)
                if self.trickles:
                    for at in range(0, len(data), DROP_BYTES):
                        target.sendall(data[at : at + DROP_BYTES])
                        time.sleep(DROP_EVERY_S)
                else:
                    target.sendall(data)
        except OSError:
            pass
        finally:
            for one in (source, target):
                with contextlib.suppress(OSError):
                    one.shutdown(socket.SHUT_RDWR)
                one.close()

    def close(self) -> None:
        self._closed = True
        self._listening.close()
        self.cut()

    def __enter__(self) -> Proxy:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()
