"""Celery's and Kombu's own test suites, fetched from their source distributions when they are run.

No copy is kept here: the version is the one installed, the place a cache folder outside the checkout.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import tempfile
from importlib.metadata import version
from pathlib import Path


def cache_folder() -> Path:
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path(tempfile.gettempdir())) / "bullmq-kombu-upstream"
    root.mkdir(parents=True, exist_ok=True)
    return root


def source_of(package: str) -> Path:
    """The unpacked source distribution of the installed version of `package`."""
    name = f"{package}-{version(package)}"
    folder = cache_folder() / name
    if not folder.exists():
        with tempfile.TemporaryDirectory(dir=cache_folder()) as scratch:
            subprocess.run(
                [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--no-binary", package, f"{package}=={version(package)}"],
                cwd=scratch, check=True, timeout=300,
            )  # fmt: skip
            archive = next(Path(scratch).glob("*.tar.gz"))
            with tarfile.open(archive) as tar:
                tar.extractall(scratch, filter="data") if sys.version_info >= (3, 12) else tar.extractall(scratch)
            next(path for path in Path(scratch).iterdir() if path.is_dir()).rename(folder)
    return folder
