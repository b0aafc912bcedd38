"""Kombu's Transport: what it can do, and how it takes part in an event loop.

Its options, `broker_transport_options`, with their units, defaults and meanings, are the fields of `options.Options`.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
import time
from typing import Any

import redis
from kombu import VERSION
from kombu.exceptions import InconsistencyError
from kombu.transport import virtual
from redis import exceptions

from bullmq_kombu.address import DEFAULT_PORT, address_of
from bullmq_kombu.bindings import Bindings
from bullmq_kombu.channel import Channel as JobChannel
from bullmq_kombu.connection import Server
from bullmq_kombu.delivery import now_ms
from bullmq_kombu.intake import wait_timeout
from bullmq_kombu.job_options import JobOptions
from bullmq_kombu.keys import KombuKeys
from bullmq_kombu.leases import leases_of
from bullmq_kombu.options import check_options
from bullmq_kombu.patience import FIRST_CONNECTION
from bullmq_kombu.transient import TransientQueues
from bullmq_kombu.wire import wait_any


def _install_celery_side() -> None:
    """The one place where something below names Celery: a worker must work with nothing imported but its broker's transport."""
    if "celery" in sys.modules:
        importlib.import_module("bullmq_kombu.celery")


class Transport(virtual.Transport):
    """BullMQ's queues for Kombu."""

    Channel = JobChannel

    #: Celery then broadcasts events and runs gossip, mingle and worker_disable_prefetch as it does for `redis://`.
    driver_type = "redis"
    driver_name = "bullmq"
    default_port = DEFAULT_PORT
    polling_interval = None

    implements = virtual.Transport.implements.extend(
        asynchronous=True, heartbeats=False, batch_publish=True, exchange_type=frozenset(["direct", "topic", "fanout"])
    )

    connection_errors = (
        *virtual.Transport.connection_errors, InconsistencyError, OSError, exceptions.ConnectionError, exceptions.BusyLoadingError,
        exceptions.AuthenticationError, exceptions.TimeoutError, exceptions.ReadOnlyError,
    )  # fmt: skip
    channel_errors = (
        *virtual.Transport.channel_errors, exceptions.DataError, exceptions.InvalidResponse, exceptions.ResponseError,
    )  # fmt: skip
    recoverable_connection_errors = connection_errors
    recoverable_channel_errors = ()

    def __init__(self, client: Any, **kwargs: Any) -> None:
        super().__init__(client, **kwargs)
        _install_celery_side()
        if VERSION < (5, 5):
            client.transport_options = {**FIRST_CONNECTION, **client.transport_options}
        address = address_of(client)
        self.options = check_options(client.transport_options, address.kind)
        self.server = Server(address, self.options, fails_fast=True)
        self.server.on_close = self._unwatch
        self.leases = leases_of(self.server.address, self.options)
        keys = KombuKeys(self.options.prefix, self.server.address.db)
        self.bindings = Bindings(self.server, keys)
        self.transient = TransientQueues(self.server, keys, self.bindings)
        self.job_options: JobOptions | None = None
        self._loop: Any = None
        self._watched: dict[int, Any] = {}
        self._tick: Any = None
        self._timer: Any = None

    def driver_version(self) -> str:
        return str(redis.__version__)

    # -- a plain loop ----------------------------------------------------------------------------------------------------

    def establish_connection(self) -> Any:
        self.server.closed = False
        self.server.check()
        return super().establish_connection()

    def verify_connection(self, connection: Any) -> bool:
        return not self.server.closed

    def drain_events(self, connection: Any, timeout: float | None = None) -> None:
        channels = [channel for channel in self.channels if channel._consumers]
        if len(channels) == 1:
            channels[0].drain_events(timeout)
            return
        if not channels:
            if timeout is None:
                raise OSError("nothing consumes on this connection")
            time.sleep(timeout)
            raise TimeoutError("timed out")
        self._drain_many(channels, timeout)

    def _drain_many(self, channels: list[JobChannel], timeout: float | None) -> None:
        """Several channels of one connection wait together."""
        until = None if timeout is None else time.monotonic() + timeout
        while True:
            watched: dict[int, JobChannel] = {}
            self.transient.touch(now_ms())
            for channel in channels:
                if channel.deliver_one() or (channel.intake.fetch() and channel.deliver_one()):
                    self.channels.append(self.channels.pop(0))
                    return
                for descriptor in channel.intake.descriptors():
                    watched[descriptor] = channel
            left = None if until is None else until - time.monotonic()
            if left is not None and left <= 0:
                raise TimeoutError("timed out")
            with contextlib.ExitStack() as stack:
                for channel in channels:
                    stack.enter_context(channel.waiting())
                if any(channel.intake.has_more for channel in channels):
                    continue
                for descriptor in wait_any(list(watched), wait_timeout(left)):
                    watched[descriptor].intake.on_readable(descriptor)

    # -- Celery's event loop -----------------------------------------------------------------------------------------------

    def register_with_event_loop(self, connection: Any, loop: Any) -> None:
        self._forget_loop()
        self._loop = loop

        def on_tick() -> None:
            self._on_tick(loop)

        self._tick = on_tick
        loop.on_tick.add(on_tick)

    def _on_tick(self, loop: Any) -> None:
        wanted: dict[int, JobChannel] = {}
        for channel in list(self.channels):
            if not channel._consumers:
                continue
            pause = channel.turn()
            if channel.closed or loop is not self._loop:
                return
            if pause is not None:
                self._come_back(loop, channel, pause)
            for descriptor in channel.intake.descriptors():
                wanted[descriptor] = channel
        for descriptor in [one for one in self._watched if wanted.get(one) is not self._watched[one]]:
            self._unwatch(descriptor)
        for descriptor, channel in wanted.items():
            if descriptor not in loop.readers:
                loop.add_reader(descriptor, self._on_readable, channel, descriptor)
                self._watched[descriptor] = channel

    def _come_back(self, loop: Any, channel: JobChannel, pause: float) -> None:
        """The loop's next turn is in `pause` seconds at the latest."""
        if pause <= 0:
            channel.intake.waker.wake()
        elif self._timer is None:

            def due() -> None:
                self._timer = None

            self._timer = loop.call_later(pause, due)
            channel.intake.waker.wake()  # the loop has looked at its timers already

    def _on_readable(self, channel: JobChannel, descriptor: int) -> None:
        if not channel.closed:
            channel.intake.on_readable(descriptor)

    def close_channel(self, channel: Any) -> None:
        for descriptor in [one for one, watched in self._watched.items() if watched is channel]:
            self._unwatch(descriptor)
        super().close_channel(channel)

    def _unwatch(self, descriptor: int) -> None:
        """Before the descriptor is closed: the loop would go on believing that it watches what has the number next."""
        if self._watched.pop(descriptor, None) is not None and self._loop is not None:
            with contextlib.suppress(Exception):
                self._loop.remove_reader(descriptor)

    def _forget_loop(self) -> None:
        loop = self._loop
        if loop is None:
            return
        for descriptor in list(self._watched):
            self._unwatch(descriptor)
        loop.on_tick.discard(self._tick)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._loop = None

    def close_connection(self, connection: Any) -> None:
        self._forget_loop()
        super().close_connection(connection)
        self.server.close()


_install_celery_side()
