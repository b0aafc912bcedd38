"""Kombu's verbs (declare, bind, publish, consume, acknowledge) said in BullMQ's words.

A durable queue is the BullMQ queue of the same name. A queue that Celery makes for itself (auto_delete or exclusive) is a list that
expires, or, bound to a fanout exchange, nothing but a subscription.
"""

from __future__ import annotations

import base64
import contextlib
import json
import logging
import sys
import threading
import time
import traceback
import uuid
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from kombu.transport import base as kombu_base
from kombu.transport import virtual
from kombu.utils.json import dumps as kombu_dumps
from kombu.utils.json import loads as kombu_loads
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoPermissionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from bullmq_kombu import scripts
from bullmq_kombu.batch import PublishBatch, batching
from bullmq_kombu.bindings import Bindings
from bullmq_kombu.carry import current
from bullmq_kombu.codec import NotAJob, Outgoing, job_of, message_of, priority_of
from bullmq_kombu.collect import collecting
from bullmq_kombu.connection import Server
from bullmq_kombu.delivery import Delivery, now_ms
from bullmq_kombu.errors import BadInput, JobError, UnrecoverableError, shown
from bullmq_kombu.intake import Intake, wait_timeout
from bullmq_kombu.job_options import JobOptions, check_size, make_job_options
from bullmq_kombu.keys import KombuKeys, queue_base
from bullmq_kombu.leases import Leases
from bullmq_kombu.options import REMOVE_ON_COMPLETE, REMOVE_ON_FAIL, Options
from bullmq_kombu.publishing import Publication, Publisher
from bullmq_kombu.qos import QoS
from bullmq_kombu.schedulers import next_iteration
from bullmq_kombu.transient import Pushed, TransientQueues
from bullmq_kombu.wire import wait_any

logger = logging.getLogger(__name__)

#: How long one turn of the event loop delivers before others get theirs, s.
TURN_S = 0.01
#: So much of a message that is none is logged, characters.
SHOWN = 200
#: What keeps a scheduled job from making the next one, whatever its options say.
_NOT_ITS_FAULT = (RedisConnectionError, RedisTimeoutError, NoPermissionError, OSError)


