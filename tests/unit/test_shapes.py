"""What type checkers are told agrees with what is checked when the program runs."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest

import bullmq_kombu
from bullmq_kombu import job_options, shapes
from bullmq_kombu.errors import BadInput

HINTS = get_type_hints(shapes.JobsOptions)

#: One value of every option, of each of its forms.
VALUES: dict[str, list[Any]] = {
    "backoff": [1000, {"type": "exponential", "delay": 5.5, "jitter": 0.5}],
    "deduplication": [
        {"id": "a"},
        {"id": "a", "ttl": 5, "extend": True, "replace": True, "reschedule": True, "keepLastIfActive": True},
    ],
    "parent": [{"id": "1", "queue": "bull:mail"}],
    "removeOnComplete": [True, 5, {"age": 1.5, "count": 2, "limit": 3}],
    "removeOnFail": [False, 5, {"age": 1.5, "count": 2, "limit": 3}],
    "telemetry": [{"metadata": "{}", "omitContext": True}],
    "jobId": ["own"],
}
OF_TYPE: dict[Any, list[Any]] = {int: [1], float: [1, 1.5], bool: [True], str: ["text"]}


def test_the_options_are_those_that_are_known() -> None:
    assert set(HINTS) == job_options.KNOWN


@pytest.mark.parametrize("name", sorted(HINTS))
def test_what_the_type_allows_is_accepted(name: str) -> None:
    for value in VALUES.get(name) or OF_TYPE[HINTS[name]]:
        job_options.check_job_options({name: value})


@pytest.mark.parametrize("name", sorted(HINTS))
def test_what_it_does_not_allow_is_refused(name: str) -> None:
    with pytest.raises(BadInput):
        job_options.check_job_options({name: [1]})


@pytest.mark.parametrize("shape", ["Backoff", "Deduplication", "KeepJobs", "Parent", "Telemetry"])
def test_every_key_of_a_dictionary_is_tried(shape: str) -> None:
    kind = getattr(shapes, shape)
    name = next(name for name, hint in HINTS.items() if kind is hint or kind in get_args(hint))
    tried = {key for value in VALUES[name] if isinstance(value, dict) for key in value}
    assert tried == set(get_type_hints(kind))


def test_type_checkers_find_the_public_names_where_they_are_loaded_from() -> None:
    tree = ast.parse(Path(bullmq_kombu.__file__).read_text(encoding="utf-8"))
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    told = {name.asname: node.module for node in block.body if isinstance(node, ast.ImportFrom) for name in node.names}
    assert told == bullmq_kombu._PUBLIC


@pytest.mark.parametrize("name", bullmq_kombu.__all__)
def test_every_public_name_can_be_had(name: str) -> None:
    assert getattr(bullmq_kombu, name) is not None
