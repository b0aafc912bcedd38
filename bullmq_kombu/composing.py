"""Puts a script together from its file and the functions it uses of the fragments its header names (`Uses: _queue _take`).

A script defines its functions anew in every call, and each definition costs time, the more the more there are. So a script gets only the
functions it uses, and of those that its header calls rare (`Rare: promote fail_ghost`) the definition waits, with all that only they
need, until the first call: such a function is a short one that defines the real one inside itself and hands over.

A function is what stands between a line `local function name(…)` and the next line `end`, both without indentation; the comment before
belongs to it. A constant of a fragment is one line. Knows nothing of what the scripts do, nor where the files are.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

_FUNCTION = re.compile(r"^local function (\w+)\(")
_DEFINITION = re.compile(r"^local (?:function )?(\w+)(?:\(| = )")
_NOT_CODE = re.compile(r"--\[\[.*?\]\]|--[^\n]*|'[^'\n]*'|\"[^\"\n]*\"", re.DOTALL)
_WORD = re.compile(r"[A-Za-z_]\w*")


class Block(NamedTuple):
    """A function or constant with the comment before it, or what stands between two of them (then without a name)."""

    name: str
    text: str
    words: frozenset[str]


def header(text: str, part: str) -> list[str]:
    """The words after `part:` in a script's header."""
    return [word for line in re.findall(rf"^{part}: (.+)$", text, re.MULTILINE) for word in line.split()]


def compose(body: str, fragment: Callable[[str], str]) -> str:
    """The whole script; `fragment(name)` is the text of one of the fragments that the body's header names."""
    blocks = [block for name in header(body, "Uses") for block in _blocks(fragment(name), _DEFINITION)]
    blocks += _blocks(body, _FUNCTION)
    functions = {block.name: block for block in blocks if block.name}
    always = [block for block in blocks if not block.name]
    needed = _closure(always, functions, set(header(body, "Rare")))
    parts = []
    for block in blocks:
        if not block.name or block.name in needed:
            parts.append(block.text if not needed.get(block.name) else _on_demand(block, functions, needed))
    return "".join(parts)


def _closure(start: Iterable[Block], functions: dict[str, Block], rare: set[str]) -> dict[str, bool]:
    """The functions that are needed, directly or by others; True for the rare ones, whose own needs are not counted."""
    found: dict[str, bool] = {}
    left = list(start)
    while left:
        for name in left.pop().words:
            if name in functions and name not in found:
                found[name] = name in rare
                if not found[name]:
                    left.append(functions[name])
    return found


def _on_demand(block: Block, functions: dict[str, Block], outside: dict[str, bool]) -> str:
    others = {name: one for name, one in functions.items() if name not in outside}
    inside = _closure([block], others, set())
    inner = "".join(one.text for one in others.values() if one.name in inside)
    return f"local {block.name} = function(...)\n{inner}{block.text}return {block.name}(...)\nend\n"


def _blocks(text: str, definition: re.Pattern[str]) -> Iterator[Block]:
    between: list[str] = []
    lines = iter(text.splitlines(keepends=True))
    for line in lines:
        begin = definition.match(line)
        if begin is None:
            between.append(line)
            continue
        comment: list[str] = []
        while between and between[-1].startswith("--") and not between[-1].startswith("--[["):
            comment.insert(0, between.pop())
        if between:
            yield _block("", between)
            between = []
        defined = [*comment, line]
        if line.startswith("local function"):
            for line in lines:
                defined.append(line)
                if line.rstrip() == "end":
                    break
        yield _block(begin.group(1), defined)
    if not between or not between[-1].endswith("\n"):
        between.append("\n")
    yield _block("", between)


def _block(name: str, lines: list[str]) -> Block:
    text = "".join(lines)
    return Block(name, text, frozenset(_WORD.findall(_NOT_CODE.sub("", text))) - {name})
