"""The commands. Each is a few calls of `Queue`, shown."""

from __future__ import annotations

import json
import re
import sys
import time
from datetime import datetime
from typing import Any

import click
from rich.live import Live
from rich.tree import Tree

from bullmq_kombu import __version__
from bullmq_kombu.cli import doctor as examination
from bullmq_kombu.cli.surroundings import (
    SHOWN_STATES,
    Surroundings,
    as_json,
    console,
    job_as_dict,
    pass_surroundings,
    plain,
    say_json,
    table,
)
from bullmq_kombu.discovery import queue_names
from bullmq_kombu.flows import FlowProducer, JobNode
from bullmq_kombu.queue import Queue
from bullmq_kombu.queue_events import QueueEvents

_STATE = click.Choice(["waiting", "prioritized", "delayed", "waiting-children", "active", "completed", "failed"])
_COUNT = click.IntRange(min=1)
_YES = click.option("--yes", is_flag=True, help="Do not ask.")


@click.group(name="bullmq")
@click.option(
    "--url",
    envvar="BULLMQ_KOMBU_URL",
    metavar="bullmq://HOST:PORT/DB",
    help="Where Redis is; also from BULLMQ_KOMBU_URL. Else 127.0.0.1:6379/0, or the Celery app's broker_url.",
)
@click.option("--prefix", envvar="BULLMQ_KOMBU_PREFIX", help="BullMQ's prefix; bull where nothing says otherwise.")
@click.version_option(__version__, prog_name="bullmq-kombu")
@click.pass_context
def main(context: click.Context, url: str | None, prefix: str | None) -> None:
    """BullMQ's queues on Redis, and the Celery workers that serve them.

    Exit codes: 0 done; 1 it could not be done, and a sentence says why; 2 no such command or option. `doctor` has its own.
    """
    celery = context.obj  # Celery's own context, under `celery … bullmq`
    context.obj = Surroundings(url, prefix, getattr(celery, "app", None))


# -- looking -------------------------------------------------------------------------------------------------------------------


@main.command()
@as_json
@pass_surroundings
def doctor(around: Surroundings, is_json: bool) -> None:
    """Look for what may be wrong. Exit code 0: nothing; 1: warnings; 2: failures."""
    with around.opened() as server:
        findings = list(examination.examine(server))
    if is_json:
        say_json([finding._asdict() for finding in findings])
    else:
        console().print(table("", ("check", "status", "finding"), findings))
    found = {finding.status for finding in findings}
    sys.exit(2 if examination.FAILED in found else 1 if examination.WARNING in found else 0)


@main.command()
@click.option("--watch", is_flag=True, help="Go on, until interrupted.")
@click.option("--interval", type=click.FloatRange(min=0.1), default=2.0, show_default=True, help="Seconds between two looks.")
@as_json
@pass_surroundings
def queues(around: Surroundings, watch: bool, interval: float, is_json: bool) -> None:
    """Count the jobs of each queue, by state.

    Also the age of the oldest job that waits, and how many jobs ended in the last minute.
    """
    with around.opened() as server:

        def look() -> list[dict[str, Any]]:
            rows = []
            for name in queue_names(server):
                queue = Queue(name, server)
                counts = queue.get_job_counts()
                row: dict[str, Any] = {
                    "queue": name,
                    "paused": queue.is_paused(),
                    **{state: counts.get(state, 0) for state in SHOWN_STATES},
                }
                row["oldest_s"] = _oldest_s(queue)
                row["ended_per_minute"] = _ended_per_minute(queue)
                rows.append(row)
            return rows

        def drawn() -> Any:
            rows = look()
            if not rows:
                return plain(f"no queues under the prefix {server.options.prefix!r} at {server.address.where}: check --url and --prefix")
            columns = ("queue", *SHOWN_STATES, "oldest", "per minute")
            return table("", columns, [
                (row["queue"] + (" (paused)" if row["paused"] else ""), *(row[state] for state in SHOWN_STATES), _span(row["oldest_s"]),
                 row["ended_per_minute"]) for row in rows
            ])  # fmt: skip

        if is_json:
            say_json(look())
        elif not watch:
            console().print(drawn())
        else:
            with Live(drawn(), console=console(), auto_refresh=False) as live:
                while True:
                    time.sleep(interval)
                    live.update(drawn(), refresh=True)


