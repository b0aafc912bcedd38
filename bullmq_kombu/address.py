"""Where Redis is and how to greet it, from Kombu's connection info. Opens nothing.

Kombu gives three shapes: a URL it has taken apart itself (`bullmq://…`), one it has left whole after `bullmq+` (`bullmq+unix://…`), and,
after a failover, the second with the scheme of the first. A clone of a connection, as its pools make them, has defaults filled in that
nobody has given: the host `localhost`, port 6379, `bullmq+` before the host. All of them end as the same `Address`.
"""

from __future__ import annotations

import ssl as ssl_module
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from typing import Any
from urllib.parse import SplitResult, parse_qs, unquote, urlsplit

from bullmq_kombu.errors import BadInput

DEFAULT_HOST = "127.0.0.1"
DEFAULT_PORT = 6379
DEFAULT_SENTINEL_PORT = 26379

_TLS_SCHEMES = frozenset({"bullmqs", "rediss", "sentinels", "clusters"})
_CERT_REQS = {"none": ssl_module.CERT_NONE, "optional": ssl_module.CERT_OPTIONAL, "required": ssl_module.CERT_REQUIRED}


@dataclass(frozen=True)
class Address:
    """Where Redis is: `kind` is tcp, unix, sentinel or cluster; `nodes` are (host, port); `tls` holds redis-py's ssl_* names or is None."""

    kind: str
    nodes: tuple[tuple[str, int], ...] = ()
    path: str = ""
    db: int = 0
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    tls: Mapping[str, Any] | None = field(default=None, repr=False)
    credential_provider: Any = field(default=None, repr=False)

    @property
    def where(self) -> str:
        """For messages and log lines; holds no secret."""
        nodes = self.path or ",".join(f"{host}:{port}" for host, port in self.nodes)
        return f"{self.kind}://{nodes}/{self.db}"

    @property
    def identity(self) -> tuple[Any, ...]:
        """Equal for addresses that mean the same server, greeted by the same user."""
        tls = tuple(sorted((name, str(value)) for name, value in self.tls.items())) if self.tls is not None else None
        nodes = tuple((DEFAULT_HOST if host == "localhost" else host, port) for host, port in self.nodes)
        return (self.kind, nodes, self.path, self.db, self.username, self.password, tls, id(self.credential_provider))


def address_of(client: Any) -> Address:
    """The Address a kombu.Connection means, whichever way its URL was written."""
    host = str(client.hostname or "").removeprefix("bullmq+")
    scheme = str(client.transport_cls or "bullmq")
    if "://" in host:
        return _address_of_url(host, client)
    kind, virtual_host = _kind_of(scheme), str(client.virtual_host or "")
    if kind == "unix":
        is_path = host.startswith("/")
        path = host if is_path else f"/{virtual_host.lstrip('/')}"
        return _unix(path, virtual_host if is_path else "", client.userid, client.password, client)
    port = None if kind == "sentinel" and client.port == DEFAULT_PORT else client.port
    return _network(kind, host, port, virtual_host, client.userid, client.password, _tls_of(client, _is_tls(scheme), {}), client)


def _address_of_url(url: str, client: Any) -> Address:
    parts = urlsplit(url)
    query = {name: values[-1] for name, values in parse_qs(parts.query).items()}
    unknown = sorted(name for name in query if name not in ("virtual_host", "credential_provider") and not name.startswith("ssl_"))
    if unknown:
        raise BadInput(f"{unknown[0]!r} is nothing that a broker URL can say: options go into broker_transport_options")
    user = unquote(parts.username) if parts.username else client.userid
    password = unquote(parts.password) if parts.password else client.password
    kind, virtual_host = _kind_of(parts.scheme), str(client.virtual_host or "")
    if kind == "unix":
        path = unquote(parts.path) if parts.path else unquote(parts.netloc.rpartition("@")[2])
        return _unix(path, query.get("virtual_host", virtual_host), user, password, client, query.get("credential_provider"))
    tls = _tls_of(client, _is_tls(parts.scheme), query)
    db, provider = parts.path or query.get("virtual_host", virtual_host), query.get("credential_provider")
    return _network(kind, parts.hostname, _port_of(parts), db, user, password, tls, client, provider)


