"""The header of each script is its contract, and the contract is whole: what it says is what the script does, as far as text can tell.

The scripts' behaviour is tested in tests/lua; that nothing is undefined or unused in them is luacheck's part.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import NamedTuple

import pytest

import bullmq_kombu
from bullmq_kombu import scripts

PACKAGE = Path(bullmq_kombu.__file__).parent
LUA = PACKAGE / "lua"
FRAGMENTS = sorted(path.stem for path in LUA.glob("_*.lua"))
SCRIPTS = scripts.names()

#: What a header may say, in this order; `name: purpose` comes first.
PARTS = ("Uses", "Rare", "KEYS", "ARGV", "Returns", "Codes", "Events")


class Contract(NamedTuple):
    name: str
    purpose: str
    parts: dict[str, str]
    body: str


def contract(name: str) -> Contract:
    text = LUA.joinpath(f"{name}.lua").read_text(encoding="utf-8")
    found = re.fullmatch(r"--\[\[\n(\w+): (.*?)\n\]\]\n(.*)", text, re.DOTALL)
    assert found is not None, "a script begins with its contract"
    said, header, body = found.groups()
    purpose, parts, last = [], {}, None
    for number, line in enumerate(header.splitlines()):
        part = re.match(rf"({'|'.join(PARTS)}): ?(.*)", line) if number else None
        if part is not None:
            last = part.group(1)
            assert last not in parts, f"{last} twice"
            parts[last] = part.group(2)
        elif last is None:
            purpose.append(line)
        else:
            parts[last] += f" {line.strip()}"
    return Contract(said, " ".join(purpose), parts, body)


def code(lua: str) -> str:
    return re.sub(r"--.*", "", lua)


def fragment(name: str) -> str:
    return LUA.joinpath(f"{name}.lua").read_text(encoding="utf-8")


def needs(name: str) -> list[str]:
    """The fragments a fragment says it needs."""
    first = re.match(r"-- Fragment: [^\n]*?(?:\n-- [^\n]*?)*?Needs ([\w, ]+)\.", fragment(name))
    return re.findall(r"\w+", first.group(1)) if first else []


def calls() -> Iterator[tuple[str, str]]:
    """(module, script) for every call in the package that names a script."""
    named = re.compile(r"""\b(?:run|Flight|load)\((?:[^()"]*, )?"(\w+)\"""")
    for path in sorted(PACKAGE.rglob("*.py")):
        for name in named.findall(path.read_text(encoding="utf-8")):
            yield path.name, name


# -- each script


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_header_is_a_whole_contract(name: str) -> None:
    said = contract(name)

    assert said.name == name, "the file's own name"
    assert said.purpose.endswith((".", ",")) or said.purpose[-1].isalpha()
    assert {"KEYS", "Returns"} <= set(said.parts)
    assert [part for part in PARTS if part in said.parts] == list(said.parts), "in the usual order"


@pytest.mark.parametrize("name", SCRIPTS)
def test_arguments_are_described_where_there_are_any(name: str) -> None:
    said = contract(name)

    assert ("ARGV" in said.parts) is ("ARGV" in code(said.body))


@pytest.mark.parametrize("name", SCRIPTS)
def test_only_the_keys_that_are_described_are_used(name: str) -> None:
    said = contract(name)
    used = re.findall(r"KEYS\[(\w[^\]]*)\]", code(said.body))

    assert '"prefix:' in said.parts["KEYS"], "every key follows from a base, so that one hash tag serves a cluster"
    if "one " not in said.parts["KEYS"]:
        assert set(used) <= {"1"}


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_arguments_that_are_numbered_are_the_ones_used(name: str) -> None:
    said = contract(name)
    described = said.parts.get("ARGV", "")
    fixed = [int(number) for number in re.findall(r"ARGV\[(\d+)\]", code(said.body))]
    if re.match(r"\d", described) and fixed:
        numbered = {int(number) for number in re.findall(r"(?<![\w.'\"-])(\d{1,2})(?=[ ,.])", described)}
        assert set(fixed) <= numbered


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_fragment_it_uses_exists_and_comes_after_those_it_needs(name: str) -> None:
    parts = contract(name).parts
    uses = parts.get("Uses", "").split()

    assert set(uses) <= set(FRAGMENTS)
    for place, used in enumerate(uses):
        missing = set(needs(used)) - set(uses[:place])
        assert not missing, f"{used} needs {missing} before it"


@pytest.mark.parametrize("name", SCRIPTS)
def test_rare_functions_wait_for_their_first_call(name: str) -> None:
    text = scripts.load(name).text

    for rare in contract(name).parts.get("Rare", "").split():
        assert len(re.findall(rf"^local {rare} = function\(\.\.\.\)$", text, re.MULTILINE)) == 1, rare
        assert f"\nreturn {rare}(...)\nend\n" in text, rare


@pytest.mark.parametrize("name", SCRIPTS)
def test_it_defines_only_what_it_uses(name: str) -> None:
    text = code(scripts.load(name).text)

    for defined in re.findall(r"^local function (\w+)\(", text, re.MULTILINE):
        assert len(re.findall(rf"\b{defined}\b", text)) > 1, defined


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_event_it_emits_itself_is_told(name: str) -> None:
    said = contract(name)
    emitted = re.findall(r"\bemit(?:_\w+)?\(\w+, '([\w-]+)'", said.body)

    for event in emitted:
        assert event in said.parts.get("Events", ""), event


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_code_it_answers_itself_is_told(name: str) -> None:
    said = contract(name)
    told = said.parts["Returns"] + said.parts.get("Codes", "")

    for answer in re.findall(r"return (-\d+)\b", code(said.body)):
        assert answer in told, answer


@pytest.mark.parametrize("name", SCRIPTS)
def test_it_is_run_from_somewhere(name: str) -> None:
    assert name in {script for _, script in calls()}


# -- all of them


def test_every_script_that_is_run_exists() -> None:
    unknown = {(module, name) for module, name in calls() if name not in SCRIPTS}
    assert not unknown


def test_every_fragment_says_what_it_is_and_is_used() -> None:
    used = set()
    for name in SCRIPTS:
        parts = contract(name).parts
        used |= set(parts.get("Uses", "").split())
    assert used == set(FRAGMENTS)
    for name in FRAGMENTS:
        assert fragment(name).startswith("-- Fragment: ")


def test_no_script_reads_the_servers_clock_or_chance() -> None:
    """Time is an argument: clients agree on none but their own, and a test can say which it is."""
    for path in LUA.glob("*.lua"):
        assert not re.search(r"call\('(TIME|RANDOMKEY|SRANDMEMBER|SPOP)'|math\.random", code(path.read_text(encoding="utf-8"))), path.name


def test_scripts_are_loaded_whole_from_where_they_are_installed() -> None:
    installed = {file.name[:-4] for file in resources.files("bullmq_kombu").joinpath("lua").iterdir() if file.name.endswith(".lua")}

    assert installed == {*SCRIPTS, *FRAGMENTS}
    for name in SCRIPTS:
        script = scripts.load(name)
        assert re.fullmatch("[0-9a-f]{40}", script.sha)
        assert f"{name}: {contract(name).purpose[:20]}" in script.text


def test_the_wheel_takes_every_script_along() -> None:
    """The list of setup.cfg; under tox, test_packaging looks into the wheel itself."""
    setup = Path(__file__).parents[2] / "setup.cfg"
    patterns = re.search(r"\[options\.package_data\]\n(?:.*\n)*?bullmq_kombu =((?:\n {4}.*)+)", setup.read_text(encoding="utf-8"))
    assert patterns is not None
    assert "lua/*.lua" in patterns.group(1).split()
    assert not [path for path in LUA.iterdir() if path.suffix != ".lua"]


def test_what_the_server_gets_can_be_written_down(tmp_path: Path) -> None:
    scripts.write_all(tmp_path / "scripts")

    assert {path.stem for path in (tmp_path / "scripts").iterdir()} == set(SCRIPTS)
    assert (tmp_path / "scripts" / "take.lua").read_text(encoding="utf-8") == scripts.load("take").text
