"""Imports point down, and BullMQ's rules, Kombu's and Celery's do not mix: read from the source, nothing is imported.

A new module has to find its place in LAYERS; one that has to be named in a table of exceptions needs its reason there.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

import bullmq_kombu

PACKAGE = Path(bullmq_kombu.__file__).parent

#: Bottom first. A module imports from its own layer or those below, and within the package nothing in a circle.
LAYERS = {
    "machine": "what the interpreter had before anybody patched it: native",
    "rules": "values in, values out: errors keys options shapes job_options attempts cron telemetry codec carry collect",
    "server": "one Redis: native address shared patience server_check wire locating connection composing scripts admin_scripts",
    "queues": "BullMQ's objects: job schedulers queue queue_view queue_events flows results discovery metrics",
    "work": "what a consumer does: bindings fanout poller presence delivery promises leases transient intake qos",
    "kombu": "Kombu's interface: publishing batch channel transport",
    "celery": "all that imports Celery: celery",
    "entry": "ways in: _register __init__ __main__ cli contrib",
}
ORDER = list(LAYERS)
LAYER_OF = {module: layer for layer, said in LAYERS.items() for module in said.partition(": ")[2].split()}

#: Which modules may import Kombu, and what for.
KNOWS_KOMBU = {
    "transport": "is Kombu's",
    "channel": "is Kombu's",
    "qos": "is Kombu's",
    "batch": "its batch of publications is Kombu's",
    "codec": "messages are Kombu's; its JSON knows dates",
    "patience": "a producer that gives up says so in Kombu's words: OperationalError",
    "queue": "a URL means what Kombu reads in it",
    "_register": "makes the URL schemes known",
    "cli": "a URL means what Kombu reads in it",
    "contrib": "what others show of a Kombu broker",
}
#: Imports inside a function that point up or around, and why they may.
ALLOWED = {
    ("channel", "transport"): "the errors Kombu is told of stand on its Transport",
}


class Import(NamedTuple):
    importer: str
    imported: str
    of: str  # the distribution
    typing_only: bool
    inside: bool  # a function


def name_of(path: Path) -> str:
    """The module, or the folder it is in."""
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


FILES = sorted(PACKAGE.rglob("*.py"))
MODULES = {name_of(path) for path in FILES}


def imports(path: Path) -> Iterator[Import]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    typing_only = {
        id(node)
        for guard in ast.walk(tree)
        if isinstance(guard, ast.If) and "TYPE_CHECKING" in ast.unparse(guard.test)
        for node in ast.walk(guard)
    }
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}: relative import"
            module = node.module or ""
            names = [f"{module}.{alias.name}" for alias in node.names] if module == "bullmq_kombu" else [module]
        for name in names:
            of, _, rest = name.partition(".")
            imported = name
            if of == "bullmq_kombu":
                imported = rest.partition(".")[0]
                imported = imported if imported in MODULES else ""  # a public name: loaded when it is used
            inside = node not in tree.body and id(node) not in typing_only
            yield Import(name_of(path), imported, of, id(node) in typing_only, inside)


ALL = [one for path in FILES for one in imports(path)]
OWN = [one for one in ALL if one.of == "bullmq_kombu" and one.imported and one.imported != one.importer and not one.typing_only]


def test_every_module_has_its_place() -> None:
    assert not MODULES - set(LAYER_OF), "say in LAYERS where it belongs"


def test_imports_point_down() -> None:
    up = {
        f"{one.importer} ({LAYER_OF[one.importer]}) imports {one.imported} ({LAYER_OF[one.imported]})"
        for one in OWN
        if (one.importer, one.imported) not in ALLOWED
        and LAYER_OF[one.importer] != "entry"
        and ORDER.index(LAYER_OF[one.imported]) > ORDER.index(LAYER_OF[one.importer])
    }
    assert not up


def test_nothing_is_imported_in_a_circle() -> None:
    graph: dict[str, set[str]] = {}
    for one in OWN:
        if (one.importer, one.imported) not in ALLOWED:
            graph.setdefault(one.importer, set()).add(one.imported)

    def walk(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " → ".join((*path, module))
        for imported in sorted(graph.get(module, ())):
            walk(imported, (*path, module))

    for module in graph:
        walk(module, ())


@pytest.mark.parametrize("pair", sorted(ALLOWED), ids="→".join)
def test_an_exception_that_nothing_needs_is_none(pair: tuple[str, str]) -> None:
    assert any((one.importer, one.imported) == pair and one.inside for one in OWN)


def test_only_the_folder_celery_imports_celery() -> None:
    assert {one.importer for one in ALL if one.of in ("celery", "billiard", "vine")} == {"celery"}


def test_only_the_transport_names_that_folder_and_only_by_name() -> None:
    """A worker must work with nothing imported but its broker's transport; a program without Celery must work without it."""
    assert {one.importer for one in OWN if one.imported == "celery"} <= {"celery", "__main__", "cli"}
    naming = {}
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if (
                isinstance(node, ast.Call)
                and ast.unparse(node.func).endswith("import_module")
                and "bullmq_kombu.celery" in ast.unparse(node)
            ):
                naming.setdefault(name_of(path), []).append(ast.unparse(node))
    assert naming == {"transport": ["importlib.import_module('bullmq_kombu.celery')"]}


def test_kombu_is_known_where_the_table_says() -> None:
    assert {one.importer for one in ALL if one.of == "kombu"} - {"celery"} == set(KNOWS_KOMBU)


def test_rules_do_no_input_or_output() -> None:
    outside = {"redis", "socket", "selectors", "threading", "asyncio", "ssl", "subprocess", "time"}
    for one in ALL:
        if LAYER_OF[one.importer] == "rules":
            assert one.of not in outside, f"{one.importer} imports {one.imported}"


def test_scripts_are_run_through_scripts() -> None:
    """No module has Lua of its own, or names a script's hash."""
    for path in FILES:
        text = path.read_text(encoding="utf-8")
        assert "redis.call" not in text, path.name
        assert "EVALSHA" not in text or path.name == "scripts.py", path.name


def test_every_module_opens_with_its_one_idea() -> None:
    for path in FILES:
        said = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
        assert said, path.name
        assert said.partition("\n\n")[0].rstrip().endswith((".", ":", "?")), path.name


def test_there_is_no_module_for_everything() -> None:
    assert not {"utils", "util", "common", "helpers", "misc", "base"} & {path.stem for path in FILES}
