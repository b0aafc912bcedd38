"""`record`, `look_up` and the scripts of chords: what is known of tasks, through `bullmq_kombu.results`."""

from __future__ import annotations

from typing import Any

import pytest
import redis
from one_queue import NOW, WORKER, Queue

from bullmq_kombu import connection
from bullmq_kombu.results import FoundJob, Known, Results


@pytest.fixture
def results(wire: connection.Server, queue_name: str) -> Results:
    """Behind a prefix of this test's own."""
    return Results(wire, queue_name)


@pytest.fixture
def keys(redis_client: redis.Redis, wire: connection.Server, results: Results) -> Queue:
    """The keys behind `prefix::kombu:`."""
    found = Queue(redis_client, wire, "")
    found.base = results.base
    return found


@pytest.fixture
def mail(redis_client: redis.Redis, wire: connection.Server, results: Results, keys: Queue) -> Queue:
    """A queue that Celery has declared."""
    queue = Queue(redis_client, wire, "mail")
    queue.base = f"{results.prefix}:mail:"
    keys.set("queues", "SADD", "mail")
    return queue


def found(results: Results, task_id: str, **hints: str) -> Known:
    (known,), _ = results.look_up([task_id], hints)
    return known


# -- results


def test_a_result_is_stored_and_told(results: Results, keys: Queue, redis_client: redis.Redis) -> None:
    with redis_client.pubsub(ignore_subscribe_messages=True) as listener:
        listener.subscribe(results.channel("t"))
        assert listener.get_message(timeout=5) is None  # the subscription itself
        assert results.record("t", "SUCCESS", '{"v":1}', 60_000)
        assert listener.get_message(timeout=5)["data"] == '{"v":1}'

    assert keys.picture() == {"result:t": {"status": "SUCCESS", "meta": '{"v":1}'}}
    assert 55_000 < keys.ttl("result:t") <= 60_000
    assert found(results, "t") == Known("t", "SUCCESS", '{"v":1}', None)


def test_a_result_may_be_kept_for_ever(results: Results, keys: Queue) -> None:
    results.record("t", "STARTED", "1", 60_000)
    results.record("t", "FAILURE", "2", 0)

    assert keys.ttl("result:t") == -1
    assert keys.value("result:t") == {"status": "FAILURE", "meta": "2"}


def test_a_success_is_never_overwritten(results: Results, keys: Queue) -> None:
    results.record("t", "SUCCESS", "1", 0)

    assert not results.record("t", "FAILURE", "2", 60_000)
    assert keys.value("result:t") == {"status": "SUCCESS", "meta": "1"}
    assert keys.ttl("result:t") == -1


# -- jobs that tell what nobody has stored


def test_nothing_is_known(results: Results, mail: Queue) -> None:
    assert found(results, "t") == Known("t", "", "", None)
    assert results.look_up(["t"], {}, ends=True)[1] == {"mail": "0-0"}, "it may yet come there"


def test_a_job_tells_its_state(results: Results, mail: Queue) -> None:
    mail.add(mail.job("t", name="send", data='{"to":"x"}'))
    assert found(results, "t").job == FoundJob("mail", "waiting", {"name": "send", "data": '{"to":"x"}'})

    mail.take()
    job = found(results, "t").job
    assert job is not None
    assert (job.state, job.fields["pb"]) == ("active", "host")

    mail.end(mail.ending("completed", "t", '"done"'))
    job = found(results, "t").job
    assert job is not None
    assert (job.state, job.fields["returnvalue"], job.fields["finishedOn"]) == ("completed", '"done"', str(NOW))


def test_a_job_in_the_hands_of_celery_is_told_apart(results: Results, mail: Queue) -> None:
    mail.active(mail.job("t"), worker=WORKER._replace(token="kombu-1:1"))

    job = found(results, "t").job
    assert job is not None
    assert job.state == "taken"
    assert list(results.look_up(["t"], {}, ends=True)[1]) == ["mail"]


def test_a_failed_job_tells_why(results: Results, mail: Queue) -> None:
    mail.active(mail.job("t"))
    mail.end(mail.ending("failed", "t", "ValueError: no", '["trace"]'))

    job = found(results, "t").job
    assert job is not None
    assert job.state == "failed"
    assert (job.fields["failedReason"], job.fields["stacktrace"], job.fields["atm"]) == ("ValueError: no", '["trace"]', "1")


