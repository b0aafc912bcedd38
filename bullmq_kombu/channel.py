"""Kombu's verbs (declare, bind, publish, consume, acknowledge) said in BullMQ's words.

A durable queue is the BullMQ queue of the same name. A queue that Celery makes for itself (auto_delete or exclusive) is a list that
expires, or, bound to a fanout exchange, nothing but a subscription.
"""

from __future__ import annotations

import base64
import contextlib
import json
import logging
import os
import socket
import sys
import threading
import time
import traceback
import uuid
from collections import deque
from collections.abc import Callable
from typing import Any

from kombu.transport import base as kombu_base
from kombu.transport import virtual
from kombu.utils.json import dumps as kombu_dumps
from kombu.utils.json import loads as kombu_loads

from bullmq_kombu import scripts
from bullmq_kombu.bindings import Bindings
from bullmq_kombu.carry import current
from bullmq_kombu.codec import NotAJob, Outgoing, job_of, message_of
from bullmq_kombu.connection import Server, Wire, wait_any
from bullmq_kombu.errors import JobError, job_error
from bullmq_kombu.fanout import Fanout
from bullmq_kombu.job_options import JobOptions, check_size, make_job_options
from bullmq_kombu.keys import KombuKeys, queue_base
from bullmq_kombu.leases import Delivery, Flight, Leases, now_ms
from bullmq_kombu.options import REMOVE_ON_COMPLETE, REMOVE_ON_FAIL, Options
from bullmq_kombu.poller import Poller
from bullmq_kombu.qos import Pushed, QoS

logger = logging.getLogger(__name__)

