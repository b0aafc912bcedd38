"""Results of tasks that Celery runs, through `result_backend = "bullmq://…"`: as a user of `redis://` knows them."""

from __future__ import annotations

import gc
import importlib.util
import json
import secrets
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import celery
import pytest
import redis
from celery import Celery, chain, chord, group
from celery.app.defaults import NAMESPACES
from celery.app.task import Context
from celery.exceptions import ChordError, TaskRevokedError
from celery.exceptions import TimeoutError as ResultTimeoutError
from celery.result import AsyncResult, GroupResult
from celery.worker.request import Request
from jobs import Job
from kombu.exceptions import DecodeError
from results_app import make_app
from servers import Server, end, missing, spawn
from waiting import wait_until
from worker import Worker

from bullmq_kombu import JobFailed
from bullmq_kombu.connection import Server as Connections
from bullmq_kombu.results import Results

TIMEOUT_S = 20.0

AppOf = Callable[..., Celery]
needs_chord_expires = pytest.mark.skipif("chord_expires" not in NAMESPACES["result"], reason="Celery 5.7 brought result_chord_expires")


@pytest.fixture(scope="module")
def queue(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A queue with a worker, for all tests that only need tasks run."""
    name = f"results-{secrets.token_hex(4)}"
    with worker_of(server, tmp_path_factory.mktemp("worker"), name, concurrency=3):
        yield name


def worker_of(server: Server, folder: Path, queue: str, **settings: Any) -> Worker:
    """A worker of that queue, to which it also sends what its tasks send."""
    pool, concurrency = settings.pop("pool", "prefork"), settings.pop("concurrency", 2)
    settings = {"task_default_queue": queue, **settings}
    return Worker(server, folder, [queue], app="results_app", pool=pool, concurrency=concurrency, settings=settings)


@pytest.fixture
def app_of(server: Server, queue_name: str) -> Iterator[AppOf]:
    """`app_of(…)`: an app with these settings; its default queue is that of the test."""
    made: list[Celery] = []

    def make(backend: str = "", **settings: Any) -> Celery:
        app = make_app(server.url, backend or server.url, task_default_queue=queue_name, **settings)
        made.append(app)
        return app

    yield make
    for app in made:
        app.backend.result_consumer.stop()
        app.backend.server.close()
        app.close()


@pytest.fixture
def app(app_of: AppOf, queue: str) -> Celery:
    """An app whose tasks go to the shared worker."""
    app = app_of()
    app.conf.task_default_queue = queue
    return app


def send(app: Celery, name: str, *args: Any, **options: Any) -> AsyncResult:
    result: AsyncResult = app.tasks[name].apply_async(args, **options)
    return result


def took(call: Callable[[], Any]) -> float:
    start = time.monotonic()
    with pytest.raises(ResultTimeoutError):
        call()
    return time.monotonic() - start


# -- one task ------------------------------------------------------------------------------------------------------------------


def test_a_value_and_all_that_is_told_about_it(app: Celery) -> None:
    result = send(app, "r.add", 1, 2)

    assert result.get(timeout=TIMEOUT_S) == 3
    assert (result.state, result.info, result.traceback, result.ready(), result.successful()) == ("SUCCESS", 3, None, True, True)
    assert result.date_done is not None
    assert AsyncResult(result.id, app=app).get(timeout=0) == 3


def test_a_failure_is_raised_as_it_was(app: Celery) -> None:
    result = send(app, "r.fail", "the message")

    with pytest.raises(ValueError, match="the message"):
        result.get(timeout=TIMEOUT_S)
    assert (result.state, result.failed(), str(result.result)) == ("FAILURE", True, "the message")
    assert "ValueError: the message" in result.traceback
    assert isinstance(result.get(propagate=False), ValueError)


def test_an_exception_of_a_class_that_is_not_known_here(app: Celery, server: Server, tmp_path: Path, queue: str) -> None:
    result = send(app, "r.odd", "class")
    code = f"""
from celery import Celery
try:
    Celery("other", backend=URL).AsyncResult({result.id!r}).get(timeout=20)
except Exception as error:
    print(type(error).__name__, error.args)
"""
    assert run(code, server, queue, tmp_path) == "Peculiar ('so it is', 7)"


@pytest.mark.parametrize(("what", "name"), [("result", "EncodeError"), ("exception", "ValueError")])
def test_what_cannot_be_serialized_is_a_failure_that_says_so(app: Celery, what: str, name: str) -> None:
    with pytest.raises(Exception, match="Odd") as caught:
        send(app, "r.odd", what).get(timeout=TIMEOUT_S)
    assert type(caught.value).__name__ == name


@pytest.mark.parametrize("timeout", [0, 0.3, 1.2])
def test_an_id_never_seen_is_pending_and_a_wait_for_it_ends_in_time(app: Celery, timeout: float) -> None:
    result = AsyncResult("nobody-has-it", app=app)

    assert result.state == "PENDING"
    assert took(lambda: result.get(timeout=timeout)) < timeout + 0.4


def test_a_wait_that_timed_out_can_be_taken_up_again(app: Celery, tmp_path: Path) -> None:
    result = send(app, "r.wait", str(tmp_path / "it"))
    assert took(lambda: result.get(timeout=0.2)) < 0.6
    (tmp_path / "it.go").touch()
    assert result.get(timeout=TIMEOUT_S) == "done"


def test_a_task_under_way_is_started_where_celery_tracks_that(app: Celery, tmp_path: Path) -> None:
    for name, state in (("wait", "PENDING"), ("tracked", "STARTED")):
        result = send(app, f"r.{name}", str(tmp_path / name))
        wait_until((tmp_path / f"{name}.started").exists, what=f"{name} to be started")
        assert result.state == state, "as with redis://"
        (tmp_path / f"{name}.go").touch()
        assert result.get(timeout=TIMEOUT_S) == "done"


def test_a_retry_is_told_and_then_the_value(app: Celery, tmp_path: Path) -> None:
    result = send(app, "r.retried", str(tmp_path / "it"))
    wait_until(lambda: result.state == "RETRY" and isinstance(result.info, ConnectionError), what="the first attempt to have failed")
    (tmp_path / "it.go").touch()
    assert result.get(timeout=TIMEOUT_S) == "the second time"


def test_a_revoked_task_raises_that(app_of: AppOf, queue_name: str, server: Server, tmp_path: Path) -> None:
    app = app_of()
    result = send(app, "r.add", 1, 1)
    with worker_of(server, tmp_path, f"{queue_name}-not-yet") as worker:
        result.revoke()
        app.control.add_consumer(queue_name, destination=[worker.name], reply=True, timeout=5)
        with pytest.raises(TaskRevokedError):
            result.get(timeout=TIMEOUT_S)
    assert result.state == "REVOKED"


def test_then_calls_back(app: Celery) -> None:
    seen: list[Any] = []
    result = send(app, "r.add", 2, 2)
    result.then(lambda result: seen.append(result.result))
    assert result.get(timeout=TIMEOUT_S) == 4
    assert seen == [4]


@pytest.mark.skipif(not hasattr(Request, "_success_was_stored"), reason="Celery 5.7 looks whether a lost process had stored its result")
@pytest.mark.parametrize("late", [False, True])
def test_a_task_whose_process_is_lost_when_its_result_is_stored(app: Celery, redis_client: redis.Redis, queue: str, late: bool) -> None:
    """It has succeeded for both sides."""
    app.tasks["r.dies.afterwards"].acks_late = late
    result = send(app, "r.dies.afterwards")
    assert result.get(timeout=TIMEOUT_S) == [1]
    job = Job(redis_client, queue, result.id).wait_for("completed", "failed")
    assert (job.state, job.returnvalue) == ("completed", [1])


def test_a_callback_may_wait_for_another_result(app: Celery, tmp_path: Path) -> None:
    """The thread that calls it is the one that listens for all."""
    heard: list[Any] = []
    ats = [tmp_path / "first", tmp_path / "second"]
    first, second = (send(app, "r.wait", str(at)) for at in ats)

    def then(result: AsyncResult) -> None:
        ats[1].with_suffix(".go").touch()
        heard.append(second.get(timeout=TIMEOUT_S))

    first.then(then)
    wait_until(lambda: all(at.with_suffix(".started").exists() for at in ats), what="both to run")
    ats[0].with_suffix(".go").touch()
    assert first.get(timeout=TIMEOUT_S) == "done"
    assert heard == ["done"]


def test_what_a_task_says_of_itself_is_told_and_is_the_jobs_progress(
    app: Celery, tmp_path: Path, redis_client: redis.Redis, queue: str
) -> None:
    result = send(app, "r.progress", str(tmp_path / "it"))
    wait_until(lambda: result.state == "PROGRESS", what="the first progress")
    assert result.info == {"page": 1}
    job = Job(redis_client, queue, result.id)
    assert json.loads(job.hash["progress"]) == {"page": 1}
    told: list[Any] = []

    thread, got = waiting(result, on_message=lambda meta: told.append((meta["status"], meta["result"])))
    wait_until(lambda: waits(redis_client, result), what="the wait")
    (tmp_path / "it.go").touch()
    thread.join(TIMEOUT_S)

    assert got == ["read"]
    assert ("PROGRESS", {"page": 2}) in told
    assert told[-1] == ("SUCCESS", "read")
    assert json.loads(job.hash["progress"]) == {"page": 2}
    assert job.history.count("progress") == 2


def test_a_state_set_before_ignore_stays(app: Celery, redis_client: redis.Redis, queue: str) -> None:
    result = send(app, "r.set.aside")
    Job(redis_client, queue, result.id).wait_for("completed")
    assert (result.state, result.info) == ("SET ASIDE", "for later")


def test_an_ignored_task_is_pending_though_its_job_is_completed(app: Celery, redis_client: redis.Redis, queue: str) -> None:
    result = send(app, "r.ignored")
    Job(redis_client, queue, result.id).wait_for("completed")

    assert (result.state, result.result) == ("PENDING", None)
    with pytest.raises(ResultTimeoutError):
        result.get(timeout=0.1)


def test_a_task_replaced_by_a_chain_is_done_when_the_chain_is(
    app: Celery, redis_client: redis.Redis, queue: str, tmp_path: Path
) -> None:  # fmt: skip
    at = str(tmp_path / "chain")
    result = send(app, "r.chained", at)
    Job(redis_client, queue, result.id).wait_for("completed")

    assert (result.state, result.result) == ("PENDING", None)
    Path(f"{at}.go").touch()
    assert result.get(timeout=TIMEOUT_S) == at


# -- what is kept, and for how long ------------------------------------------------------------------------------------------------


def key_of(result: AsyncResult) -> str:
    return f"bull::kombu:result:{result.id}"


@pytest.mark.parametrize("state", ["SUCCESS", "FAILURE", "RETRY", "PROGRESS"])
def test_a_result_is_kept_for_as_long_as_the_setting_says(app_of: AppOf, redis_client: redis.Redis, state: str) -> None:
    """A failure has a setting of its own since Celery 5.7; without it, it is kept as all the others are."""
    forever, day = (-1, -1), (86_300_000, 86_400_000)
    cases: list[tuple[dict[str, Any], Any, Any]] = [
        ({"result_expires": 90}, (80_000, 90_000), (80_000, 90_000)),
        ({"result_expires": None}, forever, forever),
        ({"result_expires": 0}, forever, forever),
        ({"result_expires": 90, "result_failure_expires": 300}, (80_000, 90_000), (290_000, 300_000)),
        ({"result_expires": 90, "result_failure_expires": 0}, (80_000, 90_000), forever),
        ({"result_expires": 0, "result_failure_expires": 300}, forever, (290_000, 300_000)),
        ({"result_failure_expires": 300}, day, (290_000, 300_000)),
    ]
    for settings, wanted, of_failure in cases:
        app = app_of(**settings)
        result = AsyncResult(f"kept-{secrets.token_hex(6)}", app=app)
        app.backend.store_result(result.id, ValueError("it") if state in ("FAILURE", "RETRY") else 1, state)
        least, most = of_failure if state == "FAILURE" else wanted
        assert least <= redis_client.pttl(key_of(result)) <= most, settings


@pytest.mark.parametrize(("settings", "wanted"), [
    ({"result_expires": 90}, (80_000, 90_000)),
    ({"result_expires": 0}, (-1, -1)),
    pytest.param({"result_expires": 90, "result_chord_expires": 300}, (290_000, 300_000), marks=needs_chord_expires),
    pytest.param({"result_expires": 90, "result_chord_expires": 0}, (-1, -1), marks=needs_chord_expires),
])  # fmt: skip
def test_an_unfinished_chord_is_kept_for_as_long_as_the_setting_says(
    app_of: AppOf, redis_client: redis.Redis, settings: dict[str, Any], wanted: tuple[int, int]
) -> None:
    """From its start and from each of its parts; the parts' own results are kept as any other."""
    app = app_of(**settings)
    header, group_id = app.tasks["r.add"], f"chord-{secrets.token_hex(6)}"
    key = f"bull::kombu:chord:{group_id}"
    least, most = wanted
    app.backend.set_chord_size(group_id, 2)
    assert least <= redis_client.pttl(key) <= most
    redis_client.persist(key)
    request = Context(id=f"part-{group_id}", group=group_id, group_index=0, chord=app.tasks["r.total"].s(), task=header.name)
    app.backend.mark_as_done(request.id, 1, request=request)
    assert redis_client.hlen(key) > 1
    assert least <= redis_client.pttl(key) <= most
    kept = redis_client.pttl(key_of(AsyncResult(request.id, app=app)))
    assert kept == -1 if settings["result_expires"] == 0 else 80_000 <= kept <= 90_000


def test_an_expired_result_is_pending_though_its_job_is_still_there(
    app_of: AppOf, server: Server, tmp_path: Path, queue_name: str, redis_client: redis.Redis
) -> None:
    """A wait for it is no hang. Who keeps results for longer is told by the job, as long as that is there."""
    brief, app = app_of(result_expires=1), app_of()
    with worker_of(server, tmp_path, queue_name, result_expires=1) as worker:
        done, failed = send(brief, "r.add", 1, 1), send(brief, "r.fail", "the message")
        jobs = [Job(redis_client, queue_name, result.id).wait_for("completed", "failed") for result in (done, failed)]
        worker.kill()
    for result, job, state in zip((done, failed), jobs, ("completed", "failed"), strict=True):
        wait_until(lambda result=result: not redis_client.exists(key_of(result)), what="Redis to drop the result")
        wait_until(lambda result=result: AsyncResult(result.id, app=brief).state == "PENDING", what="the job's own to expire")
        late = AsyncResult(result.id, app=brief)
        assert took(lambda late=late: late.get(timeout=0.3)) < 1.0
        assert (late.result, late.ready(), job.state) == (None, False, state)
    assert AsyncResult(done.id, app=app).get(timeout=1) == 2
    with pytest.raises(JobFailed, match="the message"):
        AsyncResult(failed.id, app=app).get(timeout=1)


def test_a_forgotten_result_is_pending_though_its_job_is_still_there(app: Celery, queue: str, redis_client: redis.Redis) -> None:
    result = send(app, "r.add", 1, 1)
    assert result.get(timeout=TIMEOUT_S) == 2
    job = Job(redis_client, queue, result.id).wait_for("completed")

    result.forget()

    assert (AsyncResult(result.id, app=app).state, job.returnvalue) == ("PENDING", 2)
    assert redis_client.ttl(key_of(result)) > 0
    # An id that may be used again: then its result is told as any other.
    app.backend.store_result(result.id, 7, "SUCCESS")
    assert AsyncResult(result.id, app=app).get(timeout=0) == 7


def test_an_ignored_result_is_not_stored_and_not_waited_for(app: Celery, queue: str, redis_client: redis.Redis) -> None:
    result = send(app, "r.quiet", "anything")
    assert result.get(timeout=0) is None
    Job(redis_client, queue, result.id).wait_for("completed")
    assert not redis_client.exists(key_of(result))
    assert AsyncResult(result.id, app=app).state == "PENDING", "as with redis://, though the job has the value"
    failed = send(app, "r.fail", "no", ignore_result=True)
    Job(redis_client, queue, failed.id).wait_for("failed")
    # Before Celery 5.6 the failure of a call whose result is ignored is stored where the task's own is not ignored.
    assert AsyncResult(failed.id, app=app).state == ("FAILURE" if celery.__version__ < "5.6" else "PENDING")


def test_extended_results_tell_of_the_call(app_of: AppOf, queue_name: str, server: Server, tmp_path: Path) -> None:
    app = app_of(result_extended=True)
    with worker_of(server, tmp_path, queue_name, result_extended=True) as worker:
        result = send(app, "r.add", 1, 2)
        assert result.get(timeout=TIMEOUT_S) == 3
    assert (result.name, list(result.args), result.kwargs, result.queue, result.retries) == ("r.add", [1, 2], {}, queue_name, 0)
    assert result.worker == worker.name


def test_a_success_is_not_overwritten(app: Celery) -> None:
    backend = app.backend
    backend.store_result("done-once", "first", "SUCCESS")
    backend.store_result("done-once", ValueError("late"), "FAILURE")
    assert AsyncResult("done-once", app=app).result == "first"


@pytest.mark.parametrize("settings", [
    {"result_serializer": "pickle", "accept_content": ["json", "pickle"]},
    {"result_serializer": "yaml", "accept_content": ["json", "yaml"]},
    {"result_compression": "gzip"},
])  # fmt: skip
def test_every_serializer_and_compression(app_of: AppOf, settings: dict[str, Any]) -> None:
    if settings.get("result_serializer") == "yaml":
        pytest.importorskip("yaml")
    app = app_of(**settings)
    value = {"text": "ä\udcff" if "result_compression" not in settings else "ä", "many": list(range(500))}
    task_id = f"kept-{secrets.token_hex(6)}"
    app.backend.store_result(task_id, value, "SUCCESS")
    assert app_of(**settings).AsyncResult(task_id).get(timeout=0) == value


def store_pickled(app: Celery, task_id: str) -> None:
    """As another deployment might, whose serializer this one does not take."""
    with make_app(str(app.conf.broker_url), str(app.conf.result_backend), result_serializer="pickle") as other:
        other.backend.store_result(task_id, "value", "SUCCESS")
        other.backend.server.close()


@pytest.mark.parametrize("grouped", [False, True])
def test_a_result_that_cannot_be_read_is_the_trouble_of_who_asked_for_it(app: Celery, tmp_path: Path, grouped: bool) -> None:
    bad = AsyncResult(f"bad-{secrets.token_hex(6)}", app=app)
    good = send(app, "r.wait", str(tmp_path / "it"))
    store_pickled(app, bad.id)
    asked = GroupResult("any", [bad, good], app=app) if grouped else bad
    with pytest.raises(DecodeError):
        asked.get(timeout=TIMEOUT_S)
    assert took(lambda: good.get(timeout=0.5)) < 5
    tmp_path.joinpath("it.go").touch()
    assert good.get(timeout=TIMEOUT_S) == "done"
    with pytest.raises(DecodeError):
        asked.get(timeout=TIMEOUT_S)


@pytest.mark.parametrize("published", [False, True])
def test_a_result_that_comes_and_cannot_be_read_is_told_to_its_own_waiter(
    app: Celery, tmp_path: Path, redis_client: redis.Redis, published: bool
) -> None:
    """Whoever of the waiters it is that listens for all. `published`: it is heard; otherwise it is looked up."""
    bad = AsyncResult(f"bad-{secrets.token_hex(6)}", app=app)
    good = send(app, "r.wait", str(tmp_path / "it"))
    with ThreadPoolExecutor(2) as pool:
        waits = []
        for result in (good, bad):
            waits.append(pool.submit(result.get, timeout=TIMEOUT_S))
            channel = app.backend.results.channel(result.id)
            wait_until(lambda channel=channel: dict(redis_client.pubsub_numsub(channel))[channel], what="a subscription")
        if published:
            store_pickled(app, bad.id)
        else:
            redis_client.hset(app.backend.results.channel(bad.id), mapping={"status": "SUCCESS", "meta": "no JSON"})
            redis_client.client_kill_filter(_type="pubsub")
        with pytest.raises(DecodeError):
            waits[1].result(TIMEOUT_S)
        assert not waits[0].done()
        tmp_path.joinpath("it.go").touch()
        assert waits[0].result(TIMEOUT_S) == "done"


@pytest.mark.parametrize("name", ["events", "id", "meta", "completed", "marker", "wait"])
def test_an_id_that_is_the_name_of_a_queues_own_key_is_that_of_no_task(app: Celery, tmp_path: Path, name: str) -> None:
    assert send(app, "r.add", 1, 2).get(timeout=TIMEOUT_S) == 3  # all of them are there
    for task_id in (name, f"{app.conf.task_default_queue}:{name}"):
        asked = AsyncResult(task_id, app=app)
        assert asked.state == "PENDING"
        assert took(lambda asked=asked: asked.get(timeout=0.2)) < 5
    good = send(app, "r.wait", str(tmp_path / "it"))
    assert took(lambda: good.get(timeout=0.3)) < 5
    tmp_path.joinpath("it.go").touch()
    assert good.get(timeout=TIMEOUT_S) == "done"


# -- many tasks ------------------------------------------------------------------------------------------------------------------


def test_a_result_that_is_thrown_away_takes_no_other_with_it(app: Celery) -> None:
    """As Celery itself throws some away while a group is sent."""
    sent = send(app, "r.add", 1, 2)
    waiting = GroupResult("any", [AsyncResult(sent.id, app=app)], app=app)
    other = AsyncResult(sent.id, app=app)
    del other
    gc.collect()
    assert waiting.get(timeout=TIMEOUT_S) == [3]


def test_a_group(app: Celery) -> None:
    result = group(app.tasks["r.add"].s(one, one) for one in range(60)).apply_async()
    assert result.get(timeout=TIMEOUT_S) == [one * 2 for one in range(60)]
    assert result.successful()


def test_a_group_is_joined_as_its_results_come(app: Celery, tmp_path: Path) -> None:
    waits = app.tasks["r.wait"].s(str(tmp_path / "it"))
    result = group(waits, app.tasks["r.add"].s(1, 1), app.tasks["r.add"].s(2, 2)).apply_async()
    seen = []
    for task_id, meta in result.iter_native(timeout=TIMEOUT_S):
        seen.append((task_id, meta["result"]))
        if len(seen) == 2:
            (tmp_path / "it.go").touch()
    assert dict(seen) == dict(zip([one.id for one in result.results], ["done", 2, 4], strict=True))
    assert seen[-1][1] == "done"


def test_a_group_that_is_not_done_in_time(app: Celery, tmp_path: Path) -> None:
    result = group(app.tasks["r.wait"].s(str(tmp_path / "it")), app.tasks["r.add"].s(1, 1)).apply_async()
    assert took(lambda: result.get(timeout=0.5)) < 1.0
    (tmp_path / "it.go").touch()
    assert result.get(timeout=TIMEOUT_S) == ["done", 2]


def test_a_saved_group_is_found_again(app_of: AppOf, app: Celery) -> None:
    result = group(app.tasks["r.add"].s(1, 1), app.tasks["r.add"].s(2, 2)).apply_async()
    result.save()
    other = app_of()
    found = GroupResult.restore(result.id, app=other, backend=other.backend)
    assert found.get(timeout=TIMEOUT_S) == [2, 4]
    found.delete()
    assert GroupResult.restore(result.id, app=app_of(), backend=app_of().backend) is None


def test_a_chain(app: Celery) -> None:
    result = chain(app.tasks["r.add"].s(1, 1), app.tasks["r.add"].s(2), app.tasks["r.add"].s(3)).apply_async()
    assert result.get(timeout=TIMEOUT_S) == 7
    assert result.parent.get(timeout=1) == 4
    assert [value for _, value in result.parent.parent.collect()] == [2, 4, 7]


def test_a_chain_that_fails_on_the_way(app: Celery) -> None:
    result = chain(app.tasks["r.fail"].si("on the way"), app.tasks["r.add"].s(2)).apply_async()
    with pytest.raises(ValueError, match="on the way"):
        result.get(timeout=TIMEOUT_S)


def test_a_chord(app: Celery, redis_client: redis.Redis) -> None:
    result = chord([app.tasks["r.add"].s(one, one) for one in range(20)])(app.tasks["r.total"].s())
    assert result.get(timeout=TIMEOUT_S) == 380
    key = f"bull::kombu:chord:{result.parent.id}"
    wait_until(lambda: redis_client.hgetall(key) == {"done": "1"}, what="the chord's parts to be forgotten")
    assert redis_client.ttl(key) > 0


def test_a_chord_keeps_the_order_of_its_parts(app: Celery) -> None:
    parts = [app.tasks["r.value"].s([one]) for one in range(12)]
    assert chord(parts)(app.tasks["r.value"].s()).get(timeout=TIMEOUT_S) == [[one] for one in range(12)]


def test_chords_within_chains_groups_and_chords(app: Celery) -> None:
    add, total = app.tasks["r.add"], app.tasks["r.total"]
    within = chain(group(add.s(1, 1), add.s(2, 2)), total.s(), add.s(10))
    assert within.apply_async().get(timeout=TIMEOUT_S) == 16
    nested = chord([chain(add.s(1, 1), add.s(1)), group(add.s(5, 5), add.s(6, 6))])(app.tasks["r.value"].s())
    # In which order Celery's releases differ; they agree that a group among the parts is parts.
    assert sorted(nested.get(timeout=TIMEOUT_S)) == [3, 10, 12]
    replaced = chord([app.tasks["r.spread"].s(3)])(app.tasks["r.value"].s())
    # Celery 5.3 does not number the parts of a group that replaces a task: their order is then nobody's.
    assert [sorted(part) for part in replaced.get(timeout=TIMEOUT_S)] == [[1, 2, 3]]


def test_a_chord_with_a_part_that_fails(app: Celery) -> None:
    result = chord([app.tasks["r.add"].s(1, 1), app.tasks["r.fail"].s("a part")])(app.tasks["r.total"].s())
    with pytest.raises(ChordError, match="raised ValueError"):
        AsyncResult(result.id, app=app).get(timeout=TIMEOUT_S)


def test_a_part_of_a_chord_that_is_run_twice_counts_once(server: Server, app: Celery) -> None:
    results: Results = app.backend.results
    more = (1_000, "token", 5_000, 60_000, 0)
    results.open_chord("g", 2, 60_000)
    assert not results.add_to_chord("g", 1, "b", "second", *more)
    assert not results.add_to_chord("g", 1, "b", "second again", *more)
    assert results.add_to_chord("g", 0, "a", "first", *more)
    assert results.chord_parts("g") == ["first", "second"]
    # While the claim holds nobody else gets it; once it ran out, the part that is run again does.
    assert not results.add_to_chord("g", 0, "a", "first", 2_000, "other", 5_000, 60_000, 0)
    assert results.add_to_chord("g", 0, "a", "first", 7_000, "other", 5_000, 60_000, 0)
    assert not results.hold_chord("g", "token", 99_000)
    assert results.hold_chord("g", "other", 99_000)
    assert not results.close_chord("g", "token", 60_000)
    assert results.close_chord("g", "other", 60_000)
    assert not results.add_to_chord("g", 0, "a", "first", 200_000, "late", 5_000, 60_000, 0)


# -- attempts --------------------------------------------------------------------------------------------------------------------


def test_a_failure_with_attempts_left_is_no_end(app: Celery, tmp_path: Path) -> None:
    attempts = {"bullmq": {"attempts": 2, "backoff": 300}}
    result = send(app, "r.twice", str(tmp_path / "one"), **attempts)
    wait_until(lambda: result.state == "RETRY" and isinstance(result.info, ConnectionError), what="the first attempt to have failed")
    assert result.get(timeout=TIMEOUT_S) == 2

    in_chord = chord([app.tasks["r.twice"].s(str(tmp_path / "two")).set(**attempts), app.tasks["r.add"].s(1, 1)])(app.tasks["r.total"].s())
    assert in_chord.get(timeout=TIMEOUT_S) == 4


def test_the_last_attempts_failure_is_the_end(app: Celery) -> None:
    result = send(app, "r.fail", "each time", bullmq={"attempts": 2})
    with pytest.raises(ValueError, match="each time"):
        result.get(timeout=TIMEOUT_S)


# -- other pools than prefork ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pool", ["solo", "threads", "gevent", "eventlet"])
def test_every_pool_stores_results(
    app_of: AppOf, server: Server, tmp_path: Path, queue_name: str, redis_client: redis.Redis, pool: str
) -> None:
    """Values, failures, groups, chords within each other, retries, and what a task says of itself on the way."""
    app = app_of()
    add, fail, total, value = (app.tasks[f"r.{name}"] for name in ("add", "fail", "total", "value"))
    with worker_of(server, tmp_path, queue_name, pool=pool, concurrency=1 if pool == "solo" else 3) as worker:
        assert group(add.s(one, one) for one in range(20)).apply_async().get(timeout=TIMEOUT_S) == [one * 2 for one in range(20)]
        result = chord([add.s(one, one) for one in range(20)])(total.s())
        assert result.get(timeout=TIMEOUT_S) == 380
        key = f"bull::kombu:chord:{result.parent.id}"
        wait_until(lambda: redis_client.hgetall(key) == {"done": "1"}, what="the chord's parts to be forgotten")
        assert chord([chain(add.s(1, 1), add.s(1)), value.s(7)])(value.s()).get(timeout=TIMEOUT_S) == [3, 7]
        failed = chord([add.s(1, 1), fail.s("a part")])(total.s())
        with pytest.raises(ChordError, match="raised ValueError"):
            AsyncResult(failed.id, app=app).get(timeout=TIMEOUT_S)
        (tmp_path / "again.go").touch()
        assert send(app, "r.retried", str(tmp_path / "again")).get(timeout=TIMEOUT_S) == "the second time"

        told: list[Any] = []
        progress = send(app, "r.progress", str(tmp_path / "it"))
        wait_until(lambda: progress.state == "PROGRESS" and progress.info == {"page": 1}, what="the first progress")
        thread, got = waiting(progress, on_message=lambda meta: told.append((meta["status"], meta["result"])))
        wait_until(lambda: waits(redis_client, progress), what="the wait")
        (tmp_path / "it.go").touch()
        thread.join(TIMEOUT_S)
        assert (got, told[-2:]) == (["read"], [("PROGRESS", {"page": 2}), ("SUCCESS", "read")])
        job = Job(redis_client, queue_name, progress.id).wait_for("completed")
        assert (json.loads(job.hash["progress"]), job.returnvalue) == ({"page": 2}, "read")
        worker.kill()


# -- where the result could not be stored ------------------------------------------------------------------------------------------


def test_the_task_of_a_worker_that_died_fails_instead_of_being_waited_for(
    app_of: AppOf, queue_name: str, server: Server, tmp_path: Path, redis_client: redis.Redis
) -> None:
    app = app_of()
    with worker_of(server, tmp_path, queue_name) as worker:
        result = send(app, "r.wait", str(tmp_path / "it"))
        wait_until(lambda: "defa" in Job(redis_client, queue_name, result.id).hash, what="the task to be under way")
        worker.kill()
    with worker_of(server, tmp_path, queue_name):
        with pytest.raises(JobFailed, match="worker lost after acknowledging early"):
            result.get(timeout=TIMEOUT_S)
    assert result.state == "FAILURE"


def test_a_result_backend_on_another_server(
    app_of: AppOf, queue_name: str, server: Server, tmp_path: Path, redis_client: redis.Redis
) -> None:
    with Server() as other:
        app = app_of(other.url)
        with worker_of(server, tmp_path, queue_name, result_backend=other.url):
            assert send(app, "r.add", 1, 1).get(timeout=TIMEOUT_S) == 2
            parts = [app.tasks["r.add"].s(one, 1) for one in range(3)]
            result = chord(parts)(app.tasks["r.total"].s())
            assert result.get(timeout=TIMEOUT_S) == 6
            # A pool process that is stopped at the moment its task ends waits half a minute (in billiard) to be heard.
            Job(redis_client, queue_name, result.id).wait_for("completed")


@pytest.mark.parametrize("ended", [False, True], ids=["waiting", "completed"])
def test_a_job_that_no_celery_worker_runs_is_unknown_to_a_backend_on_another_server(app_of: AppOf, queue_name: str, ended: bool) -> None:
    """Whoever completes it, as Node would, tells the broker's server alone: the wait ends in time."""
    with Server() as other:
        here, elsewhere = app_of(), app_of(other.url)
        result = send(elsewhere, "r.add", 1, 1)
        if ended:
            complete(here, queue_name)
            assert AsyncResult(result.id, app=here).state == "SUCCESS", "by the backend on the broker's server"
        assert result.state == "PENDING"
        assert took(lambda: result.get(timeout=0.3)) < 1.0


def complete(app: Celery, queue: str) -> None:
    """Ends the next job as one does who knows nothing of Celery: no result is stored."""
    with app.connection_for_read() as connection, connection.SimpleQueue(queue) as jobs:
        jobs.get(timeout=TIMEOUT_S).ack()


# -- connections ---------------------------------------------------------------------------------------------------------------------


def waiting(result: AsyncResult, **options: Any) -> tuple[threading.Thread, list[Any]]:
    """A thread that waits for the result, and what it got."""
    got: list[Any] = []

    def wait() -> None:
        try:
            got.append(result.get(timeout=TIMEOUT_S, **options))
        except Exception as error:
            got.append(error)

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    return thread, got


def waits(client: redis.Redis, result: AsyncResult) -> bool:
    channels: Any = client.pubsub_channels(key_of(result))
    blocked: Any = client.info("clients")
    return bool(channels) and blocked["blocked_clients"] > 0


def test_a_wait_outlives_its_connections(app: Celery, tmp_path: Path, redis_client: redis.Redis) -> None:
    result = send(app, "r.wait", str(tmp_path / "it"))
    thread, got = waiting(result)
    wait_until(lambda: waits(redis_client, result), what="the wait")

    redis_client.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
    (tmp_path / "it.go").touch()

    thread.join(TIMEOUT_S)
    assert got == ["done"]


def test_a_wait_outlives_a_restart_of_redis(tmp_path: Path, queue_name: str) -> None:
    with Server(appendonly=True) as server, worker_of(server, tmp_path, queue_name):
        app = make_app(server.url, server.url, task_default_queue=queue_name)
        result = send(app, "r.wait", str(tmp_path / "it"))
        wait_until((tmp_path / "it.started").exists, what="the task to be under way")
        thread, got = waiting(result)
        server.restart(between=(tmp_path / "it.go").touch)
        thread.join(TIMEOUT_S * 2)
        assert got == ["done"]
        app.backend.result_consumer.stop()
        app.backend.server.close()
        app.close()


def test_nothing_stays_subscribed(app: Celery, redis_client: redis.Redis) -> None:
    results = [send(app, "r.add", one, one) for one in range(5)]
    for result in results:
        result.get(timeout=TIMEOUT_S)
    abandoned = AsyncResult("abandoned", app=app)
    with pytest.raises(ResultTimeoutError):
        abandoned.get(timeout=0.1)
    abandoned.forget()
    # What is given up is left with the next wait.
    send(app, "r.add", 1, 1).get(timeout=TIMEOUT_S)
    wait_until(lambda: redis_client.pubsub_channels("bull::kombu:result:*") == [], what="no subscription")


def test_sending_subscribes_to_nothing(app: Celery, redis_client: redis.Redis) -> None:
    result = send(app, "r.add", 1, 1)
    assert key_of(result) not in redis_client.pubsub_channels("bull::kombu:result:*")


def test_many_threads_wait_on_one_backend(app_of: AppOf, queue: str) -> None:
    app = app_of(result_backend_thread_safe=True)
    app.conf.task_default_queue = queue
    results = [send(app, "r.add", one, one) for one in range(20)]
    waits = [waiting(AsyncResult(result.id, app=app, backend=app.backend)) for result in results]
    for thread, _ in waits:
        thread.join(TIMEOUT_S)
    assert [got for _, got in waits] == [[one * 2] for one in range(20)]


def test_a_result_of_ones_own_task_is_not_looked_for_in_all_queues(queue_name: str) -> None:
    """Nor where another app of the process has a backend too."""
    # A server of its own, which nobody else asks anything meanwhile.
    with Server() as server, server.client() as client, make_app(server.url, server.url) as other, make_app(server.url, server.url) as app:
        assert other.backend is not app.backend
        client.sadd("bull::kombu:queues", *(f"other-{number}" for number in range(500)))

        def looks() -> int:
            stats: Any = client.info("commandstats")
            return int(stats.get("cmdstat_hmget", {"calls": 0})["calls"])

        sent = [app.send_task("echo", queue=queue_name) for _ in range(10)]
        before = looks()
        assert {result.state for result in sent} == {"PENDING"}
        assert looks() - before < 100
        app.backend.result_consumer.stop()
        app.backend.server.close()


def test_through_a_unix_socket(server: Server, app_of: AppOf, queue: str) -> None:
    app = app_of(server.unix_url)
    app.conf.task_default_queue = queue
    assert send(app, "r.add", 3, 4).get(timeout=TIMEOUT_S) == 7


@pytest.mark.parametrize(("url", "where", "shown"), [
    ("bullmq://:secret@h:1/2", "tcp://h:1/2", "bullmq://:**@h:1/2"),
    ("bullmqs://h:1/2", "tcp://h:1/2", "bullmqs://h:1/2"),
    ("bullmq+unix:///a/b.sock", "unix:///a/b.sock/0", "bullmq+unix:///a/b.sock"),
    ("bullmq+sentinel://:secret@a:1/0;bullmq+sentinel://:secret@b:2/0", "sentinel://a:1,b:2/0", None),
    ("bullmq+cluster://a:1", "cluster://a:1/0", None),
])  # fmt: skip
def test_every_form_of_the_url(app_of: AppOf, url: str, where: str, shown: str | None) -> None:
    app = app_of(url, result_backend_transport_options={"master_name": "m", "prefix": "{bull}"})
    backend = app.backend
    assert backend.server.address.where == where
    assert (backend.server.address.tls is not None) == url.startswith("bullmqs")
    assert "secret" not in backend.as_uri()
    if shown is not None:
        assert backend.as_uri() == shown


def test_the_prefix_is_that_of_the_broker_unless_it_is_given(app_of: AppOf) -> None:
    assert app_of(broker_transport_options={"prefix": "a"}).backend.results.prefix == "a"
    both = app_of(broker_transport_options={"prefix": "a"}, result_backend_transport_options={"prefix": "b"})
    assert both.backend.results.prefix == "b"


def test_a_server_that_is_away_is_an_error_after_the_retries(app_of: AppOf) -> None:
    with Server() as gone:
        url = gone.url
    policy = {"max_retries": 1, "interval_start": 0, "interval_step": 0, "interval_max": 0}
    app = app_of(url, result_backend_transport_options={"retry_policy": policy})
    with pytest.raises(redis.ConnectionError):
        app.backend.store_result("any", 1, "SUCCESS")
    with pytest.raises(redis.ConnectionError):
        assert AsyncResult("any", app=app).state


@pytest.mark.parametrize("when", ["before", "during", "connected"])
@pytest.mark.parametrize("many", [False, True], ids=["one", "group"])
def test_a_wait_ends_in_time_where_the_server_does_not_answer(queue_name: str, when: str, many: bool) -> None:
    with Server() as server, make_app(server.url, server.url, task_default_queue=queue_name) as app:
        sent = [app.send_task("nobody") for _ in range(2)]
        result: Any = GroupResult("g", sent, app=app) if many else sent[0]
        if when == "connected":
            with pytest.raises(ResultTimeoutError):
                result.get(timeout=0.1)
        thaw = threading.Timer(10.0, server.thaw)
        thaw.start()
        freeze = threading.Timer(0.3, server.freeze)
        if when == "during":
            freeze.start()
        else:
            server.freeze()
        try:
            began = time.monotonic()
            with pytest.raises(ResultTimeoutError):
                result.get(timeout=0.6)
            assert 0.5 < time.monotonic() - began < 2.0
        finally:
            freeze.join() if when == "during" else None
            thaw.cancel()
            server.thaw()
        # And nothing of it is left: the next wait is as any other.
        app.backend.store_result(sent[0].id, "there", "SUCCESS")
        assert sent[0].get(timeout=TIMEOUT_S) == "there"
        app.backend.result_consumer.stop()


# -- other processes -----------------------------------------------------------------------------------------------------------------


def run(code: str, server: Server, queue: str, folder: Path) -> str:
    """What a Python process of its own prints; `app` and `send` are there."""
    (folder / "results_app.py").write_text((Path(__file__).parent / "apps" / "results_app.py").read_text())
    (folder / "other.py").write_text(code.replace("URL", repr(server.url)).replace("QUEUE", repr(queue)))
    process = spawn([sys.executable, "other.py"], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        output: str = process.communicate(timeout=TIMEOUT_S * 2)[0]
    finally:
        end(process)
    assert process.returncode == 0, output
    return output.strip()


def test_a_process_that_knows_only_the_id(app: Celery, server: Server, tmp_path: Path, queue: str) -> None:
    result = send(app, "r.add", 20, 1)
    code = f"""
from celery import Celery
print(Celery("other", backend=URL).AsyncResult({result.id!r}).get(timeout=20))
"""
    assert run(code, server, queue, tmp_path) == "21"


GREEN = """
from results_app import make_app
app = make_app(URL, URL, task_default_queue=QUEUE)
add = app.tasks["r.add"]

def one(number):
    return add.delay(number, 1).get(timeout=20)

def unknown(number):
    from celery.exceptions import TimeoutError
    import time
    start = time.monotonic()
    try:
        app.AsyncResult(f"unknown-{number}").get(timeout=0.5)
    except TimeoutError:
        return time.monotonic() - start < 5

def foreign(number):
    result = app.send_task("theirs", queue=QUEUE + "-theirs")
    return result.get(timeout=20), result.state
"""


def complete_what_is_waited_for(server: Server, queue: str, many: int) -> None:
    """As Node would, which stores no result: when all are there and somebody waits for the queue's events."""
    with server.client() as client, make_app(server.url, server.url) as app:

        def is_waited_for() -> bool:
            clients: Any = client.client_list()
            return client.llen(f"bull:{queue}:wait") == many and any(one["cmd"] == "xread" and "b" in one["flags"] for one in clients)

        wait_until(is_waited_for, TIMEOUT_S * 2, "somebody to wait for all of them")
        for _ in range(many):
            complete(app, queue)


@pytest.mark.parametrize(("patch", "spawn_all"), [
    ("from gevent import monkey; monkey.patch_all(); import gevent",
     "[g.get() for g in [gevent.spawn(f, n) for f in (one, unknown, foreign) for n in range(20)]]"),
    ("import eventlet; eventlet.monkey_patch()",
     "[g.wait() for g in [eventlet.spawn(f, n) for f in (one, unknown, foreign) for n in range(20)]]"),
], ids=["gevent", "eventlet"])  # fmt: skip
@pytest.mark.parametrize("shared", [True, False])
def test_green_threads(server: Server, tmp_path: Path, queue: str, patch: str, spawn_all: str, shared: bool) -> None:
    """Results that a worker stored, ids that nobody has, and jobs that only their queue tells of."""
    # Looked for, not imported: eventlet then warns of every fork.
    if importlib.util.find_spec("gevent" if "gevent" in patch else "eventlet") is None:
        missing("gevent or eventlet is not installed")
    sharing = "app.conf.result_backend_thread_safe = True\n" if shared else ""
    with ThreadPoolExecutor(1) as beside:
        ends = beside.submit(complete_what_is_waited_for, server, f"{queue}-theirs", 20)
        output = run(f"{patch}\n{GREEN}\n{sharing}print({spawn_all})", server, queue, tmp_path)
        ends.result()
    assert output.splitlines()[-1] == str([*range(1, 21), *[True] * 20, *[(None, "SUCCESS")] * 20])


def test_a_forked_child_waits_for_itself(server: Server, tmp_path: Path, queue: str) -> None:
    code = f"""{GREEN}
import os
held = add.delay(1, 1)
assert held.get(timeout=20) == 2
waited = app.AsyncResult("never")
try:
    waited.get(timeout=0.2)
except Exception:
    pass
child = os.fork()
if child == 0:
    ok = [one(number) for number in range(5)] == [1, 2, 3, 4, 5]
    os._exit(0 if ok else 1)
assert [one(number) for number in range(5)] == [1, 2, 3, 4, 5]
print(os.waitpid(child, 0)[1])
"""
    assert run(code, server, queue, tmp_path) == "0"


def test_apps_of_two_prefixes_do_not_see_each_other(server: Server, app_of: AppOf) -> None:
    one, other = app_of(), app_of(result_backend_transport_options={"prefix": "other"})
    one.backend.store_result("same-id", 1, "SUCCESS")
    assert AsyncResult("same-id", app=other).state == "PENDING"
    assert isinstance(other.backend.server, Connections)
