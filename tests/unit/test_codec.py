"""The contract between Celery's messages and BullMQ's jobs, section 3 (Celery sends) and 4 (Node sends), value for value.

The messages are Celery's and Kombu's own: real producers publish into a channel that keeps what a transport's channel is given. Each then
goes the whole way, message to job to hash to message, and has to come back as it was.
"""

from __future__ import annotations

import base64
import datetime
import decimal
import json
import uuid
from collections.abc import Iterator, Mapping
from typing import Any

import kombu
import pytest
from celery import Celery, chain, group
from hypothesis import given
from hypothesis import strategies as st
from kombu import serialization
from kombu.transport import memory

from bullmq_kombu.codec import HEADERS, NotAJob, Outgoing, arguments_of, job_of, message_of
from bullmq_kombu.errors import BadInput
from bullmq_kombu.job_options import make_job_options

NOW = 1_795_491_304_286
TASK_ID = "c0ffee00-1111-4222-8333-444455556666"


# -- real messages


class Keeping(memory.Channel):
    """Kombu's in-memory channel, set up as ours is: it keeps what is put."""

    body_encoding = None
    put: list[dict[str, Any]] = []

    def _put(self, queue: str, message: dict[str, Any], **kwargs: Any) -> None:
        self.put.append(message)


class KeepingTransport(memory.Transport):
    Channel = Keeping


@pytest.fixture(scope="module")
def app() -> Iterator[Celery]:
    app = Celery("t", set_as_current=False)
    app.conf.update(broker_transport=KeepingTransport, task_default_queue="mail")

    @app.task(name="send", shared=False)
    def send(*args: Any, **kwargs: Any) -> None:
        """Never runs."""

    yield app
    app.close()


@pytest.fixture
def sent(app: Celery) -> Any:
    """Calls the task and returns the message a transport's channel gets."""

    def send(*args: Any, **options: Any) -> dict[str, Any]:
        Keeping.put.clear()
        options.setdefault("task_id", TASK_ID)
        app.tasks["send"].apply_async(args, **options)
        (message,) = Keeping.put
        return message

    return send


@pytest.fixture
def published() -> Any:
    """Publishes with Kombu alone."""

    def publish(body: Any, **options: Any) -> dict[str, Any]:
        Keeping.put.clear()
        with kombu.Connection(transport=KeepingTransport) as connection:
            connection.Producer().publish(body, routing_key="mail", **options)
        (message,) = Keeping.put
        return message

    return publish


# -- the whole way


def fields_of(job: Outgoing, job_id: str) -> dict[str, str]:
    """The hash the job is stored in, as far as a message depends on it."""
    return {
        "name": job.name, "data": job.data, "opts": job.options.stored, "timestamp": str(NOW), "delay": str(job.delay),
        "priority": str(job.priority), "celery": job.celery_field(job_id),
    }  # fmt: skip


def there_and_back(message: Mapping[str, Any], job_id: str = "") -> dict[str, Any]:
    job = job_of(message, NOW, None)
    job_id = job_id or job.job_id or "1"
    return message_of("mail", job_id, fields_of(job, job_id), "tag", "bull", "token")


TRANSPORTS_OWN = ("delivery_tag", "bullmq", "delivery_info")


def assert_same(message: Mapping[str, Any], back: Mapping[str, Any]) -> None:
    for part in ("headers", "content-type", "content-encoding"):
        assert back[part] == message[part], part
    assert type(back["body"]) is type(message["body"])
    if message["content-type"] == "application/json" and "compression" not in message["headers"]:
        # Compared as a receiver reads it; how blanks are set is nobody's business.
        assert json.loads(back["body"]) == json.loads(message["body"])
    else:
        assert back["body"] == message["body"]
    kept = {name: value for name, value in message["properties"].items() if name not in TRANSPORTS_OWN and value is not None}
    got = {name: value for name, value in back["properties"].items() if name not in TRANSPORTS_OWN}
    assert got == {"priority": 0, **kept}
    info = message["properties"].get("delivery_info") or {}
    assert back["properties"]["delivery_info"]["routing_key"] == info.get("routing_key", "mail")
    assert back["properties"]["delivery_info"]["exchange"] == info.get("exchange", "")


