"""One typed method for each Lua file: order of arguments, packing, decoding. Knows nothing of what the scripts are used for.

`python -m bullmq_kombu.scripts --compose DIR` writes the scripts as the server gets them, for luacheck.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from hashlib import sha1
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from redis.exceptions import NoScriptError

from bullmq_kombu.composing import compose

#: How many deliveries or jobs go into one call: a script of a few milliseconds at most, since the server does nothing else meanwhile.
BATCH = 500


class Server(Protocol):
    """What a script needs of a connection: one command, its answer."""

    def call(self, *command: Any) -> Any: ...


class Wire(Server, Protocol):
    """A connection whose answers may be read later."""

    def send(self, *command: Any) -> None: ...

    def send_many(self, commands: Iterable[tuple[Any, ...]]) -> None: ...

    def read(self) -> Any: ...


class Script(NamedTuple):
    name: str
    text: str
    sha: str


class Taken(NamedTuple):
    """One job as it was taken: where, its id, its hash before the activation."""

    base: str
    id: str
    fields: dict[str, str]


class QueueState(NamedTuple):
    """What a take said of a queue: closed for `closed_ms` by a rate limit; its next delayed job is due at `due_ms` (0: none known)."""

    base: str
    closed_ms: int
    due_ms: int


class Worker(NamedTuple):
    """Who takes: the token of the deliveries, the lock's duration, the name for `processedBy`, and its own rate limit."""

    token: str
    lock_ms: int
    name: str = ""
    limiter_max: int | str = ""
    limiter_ms: int | str = ""


_NOBODY = Worker("", 0)


class Ending(NamedTuple):
    """How one delivery ends; the fields of `finish.lua`, in its order, with the queue's base for its number."""

    what: str
    base: str
    id: str
    token: str
    text: str = ""
    stack: str = ""
    keep_count: int | str = ""
    keep_age: int | str = ""
    keep_limit: int | str = ""
    number: int | str = ""
    more: str = ""


class NewJob(NamedTuple):
    """One job to add; the fields of `add.lua`, in its order, with the queue's base for its number. Times are milliseconds."""

    base: str
    id: str
    name: str
    data: str
    opts: str
    timestamp: int
    delay: int = 0
    priority: int = 0
    celery: str = ""
    more: str = ""


def _folder() -> Any:
    return resources.files(__package__).joinpath("lua")


def _text(name: str) -> str:
    text: str = _folder().joinpath(f"{name}.lua").read_text(encoding="utf-8")
    return text


@cache
def load(name: str) -> Script:
    """The script `name`.lua with what it uses of its fragments before it (composing.py)."""
    text = compose(_text(name), _text)
    return Script(name, text, sha1(text.encode(), usedforsecurity=False).hexdigest())


def names() -> list[str]:
    """Every script; fragments, whose names begin with an underscore, are none."""
    return sorted(file.name[:-4] for file in _folder().iterdir() if file.name.endswith(".lua") and not file.name.startswith("_"))


def run(server: Server | Wire, name: str, keys: Sequence[Any], args: Sequence[Any]) -> Any:
    """Runs a script by its hash, and by its text where the server does not know it (yet, or any more)."""
    script = load(name)
    try:
        return server.call("EVALSHA", script.sha, len(keys), *keys, *args)
    except NoScriptError:
        return server.call("EVAL", script.text, len(keys), *keys, *args)


class Flight:
    """A script sent whose answer is read later, so that its work and the caller's go on at the same time. For a wire of one's own."""

    __slots__ = ("_args", "_keys", "_script", "_wire")

    def __init__(self, wire: Wire, name: str, keys: Sequence[Any], args: Sequence[Any]) -> None:
        self._wire, self._script, self._keys, self._args = wire, load(name), keys, args
        wire.send("EVALSHA", self._script.sha, len(keys), *keys, *args)

    def answer(self) -> Any:
        try:
            return self._wire.read()
        except NoScriptError:
            return self._wire.call("EVAL", self._script.text, len(self._keys), *self._keys, *self._args)


def _taken(bases: Sequence[str], flat: Sequence[Any]) -> list[Taken]:
    jobs = []
    for at in range(0, len(flat), 3):
        fields = iter(flat[at + 2])
        jobs.append(Taken(bases[flat[at] - 1], flat[at + 1], dict(zip(fields, fields, strict=True))))
    return jobs


