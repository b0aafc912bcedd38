"""The commands of the least ACL in docs/reliability.md are those that the package uses: read from its source, Lua and Python."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import bullmq_kombu

PACKAGE = Path(bullmq_kombu.__file__).parent
PAGE = Path(__file__).parents[2] / "docs" / "reliability.md"

#: Who looks at queues and changes them asks for more than a worker or a producer may. Also what a task may ask of its own job's flow.
ADMINISTRATION = {
    "admin_scripts", "job", "queue", "queue_view", "queue_events", "schedulers", "discovery", "commands", "doctor", "surroundings",
}  # fmt: skip
#: What redis-py sends by itself.
BY_THE_CLIENT = {"select"}
#: A worker that may not do these says so and works: INFO tells the version, CLIENT names connections. CLUSTER is for a cluster alone. The
#: demonstration cleans up with UNLINK, on a server of its own.
NOT_NEEDED = {"info", "client", "cluster", "unlink"}

_IN_LUA = re.compile(r"\bp?call\((?:\w+ and )?'([A-Z]+)'(?: or '([A-Z]+)')?")
_IN_PYTHON = re.compile(r"\b(?:call|send)\(\s*\"([A-Z]+)\"(?: if \w+ else \"([A-Z]+)\")?")
_RUNS = re.compile(r"\brun\([\w.]+, \"(\w+)\"")


def allowed() -> tuple[set[str], set[str]]:
    """The commands of the ACL, and those besides them for administration."""
    blocks = re.findall(r"^ACL SETUSER (.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    first, second = ({word.partition("|")[0] for word in re.findall(r"\+([a-z|]+)", block)} for block in blocks)
    return first, second


def commands(path: Path) -> Iterator[str]:
    pattern = _IN_LUA if path.suffix == ".lua" else _IN_PYTHON
    return (word.lower() for found in pattern.findall(path.read_text(encoding="utf-8")) for word in found if word)


def fragments(name: str) -> set[str]:
    """A script, and the fragments that it is made of."""
    text = (PACKAGE / "lua" / f"{name}.lua").read_text(encoding="utf-8")
    words = {word for line in re.findall(r"^(?:Uses|-- Fragment).*$", text, re.MULTILINE) for word in re.findall(r"\b_[a-z]+", line)}
    return {name}.union(*(fragments(word) for word in words if word != name))


def used() -> tuple[set[str], set[str]]:
    """The commands that producers, workers and the result backend use, and all."""
    sources = list(PACKAGE.rglob("*.py"))
    ours = [path for path in sources if path.stem not in ADMINISTRATION and "demo" not in path.parts]
    scripts = {script for path in ours for name in _RUNS.findall(path.read_text(encoding="utf-8")) for script in fragments(name)}
    found = {command for path in ours for command in commands(path)}
    found |= {command for script in scripts for command in commands(PACKAGE / "lua" / f"{script}.lua")}
    everything = {command for path in (*sources, *PACKAGE.rglob("*.lua")) for command in commands(path)}
    return found, everything


def test_all_that_workers_and_producers_use_is_in_the_list() -> None:
    needed, _ = used()
    assert needed - allowed()[0] - NOT_NEEDED == set()


def test_all_that_administration_uses_is_in_one_of_the_lists() -> None:
    _, everything = used()
    assert everything - set.union(*allowed()) - NOT_NEEDED == set()


def test_the_lists_name_nothing_that_is_not_used() -> None:
    _, everything = used()
    least, besides = allowed()
    assert (least | besides) - everything == BY_THE_CLIENT
    assert least & besides == set()
