"""Many publications stored together: the server and the network are asked once for hundreds of them.

    with bullmq_kombu.bulk():
        for address in addresses:
            send_email.delay(to=address)
        group(resize.s(path) for path in paths).apply_async()

Within the block, what the same thread (or greenlet, or asyncio task) publishes to `bullmq://` queues is collected, whatever publishes it,
and stored at the end of the block, or when there are `max_size` of them; so that is where it waits for a server that is away, as long
as a single publication would, and raises OperationalError. A block that ends with an exception stores no more.

Kombu's own way, `producer.batch()` (Kombu 5.7 and newer), does the same for one producer.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

from kombu import exceptions
from kombu.utils.functional import retry_over_time
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from bullmq_kombu.publishing import Publication, Publisher
from bullmq_kombu.scripts import BATCH

#: Celery's usual policy for a publication; the same jobs are stored once, however often they are sent.
RETRY_POLICY = {"max_retries": 3, "interval_start": 0, "interval_step": 0.2, "interval_max": 0.2}
_LOST = (RedisConnectionError, RedisTimeoutError, OSError)

# Kombu older than 5.7 has neither batches nor an error for them.
_BatchError: type[Exception] = getattr(exceptions, "BatchPublishError", exceptions.OperationalError)


class Batch:
    """Publications that wait to be stored; at most `max_size`."""

    def __init__(self, max_size: int = BATCH) -> None:
        if max_size < 1:
            raise ValueError("max_size must be a positive integer")
        self.max_size = max_size
        self._waiting: list[Publication] = []
        self._publisher: Publisher | None = None

    def add(self, publisher: Publisher, publication: Publication) -> None:
        before = self._publisher
        if before is not publisher:
            # Two channels of one connection may take turns; another server is asked by itself.
            if before is not None and (before.server is not publisher.server or before.prefix != publisher.prefix):
                self.flush()
            self._publisher = publisher
        self._waiting.append(publication)
        if len(self._waiting) >= self.max_size:
            self.flush()

    def flush(self) -> None:
        """Stores what waits. Where the server does not answer, nobody knows what it has done, and it waits no longer."""
        waiting, self._waiting = self._waiting, []
        if waiting and self._publisher is not None:
            self._store(self._publisher, waiting)

    def _store(self, publisher: Publisher, waiting: list[Publication]) -> None:
        publisher.store(waiting)

    def discard(self) -> None:
        self._waiting = []


class PatientBatch(Batch):
    """Tries again for as long as Celery would for one publication."""

    def _store(self, publisher: Publisher, waiting: list[Publication]) -> None:
        try:
            retry_over_time(publisher.store, _LOST, (waiting,), **RETRY_POLICY)
        except _LOST as error:
            raise exceptions.OperationalError(f"{len(waiting)} jobs may not be stored, or not all of them: {error}") from error


batching: ContextVar[Batch | None] = ContextVar("bullmq_kombu_batching", default=None)


@contextlib.contextmanager
def bulk(max_size: int = BATCH) -> Iterator[Batch]:
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
        with self._as_kombu_says():
            return self.channel.basic_publish(message, _publish_batch=self._batch, **kwargs)

    def flush(self) -> None:
        with self._as_kombu_says():
            self._batch.flush()

    def discard(self) -> None:
        self._batch.discard()

    def close(self) -> None:
        self.discard()

    @contextlib.contextmanager
    def _as_kombu_says(self) -> Iterator[None]:
        try:
            yield
        except self.channel.connection.connection_errors as error:
            raise _BatchError("the batch may be stored in part: Redis did not answer") from error
