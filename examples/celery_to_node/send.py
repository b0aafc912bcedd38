"""Sends tasks that a Node worker does, and waits for how they end. Python has no code for them: their names are enough."""

from celery import Celery

from bullmq_kombu import JobFailed

app = Celery("send", broker="bullmq://127.0.0.1:6379/0", backend="bullmq://127.0.0.1:6379/0")

if __name__ == "__main__":
    # The keyword arguments are the job's data.
    now = app.send_task("mail.send", kwargs={"to": "ada@example.org", "subject": "Hello"}, queue="mail")
    # A countdown is a delayed job in Redis; `bullmq` takes every option of a BullMQ job.
    soon = app.send_task(
        "mail.send",
        kwargs={"to": "bob@example.org", "subject": "Later"},
        queue="mail",
        countdown=1,
        bullmq={"attempts": 3, "backoff": {"type": "fixed", "delay": 500}},
    )
    print("Node answered:", now.get(timeout=20))
    print("and later:", soon.get(timeout=20))

    try:
        app.send_task("mail.forget", queue="mail").get(timeout=20)
    except JobFailed as error:
        print("Node failed:", error)
