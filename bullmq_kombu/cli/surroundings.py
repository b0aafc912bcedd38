"""Which server and which queues a command is about, and how what it finds is shown: as tables, or as JSON."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from functools import wraps
from typing import Any

import click
from kombu import Connection
from redis.exceptions import RedisError
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from bullmq_kombu._register import SCHEMES
from bullmq_kombu.connection import Server
from bullmq_kombu.discovery import is_queue, queue_names
from bullmq_kombu.errors import BullMQError
from bullmq_kombu.queue import Queue, server_of

#: The states in the order a job goes through them.
SHOWN_STATES = ("waiting", "prioritized", "delayed", "waiting-children", "active", "completed", "failed")
#: Where a state's own name is too wide for a column of numbers.
_HEADINGS = {"prioritized": "prior.", "waiting-children": "children"}


@dataclass
class Surroundings:
    """What the group's options and Celery's say."""

    url: str | None
    prefix: str | None
    app: Any = None

    def server(self) -> Server:
        """The server that the URL, the Celery app or BullMQ's default names."""
        if self.url is None and self.app is not None:
            urls = self.app.conf.broker_write_url or ""
            # Looked at first: a connection with another URL imports a transport that may not be installed.
            _demand_scheme(urls if isinstance(urls, str) else urls[0], "the app's broker_url")
            connection = self.app.connection_for_write()
        else:
            url = self.url or "bullmq://"
            _demand_scheme(url, "--url")
            connection = Connection(url)
        return server_of(connection, self.prefix)[0]

    @contextmanager
    def opened(self) -> Iterator[Server]:
        """The server, closed at the end; what goes wrong with it becomes a sentence with a remedy."""
        try:
            server = self.server()
        except BullMQError as error:
            raise click.ClickException(str(error)) from error
        except ValueError as error:
            raise click.ClickException(f"the URL cannot be read: {error}. It is bullmq://host:port/db") from error
        try:
            yield server
        except RedisError as error:
            raise click.ClickException(
                f"Redis at {server.address.where} does not answer as it should: {str(error).rstrip('.')}. Check --url (or "
                "BULLMQ_KOMBU_URL), and whether the server runs and accepts this user."
            ) from error
        except BullMQError as error:
            raise click.ClickException(str(error)) from error
        finally:
            server.close()

    @contextmanager
    def queue(self, name: str, may_be_new: bool = False) -> Iterator[Queue]:
        """One queue; a name that is mistyped is no empty queue, unless it `may_be_new`."""
        with self.opened() as server:
            queue = Queue(name, server)
            if not may_be_new and not is_queue(server, name):
                near = get_close_matches(name, queue_names(server), 1)
                raise click.ClickException(
                    f"there is no queue {name!r} under the prefix {server.options.prefix!r} at {server.address.where}"
                    + (f": did you mean {near[0]!r}?" if near else ": `queues` lists them; check --url and --prefix")
                )
            yield queue


def _demand_scheme(url: str, whose: str) -> None:
    scheme, is_url, _ = url.partition("://")
    if not is_url or scheme not in SCHEMES:
        but = f" but {scheme}://" if is_url else ""
        raise click.ClickException(f"{whose} is no bullmq:// URL{but}: say --url bullmq://host:port/db, or set BULLMQ_KOMBU_URL")


pass_surroundings = click.make_pass_decorator(Surroundings)


def as_json(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds `--json`; the command gets it as `is_json`."""

    @click.option("--json", "is_json", is_flag=True, help="Print JSON.")
    @wraps(command)
    def with_json(*args: Any, **kwargs: Any) -> Any:
        return command(*args, **kwargs)

    return with_json


def say_json(value: Any) -> None:
    click.echo(json.dumps(value, indent=2, default=str))


def console() -> Console:
    # Into a file or a pipe nothing is cut: whoever reads it has no width.
    return Console(file=sys.stdout, width=None if sys.stdout.isatty() else 240)


def plain(text: object) -> Text:
    """What somebody else has written: no markup, and no control characters that a terminal would obey."""
    return Text("".join(char if char.isprintable() or char == "\n" else repr(char)[1:-1] for char in str(text)))


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> Table:
    made = Table(title=title, title_justify="left", box=box.SIMPLE)
    for column in columns:
        made.add_column(
            _HEADINGS.get(column, column),
            overflow="fold",
            no_wrap=column in SHOWN_STATES,
            justify="right" if column in SHOWN_STATES else "left",
        )
    for row in rows:
        made.add_row(*(plain("" if cell is None else cell) for cell in row))
    return made


def job_as_dict(job: Any) -> Mapping[str, Any]:
    """A job for JSON, under BullMQ's names."""
    return {
        "id": job.id, "name": job.name, "data": job.data, "opts": job.opts, "timestamp": job.timestamp, "delay": job.delay,
        "priority": job.priority, "progress": job.progress, "returnvalue": job.returnvalue, "failedReason": job.failed_reason,
        "stacktrace": job.stacktrace, "attemptsMade": job.attempts_made, "attemptsStarted": job.attempts_started,
        "processedOn": job.processed_on, "finishedOn": job.finished_on, "processedBy": job.processed_by, "parent": job.parent,
    }  # fmt: skip