def _oldest_s(queue: Queue) -> float | None:
    jobs = [*queue.get_waiting(0, 0), *queue.get_jobs("prioritized", 0, 0, asc=True)]
    return round(max(time.time() - job.timestamp / 1000 for job in jobs), 1) if jobs else None


def _ended_per_minute(queue: Queue) -> int:
    """What ended in the last minute and is still kept; or, where that is more, what BullMQ's metrics say of the minute before."""
    since, measured = queue.clock() - 60_000, 0
    kept = sum(int(queue.server.call("ZCOUNT", f"{queue.base}{state}", since, "+inf")) for state in ("completed", "failed"))
    for state in ("completed", "failed"):
        measured += sum(queue.get_metrics(state, 0, 0)["data"])
    return max(kept, measured)


def _span(seconds: float | None) -> str:
    if seconds is None:
        return ""
    for unit, size in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} s"


@main.command()
@click.argument("queue")
@click.argument("state", type=_STATE, metavar="STATE")
@click.option("--start", type=click.IntRange(min=0), default=0, show_default=True, help="Leave out so many.")
@click.option("--limit", type=_COUNT, default=20, show_default=True, help="List so many at most.")
@as_json
@pass_surroundings
def jobs(around: Surroundings, queue: str, state: str, start: int, limit: int, is_json: bool) -> None:
    """List the jobs of one state.

    STATE is waiting, prioritized, delayed, waiting-children, active, completed or failed.
    """
    with around.queue(queue) as opened:
        found = opened.get_jobs(state, start, start + limit - 1)
        if is_json:
            say_json([job_as_dict(job) for job in found])
            return
        rows = [
            (job.id, job.name, _cut(json.dumps(job.data)), job.attempts_made, _age(job.timestamp), _cut(job.failed_reason or ""))
            for job in found
        ]
        console().print(table(f"{queue}: {state}", ("id", "name", "data", "attempts", "age", "reason"), rows))


def _cut(text: str, width: int = 80) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"


def _age(timestamp_ms: int) -> str:
    return _span(max(time.time() - timestamp_ms / 1000, 0))


@main.command()
@click.argument("queue")
@click.argument("job_id", metavar="ID")
@as_json
@pass_surroundings
def show(around: Surroundings, queue: str, job_id: str, is_json: bool) -> None:
    """Show one job.

    Its data, options, progress, logs, stack trace, and the tree of its children.
    """
    with around.queue(queue) as opened:
        job = _job(opened, job_id)
        logs, children = job.get_logs(), job.get_dependencies()
        described = {**job_as_dict(job), "state": job.get_state(), "logs": logs, "children": children}
        if is_json:
            say_json(described)
            return
        out = console()
        out.print(table(f"{queue} {job_id}", ("field", "value"), [
            (name, _shown(name, value)) for name, value in described.items()
            if name not in ("logs", "children", "stacktrace") and value is not None
        ]))  # fmt: skip
        for line in logs:
            out.print(plain(f"log: {line}"))
        for trace in job.stacktrace:
            out.print(plain(trace))
        if any(children.values()):
            with FlowProducer(opened.server, prefix=opened.prefix) as flows:
                flow = flows.get_flow(job_id, queue)
            if flow is not None:
                out.print(_tree(flow))


def _shown(name: str, value: Any) -> str:
    if name in ("timestamp", "processedOn", "finishedOn"):
        return f"{datetime.fromtimestamp(value / 1000).astimezone():%Y-%m-%d %H:%M:%S %z}, {_age(value)} ago"
    if name == "delay":
        return f"{value} ms"
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _tree(node: JobNode, tree: Tree | None = None) -> Tree:
    """A job and its children, each with its state, as deep as `get_flow` goes."""
    job = node.job
    line = plain(f"{job.queue.name} {job.id} ({job.name}): {job.get_state()}")
    branch = Tree(line) if tree is None else tree.add(line)
    for child in node.children:
        _tree(child, branch)
    return branch


def _job(queue: Queue, job_id: str) -> Any:
    job = queue.get_job(job_id)
    if job is None:
        raise click.ClickException(f"there is no job {job_id!r} in queue {queue.name!r}: `jobs {queue.name} STATE` lists them")
    return job


