"""Job hash <-> Kombu message. Values in, values out; knows no connection.

What a Node processor reads is in `name` and `data`; what Celery needs besides is in the hash field `celery`, a JSON object:

    k   shape of `data`: absent for keyword arguments, "a" for {"args", "kwargs"}, "b" for {"body", "contentType", "contentEncoding"},
        "m" for the JSON body of a message without a task
    i   the task id, where it is not the job id
    h   headers that differ from those every Celery message has (HEADERS)
    a, r, o   the headers argsrepr, kwargsrepr, origin, which most tasks have; q   the property reply_to
    -   those of HEADERS that the message does not have
    p   properties other than the ones a transport sets
    x   exchange and routing key, where there is an exchange
    e   embed: callbacks, errbacks, chain, chord, where any is set
    c   content type, encoding, where they are not the usual ones of the shape
    t   whether the body was text, where that is not the usual: 0 for JSON as bytes, 1 for the text in {"body", …}

Absent parts have their usual value, so a plain task costs a few dozen bytes.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from kombu.utils.json import JSONEncoder
from kombu.utils.json import loads as kombu_loads

from bullmq_kombu.errors import BadInput
from bullmq_kombu.job_options import JobOptions, is_own_id, make_job_options, with_metadata
from bullmq_kombu.telemetry import carrier_of, headers_of, without_trace

#: The headers of a plain task message and their usual values.
HEADERS: Mapping[str, Any] = {
    "lang": "py", "shadow": None, "eta": None, "expires": None, "group": None, "group_index": None, "retries": 0,
    "timelimit": [None, None], "parent_id": None, "ignore_result": False, "replaced_task_nesting": 0, "stamped_headers": None,
    "stamps": {}, "argsrepr": "()", "kwargsrepr": "{}",
}  # fmt: skip
EMBED: Mapping[str, Any] = {"callbacks": None, "errbacks": None, "chain": None, "chord": None}
#: Properties the transport sets itself on the way out.
_OWN_PROPERTIES = frozenset(
    {"delivery_info", "delivery_tag", "body_encoding", "priority", "delivery_mode", "correlation_id", "bullmq", "published_ms"}
)

#: Headers that most tasks have, each another one.
_SHORT = {"argsrepr": "a", "kwargsrepr": "r", "origin": "o"}

JSON_TYPE = "application/json"
MESSAGE_NAME = "kombu.message"

_NUMBER = re.compile("[0-9]{1,18}")
#: The field of a message that has nothing but a body, the commonest without a task.
_PLAIN_MESSAGE = '{"k":"m"}'
_NO_ARGS = "[[], "
_NO_EMBED = ", " + json.dumps(EMBED) + "]"
_EMBED_TEXT = json.dumps(EMBED)

_ENCODER = JSONEncoder(separators=(",", ":"), allow_nan=False)
#: `encode` makes one of these for each text.
_encode: Any = json.encoder.c_make_encoder and json.encoder.c_make_encoder(  # type: ignore[attr-defined]  # CPython's accelerator
    None, _ENCODER.default, json.encoder.encode_basestring_ascii, None, ":", ",", False, False, False
)


class NotAJob(ValueError):
    """A job that cannot be made into a message; the text is the reason it fails with."""


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


#: `json.loads` makes one for each text.
_DECODER = json.JSONDecoder(parse_constant=_refuse_constant)


def to_json(value: Any) -> str:
    """Strict JSON, with the types Kombu's serializer knows besides (dates, UUIDs, decimals)."""
    if _encode is not None and type(value) is dict:
        try:
            return "".join(_encode(value, 0))
        except RecursionError:
            pass  # the encoder below says whether it is a circle
    text: str = _ENCODER.encode(value)
    return text


def strict_loads(text: str | bytes) -> Any:
    """JSON without NaN and Infinity."""
    if isinstance(text, str) and not text.startswith("\ufeff"):
        return _DECODER.decode(text)
    return json.loads(text, parse_constant=_refuse_constant)


