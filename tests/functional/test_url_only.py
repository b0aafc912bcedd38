"""Fresh processes that know nothing but the URL: nothing of this package is imported by anybody's code."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import redis
from jobs import Job, jobs_of
from servers import Server, end, spawn
from waiting import wait_until
from worker import Worker, environment_of


def environment(server: Server) -> dict[str, str]:
    return {name: value for name, value in environment_of(server).items() if not name.startswith("APP_")}


def run(server: Server, folder: Path, *arguments: str) -> str:
    found = subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment(server), capture_output=True, text=True, timeout=60
    )  # fmt: skip
    assert found.returncode == 0, found.stdout + found.stderr
    return found.stdout


def test_inspect(server: Server, tmp_path: Path, queue_name: str) -> None:
    with Worker(server, tmp_path, [queue_name]) as one:
        out = run(server, tmp_path, "-m", "celery", "-b", server.url, "inspect", "-d", one.name, "-t", "10", "ping")
        assert "pong" in out


def test_call_and_purge(server: Server, redis_client: redis.Redis, queue_name: str, tmp_path: Path) -> None:
    command = ["-m", "celery", "-b", server.url]
    out = run(server, tmp_path, *command, "call", "anything", "--kwargs", '{"a": 1}', "--queue", queue_name)
    assert out.strip().splitlines()[-1] in jobs_of(redis_client, queue_name, "wait")
    run(server, tmp_path, *command, "purge", "-f", "-Q", queue_name)
    assert jobs_of(redis_client, queue_name, "wait") == []


def test_script(server: Server, redis_client: redis.Redis, queue_name: str, tmp_path: Path) -> None:
    script = (
        "import sys, celery\n"
        f"app = celery.Celery(broker={server.url!r})\n"
        "assert 'bullmq_kombu.transport' not in sys.modules\n"
        f"print(app.send_task('anything', queue={queue_name!r}).id)\n"
    )
    sent = run(server, tmp_path, "-c", script).strip()
    assert jobs_of(redis_client, queue_name, "wait") == [sent]


def test_worker_and_beat(server: Server, redis_client: redis.Redis, queue_name: str, tmp_path: Path) -> None:
    """A worker with an app that names the URL in its configuration, and beat, which sends what is due."""
    (tmp_path / "plain.py").write_text(
        "from celery import Celery\n"
        f"app = Celery('plain', broker={server.url!r}, set_as_current=True)\n"
        "app.conf.broker_connection_retry_on_startup = True\n"
        f"app.conf.beat_schedule = {{'often': {{'task': 'tick', 'schedule': 0.1, 'options': {{'queue': {queue_name!r}}}}}}}\n"
        "@app.task(name='tick')\n"
        "def tick():\n"
        "    return 'tock'\n"
    )
    command = [sys.executable, "-m", "celery", "-A", "plain"]
    with (tmp_path / "log").open("ab") as log:
        processes = [
            spawn([*command, *arguments], cwd=tmp_path, env=environment(server), stdout=log, stderr=log)
            for arguments in (["beat"], ["worker", "-P", "prefork", "-c", "1", "-Q", queue_name])
        ]
    try:
        done = wait_until(lambda: jobs_of(redis_client, queue_name, "completed"), what="a job to be completed", timeout=30)
        assert Job(redis_client, queue_name, done[0]).returnvalue == "tock"
    finally:
        for process in processes:
            end(process, 20)
        print((tmp_path / "log").read_text())
