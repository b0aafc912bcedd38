"""`python -m tests.fuzz`: arbitrary job hashes, chosen by which lines of the codec they reach.

    pip install atheris
    python -m tests.fuzz -max_total_time=600       # libFuzzer's own options

The same rule as `test_no_hash_does_worse_than_being_no_job`: whatever stands in a hash, it is a message or NotAJob, never another
exception; and a message that came from a job becomes a job again. Ends with 77 and the input where that does not hold.
"""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

import atheris

# Not the checkout: what is installed is what is tried.
sys.path[:] = [one for one in sys.path if one not in ("", str(Path(__file__).parent.parent.parent))]

with atheris.instrument_imports(include=["bullmq_kombu", "kombu.utils.json", "json"]):
    from bullmq_kombu.codec import NotAJob, job_of, message_of
    from bullmq_kombu.errors import BadInput

FIELDS = (
    "name", "data", "opts", "timestamp", "delay", "priority", "celery", "silent", "atm", "ats", "stc", "parent", "parentKey",
    "stacktrace", "returnvalue", "progress", "finishedOn", "processedOn", "x",
)  # fmt: skip
#: Something that decoders take, for the fuzzer to change.
TEXTS = (
    "", "0", "1", "-1", "null", "[]", "{}", '"x"', "[1,{}]", '{"a":1}', "1e5", "²", "[[],{},{}]",
    '{"k":"m"}', '{"i":"id","h":{"retries":1}}', '{"b":"eA==","e":"binary"}', '{"__type__":"datetime","__value__":"2026-01-01T00:00:00"}',
    '{"attempts":3,"backoff":{"type":"exponential","delay":5}}',
)  # fmt: skip


def try_one(data: bytes) -> None:
    source = atheris.FuzzedDataProvider(data)
    fields: dict[str, str] = {} if source.ConsumeIntInRange(0, 9) == 0 else {"name": "t", "data": "{}"}
    for _ in range(source.ConsumeIntInRange(0, 8)):
        name = source.PickValueInList(list(FIELDS))
        text = source.PickValueInList(list(TEXTS))
        if source.ConsumeBool():
            at = source.ConsumeIntInRange(0, len(text))
            text = text[:at] + source.ConsumeUnicode(source.ConsumeIntInRange(0, 24)) + text[at + source.ConsumeIntInRange(0, 4) :]
        fields[name] = text
    try:
        message = message_of("mail", source.ConsumeUnicodeNoSurrogates(8), fields, "tag", "bull", "token")
    except NotAJob:
        return
    assert isinstance(message["headers"], dict)
    assert isinstance(message["properties"], dict)
    # What it cannot say in BullMQ's words is refused in words.
    with contextlib.suppress(BadInput):
        job_of(message, 1, None)


# Long inputs from the start: a hash takes some, and short ones reach little.
atheris.Setup([*sys.argv, "-len_control=0", "-max_len=600"], try_one)
atheris.Fuzz()
