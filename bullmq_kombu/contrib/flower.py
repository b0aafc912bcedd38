"""Flower's broker page for `bullmq://`. Everything else in Flower works without.

Flower chooses what it asks the broker by the scheme of its URL, and knows a fixed list. Importing this module, in the module of the Celery
app that Flower is started with, adds ours where Flower is running; elsewhere it does nothing.

    import bullmq_kombu.contrib.flower
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterable
from typing import Any
from urllib.parse import urlsplit

from bullmq_kombu._register import SCHEMES
from bullmq_kombu.queue import Queue, server_of


class BullMQ:
    """What Flower asks of a broker: the queues by name."""

    def __init__(self, broker_url: str, *args: Any, broker_options: Any = None, broker_use_ssl: Any = None, **kwargs: Any) -> None:
        from kombu import Connection

        self._connection = Connection(broker_url, transport_options=broker_options or {}, ssl=broker_use_ssl)

    async def queues(self, names: Iterable[str]) -> list[dict[str, Any]]:
        """For each queue: messages ready, messages unacknowledged (active jobs), consumers."""
        return await asyncio.get_running_loop().run_in_executor(None, self._queues, list(names))

    def _queues(self, names: list[str]) -> list[dict[str, Any]]:
        server, _ = server_of(self._connection)
        try:
            return [_described(Queue(name, server)) for name in names if name and ":" not in name]
        finally:
            server.close()


def _described(queue: Queue) -> dict[str, Any]:
    counts = queue.get_job_counts("waiting", "prioritized", "active")
    ready = counts["waiting"] + counts["prioritized"]
    return {
        "name": queue.name, "messages": ready + counts["active"], "messages_ready": ready, "messages_unacknowledged": counts["active"],
        "consumers": len(queue.get_workers()),
    }  # fmt: skip


def install() -> bool:
    """Adds the schemes to the Flower that runs in this process; says whether there is one."""
    if "flower" not in sys.modules:
        return False
    from flower.utils import broker

    original = broker.Broker.__new__
    if not getattr(original, "knows_bullmq", False):

        def choose(cls: Any, broker_url: str, *args: Any, **kwargs: Any) -> Any:
            if urlsplit(broker_url).scheme in SCHEMES:
                return BullMQ(broker_url, *args, **kwargs)
            return original(cls, broker_url, *args, **kwargs)

        choose.knows_bullmq = True  # type: ignore[attr-defined]
        broker.Broker.__new__ = choose
    return True


install()
