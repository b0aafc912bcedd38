"""The command line: `bullmq-kombu`, `python -m bullmq_kombu`, and `celery … bullmq`.

Built with click, as Celery's is, and rich. Every command that shows something takes `--json`.
"""

from __future__ import annotations

from bullmq_kombu.cli.commands import main

__all__ = ["main"]
