"""Sends three tasks of different priorities to a paused queue, so that all wait when the worker may begin."""

from __future__ import annotations

from tasks import app, pack

from bullmq_kombu import Queue

if __name__ == "__main__":
    with Queue("orders", app) as queue:
        queue.pause()
        # A lower number goes first, and no number before all: BullMQ's order, from 1 to 2097151.
        sent = {
            "some day": pack.apply_async(("1",), queue="orders", priority=100),
            "soon": pack.apply_async(("2",), queue="orders", priority=1),
            "now": pack.apply_async(("3",), queue="orders"),
        }
        queue.resume()
    when = {name: result.get(timeout=30) for name, result in sent.items()}
    print("packed:", ", ".join(sorted(when, key=lambda name: when[name])))
