"""`add`: what stands in Redis after a job was stored, and who is told."""

from __future__ import annotations

import json
from typing import Any

import pytest
from one_queue import NOW, Queue, stored

META = {"opts.maxLenEvents": "10000"}


def deduplicated_by(dedup: dict[str, Any], **more: Any) -> str:
    return json.dumps({"de": dedup, **more})


# -- where a job goes


def test_a_plain_job_waits_and_wakes_a_worker(queue: Queue) -> None:
    assert queue.add(queue.job(name="send", data='{"to":"a/b"}', celery='{"k":"a"}')) == ["1"]

    assert queue.picture() == {
        "id": "1",
        "meta": META,
        "wait": ["1"],
        "marker": {"0": 0},
        "1": stored(name="send", data='{"to":"a/b"}', celery='{"k":"a"}'),
    }
    assert queue.events() == ["added jobId 1 name send", "waiting jobId 1"]


def test_the_first_one_in_is_the_first_one_out(queue: Queue) -> None:
    assert queue.add(queue.job(), queue.job("own"), queue.job()) == ["1", "own", "3"]

    assert queue.value("wait") == ["3", "own", "1"], "the tail is taken next"
    assert queue.value("id") == "3", "an id of one's own counts too"


def test_lifo_jobs_go_before_the_others(queue: Queue) -> None:
    lifo = '{"lifo":true}'
    queue.add(queue.job("a"), queue.job("b", more=lifo), queue.job("c", more=lifo))

    assert queue.value("wait") == ["a", "b", "c"]
    assert queue.events()[2:4] == ["added jobId b name n", "waiting jobId b"]


def test_a_delayed_job_is_held_until_it_is_due(queue: Queue) -> None:
    queue.add(queue.job("d", delay=5000))

    due = NOW + 5000
    assert queue.picture() == {
        "id": "1",
        "meta": META,
        "delayed": {"d": due * 4096},
        "marker": {"1": due},
        "d": stored(delay="5000"),
    }
    assert queue.events() == ["added jobId d name n", f"delayed jobId d delay {due}"]


def test_jobs_due_in_the_same_millisecond_keep_their_order(queue: Queue) -> None:
    queue.add(*(queue.job(name_, delay=10) for name_ in "abc"))

    lowest = (NOW + 10) * 4096
    assert queue.value("delayed") == {"a": lowest, "b": lowest + 1, "c": lowest + 2}


def test_beyond_4096_jobs_of_a_millisecond_the_last_place_is_shared(queue: Queue) -> None:
    lowest = (NOW + 10) * 4096
    queue.set("delayed", "ZADD", lowest + 4095, "last")
    queue.add(queue.job("one-more", delay=10), queue.job("next-ms", delay=11))

    assert queue.value("delayed") == {"last": lowest + 4095, "one-more": lowest + 4095, "next-ms": lowest + 4096}


def test_the_delay_counts_from_the_jobs_own_timestamp(queue: Queue) -> None:
    queue.add(queue.job("d", timestamp=NOW - 1000, delay=5000))

    assert queue.value("delayed") == {"d": (NOW + 4000) * 4096}


def test_a_negative_delay_is_none(queue: Queue) -> None:
    queue.add(queue.job("d", delay=-5))

    assert queue.value("wait") == ["d"]
    assert queue.value("d") == stored(delay="-5")


def test_a_job_with_a_priority_lines_up_by_it(queue: Queue) -> None:
    queue.add(queue.job("b", priority=5), queue.job("c", priority=5), queue.job("a", priority=1), queue.job("z", priority=2_097_151))

    assert queue.picture() == {
        "id": "4",
        "meta": META,
        "pc": "4",
        "prioritized": {"a": 2**32 + 3, "b": 5 * 2**32 + 1, "c": 5 * 2**32 + 2, "z": 2_097_151 * 2**32 + 4},
        "marker": {"0": 0},
        "a": stored(priority="1"),
        "b": stored(priority="5"),
        "c": stored(priority="5"),
        "z": stored(priority="2097151"),
    }
    assert queue.events()[:2] == ["added jobId b name n", "waiting jobId b"]


def test_the_counter_of_priorities_wraps_within_its_32_bits(queue: Queue) -> None:
    queue.set("pc", "SET", 2**32 - 1)
    queue.add(queue.job("a", priority=3))

    assert queue.value("prioritized") == {"a": 3 * 2**32}