# -- contract 3: what a processor sees


DATA = [
    ((), {"to": "a@b.c"}, {"to": "a@b.c"}),
    ((), {}, {}),
    ((1, "two"), {}, {"args": [1, "two"], "kwargs": {}}),
    ((1,), {"x": None}, {"args": [1], "kwargs": {"x": None}}),
    ((None,), {}, {"args": [None], "kwargs": {}}),
    ((), {"args": [1], "kwargs": {"x": 2}}, {"args": [1], "kwargs": {"x": 2}}),
    ((), {"args": []}, {"args": []}),
    ((), {"ü": "€😀", "n": 1.5, "deep": {"a": [1, [2, {"b": True}]]}}, {"ü": "€😀", "n": 1.5, "deep": {"a": [1, [2, {"b": True}]]}}),
    ((), {"text": "NaN, Infinity"}, {"text": "NaN, Infinity"}),
    ((), {"big": 2**63 + 1}, {"big": 2**63 + 1}),
]


@pytest.mark.parametrize(("args", "kwargs", "data"), DATA)
def test_the_data_of_a_job_is_its_arguments(sent: Any, args: Any, kwargs: Any, data: Any) -> None:
    message = sent(*args, kwargs=kwargs)
    job = job_of(message, NOW, None)

    assert job.name == "send"
    assert json.loads(job.data) == data
    assert_same(message, there_and_back(message))


@pytest.mark.parametrize(("args", "kwargs", "data"), DATA)
def test_arguments_come_back_as_they_were(sent: Any, args: Any, kwargs: Any, data: Any) -> None:
    back = there_and_back(sent(*args, kwargs=kwargs))

    assert serialization.loads(back["body"], back["content-type"], back["content-encoding"])[:2] == [list(args), kwargs]


def test_the_task_id_is_the_job_id(sent: Any) -> None:
    job = job_of(sent(), NOW, None)

    assert (job.job_id, job.task_id) == (TASK_ID, TASK_ID)
    assert job.celery_field(TASK_ID) == job.celery_field(job.job_id)
    assert TASK_ID not in job.celery_field(TASK_ID), "what the id says is not said twice"


@pytest.mark.parametrize("task_id", ["12", "-1", "0", "a:b", "a:b:c", "0:1", "x:y:z:1"])
def test_an_id_that_bullmq_refuses_is_kept_beside_another(sent: Any, task_id: str) -> None:
    message = sent(task_id=task_id)
    job = job_of(message, NOW, None)

    assert job.job_id == "", "the caller makes one up"
    assert json.loads(job.celery_field("other"))["i"] == task_id
    assert_same(message, there_and_back(message, "other"))


@pytest.mark.parametrize("task_id", ["01", "1.5", "1e3", "mail-7", "+1", "1 ", "²"])
def test_an_id_that_bullmq_takes_is_taken(sent: Any, task_id: str) -> None:
    message = sent(task_id=task_id)

    assert job_of(message, NOW, None).job_id == task_id
    assert_same(message, there_and_back(message))


@pytest.mark.parametrize(
    "task_id", ["meta", "wait", "active", "events", "id", "stalled-check", "waiting-children", "metrics:completed:data"]
)
def test_an_id_that_is_the_name_of_one_of_the_queues_keys_is_not_used(sent: Any, task_id: str) -> None:
    message = sent(task_id=task_id)

    assert job_of(message, NOW, None).job_id == ""
    assert_same(message, there_and_back(message, "other"))


def test_a_second_job_of_the_same_task_id_keeps_the_task_id(sent: Any) -> None:
    message = sent(kwargs={"a": 1})

    assert_same(message, there_and_back(message, "generated"))


def test_an_explicit_job_id_wins(sent: Any) -> None:
    message = sent(bullmq={"jobId": "mine"})
    job = job_of(message, NOW, None)

    assert job.job_id == "mine"
    assert there_and_back(message)["headers"]["id"] == TASK_ID


