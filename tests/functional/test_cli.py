"""The command line, as somebody at a terminal uses it: the real program on a real server."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from servers import Server

from bullmq_kombu import FlowProducer, Queue
from bullmq_kombu.cli import main

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
    read = run("show", queue.name, job_id).stdout
    assert "mail.send" in read
    assert " s ago" in read, "a time that can be read"
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
    job = queue.add("n")
    nothing = run("show", queue.name, "nowhere")
    assert nothing.returncode == 1
    assert "there is no job 'nowhere'" in nothing.stderr
    assert "is no JSON" in run("add", queue.name, "n", "{to: a}").stderr
    assert "cannot contain ':'" in run("add", "a:b", "n").stderr
    assert "only a failed or completed job can be retried" in run("retry", queue.name, job.id).stderr
    away = subprocess.run(
        [sys.executable, "-m", "bullmq_kombu", "--url", "bullmq://127.0.0.1:1", "queues"],
        capture_output=True, text=True, timeout=30, cwd=tmp_path, check=False,
    )  # fmt: skip
    assert away.returncode == 1
    assert "does not answer" in away.stderr
    assert "Traceback" not in away.stderr


@pytest.mark.parametrize(("arguments", "sentence"), [
    (["jobs", "{near}", "failed"], "did you mean '{queue}'?"),
    (["pause", "nowhere-at-all"], "there is no queue 'nowhere-at-all' under the prefix 'cli-test'"),
    (["promote", "{queue}", "{job}"], "job {job} is waiting: only a delayed job can be promoted"),
    (["add", "{queue}", "n", "{{}}", "--opts", "[1]"], "--opts is no JSON object"),
    (["events", "{queue}", "--from", "yesterday"], "'yesterday' is no id of an event"),
    (["--url", "redis://127.0.0.1", "queues"], "--url is no bullmq:// URL but redis://"),
    (["--url", "127.0.0.1:6379", "queues"], "--url is no bullmq:// URL"),
    (["--url", "bullmq://127.0.0.1:none/0", "queues"], "the URL cannot be read"),
    (["metrics", "--serve", "{port}"], "cannot serve at 127.0.0.1:{port}"),
])  # fmt: skip
def test_a_mistake_is_said_with_what_to_do(arguments: list[str], sentence: str, queue: Queue, server: Server) -> None:
    known = {"queue": queue.name, "near": f"{queue.name}s", "job": queue.add("n").id, "port": server.port}
    given = ["--url", server.url, "--prefix", "cli-test", *(argument.format(**known) for argument in arguments)]
    done = CliRunner().invoke(main, given)
    assert done.exit_code == 1
    assert isinstance(done.exception, SystemExit), "no traceback"
    assert sentence.format(**known) in done.output


def test_a_flow_is_shown_as_a_tree(run: Run, server: Server, queue: Queue) -> None:
    with FlowProducer(server.url, prefix="cli-test") as flows:
        leaf = {"name": "leaf", "queueName": queue.name, "opts": {"jobId": "leaf-one"}}
        middle = {"name": "middle", "queueName": queue.name, "opts": {"jobId": "middle-one"}, "children": [leaf]}
        flows.add({"name": "root", "queueName": queue.name, "opts": {"jobId": "root-one"}, "children": [middle]})
    tree = run("show", queue.name, "root-one").stdout
    assert f"{queue.name} root-one (root): waiting-children" in tree
    assert f"└── {queue.name} middle-one (middle): waiting-children" in tree
    assert f"    └── {queue.name} leaf-one (leaf): waiting" in tree


def test_what_ended_in_the_last_minute_is_counted(run: Run, server: Server, queue: Queue) -> None:
    job = queue.add("n")
    client = server.client()
    client.lrem(f"{queue.base}wait", 0, job.id)
    client.zadd(f"{queue.base}completed", {job.id: queue.clock()})
    (row,) = (row for row in json.loads(run("queues", "--json").stdout) if row["queue"] == queue.name)
    assert row["ended_per_minute"] == 1


def test_the_doctor_sees_orphans_pauses_and_both_majors(run: Run, server: Server, queue_name: str) -> None:
    client, prefix = server.client(), f"cli-{queue_name}"
    with Queue("old", server.url, prefix=prefix) as old, Queue("new", server.url, prefix=prefix) as new:
        try:
            new.add("n")
            new.pause()
            orphan = old.add("n")
            client.lrem(f"{old.base}wait", 0, orphan.id)
            client.hset(f"{old.base}meta", "version", "bullmq:5.81.5")
            client.hset(f"{new.base}meta", "version", "bullmq:6.7.0")
            found = json.loads(run("doctor", "--json", prefix=prefix).stdout)
        finally:
            old.remove_orphaned_jobs()
            old.obliterate(force=True)
            new.obliterate(force=True)
    said = {one["check"]: (one["status"], one["message"]) for one in found}
    assert said["BullMQ"][0] == "warning"
    assert "5 (old); 6 (new)" in said["BullMQ"][1]
    assert said["queue new"] == ("warning", "paused, and 1 jobs wait: `resume new` lets them run")
    assert said["queue old"][1].startswith("1 jobs are in no state")


def test_without_rich_celery_lists_its_commands_and_ours_says_what_is_missing(tmp_path: Path) -> None:
    """A `sys.modules` entry of None is what Python takes for a module that is not installed."""
    program = "import sys; sys.modules['rich'] = None; from celery.__main__ import main; sys.argv[0] = 'celery'; main()"
    listed = subprocess.run(
        [sys.executable, "-c", program, "--help"], capture_output=True, text=True, timeout=30, cwd=tmp_path, check=False
    )
    assert "needs the extra `cli`" in listed.stdout
    assert "could not be loaded" not in listed.stderr
    done = subprocess.run(
        [sys.executable, "-c", program, "bullmq", "show", "--json", "a", "b"],
        capture_output=True, text=True, timeout=30, cwd=tmp_path, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "pip install 'bullmq-kombu[cli]'" in done.stderr


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
