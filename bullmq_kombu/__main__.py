"""`python -m bullmq_kombu`: the commands of this package."""

from __future__ import annotations

import sys

try:
    import click
except ImportError:
    sys.exit("the commands need Celery, which brings click: pip install 'bullmq-kombu[celery]'")


@click.group()
def main() -> None:
    """Celery and Kombu on BullMQ's Redis queues."""


@main.command()
@click.option("--url", metavar="URL", help="A Redis or Valkey server to use, bullmq://host:port/db. Without it, one is started.")
def demo(url: str | None) -> None:
    """Celery and Node exchange jobs, both ways; takes about ten seconds."""
    from bullmq_kombu.celery.demo import run

    run(url)


if __name__ == "__main__":
    main(prog_name="python -m bullmq_kombu")