def test_options_ride_on_the_message(sent: Any) -> None:
    job = job_of(sent(bullmq={"attempts": 3, "delay": 500, "priority": 7, "lifo": True}), NOW, None)

    assert json.loads(job.options.stored) == {"attempts": 3, "delay": 500, "priority": 7, "lifo": True}
    assert (job.delay, job.priority, job.options.more) == (500, 7, {"lifo": True})


def test_without_options_the_usual_ones_are_used(sent: Any) -> None:
    usual = make_job_options({"removeOnComplete": 5})
    assert job_of(sent(), NOW, usual).options is usual


@pytest.mark.parametrize("wrong", ["x", 3, ["attempts"]])
def test_options_that_are_no_dictionary_are_an_error(sent: Any, wrong: Any) -> None:
    with pytest.raises(BadInput, match="bullmq="):
        job_of(sent(bullmq=wrong), NOW, None)


def test_a_plain_task_costs_a_few_dozen_bytes(sent: Any) -> None:
    message = sent(kwargs={"to": "a@b.c"})
    for name in ("argsrepr", "kwargsrepr", "origin"):
        del message["headers"][name]
    del message["properties"]["reply_to"]

    assert len(job_of(message, NOW, None).celery_field(TASK_ID)) <= 60


# -- time and priority


@pytest.mark.parametrize(
    ("eta", "delay"),
    [
        ("2026-11-24T10:00:00+00:00", 90_000),
        ("2026-11-24T10:00:00Z", 90_000),
        ("2026-11-24T11:00:00+01:00", 90_000),
        ("2026-11-24T09:58:29.500000+00:00", 0),
        ("2026-11-24T09:58:30.250000+00:00", 250),
        ("1999-01-01T00:00:00+00:00", 0),
        (datetime.datetime(2026, 11, 24, 10, 0, tzinfo=datetime.timezone.utc), 90_000),
        (None, 0),
    ],
)
def test_an_eta_in_the_future_is_a_delay(eta: Any, delay: int) -> None:
    now = int(datetime.datetime(2026, 11, 24, 9, 58, 30, tzinfo=datetime.timezone.utc).timestamp() * 1000)
    message = {
        "headers": {"task": "t", "id": "x", "eta": eta},
        "properties": {},
        "body": "[[], {}, {}]",
        "content-type": "application/json",
    }

    assert job_of(message, now, None).delay == delay


