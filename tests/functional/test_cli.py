"""The command line, as somebody at a terminal uses it: the real program on a real server."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from servers import Server

from bullmq_kombu import Queue

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def run(server: Server, tmp_path: Path) -> Run:
    """Runs `bullmq-kombu` with a prefix of the test's own."""

    def run(*arguments: str, answer: str = "", prefix: str = "cli-test") -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "bullmq_kombu", "--url", server.url, "--prefix", prefix, *arguments]
        return subprocess.run(command, input=answer, capture_output=True, text=True, timeout=30, cwd=tmp_path, check=False)

    return run


@pytest.fixture
def queue(server: Server, queue_name: str) -> Any:
    with Queue(queue_name, server.url, prefix="cli-test") as queue:
        yield queue
        queue.obliterate(force=True)


def test_a_job_is_added_found_shown_and_removed(run: Run, queue: Queue) -> None:
    added = run("add", queue.name, "mail.send", '{"to": "a@b.c"}', "--opts", '{"attempts": 3}', "--json")
    job_id = json.loads(added.stdout)["id"]
    listed = json.loads(run("jobs", queue.name, "waiting", "--json").stdout)
    assert [(job["id"], job["name"], job["data"]) for job in listed] == [(job_id, "mail.send", {"to": "a@b.c"})]
    shown = json.loads(run("show", queue.name, job_id, "--json").stdout)
    assert shown["state"] == "waiting"
    assert shown["opts"]["attempts"] == 3
    assert "mail.send" in run("show", queue.name, job_id).stdout
    assert run("remove", queue.name, job_id, "--yes").returncode == 0
    assert queue.get_job(job_id) is None


def test_a_destructive_command_asks(run: Run, queue: Queue) -> None:
    job = queue.add("n")
    refused = run("remove", queue.name, job.id, answer="n\n")
    assert refused.returncode != 0
    assert queue.get_job(job.id) is not None
    assert run("drain", queue.name, answer="y\n").returncode == 0
    assert queue.count() == 0


def test_pause_resume_promote_and_counts(run: Run, queue: Queue) -> None:
    queue.add("later", None, {"delay": 60_000})
    run("pause", queue.name)
    row = next(row for row in json.loads(run("queues", "--json").stdout) if row["queue"] == queue.name)
    assert (row["paused"], row["delayed"], row["waiting"]) == (True, 1, 0)
    run("resume", queue.name)
    run("promote", queue.name, "--all")
    row = next(row for row in json.loads(run("queues", "--json").stdout) if row["queue"] == queue.name)
    assert (row["paused"], row["delayed"], row["waiting"]) == (False, 0, 1)
    assert queue.name in run("queues").stdout


def test_events_are_followed(run: Run, queue: Queue) -> None:
    job = queue.add("n")
    lines = run("events", queue.name, "--from", "0-0", "--count", "2", "--json").stdout.splitlines()
    assert [(json.loads(line)["event"], json.loads(line)["jobId"]) for line in lines] == [("added", job.id), ("waiting", job.id)]


def test_clean_removes_by_state(run: Run, queue: Queue) -> None:
    queue.add("n", None, {"delay": 60_000})
    assert json.loads(run("clean", queue.name, "delayed", "--yes", "--json").stdout)["removed"]
    assert queue.count() == 0


def test_errors_are_sentences_with_a_remedy(run: Run, queue: Queue, tmp_path: Path) -> None:
    nothing = run("show", queue.name, "nowhere")
    assert nothing.returncode == 1
    assert "there is no job 'nowhere'" in nothing.stderr
    assert "is no JSON" in run("add", queue.name, "n", "{to: a}").stderr
    assert "cannot contain ':'" in run("add", "a:b", "n").stderr
    job = queue.add("n")
    assert "only a failed or completed job can be retried" in run("retry", queue.name, job.id).stderr
    away = subprocess.run(
        [sys.executable, "-m", "bullmq_kombu", "--url", "bullmq://127.0.0.1:1", "queues"],
        capture_output=True, text=True, timeout=30, cwd=tmp_path, check=False,
    )  # fmt: skip
    assert away.returncode == 1
    assert "does not answer" in away.stderr
    assert "Traceback" not in away.stderr


def test_the_doctor_tells_by_its_exit_code(run: Run, server: Server, queue: Queue) -> None:
    findings = {one["check"]: one for one in json.loads(run("doctor", "--json", prefix="cli-nobody").stdout)}
    assert findings["connection"]["status"] == "ok"
    assert findings["persistence"]["status"] == "warning"
    assert run("doctor", prefix="cli-nobody").returncode == 1
    queue.add("n")
    client = server.client()
    client.lpush(f"{queue.base}paused", "1")
    parked = run("doctor")
    assert parked.returncode == 2
    client.delete(f"{queue.base}paused")
    with Server(extra=["--maxmemory-policy", "allkeys-lru"]) as evicting:
        command = [sys.executable, "-m", "bullmq_kombu", "--url", evicting.url, "doctor", "--json"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
        assert done.returncode == 2
        assert any(one["check"] == "eviction policy" and one["status"] == "failed" for one in json.loads(done.stdout))


def test_what_others_wrote_is_not_obeyed_by_the_terminal(run: Run, queue: Queue) -> None:
    queue.add("name\x1b[31m[red]", {"a": 1})
    assert "\x1b[31m" not in run("jobs", queue.name, "waiting").stdout
    assert "[red]" in run("jobs", queue.name, "waiting").stdout


def test_metrics_are_prometheus_text_under_bullmqs_names(run: Run, queue: Queue) -> None:
    queue.add("n")
    text = run("metrics", queue.name).stdout
    assert f'bullmq_job_count{{queue="{queue.name}",state="waiting"}} 1.0' in text
    assert f'bullmq_job_completed_total{{queue="{queue.name}"}} 0.0' in text


def test_it_is_a_command_of_celery_too(server: Server, tmp_path: Path, queue: Queue) -> None:
    (tmp_path / "cli_app.py").write_text(f"from celery import Celery\napp = Celery(broker={server.url!r})\n")
    queue.add("n")
    done = subprocess.run(
        [sys.executable, "-m", "celery", "-A", "cli_app", "bullmq", "--prefix", "cli-test", "jobs", queue.name, "waiting", "--json"],
        capture_output=True, text=True, timeout=30, cwd=tmp_path, check=False,
    )  # fmt: skip
    assert [job["name"] for job in json.loads(done.stdout)] == ["n"], done.stderr