def test_a_delayed_job_remembers_its_priority(queue: Queue) -> None:
    queue.add(queue.job("d", delay=10, priority=7))

    assert queue.value("delayed") == {"d": (NOW + 10) * 4096}
    assert queue.value("d") == stored(delay="10", priority="7")
    assert queue.value("prioritized") is None


def test_both_markers_can_stand_side_by_side(queue: Queue) -> None:
    queue.add(queue.job(), queue.job(delay=50), queue.job(delay=20))

    assert queue.value("marker") == {"0": 0, "1": NOW + 20}


def test_jobs_of_several_queues_are_stored_in_one_call(queue: Queue, other: Queue) -> None:
    assert queue.add(queue.job("a"), other.job("b"), queue.job("c")) == ["a", "b", "c"]

    assert queue.value("wait") == ["c", "a"]
    assert other.value("wait") == ["b"]
    assert other.events() == ["added jobId b name n", "waiting jobId b"]


# -- settings of the queue


def test_the_event_stream_is_kept_as_long_as_the_queue_says(queue: Queue) -> None:
    queue.set("meta", "HSET", "opts.maxLenEvents", 0)
    queue.add(*(queue.job() for _ in range(150)))

    assert queue.value("meta") == {"opts.maxLenEvents": "0"}
    assert queue.redis.xlen(queue.key("events")) < 150, "trimmed, if approximately"


def test_a_paused_queue_takes_jobs_and_wakes_nobody(queue: Queue) -> None:
    queue.pause()
    queue.add(queue.job("a"), queue.job("p", priority=1))

    assert queue.without_meta() == {
        "id": "2",
        "wait": ["a"],
        "pc": "1",
        "prioritized": {"p": 2**32 + 1},
        "a": stored(),
        "p": stored(priority="1"),
    }
    assert queue.events() == ["added jobId a name n", "waiting jobId a", "added jobId p name n", "waiting jobId p"]


def test_where_bullmq_5_has_parked_jobs_new_ones_join_them(queue: Queue) -> None:
    queue.pause()
    queue.set("paused", "LPUSH", "parked")
    queue.add(queue.job("a"), queue.job("b", more='{"lifo":true}'))

    assert queue.value("paused") == ["a", "parked", "b"]
    assert queue.value("wait") is None
    assert queue.value("marker") is None


@pytest.mark.parametrize(("version", "place"), [("bullmq:5.81.5", "paused"), ("bullmq:6.7.0", "wait"), ("bullmq-pro:5.0.0", "wait")])
def test_a_queue_that_bullmq_5_has_opened_and_paused_takes_jobs_where_its_resume_looks(queue: Queue, version: str, place: str) -> None:
    queue.set("meta", "HSET", "version", version)
    queue.pause()

    queue.add(queue.job("a"))

    assert queue.value(place) == ["a"]


def test_a_paused_list_left_behind_does_not_matter_to_a_queue_that_runs(queue: Queue) -> None:
    queue.set("paused", "LPUSH", "parked")
    queue.add(queue.job("a"))

    assert queue.value("paused") == ["parked"]
    assert queue.value("wait") == ["a"]


def test_a_delayed_job_says_when_it_is_due_even_in_a_paused_queue(queue: Queue) -> None:
    queue.pause()
    queue.add(queue.job("d", delay=10))

    assert queue.value("marker") == {"1": NOW + 10}


@pytest.mark.parametrize(("running", "marker"), [(["x"], {"0": 0}), (["x", "y"], None)])
def test_nobody_is_woken_while_the_global_concurrency_is_used_up(queue: Queue, running: list[str], marker: Any) -> None:
    queue.set("meta", "HSET", "concurrency", 2)
    queue.set("active", "LPUSH", *running)
    queue.add(queue.job())

    assert queue.value("marker") == marker


# -- ids that are taken


def test_a_job_whose_id_is_taken_is_not_added(queue: Queue) -> None:
    queue.add(queue.job("a", data='{"v":1}'))
    before = queue.picture()
    queue.events()

    assert queue.add(queue.job("a", data='{"v":2}', priority=3, delay=9)) == ["a"]

    assert queue.picture() == {**before, "id": "2"}
    assert queue.events() == ["duplicated jobId a"]


