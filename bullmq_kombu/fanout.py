"""Broadcast exchanges over PUB/SUB: one connection for each channel that consumes any.

A queue bound with a wildcard routing key (`worker.#`) gets what matches; any other gets everything, as a fanout exchange does.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Iterable
from typing import Any

from redis.exceptions import NoPermissionError

from bullmq_kombu.connection import Server
from bullmq_kombu.keys import KombuKeys
from bullmq_kombu.wire import Wire

logger = logging.getLogger(__name__)

#: A subscription that has heard nothing for so long is tried: a connection that has died says nothing either, s.
HEALTH_S = 25.0
#: How long the answer to that may take, s.
GRACE_S = 4.0


class Fanout:
    """The subscriptions of one channel."""

    def __init__(self, server: Server, keys: KombuKeys) -> None:
        self._server = server
        self._keys = keys
        self._wire: Wire | None = None
        #: Redis pattern -> {queue: regular expression for the routing key, or None for all}
        self._queues: dict[str, dict[str, tuple[str, re.Pattern[str] | None]]] = {}
        self._subscribed: set[str] = set()
        self._heard = 0.0
        self._pong_by: float | None = None
        interval = server.options.health_check_interval
        self._interval = HEALTH_S if interval is None else interval

    def __bool__(self) -> bool:
        return bool(self._queues)

    @property
    def is_open(self) -> bool:
        return self._wire is not None and self._wire.is_open

    def publish(self, exchange: str, routing_key: str, payload: str) -> None:
        self._server.call("PUBLISH", self._keys.fanout(exchange, routing_key), payload)

    def subscribe(self, queue: str, exchange: str, routing_key: str) -> None:
        wildcard = "#" in routing_key or "*" in routing_key
        pattern = _escape(self._keys.fanout(exchange)) + (re.sub(r"[#*]+", "*", _escape(routing_key, keep="#*")) if wildcard else "*")
        matcher = _matcher(routing_key) if wildcard and routing_key != "#" else None
        self._queues.setdefault(pattern, {})[queue] = (self._keys.fanout(exchange), matcher)
        self._sync()

    def unsubscribe(self, queue: str) -> None:
        for pattern in list(self._queues):
            self._queues[pattern].pop(queue, None)
            if not self._queues[pattern]:
                del self._queues[pattern]
        if self._queues:
            self._sync()
        else:
            self.close()

    def _sync(self) -> None:
        wire = self._wire
        if wire is None or not wire.is_open:
            wire = self._wire = self._server.wire(self._server.options.client_name)
            self._subscribed = set()
            self._heard, self._pong_by = time.monotonic(), None
        wanted = set(self._queues)
        if wanted - self._subscribed:
            wire.send("PSUBSCRIBE", *(wanted - self._subscribed))
        if self._subscribed - wanted:
            wire.send("PUNSUBSCRIBE", *(self._subscribed - wanted))
        self._subscribed = wanted

    def keep_alive(self) -> None:
        """Notices a connection that has died unseen, and subscribes anew."""
        now = time.monotonic()
        wire = self._wire
        if wire is None or not wire.is_open or not self._interval or now - self._heard < self._interval:
            return
        if self._pong_by is None:
            self._pong_by = now + GRACE_S
            wire.send("PING")
        elif now > self._pong_by:
            logger.info("a subscription got no answer from Redis at %s and is made anew", self._server.address.where)
            wire.close()
            self._sync()

    def fileno(self) -> int | None:
        if self._wire is not None and not self._wire.is_open:
            self._sync()  # the server had refused it; a new connection knows nothing of our subscriptions
        return self._wire.fileno() if self._wire is not None else None

    def read(self) -> Iterable[tuple[str, str]]:
        """(queue, payload) for each queue that one message from the connection is for."""
        assert self._wire is not None
        try:
            answer: Any = self._wire.read()
        except NoPermissionError as error:
            # Jobs do not need it.
            logger.warning("remote control and events do not work with Redis at %s: %s", self._server.address.where, error)
            return
        self._heard, self._pong_by = time.monotonic(), None
        if answer[0] != "pmessage":
            return
        _, pattern, channel, payload = answer
        for queue, (prefix, matcher) in list(self._queues.get(pattern, {}).items()):
            if matcher is None or matcher.fullmatch(channel[len(prefix) :]):
                yield queue, payload

    def has_more(self) -> bool:
        """Whether another message can be read without waiting."""
        return self._wire is not None and self._wire.wait_readable(0)

    def close(self) -> None:
        wire, self._wire = self._wire, None
        self._queues.clear()
        self._subscribed = set()
        if wire is not None:
            wire.close()


def _escape(text: str, keep: str = "") -> str:
    return "".join("\\" + char if char in "*?[]\\^" and char not in keep else char for char in text)


def _matcher(routing_key: str) -> re.Pattern[str]:
    """AMQP's topic rule: `*` is one word, `#` any number of them."""
    parts = []
    for word in routing_key.split("."):
        parts.append(r"[^.]+" if word == "*" else r".*" if word == "#" else re.escape(word))
    return re.compile(r"\.".join(parts).replace(r"\..*", r"(?:\..*)?"))
