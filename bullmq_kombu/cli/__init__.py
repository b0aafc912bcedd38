"""The command line: `bullmq-kombu`, `python -m bullmq_kombu`, and `celery … bullmq`.

Built with click, as Celery's is, and rich. Every command that shows something takes `--json`. Celery loads this module to list its
commands, so that it can be imported with click alone, which Celery brings, and then says what is missing.
"""

from __future__ import annotations

import click

try:
    from bullmq_kombu.cli.commands import main
except ModuleNotFoundError as error:
    if error.name is None or error.name.partition(".")[0] != "rich":
        raise

    @click.group("bullmq", invoke_without_command=True, context_settings={"ignore_unknown_options": True})
    @click.argument("rest", nargs=-1, type=click.UNPROCESSED, metavar="COMMAND [ARGS]...")
    def main(rest: tuple[str, ...]) -> None:
        """BullMQ's queues on Redis; needs the extra `cli`."""
        raise click.ClickException("the commands need click and rich (rich is missing): pip install 'bullmq-kombu[cli]'")


__all__ = ["main"]