@pytest.mark.parametrize("state", ["completed", "failed"])
def test_unique_replaces_a_job_that_has_finished(queue: Queue, state: str) -> None:
    queue.active(queue.job("a", data='{"v":1}'))
    queue.end(queue.ending(state, "a", "1", more='{"log":"old"}'))
    queue.events()

    assert queue.add(queue.job("a", data='{"v":2}', more='{"unique":true}')) == ["a"]

    assert queue.without_meta() == {"id": "2", "wait": ["a"], "marker": {"0": 0}, "a": stored(data='{"v":2}')}
    assert queue.events() == [f"removed jobId a prev {state}", "added jobId a name n", "waiting jobId a"]


def test_unique_leaves_a_job_alone_that_has_not_finished(queue: Queue) -> None:
    queue.add(queue.job("a"))
    before = queue.picture()
    queue.events()

    assert queue.add(queue.job("a", data='{"v":2}', more='{"unique":true}')) == [0], "the caller chooses another id"

    assert queue.picture() == {**before, "id": "2"}
    assert queue.events() == []


def test_unique_the_same_message_again_is_the_same_job(queue: Queue) -> None:
    """Whoever lost the answer to the first try sends it again."""
    job = queue.job("a", data='{"v":1}', celery='{"k":"a"}', more='{"unique":true}')
    queue.add(job)
    before = queue.picture()
    queue.events()

    assert queue.add(job) == ["a"]
    assert queue.picture() == {**before, "id": "2"}
    assert queue.events() == []

    queue.take()
    assert queue.add(job) == ["a"], "whatever has become of it meanwhile"
    assert queue.value("active") == ["a"]
    assert queue.value("wait") is None


@pytest.mark.parametrize(
    ("changed", "more", "answer"),
    [
        ({"data": '{"v":2}'}, '{"unique":true}', 0),
        ({"name": "other"}, '{"unique":true}', 0),
        ({"celery": '{"h":{"retries":1}}'}, '{"unique":true}', 0),
        ({"timestamp": NOW + 1}, '{"unique":true}', 0),
        ({"timestamp": NOW + 1}, '{"unique":true,"carried":true}', "a"),
    ],
)
def test_unique_another_message_is_another_job(queue: Queue, changed: dict[str, Any], more: str, answer: Any) -> None:
    queue.add(queue.job("a", data='{"v":1}', more='{"unique":true}'))

    assert queue.add(queue.job("a", **{"data": '{"v":1}', **changed}, more=more)) == [answer]


# -- deduplication


def test_the_first_job_of_a_deduplication_id_owns_it(queue: Queue) -> None:
    queue.add(queue.job("a", more=deduplicated_by({"id": "x"})))

    assert queue.value("de:x") == "a"
    assert queue.ttl("de:x") == -1
    assert queue.value("a") == stored(deid="x")


def test_a_second_job_of_a_deduplication_id_is_dropped(queue: Queue) -> None:
    more = deduplicated_by({"id": "x"})
    queue.add(queue.job("a", more=more))
    before = queue.picture()
    queue.events()

    assert queue.add(queue.job("b", more=more), queue.job(more=more)) == ["a", "a"]

    assert queue.picture() == {**before, "id": "3"}
    assert queue.events() == [
        "deduplicated jobId a deduplicationId x deduplicatedJobId b",
        "deduplicated jobId a deduplicationId x deduplicatedJobId 3",
    ]


def test_a_throttled_id_is_free_again_after_its_time(queue: Queue) -> None:
    more = deduplicated_by({"id": "x", "ttl": 60_000})
    queue.add(queue.job("a", more=more))
    assert 55_000 < queue.ttl("de:x") <= 60_000
    queue.set("de:x", "PEXPIRE", 30_000)

    assert queue.add(queue.job("b", more=more)) == ["a"]
    assert queue.ttl("de:x") <= 30_000, "the window goes on"


def test_extend_begins_the_time_anew(queue: Queue) -> None:
    more = deduplicated_by({"id": "x", "ttl": 60_000, "extend": True})
    queue.add(queue.job("a", more=more))
    queue.set("de:x", "PEXPIRE", 30_000)
    queue.events()

    assert queue.add(queue.job("b", more=more)) == ["a"]
    assert queue.value("de:x") == "a"
    assert queue.ttl("de:x") > 50_000
    assert queue.events() == ["deduplicated jobId a deduplicationId x deduplicatedJobId b"]


