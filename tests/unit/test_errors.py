"""One tree of errors, and BullMQ's codes and texts."""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path

import pytest

import bullmq_kombu
from bullmq_kombu import errors
from bullmq_kombu.errors import BadInput, BullMQError, JobError, job_error

TREE = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if kind.__module__ == errors.__name__]


def test_everything_has_one_root() -> None:
    assert TREE
    for kind in TREE:
        assert issubclass(kind, BullMQError)
    assert issubclass(BadInput, ValueError), "what Python users catch"


def test_the_drawing_of_the_tree_is_complete() -> None:
    drawn = set(re.findall(r"[├└]── (\w+)", errors.__doc__ or ""))

    assert drawn == {kind.__name__ for kind in TREE} - {"BullMQError"}


@pytest.mark.parametrize(
    ("code", "kind", "text"),
    [
        (-1, errors.JobMissing, "Missing key for job 7. moveToFinished"),
        (-2, errors.LockMissing, "Missing lock for job 7. moveToFinished"),
        (-3, errors.NotInState, "Job 7 is not in the active state. moveToFinished"),
        (-4, errors.PendingChildren, "Job 7 has pending dependencies. moveToFinished"),
        (-5, errors.ParentMissing, "Missing key for parent job bull:p:1. moveToFinished"),
        (-6, errors.LockMismatch, "Lock mismatch for job 7. Cmd moveToFinished from active"),
        (-7, errors.ParentConflict, "The parent job bull:p:1 cannot be replaced. moveToFinished"),
        (-8, errors.BelongsToScheduler, "Job 7 belongs to a job scheduler and cannot be removed directly. moveToFinished"),
        (-9, errors.FailedChildren, "Cannot complete job 7 because it has at least one failed child. moveToFinished"),
        (-10, errors.SlotTaken, "Cannot create job scheduler iteration - job ID already exists. moveToFinished"),
        (-11, errors.SlotTaken, "Cannot create job scheduler iteration - current and next time slots already have jobs. moveToFinished"),
    ],
)
def test_each_code_is_an_error_in_bullmqs_words(code: int, kind: type[JobError], text: str) -> None:
    error = job_error(code, "moveToFinished", "7", parent="bull:p:1")

    assert type(error) is kind
    assert str(error) == text
    assert error.code == code


def test_a_code_that_nobody_knows_is_still_an_error() -> None:
    error = job_error(-99, "moveToFinished", "7")

    assert type(error) is JobError
    assert error.code == -99
    assert "-99" in str(error)


def test_texts_with_braces_are_only_texts() -> None:
    assert "{x}" in str(job_error(-1, "moveToFinished", "{x}"))


def test_every_exception_of_the_package_is_of_the_tree() -> None:
    """Found in the source, so that no module has to be imported to be looked at."""
    known = {kind.__name__ for kind in TREE}
    for path in sorted(Path(inspect.getfile(bullmq_kombu)).parent.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef) and node.name.endswith("Error"):
                bases = {ast.unparse(base).rpartition(".")[2] for base in node.bases}
                assert bases & {*known, "JobError"} or path.name == "errors.py", f"{path.name}: {node.name} has only {bases}"