@main.command()
@click.argument("queue")
@click.option("--from", "last_event_id", metavar="ID", help="Begin after this event; 0-0 for all that are kept.")
@click.option("--count", type=_COUNT, help="Stop after so many.")
@as_json
@pass_surroundings
def events(around: Surroundings, queue: str, last_event_id: str | None, count: int | None, is_json: bool) -> None:
    """Follow what happens in a queue, until interrupted."""
    if last_event_id is not None and not re.fullmatch(r"\d+(-\d+)?|\$", last_event_id):
        raise click.ClickException(f"{last_event_id!r} is no id of an event: 0-0 for all that are kept, or one that `events` has shown")
    with around.queue(queue) as opened, QueueEvents(queue, opened.server, last_event_id=last_event_id) as stream:
        for number, event in enumerate(stream, 1):
            if is_json:
                click.echo(json.dumps({"id": event.id, "event": event.name, **event.args}, default=str))
            else:
                console().print(plain(f"{event.id} {event.name} " + " ".join(f"{name}={value}" for name, value in event.args.items())))
            if count is not None and number >= count:
                return


@main.command()
@click.argument("names", nargs=-1, metavar="[QUEUE]...")
@click.option(
    "--serve",
    "port",
    type=click.IntRange(1, 65_535),
    metavar="PORT",
    help="Serve them at this port instead of printing them, until interrupted.",
)
@click.option("--address", default="127.0.0.1", show_default=True)
@pass_surroundings
def metrics(around: Surroundings, names: tuple[str, ...], port: int | None, address: str) -> None:
    """Prometheus metrics of the queues, of all where none is named."""
    try:
        from bullmq_kombu.metrics import as_text, registry_of
    except ImportError as error:
        raise click.ClickException("metrics need Prometheus' client: pip install 'bullmq-kombu[metrics]'") from error
    with around.opened() as server:
        if port is None:
            click.echo(as_text(server, names), nl=False)
            return
        from prometheus_client import start_http_server

        try:
            _, thread = start_http_server(port, address, registry_of(server, names))
        except OSError as error:
            raise click.ClickException(f"cannot serve at {address}:{port}: {error}. Say another --serve PORT or --address") from error
        thread.join()


# -- changing ------------------------------------------------------------------------------------------------------------------


@main.command()
@click.argument("queue")
@click.argument("name")
@click.argument("data", default="{}")
@click.option("--opts", default="{}", help="BullMQ's job options, JSON.")
@as_json
@pass_surroundings
def add(around: Surroundings, queue: str, name: str, data: str, opts: str, is_json: bool) -> None:
    """Add a job: its name, and its DATA as JSON."""
    with around.queue(queue, may_be_new=True) as opened:
        options = _json(opts, "--opts")
        if not isinstance(options, dict):
            raise click.ClickException("--opts is no JSON object: as '{\"delay\": 1000}'")
        job = opened.add(name, _json(data, "DATA"), options)
        _done(is_json, {"id": job.id}, f"added {job.id}")


