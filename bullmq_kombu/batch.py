"""Many publications stored together: the server and the network are asked once for hundreds of them.

    with bullmq_kombu.bulk():
        for address in addresses:
            send_email.delay(to=address)
        group(resize.s(path) for path in paths).apply_async()

Within the block, what the same thread (or greenlet, or asyncio task) publishes to `bullmq://` queues is collected, whatever publishes it,
and stored whenever there are `max_size` of them, and at the end of the block. That is also where it waits for a server that is away, for
as long as a single publication would, and raises OperationalError. The error of a job that was refused is raised at the end, when the
others are stored. A block that ends with an exception stores no more than it has.

Kombu's own way, `producer.batch()` (Kombu 5.7 and newer), does the same for one producer.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from typing import Any

from kombu import exceptions
from kombu.utils.functional import retry_over_time
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from bullmq_kombu import scripts
from bullmq_kombu.errors import JobError
from bullmq_kombu.publishing import Publication, Publisher, Sent
from bullmq_kombu.wire import Wire

#: How many are stored in one call when nothing else is said: one or two ms of the server's time, a small part of which is the call's own.
MAX_SIZE = 100
#: Celery's usual policy for a publication; the same jobs are stored once, however often they are sent.
RETRY_POLICY = {"max_retries": 3, "interval_start": 0, "interval_step": 0.2, "interval_max": 0.2}
_LOST = (RedisConnectionError, RedisTimeoutError, OSError)

_UNCERTAIN = "the batch may be stored in part: Redis did not answer"
# Kombu older than 5.7 has neither batches nor an error for them.
_BatchError: type[Exception] = getattr(exceptions, "BatchPublishError", exceptions.OperationalError)


class Batch:
    """Publications on their way to be stored, `max_size` at a time. While the server stores some, the next ones are collected."""

    def __init__(self, max_size: int = MAX_SIZE) -> None:
        if max_size < 1:
            raise ValueError("max_size must be a positive integer")
        self.max_size = max_size
        self._waiting: list[Publication] = []
        self._publisher: Publisher | None = None
        self._wire: Wire | None = None
        self._sent: Sent | None = None
        self._refused: JobError | None = None

    def add(self, publisher: Publisher, publication: Publication) -> None:
        before = self._publisher
        if before is not publisher:
            # Two channels of one connection may take turns; another server is asked by itself.
            if before is not None and (before.server is not publisher.server or before.prefix != publisher.prefix):
                self._finish()
            self._publisher = publisher
        self._waiting.append(publication)
        if len(self._waiting) >= self.max_size:
            self._send()

    def flush(self) -> None:
        """Stores what waits. Raises the error of a job that was refused."""
        self._finish()
        error, self._refused = self._refused, None
        if error is not None:
            raise error

    def discard(self) -> None:
        """Forgets what waits; what is on its way is stored."""
        self._waiting = []
        with contextlib.suppress(*_LOST):
            self._finish()

    def _finish(self) -> None:
        try:
            self._send()
            self._land()
        finally:
            wire, self._wire = self._wire, None
            if wire is not None and self._publisher is not None:
                self._publisher.server.give_back(wire)

    def _send(self) -> None:
        waiting, self._waiting = self._waiting, []
        publisher = self._publisher
        for at in range(0, len(waiting), scripts.BATCH):
            assert publisher is not None
            # One at a time, so that jobs keep their order.
            self._land()
            batch = waiting[at : at + scripts.BATCH]
            try:
                if self._wire is None:
                    self._wire = publisher.server.lend()
                self._sent = publisher.send(self._wire, batch)
            except _LOST as error:
                self._lost(publisher, waiting[at:], error)
                return

    def _land(self) -> None:
        sent, self._sent = self._sent, None
        if sent is not None and self._publisher is not None:
            try:
                self._refused = self._publisher.land(sent) or self._refused
            except _LOST as error:
                self._lost(self._publisher, sent.publications, error)

    def _lost(self, publisher: Publisher, publications: Sequence[Publication], error: Exception) -> None:
        """Nobody knows which of these are stored."""
        raise error


class PatientBatch(Batch):
    """Tries again for as long as Celery would for one publication."""

    def _lost(self, publisher: Publisher, publications: Sequence[Publication], error: Exception) -> None:
        try:
            retry_over_time(publisher.store, _LOST, (publications,), **RETRY_POLICY)
        except JobError as refused:
            self._refused = refused
        except _LOST as last:
            raise exceptions.OperationalError(f"{len(publications)} jobs may not be stored, or not all of them: {last}") from last


batching: ContextVar[Batch | None] = ContextVar("bullmq_kombu_batching", default=None)


@contextlib.contextmanager
def bulk(max_size: int = MAX_SIZE) -> Iterator[Batch]:
    """See the module. `flush()` of what it yields stores at once."""
    batch = PatientBatch(max_size)
    before = batching.set(batch)
    try:
        yield batch
    except BaseException:
        batch.discard()
        raise
    finally:
        batching.reset(before)
    batch.flush()


class PublishBatch:
    """What Kombu's `producer.batch()` asks a channel for."""

    def __init__(self, channel: Any, max_size: int) -> None:
        self.channel = channel
        self._batch = Batch(max_size)

    def publish(self, message: Any, **kwargs: Any) -> Any:
        try:
            return self.channel.basic_publish(message, _publish_batch=self._batch, **kwargs)
        except _LOST as error:
            raise _BatchError(_UNCERTAIN) from error

    def flush(self) -> None:
        try:
            self._batch.flush()
        except _LOST as error:
            raise _BatchError(_UNCERTAIN) from error

    def discard(self) -> None:
        self._batch.discard()

    def close(self) -> None:
        self.discard()
