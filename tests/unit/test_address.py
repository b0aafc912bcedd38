"""Every way to write where Redis is, as Kombu's own Connection reads it, and as it reads it again for its pools and after a failover."""

from __future__ import annotations

import ssl
from typing import Any

import kombu
import pytest

import bullmq_kombu
from bullmq_kombu.address import Address, address_of
from bullmq_kombu.errors import BadInput

assert bullmq_kombu.__version__, "importing it makes the URL schemes known"

SINCE_KOMBU_56 = pytest.mark.skipif(
    tuple(map(int, kombu.__version__.split(".")[:2])) < (5, 6), reason="Kombu knows credential providers since 5.6"
)

CHECKED = {"ssl_cert_reqs": ssl.CERT_REQUIRED, "ssl_check_hostname": True}
UNCHECKED = {"ssl_cert_reqs": ssl.CERT_NONE, "ssl_check_hostname": False}


def tcp(
    host: str = "127.0.0.1", port: int = 6379, db: int = 0, user: str | None = None, password: str | None = None, tls: Any = None
) -> Address:
    return Address("tcp", ((host, port),), db=db, username=user, password=password, tls=tls)


def unix(path: str = "/tmp/r.sock", db: int = 0, user: str | None = None, password: str | None = None) -> Address:
    return Address("unix", path=path, db=db, username=user, password=password)


def several(kind: str, *nodes: tuple[str, int], db: int = 0, tls: Any = None, password: str | None = None) -> Address:
    return Address(kind, nodes, db=db, tls=tls, password=password)


def read(url: Any, **options: Any) -> Address:
    return address_of(kombu.Connection(url, **options))


