"""A worker whose clock is an hour off works all the same. Locks and the looking for stalled jobs are timed by Redis; only what is delayed
goes by the clocks, as with BullMQ."""

from __future__ import annotations

from pathlib import Path

from arena import LOCK_S, Arena
from celery import chord
from faults import wait_out

HOUR_S = 3600
#: Nothing here is about how soon.
PATIENCE_S = 60.0


def test_a_worker_whose_clock_is_off(tmp_path: Path) -> None:
    with Arena(tmp_path) as arena, arena.app() as app:
        for ahead_s in (HOUR_S, -HOUR_S):
            arena.set_clock(ahead_s)
            # Remote control: whoever asks has a queue for the answers that is not kept for an hour.
            assert arena.ping(app) == {"ok": "pong"}
            value = app.signature("echo", kwargs={"value": 1}, queue=arena.queue)
            assert chord([value, value])(app.signature("two", kwargs={"b": 2}, queue=arena.queue)).get(timeout=PATIENCE_S) == [[1, 1], 2]
            # What a task delays itself, and what is locked meanwhile.
            again = app.send_task("again.late", kwargs={"times": 2, "countdown": 0.2}, queue=arena.queue)
            assert again.get(timeout=PATIENCE_S)["retries"] == 2
            held = arena.send(app, held=True, value="held")
            arena.wait_for_run(held.id, PATIENCE_S)
            arena.set_clock(-ahead_s)
            wait_out(LOCK_S + 1)
            arena.set_clock(ahead_s)
            arena.let_go(held.id)
            assert held.get(timeout=PATIENCE_S) == "held"
            assert arena.runs(held.id) == 1


def test_what_is_delayed_goes_by_the_clocks(tmp_path: Path) -> None:
    with Arena(tmp_path) as arena, arena.app() as app:
        arena.set_clock(HOUR_S)
        early = arena.send(app, held=False, countdown=HOUR_S / 2)
        arena.wait_for_state(early.id, "completed", timeout=PATIENCE_S)
        arena.set_clock(-HOUR_S)
        late = arena.send(app, held=False, countdown=0.2)
        after = arena.send(app, held=False)
        arena.wait_for_state(after.id, "completed", timeout=PATIENCE_S)
        arena.wait_for_state(late.id, "delayed")
        arena.set_clock(0)
        # It would be looked at within ten seconds; a job that comes sees to it that it is now.
        arena.wait_for_state(arena.send(app, held=False).id, "completed", timeout=PATIENCE_S)
        arena.wait_for_state(late.id, "completed", timeout=PATIENCE_S)
        assert [arena.runs(one.id) for one in (early, late, after)] == [1, 1, 1]