def test_an_eta_without_a_zone_is_local_time() -> None:
    local = datetime.datetime.fromtimestamp(NOW // 1000 + 60)  # noqa: DTZ006  (a naive time is what is tested)
    message = {"headers": {"task": "t", "id": "x", "eta": local.isoformat()}, "properties": {}, "body": "[[], {}, {}]"}

    assert job_of(message, NOW // 1000 * 1000, None).delay == 60_000


def test_an_eta_that_is_no_time_is_an_error() -> None:
    with pytest.raises(BadInput, match="ISO 8601"):
        job_of({"headers": {"task": "t", "eta": "tomorrow"}, "properties": {}, "body": ""}, NOW, None)


def test_an_eta_is_a_moment_whatever_the_jobs_timestamp(sent: Any) -> None:
    eta = datetime.datetime.fromtimestamp(NOW / 1000 + 60, datetime.timezone.utc)
    job = job_of(sent(eta=eta, bullmq={"timestamp": NOW - 5000}), NOW, None)

    assert job.options.timestamp + job.delay == NOW + 60_000


def test_a_countdown_is_a_delay_and_the_eta_comes_back(sent: Any) -> None:
    message = sent(countdown=600)
    job = job_of(message, NOW, None)

    assert job.delay > 0
    assert_same(message, there_and_back(message))


@pytest.mark.parametrize(("due_in", "eta_stays"), [(-60_000, True), (0, True), (60_000, False)])
def test_a_job_taken_before_its_eta_has_none_so_that_no_worker_holds_it(sent: Any, due_in: int, eta_stays: bool) -> None:
    eta = datetime.datetime.fromtimestamp(NOW / 1000, datetime.timezone.utc)
    job = job_of(sent(eta=eta), NOW, None)
    message = message_of("mail", TASK_ID, fields_of(job, TASK_ID), "tag", now=NOW - due_in)

    assert message["headers"]["eta"] == (eta.isoformat() if eta_stays else None)


def test_an_eta_that_is_no_time_any_more_is_celerys_to_judge() -> None:
    for eta in ("tomorrow", "0001-01-01T00:00:00", {}):
        fields = {"name": "t", "data": "{}", "celery": json.dumps({"h": {"eta": eta}})}

        assert message_of("mail", "x", fields, "tag", now=NOW)["headers"]["eta"] == eta


def test_bullmqs_delay_wins_over_the_eta(sent: Any) -> None:
    assert job_of(sent(countdown=600, bullmq={"delay": 5}), NOW, None).delay == 5


@pytest.mark.parametrize(("priority", "wanted"), [(None, 0), (0, 0), (1, 1), (9, 9), (2_097_151, 2_097_151)])
def test_celerys_priority_is_bullmqs(sent: Any, priority: int | None, wanted: int) -> None:
    message = sent(priority=priority)

    assert job_of(message, NOW, None).priority == wanted
    assert there_and_back(message)["properties"]["priority"] == wanted


@pytest.mark.parametrize("priority", [2_097_152, -1, 1.5, "high", True])
def test_a_priority_that_bullmq_refuses_is_an_error(sent: Any, priority: Any) -> None:
    message = sent()
    message["properties"]["priority"] = priority

    with pytest.raises(BadInput, match="0 and 2097151"):
        job_of(message, NOW, None)


# -- everything else of a task message


@pytest.mark.parametrize(
    "options",
    [
        {"expires": 3600},
        {"shadow": "nice.name", "time_limit": 30, "soft_time_limit": 20, "ignore_result": True},
        {"retries": 3, "group_id": "g", "group_index": 2, "root_id": "r", "parent_id": "p"},
        {"headers": {"x-tenant": "acme", "nested": {"a": [1, None]}}},
        {"reply_to": "somebody", "delivery_mode": 1, "correlation_id": "other"},
        {"stamped_headers": ["s"], "s": "v", "headers": {"s": "v"}},
        {"expiration": 30, "app_id": "me", "unknown_property": {"a": 1}},
        {"exchange": "", "routing_key": "mail"},
        {"argsrepr": "<secret>", "kwargsrepr": "<secret>"},
        {"headers": {"-": 1, "h": 2, "exchange": 3}},
        {"time_limit": 0, "expires": datetime.datetime(2030, 1, 1, tzinfo=datetime.timezone.utc)},
    ],
    ids=",".join,
)
def test_headers_and_properties_come_back(sent: Any, options: dict[str, Any]) -> None:
    message = sent(1, kwargs={"a": 2}, **options)

    assert_same(message, there_and_back(message))


def test_links_chains_groups_and_chords_come_back(app: Celery) -> None:
    task = app.tasks["send"]
    with app.connection_for_write() as connection:
        for signature in (
            task.si(1).set(link=[task.si("ok")], link_error=[task.si("no")]),
            chain(task.s(1), task.s(2), task.s(3)),
            group(task.s(1), task.s(2)),
            task.s(9).set(chord=task.s("done")),
            task.si(1).set(stamp={"s": "v"}),
        ):
            Keeping.put.clear()
            signature.apply_async(connection=connection)
            assert Keeping.put
            for message in Keeping.put:
                assert_same(message, there_and_back(message))


def test_the_hash_says_what_the_embed_was(app: Celery, sent: Any) -> None:
    message = sent(kwargs={"a": 1}, link=app.tasks["send"].si(2))
    job = job_of(message, NOW, None)

    assert json.loads(job.data) == {"a": 1}
    assert len(json.loads(job.celery_field(TASK_ID))["e"]["callbacks"]) == 1


def test_headers_that_are_not_there_stay_away() -> None:
    """What other producers of Celery's protocol leave out."""
    message = {
        "headers": {"task": "t", "id": "x"}, "properties": {"correlation_id": "x", "delivery_mode": 2, "delivery_info": {}},
        "body": "[[1], {}, {}]", "content-type": "application/json", "content-encoding": "utf-8",
    }  # fmt: skip
    back = there_and_back(message)

    assert back["headers"] == message["headers"]
    assert json.loads(back["body"]) == [[1], {}, {}]


def test_the_message_names_its_job(sent: Any) -> None:
    back = there_and_back(sent())
    bullmq = back["properties"]["bullmq"]

    assert {name: bullmq[name] for name in ("prefix", "queue", "job", "token")} == {
        "prefix": "bull", "queue": "mail", "job": TASK_ID, "token": "token",
    }  # fmt: skip
    assert bullmq["timestamp"] == str(NOW)
    assert back["properties"]["delivery_tag"] == "tag"
    assert "data" not in bullmq


@pytest.mark.parametrize(("field", "is_redelivered"), [
    ({}, False), ({"stc": "1"}, True), ({"ats": "1"}, True), ({"ats": "1", "atm": "1"}, False), ({"ats": "2", "atm": "1"}, True),
    ({"atm": "0"}, False),
])  # fmt: skip
def test_a_job_that_was_started_before_is_redelivered(sent: Any, field: dict[str, str], is_redelivered: bool) -> None:
    job = job_of(sent(), NOW, None)
    back = message_of("mail", TASK_ID, {**fields_of(job, TASK_ID), **field}, "tag")

    assert back["properties"]["delivery_info"].get("redelivered", False) is is_redelivered


# -- bodies that JSON cannot carry


VALUES = [
    {"when": datetime.datetime(2026, 1, 2, 3, 4, 5, tzinfo=datetime.timezone.utc), "id": uuid.UUID(int=7), "sum": decimal.Decimal("1.10")},
    {"raw": b"\x00\xff"},
]


@pytest.mark.parametrize("kwargs", VALUES)
def test_values_of_kombus_json_stay_json(sent: Any, kwargs: dict[str, Any]) -> None:
    message = sent(1, kwargs=kwargs)
    back = there_and_back(message)

    assert "__type__" in job_of(message, NOW, None).data
    assert serialization.loads(back["body"], back["content-type"], back["content-encoding"])[1] == kwargs


@pytest.mark.parametrize("serializer", ["pickle", "msgpack", "yaml"])
@pytest.mark.parametrize("compression", [None, "zlib", "bzip2"])
def test_other_serializers_go_as_bytes(sent: Any, serializer: str, compression: str | None) -> None:
    message = sent(1, kwargs={"a": [1, 2.5, None, "ü"]}, serializer=serializer, compression=compression)
    job = job_of(message, NOW, None)
    data = json.loads(job.data)

    assert set(data) == {"body", "contentType", "contentEncoding"}
    assert data["contentType"] == message["content-type"]
    assert data["contentEncoding"] == message["headers"].get("compression")
    body = message["body"] if isinstance(message["body"], bytes) else message["body"].encode()
    assert base64.b64decode(data["body"]) == body

    back = there_and_back(message)
    assert_same(message, back)
    assert back["body"] == message["body"]
    received = kombu.Message(
        body=back["body"], content_type=back["content-type"], content_encoding=back["content-encoding"],
        headers=dict(back["headers"]), properties=back["properties"], accept={back["content-type"]},
    )  # fmt: skip
    args, kwargs, _ = received.decode()
    assert (list(args), kwargs) == ([1], {"a": [1, 2.5, None, "ü"]})


def test_compressed_json_goes_as_bytes(sent: Any) -> None:
    message = sent(1, kwargs={"a": 1}, compression="zlib")

    assert json.loads(job_of(message, NOW, None).data)["contentEncoding"] == "application/x-gzip"
    assert_same(message, there_and_back(message))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("args", [(), (1,)])
def test_numbers_that_are_no_json_go_as_bytes(sent: Any, args: tuple[Any, ...], value: float) -> None:
    message = sent(*args, kwargs={"a": value})
    job = job_of(message, NOW, None)

    assert set(json.loads(job.data)) == {"body", "contentType", "contentEncoding"}
    assert there_and_back(message)["body"] == message["body"]


@pytest.mark.parametrize(
    "body",
    ["[[1e999], {}, {}]", "[[], {}]", "[1, 2, 3]", '{"not": "a task body"}', "no JSON", "", '"\\ud800"', "[[],{},{}", "[" * 100_000],
)
def test_a_body_that_is_no_tasks_comes_back_as_it_was(body: str) -> None:
    message = {
        "headers": {"task": "t", "id": "x", "root_id": "x", **HEADERS}, "properties": {"delivery_info": {}}, "body": body,
        "content-type": "application/json", "content-encoding": "utf-8",
    }  # fmt: skip

    assert there_and_back(message)["body"] == body


# -- messages without a task


@pytest.mark.parametrize("body", [{"a": 1}, [1, 2], "text", 5, None, True, {"args": [1]}, "ü😀"])
def test_kombus_own_messages_are_their_json(published: Any, body: Any) -> None:
    message = published(body, serializer="json", headers={"h": 1, "id": "x", "lang": "py"}, correlation_id="c")
    job = job_of(message, NOW, None)

    assert job.name == "kombu.message"
    assert job.task_id is None
    assert job.job_id == ""
    assert json.loads(job.data) == body
    assert_same(message, there_and_back(message))


@pytest.mark.parametrize(
    ("body", "options"),
    [
        ({"a": 1}, {"serializer": "pickle"}),
        ({"a": 1}, {"serializer": "yaml"}),
        ({"a": 1}, {"serializer": "msgpack"}),
        ({"a": 1}, {"serializer": "json", "compression": "zlib"}),
        ({"a": float("nan")}, {"serializer": "json"}),
        (b"\x00\xff", {"content_type": "application/octet-stream", "content_encoding": "binary"}),
        ("plain text", {"content_type": "text/plain", "content_encoding": "utf-8"}),
        ("", {"content_type": "text/plain", "content_encoding": "utf-8"}),
        ("latin", {"content_type": "text/plain", "content_encoding": "latin-1"}),
        ("{}", {"content_type": "application/json", "content_encoding": "latin-1"}),
    ],
)
def test_other_messages_come_back_byte_for_byte(published: Any, body: Any, options: dict[str, Any]) -> None:
    message = published(body, **options)
    back = there_and_back(message)

    assert_same(message, back)
    assert back["body"] == message["body"]


# -- contract 4: jobs of others


FOREIGN = [
    ('{"to":"a@b.c"}', [], {"to": "a@b.c"}),
    ("{}", [], {}),
    ('{"args":[1,2],"kwargs":{"x":3}}', [1, 2], {"x": 3}),
    ('{"args":[1,2]}', [1, 2], {}),
    ('{"kwargs":{"x":3}}', [], {"x": 3}),
    ('{"args":[],"kwargs":{}}', [], {}),
    ('{"args":"a","kwargs":{}}', [], {"args": "a", "kwargs": {}}),
    ('{"args":[1],"kwargs":[2]}', [], {"args": [1], "kwargs": [2]}),
    ('{"args":null}', [], {"args": None}),
    ('{"args":[1],"other":1}', [], {"args": [1], "other": 1}),
    ("[1,[2],null]", [1, [2], None], {}),
    ("[]", [], {}),
    ("null", [], {}),
    (None, [], {}),
    ("", [], {}),
    ('"text"', ["text"], {}),
    ("0", [0], {}),
    ("1.5", [1.5], {}),
    ("false", [False], {}),
]


def foreign(data: str | None, job_id: str = "j", **fields: str) -> dict[str, Any]:
    stored = {"name": "mail.send", "opts": "{}", "timestamp": str(NOW), "delay": "0", "priority": "0", **fields}
    if data is not None:
        stored["data"] = data
    return message_of("mail", job_id, stored, "tag", "bull", "token")


@pytest.mark.parametrize(("data", "args", "kwargs"), FOREIGN)
def test_the_arguments_of_a_task_are_a_jobs_data(data: str | None, args: list[Any], kwargs: dict[str, Any]) -> None:
    message = foreign(data)

    assert message["headers"]["task"] == "mail.send"
    assert serialization.loads(message["body"], message["content-type"], message["content-encoding"])[:2] == [args, kwargs]
    assert json.loads(message["body"])[2] == {"callbacks": None, "errbacks": None, "chain": None, "chord": None}


@pytest.mark.parametrize(
    ("job_id", "task_id"),
    [("j", "j"), ("12", "mail:12"), ("0", "mail:0"), ("-1", "-1"), ("01", "mail:01"), ("repeat:s:1795491304286", "repeat:s:1795491304286")],
)
def test_the_task_id_is_the_job_id_or_made_of_it(job_id: str, task_id: str) -> None:
    message = foreign("{}", job_id)

    assert message["headers"]["id"] == message["headers"]["root_id"] == message["properties"]["correlation_id"] == task_id
    assert message["properties"]["bullmq"]["job"] == job_id


def test_a_foreign_job_makes_a_whole_task_message() -> None:
    message = foreign('{"a":1}', priority="7", parentKey="bull:p:1", deid="x", atm="2", ats="3", pb="node")

    assert set(HEADERS) <= set(message["headers"])
    assert message["properties"]["priority"] == 7
    assert message["properties"]["delivery_info"] == {"exchange": "", "routing_key": "mail", "redelivered": True}
    about = message["properties"]["bullmq"]
    assert (about["parentKey"], about["deid"], about["atm"], about["name"]) == ("bull:p:1", "x", "2", "mail.send")
    assert json.loads(json.dumps(message)) == message, "the worker's main process sends it to its children"


def test_headers_are_no_ones_elses() -> None:
    foreign("{}")["headers"]["stamps"]["changed"] = 1
    foreign("{}")["headers"]["timelimit"][0] = 5

    assert foreign("{}")["headers"]["stamps"] == {}
    assert foreign("{}")["headers"]["timelimit"] == [None, None]


@pytest.mark.parametrize("data", ["{", "undefined", "NaN", '{"a":Infinity}', "'x'", "[1,]", "[" * 200_000, "9" * 10_000])
def test_data_that_is_no_json_is_a_reason_to_fail(data: str) -> None:
    with pytest.raises(NotAJob, match="ValueError: the data of this job is not JSON"):
        foreign(data)


@pytest.mark.parametrize("name", [None, ""])
def test_a_job_without_a_name_is_no_task(name: str | None) -> None:
    fields = {"data": "{}"} if name is None else {"data": "{}", "name": name}
    with pytest.raises(NotAJob, match="NotRegistered"):
        message_of("mail", "1", fields, "tag")


@pytest.mark.parametrize("celery", ["no JSON", "[]", "7", "null", '"x"', "[" * 200_000])
def test_a_celery_field_that_is_not_ours_makes_the_job_a_foreign_one(celery: str) -> None:
    assert foreign('{"a":1}', celery=celery)["headers"]["lang"] == "js"


def test_our_job_whose_data_node_has_replaced_runs_with_the_new_data(sent: Any) -> None:
    job = job_of(sent(kwargs={"a": 1}), NOW, None)
    back = message_of("mail", TASK_ID, {**fields_of(job, TASK_ID), "data": '{"a": 2}'}, "tag")
    assert json.loads(back["body"])[:2] == [[], {"a": 2}]

    job = job_of(sent(1), NOW, None)
    back = message_of("mail", TASK_ID, {**fields_of(job, TASK_ID), "data": '{"args":[2],"kwargs":{}}'}, "tag")
    assert json.loads(back["body"])[:2] == [[2], {}]


@pytest.mark.parametrize("data", ["no JSON", "[1", "", "NaN"])
def test_our_job_whose_data_is_damaged_is_a_reason_to_fail(sent: Any, data: str) -> None:
    for message in (sent(1), sent(1, compression="zlib")):
        job = job_of(message, NOW, None)
        with pytest.raises(NotAJob):
            message_of("mail", TASK_ID, {**fields_of(job, TASK_ID), "data": data}, "tag")


# -- anything at all


scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3), max_leaves=8
)
names = st.text(min_size=1, max_size=8)
known_headers = st.fixed_dictionaries({}, optional={name: st.just(value) | values for name, value in HEADERS.items()})
messages = st.builds(
    lambda args, kwargs, embed, known, more, root, properties, task_id: {
        "headers": {**more, **known, "task": "t", "id": task_id, "root_id": task_id if root else None},
        "properties": {
            **properties,
            "delivery_info": {"exchange": "", "routing_key": "mail"},
            "correlation_id": task_id,
            "delivery_mode": 2,
        },
        "body": json.dumps([args, kwargs, embed]),
        "content-type": "application/json",
        "content-encoding": "utf-8",
    },
    st.lists(values, max_size=3),
    st.dictionaries(st.text(max_size=6), values, max_size=3),
    st.just({"callbacks": None, "errbacks": None, "chain": None, "chord": None}) | st.dictionaries(st.text(max_size=4), values, max_size=2),
    known_headers.filter(lambda headers: headers.get("eta") is None),
    st.dictionaries(names.filter(lambda name: name not in ("task", "id", "compression", "eta")), values, max_size=3),
    st.booleans(),
    st.dictionaries(
        st.sampled_from(["reply_to", "app_id", "expiration", "exchange", "routing_key"]),
        values.filter(lambda value: value is not None),
        max_size=3,
    ),
    st.text(min_size=1, max_size=12),
)


