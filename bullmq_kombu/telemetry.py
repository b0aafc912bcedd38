"""One trace across both languages: the W3C headers of a Celery message and the telemetry metadata of a BullMQ job are the same carrier.

OpenTelemetry's Celery instrumentation writes `traceparent`, `tracestate` and `baggage` into the headers of a message, `bullmq-otel` writes
the same names as JSON into the job's option `telemetry.metadata`. Values in, values out; needs no OpenTelemetry.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from bullmq_kombu.job_options import read_stored

NAMES = ("traceparent", "tracestate", "baggage")


def carrier_of(headers: Mapping[str, Any]) -> str:
    """The trace in a message's headers as BullMQ's metadata; '' where there is none."""
    found = {name: headers[name] for name in NAMES if isinstance(headers.get(name), str)}
    return json.dumps(found, separators=(",", ":")) if found else ""


def without_trace(headers: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in headers.items() if name not in NAMES}


def headers_of(stored_options: str) -> dict[str, str]:
    """The trace in a job's stored options as headers; {} where there is none, or it is another library's."""
    if '"tm"' not in stored_options:
        return {}
    options = read_stored(stored_options)
    try:
        carrier = {} if options.get("omc") else json.loads(options.get("tm") or "{}")
    except (ValueError, TypeError):
        return {}
    if not isinstance(carrier, dict):
        return {}
    return {name: carrier[name] for name in NAMES if isinstance(carrier.get(name), str)}
