"""A task that takes more memory than there is, where Python says so before the kernel does."""

from __future__ import annotations

from pathlib import Path

from arena import Arena

PATIENCE_S = 60.0


def test_a_memory_error_ends_the_worker_as_celery_wants_it_and_the_job_has_failed(tmp_path: Path) -> None:
    """Celery's worker takes it for its own end. The job must not go on to the next one and end that too; what else it held must."""
    with Arena(tmp_path) as arena, arena.app() as app:
        hoarder = arena.send_hoarder(app, killed=False)
        others = [arena.send(app, held=False) for _ in range(20)]
        arena.worker.wait(PATIENCE_S)
        arena.wait_for_state(hoarder.id, "failed", timeout=PATIENCE_S)
        assert "MemoryError" in arena.reason(hoarder.id)
        arena.start_worker()
        for one in others:
            arena.wait_for_state(one.id, "completed", timeout=PATIENCE_S)
        # What the other child was at may run again.
        assert sum(arena.runs(one.id) for one in others) <= len(others) + 1
        assert arena.runs(hoarder.id) == 1