def _states(bases: Sequence[str], flat: Sequence[int]) -> list[QueueState]:
    return [QueueState(bases[flat[at] - 1], flat[at + 1], flat[at + 2]) for at in range(0, len(flat), 3)]


def _numbered(items: Iterable[Any], bases: list[str]) -> Iterator[tuple[int, Any]]:
    """Each item with the number of its base; bases not yet there are added."""
    numbers = {base: number for number, base in enumerate(bases, 1)}
    for item in items:
        number = numbers.get(item.base)
        if number is None:
            bases.append(item.base)
            number = numbers[item.base] = len(bases)
        yield number, item


def add(server: Server, jobs: Iterable[NewJob], now: int) -> list[str | int]:
    """Stores jobs in one step. For each its id, or that of the job standing for it, or a code (`errors.job_error`; 0: the id is taken)."""
    answer: list[str | int] = run(server, "add", *add_command(jobs, now))
    return answer


def add_later(wire: Wire, jobs: Iterable[NewJob], now: int) -> Flight:
    """As `add`; its answer is the list."""
    return Flight(wire, "add", *add_command(jobs, now))


def add_command(jobs: Iterable[NewJob], now: int) -> tuple[list[str], list[Any]]:
    """KEYS and ARGV of `add`."""
    numbers: dict[str, int] = {}
    args: list[Any] = [now]
    for job in jobs:
        base, *fields = job
        args.append(numbers.get(base) or numbers.setdefault(base, len(numbers) + 1))
        args += fields
    return list(numbers), args


def take(server: Server, bases: Sequence[str], now: int, wanted: int, worker: Worker) -> tuple[list[Taken], list[QueueState]]:
    """Activates up to `wanted` jobs of the queues, in their order."""
    _, jobs, states = finish_answer(bases, [(), *run(server, "take", bases, (now, wanted, *worker))])
    return jobs, states


def take_later(wire: Wire, bases: Sequence[str], now: int, wanted: int, worker: Worker) -> Flight:
    """As `take`; `finish_answer(bases, [(), *answer])` reads the answer."""
    return Flight(wire, "take", bases, (now, wanted, *worker))


def finish(
    server: Server, endings: Sequence[Ending], now: int, take_from: Sequence[str] = (), wanted: int = 0, worker: Worker | None = None
) -> tuple[Sequence[int], list[Taken], list[QueueState]]:
    """Ends deliveries (a code for each, 0 when done) and takes the next jobs in the same step."""
    bases, args = _finish_command(endings, now, take_from, wanted, worker)
    return finish_answer(bases, run(server, "finish", bases, args))


def finish_later(
    wire: Wire, endings: Sequence[Ending], now: int, take_from: Sequence[str] = (), wanted: int = 0, worker: Worker | None = None
) -> Flight:
    """As `finish`; `finish_answer(take_from, answer)` reads the answer."""
    bases, args = _finish_command(endings, now, take_from, wanted, worker)
    return Flight(wire, "finish", bases, args)


def _finish_command(
    endings: Sequence[Ending], now: int, take_from: Sequence[str], wanted: int, worker: Worker | None
) -> tuple[list[str], list[Any]]:
    bases = list(take_from)
    args: list[Any] = [now, len(bases), wanted, *(worker or _NOBODY)]
    for number, ending in _numbered(endings, bases):
        args.append(ending.what)
        args.append(number)
        args.extend(ending[2:])
    return bases, args


def finish_answer(bases: Sequence[str], answer: Sequence[Any]) -> tuple[Sequence[int], list[Taken], list[QueueState]]:
    """Codes, jobs, queue states."""
    codes, jobs, states = answer
    return codes, _taken(bases, jobs), _states(bases, states)


def retry(
    server: Server, base: str, job_id: str, token: str, now: int, delay: int,
    reason: str = "", trace: str = "", more: str = "", fields: Sequence[Any] = (),
) -> int:  # fmt: skip
    """The job in hand becomes delayed or waiting again, with `fields` (name, value, …) written to its hash."""
    code: int = run(server, "retry", (base,), (now, job_id, token, delay, reason, trace, more, *fields))
    return code


