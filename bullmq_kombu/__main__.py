"""`python -m bullmq_kombu`: the commands of this package."""

from __future__ import annotations

import sys

try:
    from bullmq_kombu.cli import main
except ImportError as error:
    sys.exit(f"the commands need click and rich ({error.name} is missing): pip install 'bullmq-kombu[cli]'")

if __name__ == "__main__":
    main(prog_name="python -m bullmq_kombu")