@pytest.mark.parametrize(
    ("status", "asked"), [("SUCCESS", False), ("FAILURE", False), ("REVOKED", False), ("STARTED", True), ("RETRY", True)]
)
def test_the_job_is_asked_until_the_result_is_final(results: Results, mail: Queue, status: str, asked: bool) -> None:
    mail.add(mail.job("t"))
    results.record("t", status, "m", 0)

    known = found(results, "t")
    assert (known.status, known.meta, known.job is not None) == (status, "m", asked)


def test_a_result_that_was_forgotten_is_not_told_by_its_job(results: Results, mail: Queue, keys: Queue) -> None:
    mail.add(mail.job("t"))
    results.record("t", "SUCCESS", "m", 0)
    results.forget("t", 60_000)

    assert found(results, "t").job is None
    assert keys.value("result:t") == {"status": "FORGOTTEN", "meta": ""}
    assert 55_000 < keys.ttl("result:t") <= 60_000


def test_without_a_job_nothing_is_left_of_a_forgotten_result(results: Results, keys: Queue) -> None:
    results.record("t", "SUCCESS", "m", 0)
    results.forget("t", 60_000)

    assert keys.value("result:t") is None


def test_a_job_that_ended_silently_tells_nothing(results: Results, mail: Queue, keys: Queue) -> None:
    mail.active(mail.job("t"))
    mail.end(mail.ending("completed", "t", "null", more='{"silent":true}'))

    (known,), ends = results.look_up(["t"], {"t": "mail"}, ends=True)
    assert known == Known("t", "", "", None)
    assert list(ends) == ["mail"], "what the task has become may yet come"
    mail.add(mail.job("other"))
    keys.set("job:t", "SET", "mail:other")
    job = found(results, "t", t="mail").job
    assert job is not None
    assert job.state == "waiting"


def test_a_task_that_is_called_as_a_job_might_be_is_itself(results: Results, keys: Queue, mail: Queue) -> None:
    """`mail:17` is job 17 of mail, unless a task of this very id was sent: its job has another."""
    mail.add(mail.job("17", name="Node's"))
    assert found(results, "mail:17").job.fields["name"] == "Node's"
    mail.add(mail.job("other", name="ours"))
    keys.set("job:mail:17", "SET", "mail:other")
    assert found(results, "mail:17").job.fields["name"] == "ours"


@pytest.mark.parametrize("task_id", ["events", "id", "wait", "mail:events", "mail:id", "mail:wait"])
def test_a_key_of_the_queues_own_is_no_job(results: Results, mail: Queue, task_id: str) -> None:
    mail.add(mail.job())
    assert found(results, task_id) == Known(task_id, "", "", None)


def test_a_job_that_is_run_again_after_a_silent_end_tells_its_own(results: Results, mail: Queue) -> None:
    mail.active(mail.job("t"))
    mail.end(mail.ending("completed", "t", "null", more='{"silent":true}'))
    mail.set("t", "HSET", "returnvalue", "1", "finishedOn", NOW + 1)

    job = found(results, "t").job
    assert job is not None
    assert job.fields["returnvalue"] == "1"


def test_a_numbered_job_is_looked_for_where_the_task_id_says(results: Results, mail: Queue) -> None:
    mail.add(mail.job())

    job = found(results, "mail:1").job
    assert job is not None
    assert job.queue == "mail"
    assert found(results, "1").job is None, "every queue has a job 1"
    assert found(results, "other:1").job is None
    assert found(results, "a:b:1").job is None


def test_a_hint_saves_looking_and_may_be_wrong(results: Results, mail: Queue, redis_client: redis.Redis, wire: connection.Server) -> None:
    unknown = Queue(redis_client, wire, "unknown")
    unknown.base = f"{results.prefix}:unknown:"
    unknown.add(unknown.job("u"))
    mail.add(mail.job("t"))

    assert found(results, "u").job is None, "Celery has declared no such queue"
    assert found(results, "u", u="unknown").job is not None
    assert found(results, "t", t="unknown").job is not None