def _unix(path: str, virtual_host: str, user: str | None, password: str | None, client: Any, provider_name: str | None = None) -> Address:
    provider = _provider_of(client, provider_name)
    return Address("unix", path=path, db=_db(virtual_host), username=user, password=password, credential_provider=provider)


def _network(
    kind: str, host: str | None, port: int | None, virtual_host: str, user: str | None, password: str | None,
    tls: Mapping[str, Any] | None, client: Any, provider_name: str | None = None,
) -> Address:  # fmt: skip
    nodes = [(host or DEFAULT_HOST, port or _default_port(kind)), *_alternate_nodes(client, kind)]
    provider = _provider_of(client, provider_name)
    db = _db(virtual_host)
    if kind == "cluster" and db:
        raise BadInput(f"Redis Cluster has one database, 0, not {db}")
    return Address(kind, tuple(dict.fromkeys(nodes)), "", db, user, password, tls, provider)


def _provider_of(client: Any, named: str | None) -> Any:
    """redis-py's credential provider: an object, or, as in a URL, the dotted name of its class."""
    given = named or getattr(client, "credential_provider", None)
    return _provider_named(given) if isinstance(given, str) else given


@cache
def _provider_named(name: str) -> Any:
    module, _, attribute = name.replace(":", ".").rpartition(".")
    try:
        return getattr(import_module(module), attribute)()
    except (ImportError, AttributeError, ValueError) as error:
        raise BadInput(f"credential_provider={name} cannot be loaded: {error}") from error


def _alternate_nodes(client: Any, kind: str) -> list[tuple[str, int]]:
    """Sentinels and cluster nodes are asked together; for a single server the alternates are Kombu's failover."""
    if kind not in ("sentinel", "cluster"):
        return []
    parts = [urlsplit(str(url)) for url in client.alt or ()]
    return [(one.hostname or DEFAULT_HOST, _port_of(one) or _default_port(kind)) for one in parts]


def _port_of(parts: SplitResult) -> int | None:
    try:
        return parts.port
    except ValueError:
        # The text is not shown: it may be the beginning of a password that holds an unquoted slash.
        raise BadInput("the port in the broker URL is no number; a user name or password in a URL has to be quoted") from None


def _kind_of(scheme: str) -> str:
    if "socket" in scheme or "unix" in scheme:
        return "unix"
    return "sentinel" if "sentinel" in scheme else "cluster" if "cluster" in scheme else "tcp"


def _is_tls(scheme: str) -> bool:
    return not _TLS_SCHEMES.isdisjoint(scheme.replace("-", "+").split("+"))


def _default_port(kind: str) -> int:
    return DEFAULT_SENTINEL_PORT if kind == "sentinel" else DEFAULT_PORT


def _db(virtual_host: str) -> int:
    text = virtual_host.strip("/")
    if not text:
        return 0
    try:
        return int(text)
    except ValueError:
        # With an @ in it, it is the end of a password that holds an unquoted slash.
        shown = "this: a user name or password in it has to be quoted" if "@" in text else repr(text)
        raise BadInput(f"the part of the broker URL after the host is a Redis database number, not {shown}") from None


def _tls_of(client: Any, by_scheme: bool, query: Mapping[str, str]) -> Mapping[str, Any] | None:
    """redis-py's ssl_* arguments, with certificates verified unless the user says otherwise."""
    given = client.ssl
    if not by_scheme and not given:
        return None
    found: dict[str, Any] = {name: value for name, value in query.items() if name.startswith("ssl_")}
    if isinstance(given, Mapping):
        found.update(given)
    tls = {"ssl_cert_reqs": ssl_module.CERT_REQUIRED, "ssl_check_hostname": True, **found}
    reqs = tls["ssl_cert_reqs"]
    if isinstance(reqs, str):
        known = _CERT_REQS.get(reqs.lower().removeprefix("cert_"))
        if known is None:
            raise BadInput(f"ssl_cert_reqs is one of required, optional, none, not {reqs!r}")
        tls["ssl_cert_reqs"] = known
    elif reqs is None:
        tls["ssl_cert_reqs"] = ssl_module.CERT_NONE
    checked = tls["ssl_check_hostname"]
    if isinstance(checked, str):
        tls["ssl_check_hostname"] = checked.lower() not in ("0", "false", "no", "off")
    if tls["ssl_cert_reqs"] == ssl_module.CERT_NONE:
        tls["ssl_check_hostname"] = False
    return tls