# -- out: Kombu message to job -------------------------------------------------------------------------------------------


class Outgoing:
    """One message as a job: name, data, celery field, checked options, and the id it should have ('' for a number)."""

    __slots__ = ("celery", "data", "delay", "job_id", "name", "options", "priority", "task_id")

    def __init__(
        self, name: str, data: str, celery: dict[str, Any], options: JobOptions, task_id: str | None, delay: int, priority: int
    ) -> None:
        self.name = name
        self.data = data
        self.celery = celery
        self.options = options
        self.task_id = task_id
        self.delay = delay
        self.priority = priority
        own_id = task_id is not None and is_own_id(task_id) and ":" not in task_id
        self.job_id = options.job_id or (task_id if own_id else "") or ""

    def celery_field(self, job_id: str) -> str:
        """The hash field `celery`, for the id the job gets."""
        if self.task_id is not None and self.task_id != job_id:
            return to_json({**self.celery, "i": self.task_id})
        return to_json(self.celery)


def job_of(message: Mapping[str, Any], now: int, options: JobOptions | None, make_options: Any = make_job_options) -> Outgoing:
    """The job that a message becomes. `options` are the usual ones, used where the message brings none of its own; `now` is in ms."""
    headers: Mapping[str, Any] = message.get("headers") or {}
    properties: Mapping[str, Any] = message["properties"]
    own = properties.get("bullmq")
    if own is not None:
        if not isinstance(own, Mapping):
            raise BadInput(f"bullmq= must be a dictionary of BullMQ's job options, not {own!r}")
        options = make_options(own)
    elif options is None:
        options = make_options({})
    options = with_metadata(options, carrier_of(headers))
    if options.telemetry is not None and options.telemetry.get("omitContext"):
        headers = without_trace(headers)
    task = headers.get("task")
    celery: dict[str, Any] = {}
    body, kind = message["body"], message.get("content-type")
    encoding = message.get("content-encoding")
    if task is None:
        name, data = MESSAGE_NAME, _plain_data(body, kind, encoding, headers, celery)
        task_id = None
    else:
        name = str(task)
        data = _task_data(body, kind, encoding, headers, celery)
        task_id = headers.get("id")
    if celery.get("k") == "b":
        if encoding != _encoding_of_opaque(celery):
            celery["c"] = [kind, encoding]
    else:
        if (kind, encoding) != (JSON_TYPE, "utf-8"):
            celery["c"] = [kind, encoding]
        if not isinstance(body, str):
            celery["t"] = 0
    delay = options.delay
    if task is not None:
        _keep_headers(headers, task_id, celery)
        # BullMQ counts a delay from the job's timestamp.
        delay = delay or _delay_of(headers.get("eta"), now if options.timestamp is None else options.timestamp)
    elif headers:
        celery["h"] = dict(headers)
    _keep_properties(properties, task_id, celery)
    return Outgoing(name, data, celery, options, task_id, delay, options.priority or priority_of(properties))


def _task_data(body: Any, kind: Any, encoding: Any, headers: Mapping[str, Any], celery: dict[str, Any]) -> str:
    if kind == JSON_TYPE and "compression" not in headers:
        text = body if isinstance(body, str) else _text(body, encoding)
        if text is not None:
            if text.startswith(_NO_ARGS) and text.endswith(_NO_EMBED) and "NaN" not in text and "Infinity" not in text:
                data = text[len(_NO_ARGS) : -len(_NO_EMBED)]
                if data.startswith("{") and data.endswith("}"):
                    return data
            data_of = _split_body(text, celery)
            if data_of is not None:
                return data_of
    return _opaque(body, kind, headers, celery)


def _split_body(text: str, celery: dict[str, Any]) -> str | None:
    try:
        parsed = strict_loads(text)
        args, kwargs, embed = parsed
        if not (isinstance(args, list) and isinstance(kwargs, dict) and isinstance(embed, dict)):
            return None
        to_json(embed)
        data = to_json({"args": args, "kwargs": kwargs} if args else kwargs)
    except (ValueError, TypeError, RecursionError):
        return None
    if embed != EMBED:
        celery["e"] = embed
    if args:
        celery["k"] = "a"
    return data


