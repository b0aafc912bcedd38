"""Sends a task and draws its progress, read from BullMQ's event stream."""

from __future__ import annotations

from rich.console import Console
from rich.progress import Progress
from tasks import app, print_pages

from bullmq_kombu import QueueEvents

PAGES = 20

if __name__ == "__main__":
    # The events from now on: so this comes before the task is sent.
    with QueueEvents("reports", app) as events, Progress(console=Console(stderr=True)) as progress:
        sent = print_pages.apply_async((PAGES,), queue="reports")
        bar = progress.add_task("printing", total=PAGES)
        for event in events:
            if event.job_id != sent.id:
                continue
            if event.name == "progress":
                progress.update(bar, completed=event.args["data"]["page"])
            elif event.name in ("completed", "failed"):
                print(event.name, event.args.get("returnvalue"))
                break