def extend(server: Server, held: Sequence[Any], lock_ms: int) -> list[int]:
    """Keeps the locks of deliveries (anything with base, id, token). Returns the indexes of those that no longer hold theirs."""
    bases: list[str] = []
    args: list[Any] = [lock_ms]
    for number, delivery in _numbered(held, bases):
        args += (number, delivery.id, delivery.token)
    return [place - 1 for place in run(server, "extend", bases, args)]


def recall(server: Server, bases: Sequence[str], tokens: Sequence[str], lock_ms: int | None = None) -> list[Taken]:
    """Puts jobs back that were taken with these tokens, or keeps their locks for `lock_ms`. Which; the token is their only field."""
    flat = run(server, "recall", bases, ("" if lock_ms is None else lock_ms, *tokens))
    return [Taken(bases[flat[at] - 1], flat[at + 1], {"token": flat[at + 2]}) for at in range(0, len(flat), 3)]


def recover(server: Server, bases: Sequence[str], now: int, max_stalled_count: int, interval_ms: int) -> tuple[list[tuple[str, str]], int]:
    """The stalled check. Returns the (base, id) of the jobs that wait again, and in how many ms the next check may be made."""
    again, flat = run(server, "recover", bases, (now, max_stalled_count, interval_ms))
    return [(bases[flat[at] - 1], flat[at + 1]) for at in range(0, len(flat), 2)], again


def commit(server: Server | Wire, base: str, job_id: str, token: str) -> int:
    """The job in hand is run at most once from now on. 0, or a code."""
    code: int = run(server, "commit", (base,), (job_id, token))
    return code


def commit_later(wire: Wire, held: Iterable[Any]) -> None:
    """As `commit`, for deliveries (anything with base, id, token), each of which gets an answer: its code."""
    sha = load("commit").sha
    wire.send_many(("EVALSHA", sha, 1, one.base, one.id, one.token) for one in held)


def wait_children(server: Server, base: str, job_id: str, token: str, now: int) -> int:
    """The job in hand waits for its children. 0, or 1 where none is pending, or a code."""
    code: int = run(server, "wait_children", (base,), (now, job_id, token))
    return code


def upsert_scheduler(
    server: Server, base: str, scheduler_id: str, now: int, due: int | str, rule: str, data: str, template: str, opts: str
) -> tuple[str, int] | int:
    """Makes or changes a scheduler; texts are JSON, `due` is '' with `every`. (id of the next iteration, its delay in ms), or a code."""
    answer = run(server, "upsert_scheduler", (base,), (now, scheduler_id, due, rule, data, template, opts))
    return answer if isinstance(answer, int) else (answer[0], int(answer[1]))


def next_iteration(server: Server, base: str, scheduler_id: str, producer_id: str, now: int, due: int | str, opts: str) -> str:
    """The job that was taken makes the next one of its scheduler. Its id, or ''."""
    made: str = run(server, "next_iteration", (base,), (now, scheduler_id, producer_id, due, opts))
    return made


def remove_scheduler(server: Server, base: str, scheduler_id: str) -> int:
    """1, or 0 where there was none."""
    removed: int = run(server, "remove_scheduler", (base,), (scheduler_id,))
    return removed


def update_progress(server: Server, base: str, job_id: str, progress: str) -> int:
    """`progress` is JSON. 0, or -1 where there is no such job."""
    code: int = run(server, "update_progress", (base,), (job_id, progress))
    return code


def add_log(server: Server, base: str, job_id: str, line: str, keep: int | None = None) -> int:
    """A line for the job's log, of which the newest `keep` stay. How many there are now, or -1 where there is no such job."""
    count: int = run(server, "add_log", (base,), (job_id, line, "" if keep is None else keep))
    return count


def update_data(server: Server, base: str, job_id: str, data: str) -> int:
    """`data` is JSON. 0, or -1 where there is no such job."""
    code: int = run(server, "update_data", (base,), (job_id, data))
    return code


def write_all(directory: Path) -> None:
    """Writes every script as the server gets it."""
    directory.mkdir(parents=True, exist_ok=True)
    for name in names():
        directory.joinpath(f"{name}.lua").write_text(load(name).text, encoding="utf-8")


if __name__ == "__main__":
    write_all(Path(sys.argv[sys.argv.index("--compose") + 1]))
