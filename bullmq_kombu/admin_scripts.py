"""One typed method for each Lua file of administration: changing and looking at jobs that no delivery is in hand of.

Codes are BullMQ's (`errors.job_error`): 0 or more is done, negative is refused. Knows nothing of what the scripts are used for.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from bullmq_kombu.scripts import Server, run

#: How many jobs one call of a script moves or removes, so that the server goes on serving others in between.
CHUNK = 1000


class Found(NamedTuple):
    """A job as it is: its id and its hash."""

    id: str
    fields: dict[str, str]


def _pairs(flat: Sequence[Any]) -> dict[Any, Any]:
    items = iter(flat)
    return dict(zip(items, items, strict=True))


# -- the queue -----------------------------------------------------------------------------------------------------------------


def pause(server: Server, base: str) -> None:
    """From now on no job of the queue is taken."""
    run(server, "pause", (base,), ())


def resume(server: Server, base: str) -> None:
    """Jobs are taken again, those first that BullMQ 5 had parked."""
    is_first = 1
    while run(server, "resume", (base,), (is_first, CHUNK)):
        is_first = 0


def drain(server: Server, base: str, now: int, delayed: bool) -> int:
    """Removes what waits. Returns how many jobs."""
    removed: int = run(server, "drain", (base,), (now, int(delayed)))
    return removed


def clean(server: Server, base: str, state: str, before: int, limit: int) -> list[str]:
    """Removes jobs of one state that are as old as `before` (ms), up to `limit` (0: all). Returns their ids."""
    cleaned: list[str] = run(server, "clean", (base,), (state, before, limit))
    return cleaned


def obliterate(server: Server, base: str, force: bool) -> int:
    """Removes the whole queue: 0, or -1 (not paused) or -2 (active jobs) where it may not."""
    while (code := run(server, "obliterate", (base,), (int(force), CHUNK))) == 1:
        pass
    return int(code)


def move_to_wait(server: Server, base: str, state: str, limit: int, before: int | str) -> int:
    """Up to `limit` jobs that are failed, completed or delayed wait again, the oldest first. Returns how many."""
    moved: int = run(server, "move_to_wait", (base,), (state, limit, before))
    return moved


def forget_orphans(server: Server, base: str, ids: Sequence[str]) -> int:
    """Deletes the keys of those ids that no state of the queue has. Returns how many."""
    forgotten: int = run(server, "forget_orphans", (base,), ids)
    return forgotten


# -- one job -------------------------------------------------------------------------------------------------------------------


def remove(server: Server, base: str, job_id: str, children: bool) -> int:
    """1 when it is gone, 0 where it or a child is being worked on, or a code."""
    answer: int = run(server, "remove", (base,), (job_id, int(children)))
    return answer


def remove_unprocessed_children(server: Server, base: str, job_id: str) -> None:
    """Removes the children that have not ended and that nobody works on."""
    run(server, "remove_unprocessed_children", (base,), (job_id,))


def remove_child_dependency(server: Server, base: str, job_id: str, parent_key: str) -> int:
    """The job is nobody's child any more: 0, 1 where its parent does not wait for it, or a code."""
    answer: int = run(server, "remove_child_dependency", (base,), (job_id, parent_key))
    return answer


def promote(server: Server, base: str, job_id: str) -> int:
    """A delayed job waits now."""
    code: int = run(server, "promote", (base,), (job_id,))
    return code


def requeue(server: Server, base: str, job_id: str, state: str, *, lifo: bool, reset_made: bool, reset_started: bool) -> int:
    """A finished job waits again."""
    code: int = run(server, "requeue", (base,), (job_id, state, int(lifo), int(reset_made), int(reset_started)))
    return code


def change_priority(server: Server, base: str, job_id: str, priority: int, lifo: bool) -> int:
    """The job gets another place among those that wait; one that does not wait keeps it for later."""
    code: int = run(server, "change_priority", (base,), (job_id, priority, int(lifo)))
    return code


def change_delay(server: Server, base: str, job_id: str, delay: int, now: int) -> int:
    """A delayed job becomes due `delay` ms after `now`."""
    code: int = run(server, "change_delay", (base,), (job_id, delay, now))
    return code


def release_deduplication(server: Server, base: str, dedup_id: str, owner: str = "") -> int:
    """Frees a deduplication id, if `owner` has it (''; whoever has it). Returns 1, or 0 where it was not so."""
    released: int = run(server, "release_deduplication", (base,), (dedup_id, owner))
    return released


# -- looking -------------------------------------------------------------------------------------------------------------------


def counts(server: Server, base: str, states: Sequence[str]) -> list[int]:
    """How many jobs each state has."""
    found: list[int] = run(server, "counts", (base,), states)
    return found


def priority_counts(server: Server, base: str, priorities: Sequence[int]) -> list[int]:
    """How many jobs wait with each priority."""
    found: list[int] = run(server, "priority_counts", (base,), priorities)
    return found


def read_jobs(server: Server, base: str, state: str, start: int, end: int, oldest_first: bool) -> list[Found]:
    """The jobs of one state, places `start` to `end` (both included, -1 for the last)."""
    flat = run(server, "read_jobs", (base,), (state, start, end, int(oldest_first)))
    return list(_found(flat))


def _found(flat: Sequence[Any]) -> Iterator[Found]:
    for at in range(0, len(flat), 2):
        yield Found(flat[at], _pairs(flat[at + 1]))


def state_of(server: Server, base: str, job_id: str) -> str:
    """One of BullMQ's state names, or `unknown`."""
    state: str = run(server, "state_of", (base,), (job_id,))
    return state


def outcome_of(server: Server, base: str, job_id: str) -> tuple[str, str]:
    """(`completed`, return value as JSON), (`failed`, reason), (`missing`, ''), or ('', '') for a job that goes on."""
    state, text = run(server, "outcome_of", (base,), (job_id,))
    return state, text