@pytest.mark.parametrize(
    ("dedup", "window"),
    [
        ({}, (-1, -1)),
        ({"ttl": 60_000}, (25_000, 30_000)),  # the first job's window
        ({"ttl": 60_000, "extend": True}, (55_000, 60_000)),
    ],
    ids=["simple", "ttl", "extended"],
)
def test_replace_puts_the_new_job_in_the_place_of_a_delayed_one(queue: Queue, dedup: dict[str, Any], window: tuple[int, int]) -> None:
    more = deduplicated_by({"id": "x", "replace": True, **dedup})
    queue.add(queue.job("a", delay=1000, more=more))
    queue.set("a:logs", "RPUSH", "line")
    queue.set("dn:x", "HSET", "name", "n")
    if "ttl" in dedup:
        queue.set("de:x", "PEXPIRE", 30_000)
    queue.events()

    assert queue.add(queue.job("b", delay=2000, more=more)) == ["b"]

    due = NOW + 2000
    assert queue.without_meta() == {
        "id": "2",
        "delayed": {"b": due * 4096},
        "marker": {"1": due},
        "b": stored(delay="2000", deid="x"),
        "de:x": "b",
    }
    assert window[0] <= queue.ttl("de:x") <= window[1]
    assert queue.events() == [
        "removed jobId a prev delayed",
        "deduplicated jobId b deduplicationId x deduplicatedJobId a",
        "added jobId b name n",
        f"delayed jobId b delay {due}",
    ]


def test_replace_does_nothing_to_a_job_that_is_not_delayed(queue: Queue) -> None:
    more = deduplicated_by({"id": "x", "replace": True})
    queue.add(queue.job("a", more=more))
    before = queue.picture()
    queue.events()

    assert queue.add(queue.job("b", more=more)) == ["a"]
    assert queue.picture() == {**before, "id": "2"}
    assert queue.events() == []


def test_an_owner_that_is_gone_gives_its_deduplication_id_up(queue: Queue) -> None:
    queue.set("de:x", "SET", "gone")
    queue.set("dn:x", "HSET", "name", "n")

    assert queue.add(queue.job("a", more=deduplicated_by({"id": "x"}))) == ["a"]
    assert queue.value("de:x") == "a"
    assert queue.value("dn:x") is None


def test_an_owner_that_is_gone_still_throttles(queue: Queue) -> None:
    queue.set("de:x", "SET", "gone", "PX", 60_000)

    assert queue.add(queue.job("a", more=deduplicated_by({"id": "x", "ttl": 60_000}))) == ["gone"]
    assert queue.events() == ["deduplicated jobId gone deduplicationId x deduplicatedJobId a"]


def test_reschedule_moves_the_delayed_owner(queue: Queue) -> None:
    more = deduplicated_by({"id": "x", "reschedule": True})
    queue.add(queue.job("a", delay=1000, more=more))
    queue.events()

    assert queue.add(queue.job("b", timestamp=NOW + 5, delay=3000, more=more)) == ["a"]

    due = NOW + 3005
    assert queue.value("delayed") == {"a": due * 4096}
    assert queue.value("a") == stored(delay="3000", deid="x")
    assert queue.value("marker") == {"1": due}
    assert sorted(queue.events()) == ["deduplicated jobId a deduplicationId x deduplicatedJobId b", f"delayed jobId a delay {due}"]


def test_keep_last_if_active_remembers_the_newest_job(queue: Queue) -> None:
    more = deduplicated_by({"id": "x", "ttl": 60_000, "keepLastIfActive": True})
    queue.active(queue.job("a", more=more))
    assert queue.ttl("de:x") == -1, "the owner keeps it, however long it runs"

    opts = '{"attempts":3}'
    assert queue.add(queue.job("b", data='{"v":1}', more=more), queue.job("c", data='{"v":2}', opts=opts, celery="{}", more=more)) == [
        "a",
        "a",
    ]

    assert queue.value("dn:x") == {"name": "n", "data": '{"v":2}', "opts": opts, "jid": "c", "celery": "{}"}
    assert queue.value("de:x") == "a"
    assert queue.value("c") is None
    assert queue.events() == [
        "deduplicated jobId a deduplicationId x deduplicatedJobId b",
        "deduplicated jobId a deduplicationId x deduplicatedJobId c",
    ]


