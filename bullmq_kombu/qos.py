"""What a channel holds: how many jobs it may take, and what becomes of a message that is acknowledged or rejected.

A job counts from when it is taken until its end is decided, whether or not it was acknowledged early: what a worker holds, reserved and
running, never exceeds the prefetch count.
"""

from __future__ import annotations

import logging
from typing import Any

from kombu.transport import virtual

from bullmq_kombu.delivery import Delivery
from bullmq_kombu.transient import Pushed

logger = logging.getLogger(__name__)


class QoS(virtual.QoS):
    """See the module. `prefetch_count` 0 is no limit."""

    def __init__(self, channel: Any, prefetch_count: int = 0) -> None:
        # Not the base's: it would print unacknowledged messages when the interpreter ends.
        self.channel = channel
        self.prefetch_count = prefetch_count or 0
        self._delivered: dict[str, Delivery | Pushed] = {}
        self._held: set[Delivery] = set()
        #: Tags of messages that are no jobs and are to be acknowledged.
        self._pushed: set[str] = set()

    # -- room ------------------------------------------------------------------------------------------------------------

    def can_consume(self) -> bool:
        limit = self.prefetch_count
        return not limit or self._counted() < limit

    def can_consume_max_estimate(self) -> int | None:
        limit = self.prefetch_count
        return max(limit - self._counted(), 0) if limit else None

    def _counted(self) -> int:
        leases = self.channel.leases
        return len(self._held) + len(self._pushed) + len(leases.adrift) + len(leases.telling)

    @property
    def holding(self) -> int:
        """How many jobs are held."""
        return len(self._held)

    def in_hand(self) -> tuple[int, bool]:
        """How many jobs are held, and whether any of them has not been started."""
        held = list(self._held)  # a pool's threads may end some meanwhile
        return len(held), any(not one.started for one in held)

    def taken(self, one: Delivery | Pushed, tag: str | None = None) -> None:
        if isinstance(one, Delivery):
            self._delivered[one.tag] = one
            if not one.settled:
                self._held.add(one)
        elif tag is not None:
            self._delivered[tag] = one
            if not one.broadcast:
                self._pushed.add(tag)

    def settled(self, delivery: Delivery) -> None:
        self._held.discard(delivery)
        self.channel.leases.adrift.discard(delivery)

    # -- messages ----------------------------------------------------------------------------------------------------------

    def append(self, message: Any, delivery_tag: str) -> None:
        """A message is handed to its consumer: it can tell its job from now on."""
        one = self._delivered.get(delivery_tag)
        if isinstance(one, Delivery):
            message.delivery = one
        elif one is None:
            # A broadcast: acknowledging it means nothing.
            self._delivered[delivery_tag] = Pushed("", "", broadcast=True)

    def get(self, delivery_tag: str) -> Any:
        return self._delivered[delivery_tag]

    def _let_go(self, tag: str) -> Delivery | Pushed | None:
        one = self._delivered.pop(tag, None)
        if tag in self._pushed:
            self._pushed.discard(tag)
            self.channel.has_room()
        return one

    def ack(self, delivery_tag: str) -> None:
        one = self._let_go(delivery_tag)
        if isinstance(one, Delivery) and not one.managed:
            if one.reason is not None:
                one.fail(one.reason, final=True)
            else:
                one.complete()

    def done(self, delivery_tag: str) -> None:
        """A message got without acknowledgement is done when it is handed over."""
        self.ack(delivery_tag)

    def reject(self, delivery_tag: str, requeue: bool = False) -> None:
        one = self._let_go(delivery_tag)
        if isinstance(one, Delivery):
            if one.managed:
                return
            if requeue:
                one.release()
            else:
                one.fail(one.reason or "rejected", final=True)
        elif one is not None and requeue and not one.broadcast:
            self.channel.transient.put_back(one)

    def restore_unacked(self) -> None:
        """Jobs not started go back to the head of their queues, the last one first; running ones, and those that a pool may begin with at
        any moment, go on, and end, without this channel."""
        for tag, one in reversed(list(self._delivered.items())):
            self._delivered.pop(tag, None)
            if isinstance(one, Delivery):
                if one.handed is None:
                    one.return_unstarted()
            elif not one.broadcast:
                self.channel.transient.put_back(one)
        self.channel.leases.adrift.update(self._held)
        self._held.clear()
        self._pushed.clear()

    def restore_unacked_once(self, stderr: Any = None) -> None:
        try:
            self.restore_unacked()
        except Exception as error:
            # Nothing is lost: the locks are not renewed any more, and the stalled check brings the jobs back.
            logger.warning("jobs not started could not be put back at once: %s", error)

    def restore_visible(self, *args: Any, **kwargs: Any) -> None:
        """Locks, not a visibility timeout, tell whether a worker is alive."""