FORMS = [
    # TCP: BullMQ's defaults
    ("bullmq://", tcp()),
    ("bullmq://h", tcp("h")),
    ("bullmq://h:6380", tcp("h", 6380)),
    ("bullmq://h/2", tcp("h", db=2)),
    ("bullmq://h//2", tcp("h", db=2)),
    ("bullmq://h/", tcp("h")),
    ("BULLMQ://h", tcp("h")),
    ("bullmq://u:p%40ss@h:6380/2", tcp("h", 6380, 2, "u", "p@ss")),
    ("bullmq://:secret@h", tcp("h", password="secret")),
    ("bullmq://u@h", tcp("h", user="u")),
    ("bullmq://u%3A:%2F@h", tcp("h", user="u:", password="/")),
    ("bullmq://[::1]:6380/1", tcp("::1", 6380, 1)),
    ("bullmq+redis://u:p%40ss@h:6380/2", tcp("h", 6380, 2, "u", "p@ss")),
    ("bullmq+redis://h", tcp("h")),
    ("bullmq+redis://h?virtual_host=3", tcp("h", db=3)),
    # TLS: certificates are verified unless told otherwise
    ("bullmqs://h", tcp("h", tls=CHECKED)),
    ("bullmqs://u:p@h:6380/2", tcp("h", 6380, 2, "u", "p", CHECKED)),
    ("bullmqs://h?ssl_cert_reqs=required", tcp("h", tls=CHECKED)),
    ("bullmqs://h?ssl_cert_reqs=CERT_REQUIRED", tcp("h", tls=CHECKED)),
    ("bullmqs://h?ssl_cert_reqs=none", tcp("h", tls=UNCHECKED)),
    ("bullmqs://h?ssl_cert_reqs=optional", tcp("h", tls={**CHECKED, "ssl_cert_reqs": ssl.CERT_OPTIONAL})),
    ("bullmqs://h?ssl_ca_certs=/ca.pem&ssl_certfile=/c.pem&ssl_keyfile=/k.pem",
     tcp("h", tls={**CHECKED, "ssl_ca_certs": "/ca.pem", "ssl_certfile": "/c.pem", "ssl_keyfile": "/k.pem"})),
    ("bullmqs://h?ssl_check_hostname=false", tcp("h", tls={**CHECKED, "ssl_check_hostname": False})),
    ("bullmq+rediss://u:p@h:6380/2", tcp("h", 6380, 2, "u", "p", CHECKED)),
    ("bullmq+rediss://h?ssl_cert_reqs=none", tcp("h", tls=UNCHECKED)),
    ("bullmq+rediss://h?ssl_check_hostname=false&ssl_ca_certs=/x",
     tcp("h", tls={**CHECKED, "ssl_check_hostname": False, "ssl_ca_certs": "/x"})),
    # unix socket
    ("bullmq+unix:///tmp/r.sock", unix()),
    ("bullmq+unix:///tmp/r.sock?virtual_host=3", unix(db=3)),
    ("bullmq+unix://u:p%40@/tmp/r.sock", unix(user="u", password="p@")),
    ("bullmq+unix://%2Ftmp%2Fr.sock", unix()),
    ("bullmq+unix:///tmp/a%20b.sock", unix("/tmp/a b.sock")),
    ("bullmq+socket:///tmp/r.sock", unix()),
    ("bullmq-unix:///tmp/r.sock", unix()),
    ("bullmq-unix://%2Ftmp%2Fr.sock/3", unix(db=3)),
    ("bullmq-unix://:secret@/tmp/r.sock", unix(password="secret")),
    # Sentinel: all of them are asked
    ("bullmq+sentinel://h1", several("sentinel", ("h1", 26379))),
    ("bullmq+sentinel://h1:26380/2", several("sentinel", ("h1", 26380), db=2)),
    ("bullmq+sentinel://h1:26379/0;bullmq+sentinel://h2:26380/0", several("sentinel", ("h1", 26379), ("h2", 26380))),
    ("bullmq+sentinel://:pw@h1/1;bullmq+sentinel://h2", several("sentinel", ("h1", 26379), ("h2", 26379), db=1, password="pw")),
    ("bullmq+sentinels://h1", several("sentinel", ("h1", 26379), tls=CHECKED)),
    ("bullmq-sentinel://h1", several("sentinel", ("h1", 26379))),
    ("bullmq-sentinel://h1/2;bullmq-sentinel://h2:5", several("sentinel", ("h1", 26379), ("h2", 5), db=2)),
    # Cluster
    ("bullmq+cluster://h:7000", several("cluster", ("h", 7000))),
    ("bullmq+cluster://h1:7000;bullmq+cluster://h2", several("cluster", ("h1", 7000), ("h2", 6379))),
    ("bullmq+clusters://h:7000", several("cluster", ("h", 7000), tls=CHECKED)),
    ("bullmq-cluster://h1:7000;bullmq-cluster://h2:7001", several("cluster", ("h1", 7000), ("h2", 7001))),
    # Kombu's failover: the first one first
    ("bullmq://a:1/1;bullmq://b:2/2", tcp("a", 1, 1)),
    (["bullmq://a:1/1", "bullmq://b:2/2"], tcp("a", 1, 1)),
]  # fmt: skip


@pytest.mark.parametrize(("url", "address"), FORMS, ids=[str(url) for url, _ in FORMS])
def test_every_form(url: Any, address: Address) -> None:
    assert read(url) == address


@pytest.mark.parametrize(("url", "address"), FORMS, ids=[str(url) for url, _ in FORMS])
def test_a_clone_means_the_same_server(url: Any, address: Address) -> None:
    """Kombu's pools clone connections, and so does Celery."""
    connection = kombu.Connection(url)

    assert address_of(connection.clone()).identity == address.identity
    assert address_of(connection.clone().clone()).identity == address.identity


@pytest.mark.parametrize(
    ("urls", "second"),
    [
        ("bullmq://a:1/1;bullmq://b:2/2", tcp("b", 2, 2)),
        ("bullmqs://a;bullmqs://b", tcp("b", tls=CHECKED)),
        ("bullmq+redis://a;bullmq+redis://b:2/2", tcp("b", 2, 2)),
        ("bullmq+rediss://a;bullmq+rediss://b:2/2", tcp("b", 2, 2, tls=CHECKED)),
        ("bullmq+unix:///tmp/a.sock;bullmq+unix:///tmp/b.sock", unix("/tmp/b.sock")),
        ("bullmq+sentinel://h1:1;bullmq+sentinel://h2:2", several("sentinel", ("h2", 2), ("h1", 1))),
        ("bullmq+cluster://h1:1;bullmq+cluster://h2:2", several("cluster", ("h2", 2), ("h1", 1))),
    ],
)
def test_after_a_failover(urls: str, second: Address) -> None:
    connection = kombu.Connection(urls)
    connection.switch(connection.alt[1])

    assert address_of(connection) == second
    clone = address_of(connection.clone())
    assert clone.nodes[:1] == second.nodes[:1]
    assert (clone.kind, clone.path, clone.db, clone.tls) == (second.kind, second.path, second.db, second.tls)


