"""Headless Chromium, as a Python object: a command of node/browser.mjs is a call here; nothing is translated."""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import redis
from servers import end, require, spawn
from waiting import wait_until

EXAMPLE = Path(__file__).parents[2] / "examples" / "bull_board"
PACKAGES = Path(__file__).parent / "node"


@dataclass(frozen=True)
class Board:
    """The running example: its address, and its Redis."""

    url: str
    redis: redis.Redis


class Browser:
    """One page of headless Chromium: a command of node/browser.mjs is a call here."""

    def __init__(self) -> None:
        self._process = spawn(
            [require("node"), "browser.mjs", require("chromium")],
            cwd=PACKAGES, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def do(self, cmd: str, **fields: Any) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"cmd": cmd, **fields}) + "\n")
        self._process.stdin.flush()
        answer = json.loads(self._process.stdout.readline())
        assert answer["ok"], answer["error"]
        return answer["value"]

    def reads(self, text: str) -> None:
        """Waits until the page's main part says this."""
        wait_until(lambda: text in self.text(), 15, f"the page to say {text!r}")

    def text(self) -> str:
        return "\n".join(self.do("texts", selector="main"))

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(15)
        finally:
            end(self._process)
            self._process.stdout.close()