def _plain_data(body: Any, kind: Any, encoding: Any, headers: Mapping[str, Any], celery: dict[str, Any]) -> str:
    if kind == JSON_TYPE and "compression" not in headers:
        text = body if isinstance(body, str) else _text(body, encoding)
        if text is not None:
            try:
                strict_loads(text)
            except (ValueError, RecursionError):
                pass
            else:
                celery["k"] = "m"
                return text
    return _opaque(body, kind, headers, celery)


def _text(body: Any, encoding: Any) -> str | None:
    if encoding != "utf-8":
        return None
    try:
        return bytes(body).decode()
    except (UnicodeDecodeError, TypeError):
        return None


def _encoding_of_opaque(celery: Mapping[str, Any]) -> str:
    return "utf-8" if celery.get("t") else "binary"


def _opaque(body: Any, kind: Any, headers: Mapping[str, Any], celery: dict[str, Any]) -> str:
    celery["k"] = "b"
    is_text = isinstance(body, str)
    raw = body.encode("utf-8", "surrogatepass") if is_text else bytes(body or b"")
    data = {"body": base64.b64encode(raw).decode("ascii"), "contentType": kind, "contentEncoding": headers.get("compression")}
    if is_text:
        celery["t"] = 1
    return to_json(data)


def _keep_headers(headers: Mapping[str, Any], task_id: Any, celery: dict[str, Any]) -> None:
    kept: dict[str, Any] = {}
    usual, short = HEADERS, _SHORT
    for name, value in headers.items():
        if name in usual and value == usual[name]:
            pass
        elif name in short:
            celery[short[name]] = value
        elif name == "root_id":
            if value != task_id:
                kept[name] = value
        elif name not in ("task", "id"):
            kept[name] = value
    if task_id is not None:
        missing = [name for name in usual if name not in headers]
        if "root_id" not in headers:
            missing.append("root_id")
        if missing:
            celery["-"] = missing
    if kept:
        celery["h"] = kept


def _keep_properties(properties: Mapping[str, Any], task_id: Any, celery: dict[str, Any]) -> None:
    others = properties.keys() - _OWN_PROPERTIES
    kept = {name: properties[name] for name in properties if name in others and properties[name] is not None} if others else {}
    if properties.get("correlation_id", task_id) != task_id:
        kept["correlation_id"] = properties["correlation_id"]
    if properties.get("delivery_mode", 2) != 2:
        kept["delivery_mode"] = properties["delivery_mode"]
    if "reply_to" in kept:
        celery["q"] = kept.pop("reply_to")
    info = properties.get("delivery_info") or {}
    if info.get("exchange"):
        celery["x"] = [info["exchange"], info.get("routing_key")]
    if kept:
        celery["p"] = kept


def priority_of(properties: Mapping[str, Any]) -> int:
    """The message's priority as BullMQ's: lower first, None and 0 before all others."""
    priority = properties.get("priority")
    if not priority:
        return 0
    if isinstance(priority, bool) or not isinstance(priority, int):
        raise BadInput(f"Priority should be an integer between 0 and 2097151, not {priority!r}")
    if not 0 <= priority <= 2_097_151:
        raise BadInput(f"Priority should be between 0 and 2097151, not {priority}")
    return priority


def _delay_of(eta: Any, now: int) -> int:
    """Milliseconds until `eta` (ISO 8601; local time where it names no zone); 0 when it has passed or is none."""
    if eta is None:
        return 0
    try:
        moment = eta if isinstance(eta, datetime) else datetime.fromisoformat(str(eta).replace("Z", "+00:00"))
        if moment.tzinfo is None:
            moment = moment.astimezone()
        return max(0, round(moment.timestamp() * 1000) - now)
    except (ValueError, OverflowError, OSError):  # no time, or one beyond what the system's clock can say
        raise BadInput(f"eta is no ISO 8601 time: {eta!r}") from None


