"""beat with the schedulers people use: each sends what is due to a queue of BullMQ, knowing nothing but the URL.

Celery's own is in test_url_only.py, together with a worker.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis
from conftest import WorkerOf
from jobs import Job, jobs_of
from servers import Server, end, spawn
from waiting import wait_until
from worker import environment_of

Beat = Callable[..., None]

APP = """
import json
import os

from celery import Celery

app = Celery("scheduled", broker=os.environ["APP_BROKER"], set_as_current=True)
app.conf.beat_schedule = json.loads(os.environ.get("APP_SCHEDULE", "{}"))
app.conf.update(json.loads(os.environ["APP_MORE"]))
"""


@pytest.fixture
def beat(server: Server, tmp_path: Path) -> Iterator[Beat]:
    """`beat(…)`: starts beat with these arguments in the test's folder; its log is shown if the test fails."""
    log = tmp_path / "beat.log"
    started: list[subprocess.Popen[bytes]] = []

    def start(*arguments: str, **environment: str) -> None:
        command = [sys.executable, "-m", "celery", "-A", "scheduled", "beat", "-l", "INFO", *arguments]
        with log.open("ab") as out:
            started.append(spawn(command, cwd=tmp_path, env={**environment_of(server), **environment}, stdout=out, stderr=out))

    (tmp_path / "scheduled.py").write_text(APP)
    yield start
    for one in started:
        end(one)
    print(log.read_text() if log.exists() else "beat was not started")


def job_of(client: redis.Redis, queue: str) -> Job:
    """The first that was completed."""
    done = wait_until(lambda: jobs_of(client, queue, "completed"), 30.0, "a job to be completed")
    return Job(client, queue, done[0])


def test_redbeat(server: Server, beat: Beat, worker: WorkerOf, redis_client: redis.Redis, queue_name: str) -> None:
    """Its own keys are in a Redis it is told of, since it does not know a bullmq:// URL; the tasks go to the broker."""
    more = {"redbeat_redis_url": server.redis_url, "redbeat_redis_options": {}, "redbeat_key_prefix": f"redbeat-{queue_name}:"}
    schedule = {"often": {"task": "echo", "schedule": 0.2, "args": ["tick"], "options": {"queue": queue_name}}}
    worker(pool="solo")
    beat("-S", "redbeat.RedBeatScheduler", "--max-interval", "1", APP_SCHEDULE=json.dumps(schedule), APP_MORE=json.dumps(more))
    first = job_of(redis_client, queue_name)
    assert first.returnvalue == "tick"


SETTINGS = """
SECRET_KEY = "of a test"
INSTALLED_APPS = ["django_celery_beat"]
DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": "db.sqlite3"}}
USE_TZ = True
"""

FILL = """
import sys

import django
from django.core.management import call_command

django.setup()
call_command("migrate", verbosity=0)
from django_celery_beat.models import IntervalSchedule, PeriodicTask

every, _ = IntervalSchedule.objects.get_or_create(every=1, period=IntervalSchedule.SECONDS)
PeriodicTask.objects.create(name="often", task="echo", args='["tick"]', queue=sys.argv[1], interval=every)
"""


def test_django_celery_beat(
    server: Server, beat: Beat, worker: WorkerOf, redis_client: redis.Redis, queue_name: str, tmp_path: Path
) -> None:  # fmt: skip
    """Its schedule is in Django's database; the queue that a periodic task names is BullMQ's."""
    (tmp_path / "settings.py").write_text(SETTINGS)
    django = {"DJANGO_SETTINGS_MODULE": "settings", "APP_MORE": "{}"}
    environment = {**environment_of(server), **django}
    done = subprocess.run(
        [sys.executable, "-c", FILL, queue_name], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    worker(pool="solo")
    beat("-S", "django_celery_beat.schedulers:DatabaseScheduler", "--max-interval", "1", **django)
    first = job_of(redis_client, queue_name)
    assert first.returnvalue == "tick"