@pytest.mark.parametrize(
    ("url", "given", "tls"),
    [
        ("bullmq://h", True, CHECKED),
        ("bullmq://h", {"ssl_cert_reqs": ssl.CERT_NONE}, UNCHECKED),
        ("bullmq://h", {"ssl_cert_reqs": None}, UNCHECKED),
        ("bullmq://h", {"ssl_ca_certs": "/x"}, {**CHECKED, "ssl_ca_certs": "/x"}),
        ("bullmqs://h", {"ssl_cert_reqs": "none"}, UNCHECKED),
        ("bullmqs://h", False, CHECKED),
        ("bullmq://h", False, None),
        ("bullmq+redis://h", {"ssl_ca_certs": "/x"}, {**CHECKED, "ssl_ca_certs": "/x"}),
        ("bullmq+rediss://h?ssl_ca_certs=/url", {"ssl_ca_certs": "/given"}, {**CHECKED, "ssl_ca_certs": "/given"}),
    ],
)
def test_broker_use_ssl(url: str, given: Any, tls: Any) -> None:
    assert read(url, ssl=given).tls == tls


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("bullmq://h/x", "database number"),
        ("bullmq+redis://h/x", "database number"),
        ("bullmq+unix:///tmp/r.sock?virtual_host=x", "database number"),
        ("bullmq+cluster://h/1", "one database"),
        ("bullmq+redis://h?prefix=x", "broker_transport_options"),
        ("bullmq+unix:///tmp/r.sock?lock_duration=5", "broker_transport_options"),
        ("bullmq+rediss://h?ssl_cert_reqs=maybe", "ssl_cert_reqs"),
        ("bullmq+redis://h:port", "port"),
        ("bullmq+redis://h?credential_provider=no.such.Provider", "cannot be loaded"),
    ],
)
def test_what_cannot_be_meant_is_an_error(url: str, said: str) -> None:
    with pytest.raises(BadInput, match=said):
        read(url)


def test_a_slash_in_a_password_is_not_taken_for_a_database_and_not_shown() -> None:
    with pytest.raises(BadInput, match="has to be quoted") as error:
        read("bullmq+redis://u:secret/part@h/0")
    assert "secret" not in str(error.value)


@SINCE_KOMBU_56
@pytest.mark.parametrize(
    "url",
    [
        "bullmq://h?credential_provider=redis.UsernamePasswordCredentialProvider",
        "bullmq+redis://h?credential_provider=redis:UsernamePasswordCredentialProvider",
    ],
)
def test_a_credential_provider_is_made_from_its_name_once(url: str) -> None:
    provider = read(url).credential_provider

    assert provider.get_credentials() in ("", ("",))
    assert read(url).credential_provider is provider, "connections of one process share their locks by the address"


@SINCE_KOMBU_56
def test_a_credential_provider_may_be_given_as_it_is() -> None:
    provider = object()

    assert read("bullmq://h", credential_provider=provider).credential_provider is provider


@pytest.mark.parametrize(
    ("url", "where"),
    [
        ("bullmq://u:secret@h/2", "tcp://h:6379/2"),
        ("bullmq+unix://:secret@/tmp/r.sock", "unix:///tmp/r.sock/0"),
        ("bullmq+sentinel://:secret@a;bullmq+sentinel://b", "sentinel://a:26379,b:26379/0"),
    ],
)
def test_log_lines_hold_no_secret(url: str, where: str) -> None:
    address = read(url)

    assert address.where == where
    assert "secret" not in repr(address)


def test_another_user_is_another_identity() -> None:
    assert read("bullmq://a@h").identity != read("bullmq://b@h").identity
    assert read("bullmq://:a@h").identity != read("bullmq://:b@h").identity
    assert read("bullmq://h/1").identity != read("bullmq://h/2").identity
    assert read("bullmq://h").identity != read("bullmqs://h").identity
    assert hash(read("bullmqs://h?ssl_ca_certs=/x").identity), "it is a key"