# -- in: job to Kombu message -----------------------------------------------------------------------------------------------


def message_of(
    queue: str, job_id: str, fields: Mapping[str, str], tag: str, prefix: str = "", token: str = "", now: int | None = None
) -> dict[str, Any]:  # fmt: skip
    """The message a job becomes; NotAJob with the reason where it cannot be one.

    An eta that at `now` (ms) is still to come is left out: who took the job out of `delayed` before its time, as a dashboard's "promote"
    does, wants it run, and a worker would hold it instead.
    """
    try:
        text = fields.get("celery")
        if text == _PLAIN_MESSAGE:
            return _own(queue, job_id, fields, {"k": "m"}, tag, prefix, token)
        # Kombu's decoder knows dates and the like, and is several times slower.
        celery = None if text is None else kombu_loads(text) if "__type__" in text else json.loads(text)
    except Exception:  # somebody else's text may hold whatever breaks a decoder
        celery = None
    if not isinstance(celery, dict):
        return _foreign(queue, job_id, fields, tag, prefix, token)
    try:
        message = _own(queue, job_id, fields, celery, tag, prefix, token)
    except NotAJob:
        raise
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise NotAJob(f"ValueError: the field 'celery' of this job is damaged: {error}") from None
    headers = message["headers"]
    if now is not None and headers.get("eta") is not None and "task" in headers and _is_to_come(headers["eta"], now):
        headers["eta"] = None
    return message


def _is_to_come(eta: Any, now: int) -> bool:
    try:
        return _delay_of(eta, now) > 0
    except BadInput:
        return False


def _own(queue: str, job_id: str, fields: Mapping[str, str], celery: dict[str, Any], tag: str, prefix: str, token: str) -> dict[str, Any]:
    kept: dict[str, Any] = dict(celery.get("h") or {})
    kind, encoding = celery.get("c") or (JSON_TYPE, "utf-8")
    shape = celery.get("k")
    data = fields.get("data", "{}")
    body: Any
    if shape is None:
        embed = celery.get("e")
        body = f"{_NO_ARGS}{data}, {_EMBED_TEXT if embed is None else to_json(embed)}]"
    elif shape == "a":
        embed = celery.get("e")
        arguments = _loads_data(data)
        if not isinstance(arguments, dict):
            raise NotAJob("TypeError: the data of a task with positional arguments is an object with args and kwargs")
        body = to_json([arguments.get("args") or [], arguments.get("kwargs") or {}, EMBED if embed is None else embed])
    elif shape == "m":
        body = data
    else:
        body, kind, encoding = _open_opaque(data, celery)
    if celery.get("t") == 0:
        body = body.encode()
    headers: dict[str, Any]
    if fields.get("name") == MESSAGE_NAME and "task" not in kept and shape in ("m", "b") and not celery.get("i"):
        headers = kept
        task_id = None
    else:
        task_id = celery.get("i") or job_id
        headers = {
            **HEADERS, "timelimit": [None, None], "stamps": {}, "task": fields.get("name"), "id": task_id, "root_id": task_id, **kept,
        }  # fmt: skip
        for name, short in _SHORT.items():
            if short in celery:
                headers[name] = celery[short]
        for name in celery.get("-") or ():
            headers.pop(name, None)
    trace = headers_of(fields.get("opts", ""))
    if trace:
        headers = {**trace, **headers}
    properties: dict[str, Any] = dict(celery.get("p") or {})
    if "q" in celery:
        properties["reply_to"] = celery["q"]
    exchange, routing_key = celery.get("x") or ("", queue)
    if task_id is not None:
        properties.setdefault("correlation_id", task_id)
    properties.setdefault("delivery_mode", 2)
    _deliver(properties, fields, exchange, routing_key, tag, queue, job_id, prefix, token)
    return {"body": body, "content-type": kind, "content-encoding": encoding, "headers": headers, "properties": properties}


