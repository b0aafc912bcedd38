"""`bullmq_kombu.QueueEvents`: what Node does is heard here, by an iterator, by callbacks and by whoever waits for one job."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any

import pytest
import redis
from node_driver import Node
from servers import Server
from waiting import wait_until

from bullmq_kombu import JobFailed, Queue, QueueEvents
from bullmq_kombu.errors import JobMissing
from bullmq_kombu.queue_events import Event


@pytest.fixture
def queue(server: Server, queue_name: str) -> Iterator[Queue]:
    with Queue(queue_name, server.url) as opened:
        yield opened


@pytest.fixture
def events(server: Server, queue_name: str) -> Iterator[QueueEvents]:
    with QueueEvents(queue_name, server.url) as opened:
        yield opened


def read_until(events: QueueEvents, name: str) -> list[Event]:
    """The events up to the first of this name."""
    seen: list[Event] = []
    while not any(event.name == name for event in seen):
        found = events.read(10)
        assert found, f"no {name}; only {[event.name for event in seen]}"
        seen += found
    return seen


def test_the_same_is_heard_here_as_in_node(node: Node, queue_name: str, events: QueueEvents) -> None:
    node.call("queueEvents", queue=queue_name)
    node.call(
        "worker", queue=queue_name, default={"progress": [50, {"half": True}], "return": {"n": [1]}}, behaviours={"bad": {"throw": "boom"}}
    )
    node.call("add", queue=queue_name, name="good", data={}, opts={"delay": 20})
    bad = node.call("add", queue=queue_name, name="bad", data={}, opts={"attempts": 2, "backoff": 5})["id"]
    node.wait_for_state(queue_name, bad, "failed")
    node.wait_for_event(queue_name, "completed")

    def both_heard_all() -> bool:
        mine.extend(events.read(0.05))
        theirs = node.call("events", queue=queue_name)
        return [(event["id"], event["event"]) for event in theirs] == [(event.id, event.name) for event in mine]

    mine: list[Event] = []
    wait_until(both_heard_all, what="the same events on both sides")
    by_name = {event.name: event.args for event in mine}
    theirs = {event["event"]: event["args"] for event in node.call("events", queue=queue_name)}
    theirs["delayed"]["delay"] = int(theirs["delayed"]["delay"])  # text in BullMQ 5.60
    for name in ("completed", "failed", "progress", "delayed", "waiting", "active", "added"):
        assert by_name[name] == theirs[name], name
    assert by_name["completed"]["returnvalue"] == {"n": [1]}


def test_only_what_comes_from_now_on_or_after_a_known_place(server: Server, queue: Queue) -> None:
    first = queue.add("n")
    with QueueEvents(queue.name, server.url) as events:
        second = queue.add("n")
        assert [event.job_id for event in read_until(events, "waiting")] == [second.id, second.id]
    with QueueEvents(queue.name, server.url, last_event_id="0-0") as events:
        assert next(iter(events)).job_id == first.id
    with QueueEvents(queue.name, server.url, last_event_id=events.last_event_id) as later:
        assert later.read(0.01) == [] or all(event.job_id == second.id for event in later.read(0.01))


def test_reading_ends_after_its_time_and_when_closed(events: QueueEvents) -> None:
    assert events.read(0.02) == []
    with ThreadPoolExecutor(1) as pool:
        listing = pool.submit(list, events)
        wait_until(lambda: events._reader._wire is not None, what="the reader to wait")
        events.close()
        assert listing.result(10) == []


def test_callbacks(queue: Queue, events: QueueEvents, caplog: pytest.LogCaptureFixture) -> None:
    heard: list[str] = []
    everything: list[Event] = []

    def broken(event: Event) -> None:
        raise RuntimeError("a listener's own affair")

    events.on("added", broken)
    events.on("added", lambda event: heard.append(str(event.job_id)))
    events.on("*", everything.append)
    removed: Callable[[Event], object] = lambda event: heard.append("never")  # noqa: E731
    events.on("added", removed)
    events.off("added", removed)
    events.start()
    ids = [queue.add("n").id for _ in range(3)]

    wait_until(lambda: len(everything) == 6, what="all events")
    assert heard == ids
    assert "a listener's own affair" in caplog.text
    events.close()
    assert not any(thread.name.endswith(queue.name) for thread in threading.enumerate())


# -- waiting for one job ---------------------------------------------------------------------------------------------------------


def test_a_value_of_nodes(node: Node, queue: Queue, events: QueueEvents) -> None:
    node.call("worker", queue=queue.name, behaviours={"double": {"return": {"n": 4}}, "bad": {"throw": "no such address"}})
    assert queue.add("double", {"n": 2}).wait_until_finished(events, 10) == {"n": 4}
    with pytest.raises(JobFailed, match="no such address"):
        queue.add("bad").wait_until_finished(events, 10)

    done = queue.add("double")
    node.wait_for_state(queue.name, done.id, "completed")
    assert done.wait_until_finished(events, 10) == {"n": 4}, "also when it is over already"


def test_nobody_works(queue: Queue, events: QueueEvents) -> None:
    job = queue.add("send")
    with pytest.raises(TimeoutError, match=rf"Job wait send timed out .* \(id={job.id}\)"):
        job.wait_until_finished(events, 0.05)
    with pytest.raises(JobMissing, match="Missing key for job nobody"):
        events.wait_until_finished("nobody", 1)


def test_a_job_that_is_removed_meanwhile(queue: Queue, events: QueueEvents) -> None:
    job = queue.add("send")
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(job.wait_until_finished, events, 20)
        wait_until(lambda: readers(queue), what="the wait to begin")
        job.remove()
        with pytest.raises(JobMissing):
            waiting.result(10)


def readers(queue: Queue) -> list[dict[str, Any]]:
    """Connections that wait for events of this queue, as Redis lists them."""
    lines = str(queue.server.call("CLIENT", "LIST")).splitlines()
    clients = [dict(part.partition("=")[::2] for part in line.split()) for line in lines]
    return [client for client in clients if client.get("name", "").endswith(":qe") and client.get("cmd", "").lower() == "xread"]


def test_node_counts_the_reader(node: Node, queue: Queue, events: QueueEvents) -> None:
    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(events.read, 20)
        wait_until(lambda: node.call("queueCall", queue=queue.name, method="getQueueEvents"), what="Node to list the reader")
        queue.add("n")
        assert reading.result(10)


# -- lost connections ------------------------------------------------------------------------------------------------------------


def test_a_killed_connection_loses_nothing(queue: Queue, events: QueueEvents, redis_client: redis.Redis) -> None:
    seen: list[Event] = []
    events.on("added", seen.append)
    events.start()
    queue.add("n")
    wait_until(lambda: len(seen) == 1, what="the first event")
    ids = [seen[0].job_id]
    for _ in range(3):
        (reader,) = wait_until(lambda: [r for r in readers(queue) if r["name"].startswith("bull:")], what="the reader to wait")
        redis_client.client_kill_filter(_id=reader["id"])
        ids += [queue.add("n").id for _ in range(5)]
    wait_until(lambda: [event.job_id for event in seen] == ids, what="every event, once")


def test_a_server_that_restarts_loses_nothing(queue_name: str) -> None:
    with Server(appendonly=True) as server, Queue(queue_name, server.url) as queue, QueueEvents(queue_name, server.url) as events:
        first = queue.add("n", {}, {"jobId": "first"})
        with ThreadPoolExecutor(2) as pool:
            reading = pool.submit(lambda: [event.job_id for event in islice(events, 4)])
            waiting = pool.submit(first.wait_until_finished, events, 60)
            wait_until(lambda: len(readers(queue)) >= 1, what="the readers to wait")
            server.restart()

            def add_again() -> str | None:
                try:
                    return queue.add("n", {}, {"jobId": "second"}).id
                except (redis.ConnectionError, OSError):
                    return None

            wait_until(add_again, what="the server to take a job")
            assert reading.result(60) == ["first", "first", "second", "second"]
            with server.client() as client:
                client.zadd(f"{queue.base}completed", {"first": 1})
                client.hset(f"{queue.base}first", "returnvalue", "7")
                client.xadd(f"{queue.base}events", {"event": "completed", "jobId": "first", "returnvalue": "7"})
            assert waiting.result(60) == 7
