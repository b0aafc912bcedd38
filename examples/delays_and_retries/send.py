"""Sends tasks that fail at first."""

from __future__ import annotations

import time

from tasks import app, fetch, send

from bullmq_kombu import JobsOptions

if __name__ == "__main__":
    # 200 ms, then 400 ms: the job is delayed in Redis, and any worker may make the next attempt, Node's too.
    options: JobsOptions = {"attempts": 3, "backoff": {"type": "exponential", "delay": 200}}
    print(app.send_task(send.name, kwargs={"to": "ada@example.org"}, queue="mail", bullmq=options).get(timeout=30))
    print(fetch.apply_async(kwargs={"url": "https://example.org"}, queue="mail").get(timeout=30))

    start = time.monotonic()
    delayed = app.send_task(send.name, kwargs={"to": "nowhere"}, queue="mail", countdown=1, bullmq=options)
    try:
        delayed.get(timeout=30)
    except Exception as error:
        print(f"after {int(time.monotonic() - start)} s, at the first attempt: {error}")