def test_keep_last_if_active_remembers_nothing_while_the_owner_waits(queue: Queue) -> None:
    more = deduplicated_by({"id": "x", "keepLastIfActive": True})
    queue.add(queue.job("a", more=more), queue.job("b", more=more))

    assert queue.value("dn:x") is None


def test_keep_last_if_active_remembers_the_parent_too(queue: Queue, other: Queue) -> None:
    other.add(other.job("p"))
    more = {"keepLastIfActive": True, "id": "x"}
    queue.active(queue.job("a", more=deduplicated_by(more)))
    parent = '{"id":"p","queueKey":"bull:q"}'
    queue.add(queue.job("b", more=deduplicated_by(more, parentKey=other.key("p"), parent=parent)))

    found = queue.value("dn:x")
    assert (found["pk"], found["pd"], found["pdk"]) == (other.key("p"), parent, other.key("p:dependencies"))


# -- parents


def child_of(parent: Queue, job_id: str, **more: Any) -> str:
    flags = {name: more.pop(name) for name in ("fpof", "cpof", "idof", "rdof") if name in more}
    link = {"id": job_id, "queueKey": parent.base[:-1], **flags}
    return json.dumps({"parentKey": parent.key(job_id), "parent": json.dumps(link, separators=(",", ":")), **more})


def test_a_child_is_noted_with_its_parent(queue: Queue, other: Queue) -> None:
    other.add(other.job("p"))
    queue.add(queue.job("c", more=child_of(other, "p")))

    assert queue.value("c") == stored(
        parentKey=other.key("p"), parent=json.dumps({"id": "p", "queueKey": other.base[:-1]}, separators=(",", ":"))
    )
    assert other.value("p:dependencies") == {queue.key("c")}
    assert other.value("wait") == ["p"], "the parent stays where it is"


def test_without_its_parent_a_child_is_not_added(queue: Queue, other: Queue) -> None:
    assert queue.add(queue.job("c", more=child_of(other, "p")), queue.job("d")) == [-5, "d"]

    assert queue.value("id") == "1", "nothing was counted"
    assert queue.value("c") is None
    assert other.picture() == {}


def test_a_parent_waits_for_the_children_that_follow(queue: Queue, other: Queue) -> None:
    flow = [
        queue.job("p", priority=3, more='{"children":true}'),
        other.job("c1", more=child_of(queue, "p")),
        other.job("c2", delay=10, more=child_of(queue, "p")),
    ]
    assert queue.add(*flow) == ["p", "c1", "c2"]

    assert queue.without_meta() == {
        "id": "1",
        "waiting-children": {"p": NOW},
        "p:dependencies": {other.key("c1"), other.key("c2")},
        "p": stored(priority="3"),
    }
    assert queue.events() == ["added jobId p name n", "waiting-children jobId p"]
    assert other.value("wait") == ["c1"]
    assert other.value("delayed") == {"c2": (NOW + 10) * 4096}


def test_a_parent_none_of_whose_children_is_pending_goes_on_at_once(queue: Queue, other: Queue) -> None:
    other.active(other.job("c"))
    other.end(other.ending("completed", "c", '"value"'))
    other.events()

    assert queue.add(queue.job("p", more='{"children":true}'), other.job("c", more=child_of(queue, "p", in_flow=True))) == ["p", "c"]

    assert queue.value("wait") == ["p"]
    assert queue.value("waiting-children") is None
    assert queue.value("p:processed") == {other.key("c"): '"value"'}
    assert queue.events() == ["added jobId p name n", "waiting-children jobId p", "waiting jobId p prev waiting-children"]
    assert other.value("c")["parentKey"] == queue.key("p")
    assert other.events() == ["duplicated jobId c"]


