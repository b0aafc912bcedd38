"""The scripts are written from the protocol, not from upstream's text: no five lines in a row are the same in both.

Lines are compared without what says nothing about where they come from: blanks, comments, quotes, case, `local`, the name given to
`redis.call`; lines that every script has do not count.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from node_driver import VERSIONS, install_node

import bullmq_kombu

RUN = 5
EVERYWHERE = frozenset({"", "end", "else", "then", "do", "return", "rcall=rcall", "call=rcall"})


def lines(script: Path) -> Iterator[tuple[int, str]]:
    """(number, bare text) of each line that counts."""
    text = script.read_text(encoding="utf-8")
    text = re.sub(r"--\[\[.*?\]\]", lambda found: "\n" * found.group().count("\n"), text, flags=re.DOTALL)
    for number, line in enumerate(text.splitlines(), 1):
        bare = re.sub(r"--.*|\blocal\b", "", line).replace("redis.call", "rcall").replace("'", '"')
        bare = re.sub(r"\bcall\(", "rcall(", bare)
        bare = re.sub(r"[\s;]", "", bare).lower()
        if bare not in EVERYWHERE:
            yield number, bare


def runs(script: Path) -> Iterator[tuple[int, tuple[str, ...]]]:
    found = list(lines(script))
    for at in range(len(found) - RUN + 1):
        yield found[at][0], tuple(bare for _, bare in found[at : at + RUN])


@pytest.mark.parametrize("version", VERSIONS)
def test_no_run_of_lines_is_upstreams(version: str) -> None:
    theirs = list((install_node(version) / "node_modules" / "bullmq" / "dist" / "cjs" / "commands").rglob("*.lua"))
    ours = list((Path(bullmq_kombu.__file__).parent / "lua").glob("*.lua"))
    assert len(theirs) > 20
    assert len(ours) > 10
    known = {run: script.name for script in theirs for _, run in runs(script)}

    assert not [f"{script.name}:{number} as in {known[run]}" for script in ours for number, run in runs(script) if run in known]
