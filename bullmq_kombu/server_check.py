"""What is asked of a server once: is it new enough, does it keep what it is given?

BullMQ's rules: Redis 5.0.0 is needed and 6.2.0 recommended, Valkey and Dragonfly number themselves differently; and an eviction policy
other than `noeviction` loses jobs. Where a managed server forbids INFO, that is logged and no more.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from typing import Any, NamedTuple

from redis.exceptions import ResponseError

from bullmq_kombu.errors import BullMQError

logger = logging.getLogger(__name__)

NEEDED = (5, 0, 0)
RECOMMENDED = (6, 2, 0)
#: Before it, blocking commands take whole seconds only.
FRACTIONS = (6, 0, 0)
POLICY = "noeviction"


class ServerTooOld(BullMQError):
    """The server lacks commands that BullMQ needs."""


class Facts(NamedTuple):
    """Of one server: `kind` is redis, valkey or dragonfly; an empty version is an unknown one."""

    kind: str = "redis"
    version: tuple[int, ...] = ()
    policy: str = ""

    @property
    def takes_fractions(self) -> bool:
        """Whether a blocking command may wait for a fraction of a second."""
        return self.kind != "redis" or not self.version or self.version >= FRACTIONS


#: Servers that have been asked.
_known: dict[Any, Facts] = {}


def facts_of(identity: Any) -> Facts:
    """What is known of a server; the answer of one that is well where it was not asked."""
    return _known.get(identity, Facts())


def check_once(identity: Any, where: str, call: Callable[..., Any], *, skip: bool) -> None:
    """Asks the server unless this process has. Raises ServerTooOld; anything else that is wrong is a warning."""
    if skip or identity in _known:
        return
    try:
        facts = read_info(str(call("INFO", "server")) + "\n" + str(call("INFO", "memory")))
    except ResponseError as error:
        logger.info("the version and eviction policy of Redis at %s are not checked: %s", where, error)
        facts = Facts()
    judge(facts, where)
    _known[identity] = facts


def read_info(text: str) -> Facts:
    """From the text of INFO."""
    fields = dict(re.findall(r"^(\w+):(.*?)\r?$", text, re.MULTILINE))
    policy = fields.get("maxmemory_policy", "")
    for kind in ("valkey", "dragonfly"):
        own = fields.get(f"{kind}_version")
        if own is not None:
            return Facts(kind, _version(own), policy)
    return Facts("redis", _version(fields.get("redis_version", "")), policy)


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", text)[:3])


def judge(facts: Facts, where: str) -> None:
    """Says what is wrong with the server."""
    shown = ".".join(map(str, facts.version))
    if facts.kind == "redis" and facts.version:
        if facts.version < NEEDED:
            raise ServerTooOld(f"Redis version needs to be greater or equal than 5.0.0 Current: {shown} (at {where})")
        if facts.version < RECOMMENDED:
            logger.warning("Redis at %s is version %s: 6.2.0 or newer is recommended", where, shown)
    if facts.policy and facts.policy != POLICY:
        logger.warning('IMPORTANT! Eviction policy is %s. It should be "%s" (Redis at %s)', facts.policy, POLICY, where)