@pytest.mark.parametrize("child", ["unique", "plain"])
@pytest.mark.parametrize("meanwhile", ["nothing", "the child completed", "both completed"])
def test_a_flow_that_is_sent_again_is_the_same_flow(queue: Queue, other: Queue, child: str, meanwhile: str) -> None:
    """The answer to the first time was lost; its tasks may be done by now."""
    more = json.loads(child_of(queue, "p", in_flow=True))
    flow = [
        queue.job("p", more=json.dumps({"in_flow": True, "children": True, "unique": True})),
        other.job("c", more=json.dumps({**more, "unique": True} if child == "unique" else more)),
    ]
    assert queue.add(*flow) == ["p", "c"]
    for one, job_id in ((other, "c"), (queue, "p"))[: ["nothing", "the child completed", "both completed"].index(meanwhile)]:
        assert [taken.id for taken in one.take()] == [job_id]
        assert one.end(one.ending("completed", job_id, "1")) == [0]
    queue.events(), other.events()

    assert queue.add(*flow) == ["p", "c"]
    assert queue.events() == []
    assert other.events() == ([] if child == "unique" else ["duplicated jobId c"])
    assert queue.value("wait") == (["p"] if meanwhile == "the child completed" else None)
    assert other.value("wait") == (["c"] if meanwhile == "nothing" else None)


def test_a_flow_of_other_messages_with_ids_that_are_taken_is_refused(queue: Queue) -> None:
    queue.add(
        queue.job("p", more='{"in_flow":true,"children":true,"unique":true}'), queue.job("c", more=child_of(queue, "p", in_flow=True))
    )
    again = queue.job("p", data='{"other":1}', more='{"in_flow":true,"children":true,"unique":true}')

    assert queue.add(again, queue.job("d", more=child_of(queue, "p", in_flow=True))) == [0, ""]
    assert queue.value("d") is None


def test_a_parent_without_children_is_not_left_waiting(queue: Queue) -> None:
    queue.add(queue.job("p", more='{"children":true}'))

    assert queue.value("wait") == ["p"]


def test_a_job_that_is_there_can_get_a_parent(queue: Queue, other: Queue) -> None:
    queue.add(queue.job("c"))
    other.add(other.job("p"))
    queue.events()

    assert queue.add(queue.job("c", data='{"v":2}', more=child_of(other, "p"))) == ["c"]

    assert other.value("p:dependencies") == {queue.key("c")}
    assert queue.value("c")["parentKey"] == other.key("p")
    assert queue.value("c")["data"] == "{}"
    assert queue.events() == ["duplicated jobId c"]


def test_a_job_that_has_completed_tells_the_parent_it_gets(queue: Queue, other: Queue) -> None:
    queue.active(queue.job("c"))
    queue.end(queue.ending("completed", "c", "7"))
    other.add(other.job("first"), other.job("p", more='{"children":true}'), queue.job("d", more=child_of(other, "p")))
    queue.redis.srem(other.key("p:dependencies"), queue.key("d"))
    other.events()

    queue.add(queue.job("c", more=child_of(other, "p")))

    assert other.value("p:processed") == {queue.key("c"): "7"}
    assert other.value("wait") == ["first", "p"], "before the others"
    assert other.events() == ["waiting jobId p prev waiting-children"]


def test_a_job_keeps_the_parent_it_has(queue: Queue, other: Queue) -> None:
    other.add(other.job("p"), other.job("q"), queue.job("c", more=child_of(other, "p")))
    before = queue.picture()
    queue.events()

    assert queue.add(queue.job("c", more=child_of(other, "q"))) == [-7]

    assert queue.picture() == {**before, "id": "2"}
    assert other.value("q:dependencies") is None
    assert queue.events() == []


def test_a_job_whose_parent_is_gone_can_get_another(queue: Queue, other: Queue) -> None:
    other.add(other.job("p"), other.job("q"), queue.job("c", more=child_of(other, "p")))
    other.set("p", "DEL")

    assert queue.add(queue.job("c", more=child_of(other, "q"))) == ["c"]
    assert other.value("q:dependencies") == {queue.key("c")}


def test_a_job_of_a_scheduler_names_it(queue: Queue) -> None:
    queue.add(queue.job("repeat:s:1", more='{"rjk":"s"}'))

    assert queue.value("repeat:s:1") == stored(rjk="s")


def test_options_are_stored_as_they_came(queue: Queue) -> None:
    opts = '{"attempts":3,"kl":[],"big":9007199254740993,"path":"a/b"}'
    queue.add(queue.job("a", opts=opts))

    assert queue.value("a") == stored(opts=opts)