def _json(text: str, what: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise click.ClickException(f'{what} is no JSON ({error}): put it in single quotes, as \'{{"to": "a@b.c"}}\'') from error


def _done(is_json: bool, value: Any, sentence: str) -> None:
    if is_json:
        say_json(value)
    else:
        console().print(plain(sentence))


@main.command()
@click.argument("queue")
@click.argument("job_id", metavar="[ID]", required=False)
@click.option("--all", "is_all", is_flag=True, help="All failed jobs.")
@as_json
@pass_surroundings
def retry(around: Surroundings, queue: str, job_id: str | None, is_all: bool, is_json: bool) -> None:
    """Run a failed or completed job again, or all failed ones."""
    with around.queue(queue) as opened:
        if is_all:
            number = opened.retry_jobs("failed")
            _done(is_json, {"retried": number}, f"{number} jobs wait again")
        elif job_id is None:
            raise click.UsageError("name a job, or say --all")
        else:
            job = _job(opened, job_id)
            state = job.get_state()
            if state not in ("failed", "completed"):
                raise click.ClickException(f"job {job_id} is {state}: only a failed or completed job can be retried")
            job.retry(state)
            _done(is_json, {"retried": 1}, f"job {job_id} waits again")


@main.command()
@click.argument("queue")
@click.argument("job_id", metavar="[ID]", required=False)
@click.option("--all", "is_all", is_flag=True, help="All delayed jobs.")
@as_json
@pass_surroundings
def promote(around: Surroundings, queue: str, job_id: str | None, is_all: bool, is_json: bool) -> None:
    """Let a delayed job, or all of them, run now."""
    with around.queue(queue) as opened:
        if is_all:
            number = opened.promote_jobs()
            _done(is_json, {"promoted": number}, f"{number} jobs wait for a worker")
        elif job_id is None:
            raise click.UsageError("name a job, or say --all")
        else:
            job = _job(opened, job_id)
            state = job.get_state()
            if state != "delayed":
                raise click.ClickException(f"job {job_id} is {state}: only a delayed job can be promoted")
            job.promote()
            _done(is_json, {"promoted": 1}, f"job {job_id} waits for a worker")


@main.command()
@click.argument("queue")
@click.argument("job_id", metavar="ID")
@_YES
@as_json
@pass_surroundings
def remove(around: Surroundings, queue: str, job_id: str, yes: bool, is_json: bool) -> None:
    """Remove a job and its children."""
    with around.queue(queue) as opened:
        job = _job(opened, job_id)
        _ask(yes, f"Remove job {job_id} ({job.name}) of {queue}?")
        job.remove()
        _done(is_json, {"removed": 1}, f"removed {job_id}")


def _ask(yes: bool, question: str) -> None:
    if not yes:
        click.confirm(question, abort=True, err=True)


@main.command()
@click.argument("queue")
@as_json
@pass_surroundings
def pause(around: Surroundings, queue: str, is_json: bool) -> None:
    """Let no worker take jobs of a queue, Celery's or Node's."""
    with around.queue(queue) as opened:
        opened.pause()
        _done(is_json, {"paused": True}, f"{queue} is paused")


@main.command()
@click.argument("queue")
@as_json
@pass_surroundings
def resume(around: Surroundings, queue: str, is_json: bool) -> None:
    """Let workers take jobs of a queue again."""
    with around.queue(queue) as opened:
        opened.resume()
        _done(is_json, {"paused": False}, f"{queue} goes on")


@main.command()
@click.argument("queue")
@click.option("--delayed", is_flag=True, help="The delayed ones too.")
@_YES
@as_json
@pass_surroundings
def drain(around: Surroundings, queue: str, delayed: bool, yes: bool, is_json: bool) -> None:
    """Remove all jobs that wait."""
    with around.queue(queue) as opened:
        counts = opened.get_job_counts("waiting", "prioritized", *(["delayed"] if delayed else []))
        _ask(yes, f"Remove {sum(counts.values())} jobs of {queue} that wait{' or are delayed' if delayed else ''}?")
        opened.drain(delayed=delayed)
        _done(is_json, {"drained": True}, f"{queue} is drained")


@main.command()
@click.argument("queue")
@click.argument("state", type=_STATE, metavar="[STATE]", default="completed")
@click.option(
    "--older-than", type=click.FloatRange(min=0), default=0.0, show_default=True, help="Only jobs of at least this age, in seconds."
)
@click.option("--limit", type=_COUNT, default=1000, show_default=True, help="Remove so many at most.")
@_YES
@as_json
@pass_surroundings
def clean(around: Surroundings, queue: str, state: str, older_than: float, limit: int, yes: bool, is_json: bool) -> None:
    """Remove jobs of one state by age.

    STATE is as for `jobs`; completed where none is said.
    """
    with around.queue(queue) as opened:
        _ask(yes, f"Remove up to {limit} {state} jobs of {queue}?")
        removed = opened.clean(int(older_than * 1000), limit, state)
        _done(is_json, {"removed": removed}, f"removed {len(removed)} jobs")


@main.command()
@click.option("--url", metavar="URL", help="A Redis or Valkey server to use, bullmq://host:port/db. Without it, one is started.")
def demo(url: str | None) -> None:
    """Show Celery and Node exchanging jobs.

    Both ways; takes about ten seconds.
    """
    from bullmq_kombu.celery.demo import run

    run(url)