#: How long a queue that Celery made for itself is kept when nobody uses it and it does not say for how long, ms.
TRANSIENT_KEPT_MS = 24 * 3_600_000
#: How long a message to a queue that nobody has declared is kept, ms: the reply to somebody who is gone.
UNDECLARED_KEPT_MS = 300_000
#: How long it is remembered that a queue exists without asking again, s.
KNOWN_FOR_S = 60.0
#: The most jobs one call takes when prefetching is unlimited.
UNLIMITED_TAKE = 100
#: How long one turn of the event loop delivers before others get theirs, s.
TURN_S = 0.01


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
        self.bindings = Bindings(self.server, self.keys)
        self.fanout = Fanout(self.server, self.keys)
        self._fanout_queues: dict[str, tuple[str, str]] = {}
        self._transient: dict[str, int] = connection.transient
        self._known: dict[str, tuple[bool, float]] = connection.known
        self._own_bindings: dict[str, list[tuple[str, str]]] = {}
        self._touched = time.monotonic()
        self._no_ack: set[str] = set()
        self._ready: deque[tuple[str, Any]] = deque()
        self._flight: Flight | None = None
        self._flight_wire: Wire | None = None
        self._jobs: Poller | None = None
        self._lists: Poller | None = None
        self._list_of: dict[str, str] = {}
        self._queue_of: dict[str, str] = {}
        #: Where jobs come from, for a task to find; '' where that is the only place.
        self._at = self.server.address.where if len(connection.client.alt or ()) > 1 else ""
        self._waker = Waker()
        self._owner = threading.get_ident()

    # -- queues and exchanges ------------------------------------------------------------------------------------------

    def prepare_queue_arguments(self, arguments: Any, **kwargs: Any) -> Any:
        return kombu_base.to_rabbitmq_queue_arguments(arguments, **kwargs)

    def _new_queue(self, queue: str, auto_delete: bool = False, exclusive: bool = False, arguments: Any = None, **kwargs: Any) -> None:
        if auto_delete or exclusive:
            kept = int((arguments or {}).get("x-expires") or TRANSIENT_KEPT_MS)
            self._transient[queue] = kept
            scripts.run(self.server, "declare", (self.keys.base,), (now_ms(), queue, kept, 0))
        elif not self._is_transient(queue):
            base = queue_base(self.options.prefix, queue)
            # What a BullMQ Queue writes when it is made; it tells dashboards, and other processes here, that there is such a queue.
            self.server.call("HSETNX", base + "meta", "opts.maxLenEvents", self.options.max_len_events)
            self._known[queue] = (False, float("inf"))

    def _has_queue(self, queue: str, **kwargs: Any) -> bool:
        if queue in self._transient or queue in self._fanout_queues:
            return True
        keys = [f"{self.keys.base}queue:{queue}"]
        if queue and ":" not in queue:
            keys.append(queue_base(self.options.prefix, queue) + "meta")
        return bool(self.server.call("EXISTS", *keys))

    def _is_transient(self, queue: str) -> bool:
        """Whether the queue is one that Celery made for itself, here or in another process."""
        if queue in self._transient:
            return True
        known = self._known.get(queue)
        now = time.monotonic()
        if known is not None and known[1] > now:
            return known[0]
        is_transient = bool(self.server.call("EXISTS", f"{self.keys.base}queue:{queue}"))
        self._known[queue] = (is_transient, now + KNOWN_FOR_S)
        return is_transient

    def _size(self, queue: str) -> int:
        """Jobs that a worker could take now (not delayed, not active), or messages of a list."""
        if queue in self._fanout_queues:
            return 0
        if self._is_transient(queue):
            return int(self.server.call("LLEN", self.keys.list(queue)))
        base = queue_base(self.options.prefix, queue)
        return int(scripts.run(self.server, "size", (base,), ()))

    def _purge(self, queue: str) -> int:
        if queue in self._fanout_queues:
            return 0
        if self._is_transient(queue):
            size = int(self.server.call("LLEN", self.keys.list(queue)))
            self.server.call("DEL", self.keys.list(queue), self.keys.marker(queue))
            return size
        return int(scripts.run(self.server, "drain", (queue_base(self.options.prefix, queue),), (now_ms(), 1)))

    def queue_delete(self, queue: str, if_unused: bool = False, if_empty: bool = False, **kwargs: Any) -> None:
        if if_empty and self._size(queue):
            return
        super().queue_delete(queue, if_unused, if_empty, **kwargs)
        self._drop_transient(queue)

    def _delete(self, queue: str, exchange: str = "", routing_key: str = "", pattern: str = "", *args: Any, **kwargs: Any) -> None:
        """Takes a binding away, and a list with its messages. A BullMQ queue keeps its settings and history; its waiting jobs go."""
        if exchange:
            self.bindings.remove(exchange, (routing_key or "", pattern or "", queue or ""))
        if not self._is_transient(queue) and queue not in self._fanout_queues:
            self._purge(queue)

    def _drop_transient(self, queue: str) -> None:
        if self._transient.pop(queue, None) is None:
            return
        self._known.pop(queue, None)
        for exchange, packed in self._own_bindings.pop(queue, ()):
            self.server.call("HDEL", self.keys.bindings(exchange), packed)
        self.server.call("DEL", self.keys.list(queue), self.keys.marker(queue), f"{self.keys.base}queue:{queue}")
        if queue in self._fanout_queues:
            self.fanout.unsubscribe(queue)
            del self._fanout_queues[queue]

    def _queue_bind(self, exchange: str, routing_key: str, pattern: str, queue: str) -> None:
        if self.typeof(exchange).type == "fanout":
            self._fanout_queues[queue] = (exchange, (routing_key or "").replace("/", "."))
            return
        kept = self._transient.get(queue)
        binding = (routing_key or "", pattern or "", queue or "")
        self.bindings.add(exchange, binding, now_ms() + kept if kept is not None else 0)
        if kept is not None:
            self._own_bindings.setdefault(queue, []).append((exchange, json.dumps([*binding])))

    def queue_unbind(self, queue: str, exchange: str | None = None, routing_key: str = "", arguments: Any = None, **kwargs: Any) -> None:
        super().queue_unbind(queue, exchange, routing_key, arguments, **kwargs)
        name = exchange or "amq.direct"
        with contextlib.suppress(KeyError):
            routing, pattern, _ = self.typeof(name).prepare_bind(queue, name, routing_key, arguments)
            self.bindings.remove(name, (routing or "", pattern or "", queue or ""))

    def exchange_delete(self, exchange: str, if_unused: bool = False, nowait: bool = False) -> None:
        super().exchange_delete(exchange, if_unused, nowait)
        self.bindings.remove_exchange(exchange)

    def get_table(self, exchange: str) -> list[tuple[str, Any, str]]:
        return [(routing_key, pattern, queue) for routing_key, pattern, queue in self.bindings.of(exchange, now_ms())]

    # -- publishing ------------------------------------------------------------------------------------------------------

    def _next_delivery_tag(self) -> str:
        return ""

    def _put(self, queue: str, message: dict[str, Any], **kwargs: Any) -> None:
        if queue in self._transient or (queue not in self._known and self._is_reply(queue, message)) or self._is_transient(queue):
            scripts.run(self.server, "push", (self.keys.base,), (queue, _pack(message, queue), UNDECLARED_KEPT_MS, ""))
            return
        base = queue_base(self.options.prefix, queue)
        properties = message["properties"]
        # Kombu publishes the same properties again when it retries: the same time then tells that it is the same message.
        now = properties.setdefault("published_ms", now_ms())
        outgoing = job_of(message, now, self._usual_options(), self._make_options)
        check_size(outgoing.name, outgoing.data, outgoing.options.size_limit)
        carried = current.get()
        if carried is not None and carried.task_id == outgoing.task_id and carried.base == base and self._carry_on(outgoing, now):
            return
        self._add(base, outgoing, now)

    def _is_reply(self, queue: str, message: dict[str, Any]) -> bool:
        """An answer to somebody's own queue: if that is gone, so is who would read it, and it must not become a queue of jobs."""
        properties = message["properties"]
        if "task" in message["headers"] or not properties.get("correlation_id") or properties.get("reply_to"):
            return False
        return self._is_transient(queue) or not self._has_queue(queue)

    def _add(self, base: str, outgoing: Outgoing, now: int) -> None:
        options = outgoing.options
        more = dict(options.more)
        job_id = outgoing.job_id
        if outgoing.task_id is not None and not options.job_id:
            more["unique"] = True
            job_id = job_id or str(uuid.uuid4())
        timestamp = options.timestamp if options.timestamp is not None else now
        for _ in range(3):
            job = scripts.NewJob(
                base, job_id, outgoing.name, outgoing.data, options.stored, timestamp, outgoing.delay, outgoing.priority,
                outgoing.celery_field(job_id), json.dumps(more) if more else "",
            )  # fmt: skip
            answer = scripts.add(self.server, (job,), now)[0]
            if answer != 0:
                break
            job_id = str(uuid.uuid4())
        if isinstance(answer, int):
            raise job_error(answer, "addJob", job_id, parent=str(more.get("parentKey")))

    def _carry_on(self, outgoing: Outgoing, now: int) -> bool:
        """The running task publishes under its own id (retry, replace): its job goes on. False where the job is no longer its own."""
        carried = current.get()
        assert carried is not None
        is_retry = bool(outgoing.celery.get("h", {}).get("retries"))
        fields: list[Any] = ["name", outgoing.name, "data", outgoing.data, "celery", outgoing.celery_field(carried.job_id)]
        fields += ["priority", outgoing.priority]
        more = "" if is_retry else json.dumps({"skip": True})
        # Inside an except block, as a retry mostly is, this is what the attempt failed with.
        kind, error, _ = sys.exc_info()
        reason = f"{kind.__name__}: {error}" if kind is not None and is_retry else ""
        trace = traceback.format_exc() if reason else ""
        code = scripts.retry(self.server, carried.base, carried.job_id, carried.token, now, outgoing.delay, reason, trace, more, fields)
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
        self.fanout.publish(exchange, routing_key or "", _pack(message, ""))

    # -- consuming -------------------------------------------------------------------------------------------------------

    def basic_consume(self, queue: str, no_ack: bool, callback: Callable[[Any], Any], consumer_tag: str, **kwargs: Any) -> None:
        super().basic_consume(queue, no_ack, callback, consumer_tag, **kwargs)
        if no_ack:
            self._no_ack.add(queue)
        if queue in self._fanout_queues:
            exchange, routing_key = self._fanout_queues[queue]
            self.fanout.subscribe(queue, exchange, routing_key)
        elif self._is_transient(queue):
            base = f"{self.keys.base}marker:{queue}"
            self._list_of[base] = queue
            if self._lists is None:
                self._lists = Poller(self.server, self.options.client_name, self.options.drain_delay, suffix="")
            self._lists.add(base)
        else:
            base = queue_base(self.options.prefix, queue)
            self._queue_of[base] = queue
            if self._jobs is None:
                self._jobs = Poller(self.server, self._client_name(queue), self.options.drain_delay)
            self._jobs.add(base)
            self.leases.watch(base)

    def _client_name(self, queue: str) -> str:
        """As BullMQ names the blocking connection of a worker, so that Node's `getWorkers` lists it."""
        name = f"{self.options.prefix}:{base64.b64encode(queue.encode()).decode()}"
        worker = "".join(self.leases.worker_name.split())
        return f"{name}:w:{worker}" if worker else name

    def basic_cancel(self, consumer_tag: str) -> None:
        queue = self._tag_to_queue.get(consumer_tag)
        super().basic_cancel(consumer_tag)
        if queue is None or queue in self._active_queues:
            return
        self._no_ack.discard(queue)
        if queue in self._fanout_queues:
            self.fanout.unsubscribe(queue)
        for base, name in list(self._list_of.items()):
            if name == queue and self._lists is not None:
                self._lists.remove(base)
                del self._list_of[base]
        for base, name in list(self._queue_of.items()):
            if name == queue and self._jobs is not None:
                self._jobs.remove(base)
                self.leases.unwatch(base)
                del self._queue_of[base]
        self._put_back_undelivered(queue)

    def _put_back_undelivered(self, queue: str | None = None) -> None:
        """What was taken and not delivered goes back, the last taken first, so that the order stays."""
        keep: deque[tuple[str, Any]] = deque()
        for name, one in reversed(self._ready):
            if queue is not None and name != queue:
                keep.appendleft((name, one))
            elif isinstance(one, Delivery):
                one.release()
            elif isinstance(one, Pushed):
                self._push_back(one)
        self._ready = keep

    def _push_back(self, pushed: Pushed) -> None:
        scripts.run(self.server, "push", (self.keys.base,), (pushed.queue, pushed.payload, UNDECLARED_KEPT_MS, "1"))

    def _get(self, queue: str, timeout: Any = None) -> Any:
        """One message at once, for basic_get."""
        if self._is_transient(queue):
            payloads = scripts.run(self.server, "pop", (self.keys.base,), (queue, 1))
            if not payloads:
                raise virtual.base.Empty()
            return self._opened(Pushed(queue, payloads[0]))
        base = queue_base(self.options.prefix, queue)
        while True:
            deliveries, _ = self.leases.take(self.server, (base,), 1, self._on_settled)
            if not deliveries:
                raise virtual.base.Empty()
            payload = self._payload_of(queue, deliveries[0])
            if payload is not None:
                return payload

    def basic_get(self, queue: str, no_ack: bool = False, **kwargs: Any) -> Any:
        message = super().basic_get(queue, no_ack, **kwargs)
        if message is not None and no_ack:
            self.qos.done(message.delivery_tag)
        return message

    def _wanted(self) -> int:
        """How many jobs may be taken now."""
        qos = self.qos
        if not qos.can_consume():
            return 0
        if "can_consume" in vars(qos):
            return 1  # Celery's worker_disable_prefetch asks before each
        room: int | None = qos.can_consume_max_estimate()
        if room is None:
            return UNLIMITED_TAKE
        return room - len(self._ready) - (self._flight.wanted if self._flight is not None else 0)

    def fetch(self) -> bool:
        """Takes what is there and may be held; True if anything came."""
        before = len(self._ready)
        lists = self._lists
        if lists is not None:
            for base in lists.hot():
                queue = self._list_of[base]
                wanted = UNLIMITED_TAKE if queue in self._no_ack else self._wanted()
                if wanted <= 0:
                    continue
                payloads = scripts.run(self.server, "pop", (self.keys.base,), (queue, wanted))
                self._ready.extend((queue, Pushed(queue, payload)) for payload in payloads)
                lists.learned((base,), (scripts.QueueState(base, 0, 0),), len(payloads) >= wanted, 0)
        if self._flight is not None or self._begin_take(self._wanted()):
            self._end_take()
        return len(self._ready) > before

    def _begin_take(self, wanted: int) -> bool:
        """Asks for up to `wanted` jobs, without waiting for the answer; False if there is nothing to ask for."""
        jobs = self._jobs
        if jobs is None or wanted <= 0:
            return False
        for state in self.leases.limited():
            if state.base in self._queue_of:
                jobs.learned((state.base,), (state,), False, 0)
        bases = jobs.hot(self.options.queue_order_strategy)
        if not bases:
            return False
        wire = self._flight_wire
        if wire is None:
            wire = self._flight_wire = self.server.wire(self.options.client_name)
        self._flight = Flight(self.leases, wire, bases, wanted, self._on_settled)
        return True

    def _end_take(self) -> None:
        """Waits for the answer, and keeps what it brought for delivery."""
        flight, self._flight = self._flight, None
        if flight is None or self._jobs is None:
            return
        deliveries, states = flight.land()
        self._jobs.learned(flight.bases, states, len(deliveries) >= flight.wanted, 0)
        for delivery in deliveries:
            queue = self._queue_of.get(delivery.base)
            if queue is None:
                delivery.release()  # cancelled meanwhile
            else:
                self._ready.append((queue, delivery))

    def _take_ahead(self) -> None:
        """While messages wait for delivery here, the next ones are asked for as soon as half of the prefetch count is free, so that the
        server works while the consumer does."""
        if self._flight is None and self._jobs is not None:
            wanted = self._wanted()
            if wanted > 1 and 2 * wanted >= self.qos.prefetch_count:
                self._begin_take(wanted)

    def deliver_one(self) -> bool:
        """Hands the next message to its consumer; False if there is none."""
        while self._ready:
            queue, one = self._ready.popleft()
            if self._ready:
                self._take_ahead()
            payload = self._payload_of(queue, one) if isinstance(one, Delivery) else self._opened(one)
            if payload is not None:
                self.connection._deliver(payload, queue)
                return True
        return False

    def _payload_of(self, queue: str, delivery: Delivery) -> dict[str, Any] | None:
        deferred = delivery.fields.get("defa")
        if deferred is not None:
            delivery.fail(deferred, f"UnrecoverableError: {deferred}", final=True)
            return None
        try:
            payload = message_of(queue, delivery.id, delivery.fields, delivery.tag, self.options.prefix, delivery.token)
        except NotAJob as error:
            delivery.fail(str(error), final=True)
            logger.error("job %s of queue %s cannot be run: %s", delivery.id, queue, error)
            return None
        if self._at:
            payload["properties"]["bullmq"]["at"] = self._at
        self.qos.taken(delivery)
        if queue in self._no_ack:
            delivery.complete()
        return payload

    def _opened(self, pushed: Pushed) -> dict[str, Any]:
        payload: dict[str, Any] = kombu_loads(pushed.payload)
        tag = payload["properties"]["delivery_tag"] = str(uuid.uuid4())
        if pushed.queue not in self._no_ack and not pushed.broadcast:
            self.qos.taken(pushed, tag)
        return payload

    def _on_settled(self, delivery: Delivery) -> None:
        """There is room for another job."""
        self.qos.settled(delivery)
        if threading.get_ident() != self._owner:
            self._waker.wake()

    # -- waiting ---------------------------------------------------------------------------------------------------------

    def touch(self) -> None:
        """The queues that Celery made for itself stay as long as this channel uses them."""
        kept_ms = [kept for queue, kept in self._transient.items() if queue not in self._fanout_queues]
        now = time.monotonic()
        if not kept_ms or now - self._touched < min(kept_ms) / 3000:
            return
        self._touched = now
        args: list[Any] = [now_ms()]
        for queue, kept in self._transient.items():
            if queue in self._fanout_queues:
                continue  # a subscription needs nothing in Redis
            bindings = self._own_bindings.get(queue, [])
            args += (queue, kept, len(bindings))
            for exchange, packed in bindings:
                args += (exchange, packed)
        scripts.run(self.server, "declare", (self.keys.base,), args)

    def descriptors(self) -> list[int]:
        """Starts to wait for whatever may come next; what to watch meanwhile."""
        found = [self._waker.fileno()]
        jobs, lists = self._jobs, self._lists
        if jobs is not None and jobs.bases and self._wanted() > 0:
            jobs.wait()
        for poller in (jobs, lists):
            if poller is not None and poller.bases:
                if poller is lists:
                    poller.wait()
                descriptor = poller.fileno()
                if descriptor is not None:
                    found.append(descriptor)
        if self.fanout:
            descriptor = self.fanout.fileno()
            if descriptor is not None:
                found.append(descriptor)
        return found

    def on_readable(self, descriptor: int) -> None:
        """Reads what has come on one of `descriptors`."""
        if descriptor == self._waker.fileno():
            self._waker.drain()
            return
        for poller in (self._jobs, self._lists):
            if poller is not None and poller.is_waiting and poller.fileno() == descriptor:
                poller.read()
                return
        if self.fanout and self.fanout.fileno() == descriptor:
            while True:
                for queue, payload in self.fanout.read():
                    self._ready.append((queue, Pushed(queue, payload, broadcast=True)))
                if not self.fanout.has_more():
                    break

    def turn(self) -> bool:
        """One turn of an event loop: takes and delivers for a moment. True if there is more to do at once."""
        self._owner = threading.get_ident()
        self.touch()
        until = time.monotonic() + TURN_S
        while True:
            while self.deliver_one():
                if self.closed or time.monotonic() >= until:
                    return not self.closed
            if self.closed or not self.fetch():
                return False

    def drain_events(self, timeout: float | None = None, callback: Any = None) -> None:
        """Delivers one message, or raises socket.timeout after `timeout` seconds."""
        self._owner = threading.get_ident()
        until = None if timeout is None else time.monotonic() + timeout
        while True:
            if self.deliver_one() or (self.fetch() and self.deliver_one()):
                return
            self.touch()
            left = None if until is None else until - time.monotonic()
            if left is not None and left <= 0:
                raise TimeoutError("timed out")
            self._wait(left)

    def _wait(self, timeout: float | None) -> None:
        descriptors = self.descriptors()
        self._owner = 0  # whoever gives room now has to wake us
        try:
            if self._has_hot_jobs():
                return
            for descriptor in wait_any(descriptors, min(timeout, 1.0) if timeout is not None else 1.0):
                self.on_readable(descriptor)
        finally:
            self._owner = threading.get_ident()

    def _has_hot_jobs(self) -> bool:
        return self._jobs is not None and self._wanted() > 0 and bool(self._jobs.hot())

    # -- the end ---------------------------------------------------------------------------------------------------------

    def close(self) -> None:
        if self.closed:
            return
        queues = set(self._active_queues)
        with contextlib.suppress(*self._errors()):
            self._end_take()
        with contextlib.suppress(*self._errors()):
            self._put_back_undelivered()
        for consumer in list(self._consumers):
            with contextlib.suppress(*self._errors()):
                self.basic_cancel(consumer)
        if self._flight_wire is not None:
            self._flight_wire.close()
        for poller in (self._jobs, self._lists):
            if poller is not None:
                poller.stop()
        self.fanout.close()
        server = self.server
        super().close()
        with contextlib.suppress(*self._errors()):
            self.leases.send(server)
        for queue in queues & set(self._transient):
            with contextlib.suppress(*self._errors()):
                self._drop_transient(queue)
        self._waker.close()

    def _errors(self) -> tuple[type[BaseException], ...]:
        from bullmq_kombu.transport import Transport

        return (*Transport.connection_errors, *Transport.channel_errors, JobError)


class Waker:
    """Makes a wait end from another thread."""

    def __init__(self) -> None:
        self._reader, self._writer = socket.socketpair()
        self._reader.setblocking(False)
        self._writer.setblocking(False)
        self._pid = os.getpid()

    def wake(self) -> None:
        with contextlib.suppress(OSError):
            self._writer.send(b"\0")

    def drain(self) -> None:
        with contextlib.suppress(OSError):
            while len(self._reader.recv(4096)) == 4096:
                pass

    def fileno(self) -> int:
        return self._reader.fileno()

    def close(self) -> None:
        self._reader.close()
        self._writer.close()


def _pack(message: dict[str, Any], queue: str) -> str:
    """A message as text; a body that is none goes as base64, and says so."""
    body = message["body"]
    if isinstance(body, (bytes, bytearray, memoryview)):
        properties = {**message["properties"], "body_encoding": "base64"}
        message = {**message, "body": base64.b64encode(bytes(body)).decode(), "properties": properties}
    text: str = kombu_dumps(message)
    return text