class Channel(virtual.Channel):
    """One channel; see the module."""

    QoS = QoS
    supports_fanout = True
    #: The codec decides how a body is written; nothing is encoded twice.
    body_encoding = None
    from_transport_options = ("deadletter_queue",)
    do_restore = False

    def __init__(self, connection: Any, **kwargs: Any) -> None:
        super().__init__(connection, **kwargs)
        self.server: Server = connection.server
        self.options: Options = connection.options
        self.leases: Leases = connection.leases
        self.keys = KombuKeys(self.options.prefix, connection.server.address.db)
        self.publisher = Publisher(self.server, self.keys, self.options.prefix)
        self.bindings: Bindings = connection.bindings
        self.transient: TransientQueues = connection.transient
        self.intake = Intake(self.server, self.options, self.leases, self.keys, self.transient, self._room, self._holding, self._on_settled)
        #: Where jobs come from, for a task to find; '' where that is the only place.
        self._at = self.server.address.where if len(connection.client.alt or ()) > 1 else ""
        self._owner = threading.get_ident()

    # -- queues and exchanges ------------------------------------------------------------------------------------------

    def prepare_queue_arguments(self, arguments: Any, **kwargs: Any) -> Any:
        return kombu_base.to_rabbitmq_queue_arguments(arguments, **kwargs)

    def _new_queue(self, queue: str, auto_delete: bool = False, exclusive: bool = False, arguments: Any = None, **kwargs: Any) -> None:
        if auto_delete or exclusive:
            self.transient.declare(queue, now_ms(), int((arguments or {}).get("x-expires") or 0))
        elif not self.transient.is_one(queue):
            base = queue_base(self.options.prefix, queue)
            # What a BullMQ Queue writes when it is made; it tells dashboards, and other processes here, that there is such a queue.
            self.server.call("HSETNX", base + "meta", "opts.maxLenEvents", self.options.max_len_events)
            # For whoever knows a task id and not its queue.
            self.server.call("SADD", self.keys.queues, queue)
            self.transient.is_none(queue)

    def _has_queue(self, queue: str, **kwargs: Any) -> bool:
        if queue in self.transient or self.server.call("EXISTS", f"{self.keys.base}queue:{queue}"):
            return True
        return self._has_jobs_queue(queue)

    def _has_jobs_queue(self, queue: str) -> bool:
        return bool(queue) and ":" not in queue and bool(self.server.call("EXISTS", queue_base(self.options.prefix, queue) + "meta"))

    def _size(self, queue: str) -> int:
        """Jobs that a worker could take now (not delayed, not active), or messages of a list."""
        if queue in self.transient.broadcasts:
            return 0
        if self.transient.is_one(queue):
            return self.transient.size(queue)
        return int(scripts.run(self.server, "size", (queue_base(self.options.prefix, queue),), ()))

    def _purge(self, queue: str) -> int:
        if queue in self.transient.broadcasts:
            return 0
        if self.transient.is_one(queue):
            return self.transient.purge(queue)
        return int(scripts.run(self.server, "drain", (queue_base(self.options.prefix, queue),), (now_ms(), 1)))

    def queue_delete(self, queue: str, if_unused: bool = False, if_empty: bool = False, **kwargs: Any) -> None:
        """A BullMQ queue keeps its settings and history; its waiting and delayed jobs go."""
        is_jobs = queue not in self.transient and not self.transient.is_one(queue)
        if if_empty and (self._size(queue) or (is_jobs and self.server.call("ZCARD", queue_base(self.options.prefix, queue) + "delayed"))):
            return
        super().queue_delete(queue, if_unused, **kwargs)
        if is_jobs:
            self._purge(queue)
        self.intake.fanout.unsubscribe(queue)
        self.transient.drop(queue)

    def _delete(self, queue: str, exchange: str = "", routing_key: str = "", pattern: str = "", *args: Any, **kwargs: Any) -> None:
        """Takes a binding away, as Kombu calls it for each of a queue that is deleted."""
        self.bindings.remove(exchange, (routing_key or "", pattern or "", queue or ""))

    def _queue_bind(self, exchange: str, routing_key: str, pattern: str, queue: str) -> None:
        is_broadcast = self.typeof(exchange).type == "fanout"
        if is_broadcast:
            self.bindings.is_fanout(exchange)
        if is_broadcast and queue in self.transient:
            self.transient.broadcasts[queue] = (exchange, (routing_key or "").replace("/", "."))
            return
        binding = (routing_key or "", pattern or "", queue or "")
        if queue in self.transient:
            self.transient.bind(queue, exchange, binding, now_ms())
        else:
            self.bindings.add(exchange, binding)
            self.transient.forget_bindings(exchange)

    def queue_unbind(self, queue: str, exchange: str | None = None, routing_key: str = "", arguments: Any = None, **kwargs: Any) -> None:
        super().queue_unbind(queue, exchange, routing_key, arguments, **kwargs)
        name = exchange or "amq.direct"
        with contextlib.suppress(KeyError):
            routing, pattern, _ = self.typeof(name).prepare_bind(queue, name, routing_key, arguments)
            self.bindings.remove(name, (routing or "", pattern or "", queue or ""))
            self.transient.forget_bindings(name)

    def exchange_delete(self, exchange: str, if_unused: bool = False, nowait: bool = False) -> None:
        """The exchange and its bindings; Kombu would delete the queues too."""
        for binding in list(self.state.bindings):
            if binding.exchange == exchange:
                self.state.binding_delete(binding.queue, binding.exchange, binding.routing_key)
        self.state.exchanges.pop(exchange, None)
        self.bindings.remove_exchange(exchange)

    def typeof(self, exchange: str, default: str = "direct") -> Any:
        """Kombu's, that also knows a broadcast which only others have declared: Celery declares none where it sends to one."""
        if exchange not in self.state.exchanges and self.bindings.has_fanout(exchange):
            self.exchange_declare(exchange, "fanout")
        return super().typeof(exchange, default)

    def get_table(self, exchange: str) -> list[tuple[str, Any, str]]:
        return [(routing_key, pattern, queue) for routing_key, pattern, queue in self.bindings.of(exchange, now_ms())]

    # -- publishing ------------------------------------------------------------------------------------------------------

    def basic_publish(self, message: Any, exchange: str = "", routing_key: str = "", **kwargs: Any) -> Any:
        if self.closed:
            # Kombu has lost the connection while it declared the queue; now it makes another and publishes again.
            raise RedisConnectionError("the channel was closed")
        return super().basic_publish(message, exchange=exchange, routing_key=routing_key, **kwargs)

    def _next_delivery_tag(self) -> str:
        return ""

    def create_publish_batch(self, max_size: int) -> PublishBatch:
        """For Kombu's `producer.batch()`."""
        return PublishBatch(self, max_size)

    def _put(self, queue: str, message: dict[str, Any], **kwargs: Any) -> None:
        transient = self.transient
        if transient.is_one(queue) or (not transient.is_jobs(queue) and self._is_reply(queue, message)):
            transient.push(queue, _pack(message), priority_of(message["properties"]))
            return
        base = queue_base(self.options.prefix, queue)
        properties = message["properties"]
        collected = collecting.get()
        if collected is not None:
            properties["bullmq"] = {**(properties.get("bullmq") or {}), **collected.options}
        # Kombu publishes the same properties again when it retries: the same time then tells that it is the same message.
        now = properties.setdefault("published_ms", now_ms())
        outgoing = job_of(message, now, self._usual_options(), self._make_options)
        check_size(outgoing.name, outgoing.data, outgoing.options.size_limit)
        if collected is not None:
            collected.jobs.append((self.options.prefix, queue, outgoing))
            return
        carried = current.get()
        is_own = carried is not None and carried.task_id == outgoing.task_id and carried.base == base
        if is_own and self._carry_on(outgoing, now):
            return
        publication = Publication(base, outgoing, now, carried.id if carried is not None and is_own else "")
        batch = kwargs.get("_publish_batch") or batching.get()
        if batch is not None:
            batch.add(self.publisher, publication)
        else:
            self.publisher.store((publication,))

    def _is_reply(self, queue: str, message: dict[str, Any]) -> bool:
        """An answer to somebody's own queue, found by its id or by a binding: if the queue is gone, so is who would read it, and it must
        not become a queue of jobs."""
        properties = message["properties"]
        is_answer = properties.get("correlation_id") and not properties.get("reply_to")
        if "task" in message["headers"] or not (is_answer or (properties.get("delivery_info") or {}).get("exchange")):
            return False
        if not self.transient.is_one(queue) and self._has_jobs_queue(queue):
            self.transient.is_none(queue)
            return False
        return True

    def _carry_on(self, outgoing: Outgoing, now: int) -> bool:
        """The running task publishes under its own id (retry, replace): its job goes on. False where the job is no longer its own."""
        carried = current.get()
        assert carried is not None
        is_retry = bool(outgoing.celery.get("h", {}).get("retries"))
        fields: list[Any] = ["name", outgoing.name, "data", outgoing.data, "celery", outgoing.celery_field(carried.id)]
        fields += ["priority", outgoing.priority]
        more = "" if is_retry else json.dumps({"skip": True})
        # Inside an except block, as a retry mostly is, this is what the attempt failed with.
        kind, error, _ = sys.exc_info()
        if is_retry and isinstance(error, UnrecoverableError):
            raise error  # `autoretry_for` tries again whatever is raised; this ends in a Reject for that reason
        reason = f"{kind.__name__}: {error}" if kind is not None and is_retry else ""
        trace = traceback.format_exc() if reason else ""
        arguments = (carried.base, carried.id, carried.token, now, outgoing.delay, reason, trace, more, fields)
        code = scripts.retry(self.server, *arguments)
        if code == -2 and not scripts.extend(self.server, (carried,), self.options.lock_ms):
            # The lock had expired, in an outage perhaps, and nobody else has the job.
            code = scripts.retry(self.server, *arguments)
        return code == 0

    def _usual_options(self) -> JobOptions:
        memo: JobOptions | None = self.connection.job_options
        if memo is None:
            memo = self.connection.job_options = self._make_options({})
        return memo

    def _make_options(self, given: Any) -> JobOptions:
        keep, keep_failed = self.options.remove_on_complete, self.options.remove_on_fail
        return make_job_options(given, {
            "removeOnComplete": REMOVE_ON_COMPLETE if keep is None else keep,
            "removeOnFail": REMOVE_ON_FAIL if keep_failed is None else keep_failed,
        })  # fmt: skip

    def _put_fanout(self, exchange: str, message: dict[str, Any], routing_key: str, **kwargs: Any) -> None:
        """To whoever listens now; and a durable queue that is bound keeps it as a job."""
        self.intake.fanout.publish(exchange, routing_key or "", _pack(message))
        for queue in self.transient.queues_of(exchange, now_ms()):
            self._put(queue, message)

    # -- consuming -------------------------------------------------------------------------------------------------------

    def basic_consume(self, queue: str, no_ack: bool, callback: Callable[[Any], Any], consumer_tag: str, **kwargs: Any) -> None:
        if self.options.max_retries_per_request is not None and queue not in self.transient and not self.transient.is_one(queue):
            raise BadInput("max_retries_per_request is for producers: who consumes waits for Redis for ever, and it must be None")
        super().basic_consume(queue, no_ack, callback, consumer_tag, **kwargs)
        if no_ack:
            self.intake.no_ack.add(queue)
        if queue in self.transient.broadcasts:
            exchange, routing_key = self.transient.broadcasts[queue]
            self.intake.fanout.subscribe(queue, exchange, routing_key)
        elif self.transient.is_one(queue):
            self.intake.add_list(queue)
        else:
            self.intake.add_jobs(queue, queue_base(self.options.prefix, queue))

    def basic_qos(self, prefetch_size: int = 0, prefetch_count: int = 0, apply_global: bool = False) -> None:
        super().basic_qos(prefetch_size, prefetch_count, apply_global)
        self.intake.takes_all = not prefetch_count

    def basic_cancel(self, consumer_tag: str) -> None:
        queue = self._tag_to_queue.get(consumer_tag)
        super().basic_cancel(consumer_tag)
        if queue is None or queue in self._active_queues:
            return
        self.intake.remove(queue)

    def _get(self, queue: str, timeout: Any = None) -> Any:
        """One message at once, for basic_get."""
        is_jobs = not self.transient.is_one(queue)
        while True:
            found: Sequence[Delivery | Pushed]
            if is_jobs:
                found, _ = self.leases.take(self.server, (queue_base(self.options.prefix, queue),), 1, self._on_settled)
            else:
                found = self.transient.pop(queue, 1)
            if not found:
                raise virtual.base.Empty()
            payload = self._open(queue, found[0])
            if payload is not None:
                return payload

    def basic_get(self, queue: str, no_ack: bool = False, **kwargs: Any) -> Any:
        message = super().basic_get(queue, no_ack, **kwargs)
        if message is not None and no_ack:
            self.qos.done(message.delivery_tag)
        return message

    def _room(self) -> int | None:
        """How many jobs may be taken besides those that the consumer has; None for any number."""
        qos = self.qos
        if not qos.can_consume():
            return 0
        if "can_consume" in vars(qos):
            return 1  # Celery's worker_disable_prefetch asks before each
        room: int | None = qos.can_consume_max_estimate()
        return room

    def _holding(self) -> int:
        qos: QoS = self.qos
        return qos.holding

    def deliver_one(self) -> bool:
        """Hands the next message to its consumer; False if there is none."""
        while True:
            one = self.intake.next()
            if one is None:
                return False
            queue, what = one
            payload = self._open(queue, what)
            if payload is not None:
                self.connection._deliver(payload, queue)
                return True

    def _open(self, queue: str, what: Delivery | Pushed) -> dict[str, Any] | None:
        """What Kombu makes a message of; None where it is none, and has been taken care of."""
        return self._payload_of(queue, what) if isinstance(what, Delivery) else self._opened(what)

    def _payload_of(self, queue: str, delivery: Delivery) -> dict[str, Any] | None:
        if delivery.settled:
            return None  # somebody else has it by now
        if "rjk" in delivery.fields:
            self._schedule_next(delivery)
        deferred = delivery.fields.get("defa")
        if deferred is not None:
            delivery.fail(deferred, f"UnrecoverableError: {deferred}", final=True)
            return None
        try:
            payload = message_of(queue, delivery.id, delivery.fields, delivery.tag, self.options.prefix, delivery.token, now_ms())
        except NotAJob as error:
            delivery.fail(str(error), final=True)
            logger.error("job %s of queue %s cannot be run: %s", shown(delivery.id), queue, shown(error))
            return None
        if self._at:
            payload["properties"]["bullmq"]["at"] = self._at
        self.qos.taken(delivery)
        if queue in self.intake.no_ack:
            self.qos.done(delivery.tag)
        return payload

    def _schedule_next(self, delivery: Delivery) -> None:
        """A scheduler's job that was taken makes the next one before it runs."""
        try:
            next_iteration(self.server, delivery.base, delivery.id, delivery.fields, now_ms())
        except BaseException as error:
            if not isinstance(error, Exception) or isinstance(error, _NOT_ITS_FAULT):
                delivery.release()  # whoever takes it next makes the next one
                raise
            reason = shown(f"{type(error).__name__}: {error}")
            logger.error("the schedule of job %s of %s ends with it: %s", shown(delivery.id), delivery.base.rstrip(":"), reason)

    def _opened(self, pushed: Pushed) -> dict[str, Any] | None:
        tag = str(uuid.uuid4())
        try:
            payload: dict[str, Any] = kombu_loads(pushed.payload)
            payload["properties"]["delivery_tag"] = tag
            self.Message(payload, channel=self)  # as its consumer will do
        except Exception as error:
            # Another program's, or another release's. Nobody could be told by rejecting it.
            reason, text = shown(f"{type(error).__name__}: {error}"), shown(pushed.payload[:SHOWN])
            logger.error("a message of queue %s is none, and dropped (%s): %s", shown(pushed.queue), reason, text)
            return None
        if pushed.queue not in self.intake.no_ack and not pushed.broadcast:
            self.qos.taken(pushed, tag)
        return payload

    def _on_settled(self, delivery: Delivery) -> None:
        self.qos.settled(delivery)
        self.has_room()

    def has_room(self) -> None:
        """For another message, since one has ended."""
        if threading.get_ident() != self._owner:
            self.intake.has_room()

    # -- waiting ---------------------------------------------------------------------------------------------------------

    def turn(self) -> float | None:
        """One turn of an event loop: takes and delivers for a moment. Returns in how many seconds to come back, 0 for at once; None
        where that is left to what `intake` waits for."""
        self._owner = threading.get_ident()
        self.leases.speak()
        self.transient.touch(now_ms())
        until = time.monotonic() + TURN_S
        delivered = False
        while True:
            while self.deliver_one():
                delivered = True
                if self.closed:
                    return None
                if time.monotonic() >= until:
                    return 0.0
            pause = self.intake.pursue(*self.qos.in_hand())
            if not self.intake.has_ready:
                break
            # What has just come to an idle worker is not kept waiting for the loop's next turn.
        # After a delivery the loop must not wait: what the consumer scheduled, and what another of the loop's ticks does with it (Celery's
        # pool writes to its children in one), may have had their turn in this round.
        return 0.0 if delivered or (pause is None and self.intake.has_more) else pause

    def drain_events(self, timeout: float | None = None, callback: Any = None) -> None:
        """Delivers one message, or raises socket.timeout after `timeout` seconds."""
        self._owner = threading.get_ident()
        until = None if timeout is None else time.monotonic() + timeout
        while True:
            if self.deliver_one() or (self.intake.fetch() and self.deliver_one()):
                return
            self.transient.touch(now_ms())
            left = None if until is None else until - time.monotonic()
            if left is not None and left <= 0:
                raise TimeoutError("timed out")
            self._wait(left)

    def _wait(self, timeout: float | None) -> None:
        descriptors = self.intake.descriptors()
        with self.waiting():
            if self.intake.has_more:
                return
            for descriptor in wait_any(descriptors, wait_timeout(timeout)):
                self.intake.on_readable(descriptor)

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Whoever gives room in here has to wake us; afterwards whoever is not of this thread."""
        self._owner = 0
        try:
            yield
        finally:
            self._owner = threading.get_ident()

    # -- the end ---------------------------------------------------------------------------------------------------------

    def close(self) -> None:
        if self.closed:
            return
        queues = {queue for queue in self._active_queues if queue in self.transient}
        errors = self._errors()
        with contextlib.suppress(*errors):
            self.intake.settle()
        with contextlib.suppress(*errors):
            self.intake.put_back()
        for consumer in list(self._consumers):
            with contextlib.suppress(*errors):
                self.basic_cancel(consumer)
        server = self.server
        super().close()
        self.intake.close()
        with contextlib.suppress(*errors):
            self.leases.send(server)
        for queue in queues:
            with contextlib.suppress(*errors):
                self.transient.drop(queue)

    def _errors(self) -> tuple[type[BaseException], ...]:
        from bullmq_kombu.transport import Transport

        return (*Transport.connection_errors, *Transport.channel_errors, JobError)


def _pack(message: dict[str, Any]) -> str:
    """A message as text; a body that is none goes as base64, and says so."""
    body = message["body"]
    if isinstance(body, (bytes, bytearray, memoryview)):
        properties = {**message["properties"], "body_encoding": "base64"}
        message = {**message, "body": base64.b64encode(bytes(body)).decode(), "properties": properties}
    text: str = kombu_dumps(message)
    return text
