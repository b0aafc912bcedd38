"""`update_progress`, `update_data`, `add_log`, `wait_children`: what a running job says of itself."""

from __future__ import annotations

import json

import pytest
from one_queue import NOW, WORKER, Queue, started, stored

from bullmq_kombu import scripts


def test_progress_is_kept_and_told(queue: Queue) -> None:
    queue.add(queue.job("a"))
    queue.events()

    assert scripts.update_progress(queue.server, queue.base, "a", '{"done":0.5}') == 0
    assert queue.value("a") == stored(progress='{"done":0.5}')
    assert queue.events() == ['progress jobId a data {"done":0.5}']


def test_data_is_replaced(queue: Queue) -> None:
    queue.add(queue.job("a"))
    queue.events()

    assert scripts.update_data(queue.server, queue.base, "a", '{"v":2}') == 0
    assert queue.value("a") == stored(data='{"v":2}')
    assert queue.events() == []


@pytest.mark.parametrize(
    ("keep", "counts", "lines"), [(None, [1, 2, 3], ["1", "2", "3"]), (2, [1, 2, 2], ["2", "3"]), (0, [0, 0, 0], None)]
)
def test_the_newest_lines_of_a_log_are_kept(queue: Queue, keep: int | None, counts: list[int], lines: list[str] | None) -> None:
    queue.add(queue.job("a"))

    assert [scripts.add_log(queue.server, queue.base, "a", line, keep) for line in "123"] == counts
    assert queue.value("a:logs") == lines


def test_a_job_that_is_gone_gets_nothing(queue: Queue) -> None:
    assert scripts.update_progress(queue.server, queue.base, "a", "1") == -1
    assert scripts.update_data(queue.server, queue.base, "a", "1") == -1
    assert scripts.add_log(queue.server, queue.base, "a", "line") == -1
    assert queue.picture() == {}


def wait_children(queue: Queue, token: str = WORKER.token) -> int:
    code: int = scripts.run(queue.server, "wait_children", (queue.base,), (NOW + 5, "p", token))
    return code


def with_child(queue: Queue, other: Queue) -> None:
    queue.active(queue.job("p"))
    link = json.dumps({"id": "p", "queueKey": queue.base[:-1]})
    other.add(other.job("c", more=json.dumps({"parentKey": queue.key("p"), "parent": link})))


def test_a_job_waits_for_the_children_it_made(queue: Queue, other: Queue) -> None:
    with_child(queue, other)
    queue.set("marker", "DEL")

    assert wait_children(queue) == 0

    assert queue.without_meta() == {
        "id": "1",
        "waiting-children": {"p": NOW + 5},
        "p:dependencies": {other.key("c")},
        "p": started(),
        "marker": {"0": 0},
    }
    assert queue.events() == ["waiting-children jobId p prev active"]


@pytest.mark.parametrize(
    ("happened", "code"),
    [("no child", 1), ("gone", -1), ("unlocked", -2), ("not active", -3), ("another's", -6), ("child failed", -9)],
)
def test_what_does_not_wait_stays_as_it_is(queue: Queue, other: Queue, happened: str, code: int) -> None:
    with_child(queue, other)
    suffix = {"no child": "p:dependencies", "gone": "p", "unlocked": "p:lock", "not active": "active"}.get(happened)
    if suffix:
        queue.set(suffix, "DEL")
    if happened == "child failed":
        queue.set("p:unsuccessful", "ZADD", 1, other.key("c"))
    before = queue.picture()

    assert wait_children(queue, "worker:9" if happened == "another's" else WORKER.token) == code
    assert queue.picture() == before
    assert queue.events() == []