def test_many_tasks_in_one_call(results: Results, mail: Queue) -> None:
    jobs = [f"t{number}" for number in range(450)]
    mail.add(*(mail.job(job) for job in jobs))

    known, ends = results.look_up([*jobs, "other"], {}, ends=True)
    assert [one.task_id for one in known] == [*jobs, "other"]
    assert all(one.job is not None for one in known[:-1])
    assert list(ends) == ["mail"]
    assert mail.redis.xrevrange(mail.key("events"), count=1)[0][0] == ends["mail"], "waiting for what comes after it misses nothing"


def test_of_finished_jobs_no_stream_has_to_be_watched(results: Results, mail: Queue) -> None:
    mail.active(mail.job("t"))
    mail.end(mail.ending("completed", "t", "1"))

    assert results.look_up(["t"], {}, ends=True)[1] == {}


# -- chords


def add(results: Results, task_id: str, place: Any, now: int = NOW, token: str = "a", hold_ms: int = 1000, keep_ms: int = 60_000) -> bool:
    return results.add_to_chord("g", place, task_id, f"outcome of {task_id}", now, token, hold_ms, keep_ms, 0)


def test_whoever_adds_the_last_part_goes_on_with_the_chord(results: Results, keys: Queue) -> None:
    results.open_chord("g", 3, 90_000)
    assert 60_000 < keys.ttl("chord:g") <= 90_000

    assert [add(results, "c", 2), add(results, "a", 0), add(results, "b", 1)] == [False, False, True]
    assert results.chord_parts("g") == ["outcome of a", "outcome of b", "outcome of c"]
    assert keys.ttl("chord:g") <= 60_000


def test_parts_without_a_place_come_last(results: Results) -> None:
    results.open_chord("g", 3, 0)
    add(results, "x", None)
    add(results, "b", 10)
    add(results, "a", 9)

    assert results.chord_parts("g") == ["outcome of a", "outcome of b", "outcome of x"]


def test_a_part_counts_once_however_often_it_is_run(results: Results) -> None:
    results.open_chord("g", 2, 0)

    assert [add(results, "a", 0) for _ in range(3)] == [False] * 3
    assert add(results, "b", 1)


def test_parts_may_come_before_the_chord_is_opened(results: Results) -> None:
    assert not add(results, "a", 0)
    assert not add(results, "b", 1)
    results.open_chord("g", 3, 0)

    assert add(results, "c", 2)


def test_a_chord_may_grow(results: Results) -> None:
    results.open_chord("g", 1, 0)
    results.extend_chord("g")

    assert not add(results, "a", 0)
    assert add(results, "b", 1)


def test_a_claim_holds_for_its_time(results: Results) -> None:
    results.open_chord("g", 1, 0)
    assert add(results, "a", 0, token="first")

    assert not add(results, "a", 0, token="second", now=NOW + 999)
    assert results.hold_chord("g", "first", NOW + 5000)
    assert not add(results, "a", 0, token="second", now=NOW + 4999)
    assert add(results, "a", 0, token="second", now=NOW + 5000), "the first one died"
    assert not results.hold_chord("g", "first", NOW + 9000)
    assert not results.close_chord("g", "first", 60_000)
    assert results.close_chord("g", "second", 60_000)


def test_a_chord_that_has_gone_on_does_not_do_so_again(results: Results, keys: Queue) -> None:
    results.open_chord("g", 1, 0)
    add(results, "a", 0)
    results.close_chord("g", "a", 60_000)

    assert keys.value("chord:g") == {"done": "1"}
    assert 55_000 < keys.ttl("chord:g") <= 60_000
    assert not add(results, "a", 0, now=NOW + 5000)
    assert results.chord_parts("g") == []


def test_a_chord_that_is_applied_again_begins_anew(results: Results) -> None:
    results.open_chord("g", 1, 0)
    add(results, "a", 0)
    results.close_chord("g", "a", 60_000)
    results.open_chord("g", 1, 0)

    assert add(results, "a", 0, token="b")


def test_a_chord_that_has_failed_is_not_completed_afterwards(results: Results) -> None:
    results.open_chord("g", 2, 0)
    add(results, "a", 0)
    results.drop_chord_size("g")

    assert not add(results, "b", 1)
