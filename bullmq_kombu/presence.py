"""Connections that do nothing but carry a name, so that Node's `queue.getWorkers()` finds a worker of several queues in each of them.

BullMQ looks for workers among the names of Redis' clients, one name for each queue; a connection has one name. A worker here waits for all
its queues on one connection, which is named after the first. The others have one of these each. Where the server does not let one be
opened, the worker is not listed for that queue, and works as well.
"""

from __future__ import annotations

import logging

from redis.exceptions import RedisError

from bullmq_kombu.connection import Server
from bullmq_kombu.wire import Wire

logger = logging.getLogger(__name__)


class Presence:
    """The named connections of one channel."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._wires: dict[str, Wire] = {}

    def show(self, names: set[str]) -> None:
        """These names, and no others, are seen from now on."""
        for name in self._wires.keys() - names:
            self._wires.pop(name).close()
        for name in sorted(names - self._wires.keys()):
            wire = self._server.wire(name)
            self._wires[name] = wire
            try:
                wire.open()
            except (RedisError, OSError) as error:
                logger.info("the name %s is not shown at %s: %s", name, self._server.address.where, error)

    def descriptors(self) -> list[int]:
        """Readable when the server closes a connection: nothing else ever comes."""
        return [wire.fileno() for wire in self._wires.values() if wire.is_open]

    def on_readable(self, descriptor: int) -> bool:
        """Opens the connection again that has this descriptor; False where none has it."""
        for name, wire in self._wires.items():
            if wire.is_open and wire.fileno() == descriptor:
                wire.close()
                del self._wires[name]
                self.show({name, *self._wires})
                return True
        return False

    def close(self) -> None:
        self.show(set())
