"""Makes the ``bullmq`` URL schemes known to Kombu, without an import in the user's code.

Kombu looks transports up in a plain dictionary and has no entry point group for them. It does have one for serializers,
and loads it when :mod:`kombu.serialization` is imported, which ``from celery import Celery`` does. So we register a
serializer, a real and harmless one, and the schemes on the way.

That makes this module run in every process of the environment that uses Kombu, also those that never heard of BullMQ,
while Kombu itself is half imported. Hence its rules: it imports nothing but :mod:`kombu.transport` and the standard
library, and nothing it does can raise.
"""

from __future__ import annotations

from json import dumps, loads
from typing import Any

__all__ = ["SCHEMES", "TRANSPORT", "register", "serializer"]

TRANSPORT = "bullmq_kombu.transport:Transport"

#: Every form is a name of its own: after a failover Kombu looks up the whole of ``bullmq+sentinel``, not its first
#: half. The names with a dash are for URLs that Kombu must not split at a plus sign.
SCHEMES = (
    "bullmq",
    "bullmqs",
    "bullmq+redis",
    "bullmq+rediss",
    "bullmq+unix",
    "bullmq+socket",
    "bullmq+sentinel",
    "bullmq+sentinels",
    "bullmq+cluster",
    "bullmq+clusters",
    "bullmq-unix",
    "bullmq-sentinel",
    "bullmq-cluster",
)


def register() -> bool:
    """Add the schemes to Kombu's transports, leaving alone any that is there; says whether Kombu took them.

    A Kombu that cannot be imported, or keeps its transports elsewhere, is not reported here, where it would break
    every application of the environment: whoever uses a ``bullmq`` URL gets Kombu's own "No such transport".
    """
    try:
        from kombu.transport import TRANSPORT_ALIASES

        for scheme in SCHEMES:
            TRANSPORT_ALIASES.setdefault(scheme, TRANSPORT)
    except Exception:
        return False
    return True


def _encode(value: Any) -> str:
    return dumps(value)


def _decode(data: Any) -> Any:
    # Kombu also hands over memoryviews, which json does not take.
    return loads(data if isinstance(data, str) else bytes(data))


#: What the entry point names: JSON under a content type that nobody sends and no application accepts unasked.
serializer = (_encode, _decode, "application/x-bullmq", "utf-8")

register()