def _open_opaque(data: str, celery: Mapping[str, Any]) -> tuple[Any, Any, Any]:
    found = _loads_data(data)
    try:
        body: Any = base64.b64decode(found["body"], validate=True)
        if celery.get("t"):
            body = body.decode("utf-8", "surrogatepass")
        content = celery.get("c")
        encoding = content[1] if content else _encoding_of_opaque(celery)
        return body, found.get("contentType"), encoding
    except (KeyError, TypeError, ValueError) as error:
        raise NotAJob(f"ValueError: the encoded body of this job is damaged: {error}") from None


def _foreign(queue: str, job_id: str, fields: Mapping[str, str], tag: str, prefix: str, token: str) -> dict[str, Any]:
    name = fields.get("name")
    if not name:
        raise NotAJob("NotRegistered: the job has no name, and the name of a job is the name of its task")
    data = fields.get("data") or "{}"
    value = _loads_data(data)
    args, kwargs = arguments_of(value)
    task_id = f"{queue}:{job_id}" if job_id.isdigit() else job_id
    headers: dict[str, Any] = {}
    if name == MESSAGE_NAME:
        body = data
    else:
        try:
            headers = {
                **HEADERS, "timelimit": [None, None], "stamps": {}, "lang": "js", "task": name, "id": task_id, "root_id": task_id,
                "argsrepr": _shorten(args), "kwargsrepr": _shorten(kwargs), "origin": "bullmq", "ignore_result": None,
                **headers_of(fields.get("opts", "")),
            }  # fmt: skip
            body = f"[{json.dumps(args)}, {json.dumps(kwargs)}, {_EMBED_TEXT}]"
        except (ValueError, RecursionError) as error:
            raise NotAJob(f"ValueError: the data of this job is not JSON: {error}") from None
    properties: dict[str, Any] = {"correlation_id": task_id, "delivery_mode": 2}
    _deliver(properties, fields, "", queue, tag, queue, job_id, prefix, token)
    return {"body": body, "content-type": JSON_TYPE, "content-encoding": "utf-8", "headers": headers, "properties": properties}


def _deliver(
    properties: dict[str, Any], fields: Mapping[str, str], exchange: str, routing_key: str, tag: str, queue: str, job_id: str, prefix: str,
    token: str,
) -> None:  # fmt: skip
    priority = fields.get("priority", "0")
    properties["priority"] = int(priority) if priority != "0" and _NUMBER.fullmatch(priority) else 0
    properties["delivery_tag"] = tag
    properties["delivery_info"] = {"exchange": exchange, "routing_key": routing_key}
    # Begun more often than attempts have ended: one was lost or put back. An attempt after a retry is none, as with any other broker.
    if fields.get("stc") or fields.get("ats", "0") != fields.get("atm", "0"):
        properties["delivery_info"]["redelivered"] = True
    properties["bullmq"] = {"prefix": prefix, "queue": queue, "job": job_id, "token": token, **_about(fields)}


def _about(fields: Mapping[str, str]) -> dict[str, Any]:
    """What `current_job()` tells without asking Redis: the hash except what the message says already."""
    about = dict(fields)
    for name in ("data", "celery", "stacktrace", "returnvalue", "progress"):
        about.pop(name, None)
    return about


def _loads_data(data: str) -> Any:
    try:
        return strict_loads(data)
    except (ValueError, RecursionError) as error:
        raise NotAJob(f"ValueError: the data of this job is not JSON: {error}") from None


def arguments_of(value: Any) -> tuple[list[Any], dict[str, Any]]:
    """Task arguments from the value of a foreign job's `data`, as the contract says."""
    if value is None:
        return [], {}
    if isinstance(value, dict):
        if value and set(value) <= {"args", "kwargs"}:
            args, kwargs = value.get("args", []), value.get("kwargs", {})
            if isinstance(args, list) and isinstance(kwargs, dict):
                return args, kwargs
        return [], value
    if isinstance(value, list):
        return value, {}
    return [value], {}


def _shorten(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 1024 else text[:1021] + "..."
