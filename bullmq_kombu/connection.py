"""Commands to one Redis.

A `Server` is a stack of wires for short commands, safe to share between threads, and the place to ask for wires of one's own (for
blocking). Knows no key, no script and no queue.

A command that fails because an idle connection had died meanwhile is sent once more on a new one; everything beyond that is the business
of the caller, who knows whether to go on waiting (a worker) or to give up (a producer).
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from bullmq_kombu.address import Address
from bullmq_kombu.locating import Locator
from bullmq_kombu.options import Options
from bullmq_kombu.patience import Patience
from bullmq_kombu.server_check import check_once, facts_of
from bullmq_kombu.shared import address_of_pool, pool_of
from bullmq_kombu.wire import ELSEWHERE, Borrowed, ServerNotReady, Wire, is_hurried

#: Idle wires kept for the next command; more are closed when they come back.
IDLE_WIRES = 8


class Server:
    """Short commands to one Redis, from any thread, and wires of one's own. `fails_fast`: for producers, see patience.py. `others`: where
    to turn while there is no connection to be had at `address`."""

    def __init__(self, address: Address, options: Options, *, fails_fast: bool = False, others: Sequence[Address] = ()) -> None:
        self._pool = pool_of(options.connection) if options.connection is not None else None
        self.address = address if self._pool is None else address_of_pool(self._pool)
        self.options = options
        self._idle: deque[Wire] = deque()
        self._pid = os.getpid()
        self._places = self._all_places()
        self._locator = Locator(self.address, options, self._pool)
        self._locators = [self._locator, *(Locator(other, options) for other in others)]
        self._patience: Patience | None = None
        if fails_fast:
            self._patience = Patience(self.address.identity, self.address.where, options.max_retries_per_request)
        self.closed = False
        #: Told which descriptor is about to be closed: the next connection, anybody's, mostly gets the same number.
        self.on_close: Callable[[int], None] | None = None

    def wire(self, name: str | None = None) -> Wire:
        """A wire of the caller's own; `name` is its CLIENT name."""
        return Wire(self._connection, name, self.on_close)

    def _connection(self, name: str | None, limit: float | None = None) -> Any:
        now = self._locator
        try:
            return now.connection(name, limit)
        except (RedisConnectionError, RedisTimeoutError, OSError):
            for other in self._locators:
                if other is not now:
                    with contextlib.suppress(RedisConnectionError, RedisTimeoutError, OSError):
                        connection = other.connection(name, limit)
                        self._locator, self.address = other, other.address
                        return connection
            raise

    def check(self) -> None:
        """Whether the server answers, and, once for each, whether it is one to work with."""
        self.call("PING")
        check_once(self.address.identity, self.address.where, self.call, skip=self.options.skip_version_check)

    @property
    def takes_fractions(self) -> bool:
        """Whether a blocking command may wait for a fraction of a second."""
        return facts_of(self.address.identity).takes_fractions

    def call(self, *command: Any) -> Any:
        """One command and its answer. Sent once more where the connection used had died since its last answer."""
        patience = self._patience
        if patience is None:
            return self._call(command, None)
        left = patience.left()
        began = time.monotonic()
        try:
            answer = self._call(command, patience.budget if left is None else left)
        except (RedisConnectionError, RedisTimeoutError, OSError) as error:
            patience.failed(time.monotonic() - began, error)
            if isinstance(error, ServerNotReady):
                time.sleep(patience.breath_s())
            raise
        if left is not None:
            patience.over()
            self.look_again()  # a connection opened in a hurry stays in one
        return answer

    def _call(self, command: tuple[Any, ...], limit: float | None) -> Any:
        wire = self.lend()
        wire.limit = limit
        try:
            try:
                return wire.call(*command)
            except ServerNotReady as error:
                if error.code not in ELSEWHERE or self.address.kind == "tcp":
                    raise
            except (RedisConnectionError, OSError) as error:
                # What follows a timeout is the caller's to decide: the command may have been executed.
                if wire.fresh or isinstance(error, TimeoutError):
                    raise
            self.look_again()
            return wire.call(*command)
        except ServerNotReady:
            self.look_again()
            raise
        finally:
            self.give_back(wire)

    def look_again(self) -> None:
        """A wire broke: those that are idle may lead to a server that is gone, or no longer the right one."""
        while self._idle:
            try:
                self._idle.pop().close()
            except IndexError:
                return

    def lend(self) -> Wire:
        """A wire for a short while; `give_back` must follow."""
        if self._pid != os.getpid():
            self._pid = os.getpid()
            inherited, self._idle = self._idle, deque()
            for wire in inherited:
                wire.close()
            self._places = self._all_places()
        if self._places is not None and not self._places.acquire(blocking=False):
            raise RedisConnectionError(f"Too many connections: all {self.options.max_connections} (max_connections) are in use")
        if self._pool is not None:
            return Borrowed(self._pool)
        try:
            wire = self._idle.pop()
        except IndexError:
            return Wire(self._connection, self.options.client_name)
        if wire.hurried and not is_hurried():
            wire.close()  # it would not wait for as long as the options say
        return wire

    def _all_places(self) -> threading.Semaphore | None:
        limit = self.options.max_connections
        return threading.Semaphore(limit) if limit else None

    def give_back(self, wire: Wire) -> None:
        """Takes a lent wire back; nothing may be on its way on it."""
        if isinstance(wire, Borrowed):
            wire.let_go()
        elif self.closed or len(self._idle) >= IDLE_WIRES or not wire.is_open:
            wire.close()
        else:
            self._idle.append(wire)
        if self._places is not None:
            self._places.release()

    def close(self) -> None:
        """Closes the idle wires; those on loan close when they come back."""
        self.closed = True
        self.look_again()