@given(messages)
def test_any_task_message_comes_back(message: dict[str, Any]) -> None:
    assert_same(message, there_and_back(message, "some-job"))


@given(
    values,
    st.dictionaries(names.filter(lambda name: name not in ("task", "compression")) | st.sampled_from(list(HEADERS)), values, max_size=4),
)
def test_any_message_without_a_task_comes_back(body: Any, headers: dict[str, Any]) -> None:
    message = {
        "headers": headers, "properties": {"delivery_info": {"exchange": "", "routing_key": "mail"}, "delivery_mode": 2},
        "body": json.dumps(body), "content-type": "application/json", "content-encoding": "utf-8",
    }  # fmt: skip
    assert_same(message, there_and_back(message))


@given(st.binary(), st.booleans())
def test_any_bytes_come_back(body: bytes, is_task: bool) -> None:
    headers = {"task": "t", "id": "x", "root_id": "x", **HEADERS} if is_task else {}
    message = {"headers": headers, "properties": {"delivery_info": {}}, "body": body, "content-type": "x/y", "content-encoding": "binary"}

    assert there_and_back(message)["body"] == body


field_names = st.sampled_from(
    ["name", "data", "opts", "timestamp", "delay", "priority", "celery", "atm", "ats", "stc", "attemptsMade", "parent", "parentKey", "x"]
)
json_texts = values.map(json.dumps)
celery_texts = st.fixed_dictionaries({}, optional={name: values | st.sampled_from(["a", "b", "m"]) for name in "kihpectx-"}).map(json.dumps)
typed = st.dictionaries(st.sampled_from(["__type__", "__value__", "a"]), values, max_size=3).map(json.dumps)
texts = (
    st.text()
    | json_texts
    | celery_texts
    | typed
    | st.sampled_from(["²", "9" * 5000, "٣", "-0", "1e5", "\ud800", "[" * 50_000, '{"a":' * 50_000])
)


@given(st.dictionaries(field_names, texts), st.text())
def test_no_hash_does_worse_than_being_no_job(fields: dict[str, str], job_id: str) -> None:
    try:
        message = message_of("mail", job_id, fields, "tag", "bull", "token")
    except NotAJob:
        pass
    else:
        assert isinstance(message["headers"], dict)
        assert isinstance(message["properties"], dict)


@given(values)
def test_whatever_the_data_it_is_arguments(value: Any) -> None:
    args, kwargs = arguments_of(value)

    assert isinstance(args, list)
    assert isinstance(kwargs, dict)
