"""Every form of address, against servers started for it: what is sent comes, is answered, and survives a failover."""

from __future__ import annotations

import re
import secrets
import signal
import ssl
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import kombu
import pytest
import redis
from celery import Celery
from kombu import Connection
from kombu.exceptions import OperationalError
from servers import Server
from topologies import Certificates, Cluster, Sentinels, TlsSentinel, TlsServer
from waiting import wait_until
from worker import Worker

from bullmq_kombu import FlowProducer, Queue, errors
from bullmq_kombu.address import address_of

WorkerOf = Callable[..., Worker]


def acl(number: int) -> list[str]:
    """The commands that docs/reliability.md names: 0 for a user who may touch nothing but BullMQ's keys, 1 for what administration needs
    besides. INFO and CLIENT are not among the first: where they are forbidden, that is logged."""
    page = (Path(__file__).parents[2] / "docs" / "reliability.md").read_text(encoding="utf-8")
    block = re.findall(r"^ACL SETUSER (.*?)^```$", page, re.MULTILINE | re.DOTALL)[number]
    return [word for word in block.split() if word.startswith("+")]


def round_trip(url: Any, options: dict[str, Any] | None = None, **more: Any) -> None:
    """A job and a message of a queue of its own go there and come back."""
    queue = f"q-{secrets.token_hex(6)}"
    with Connection(url, transport_options=options or {}, **more) as connection:
        with connection.SimpleQueue(queue) as jobs, connection.SimpleBuffer(f"{queue}-own") as own:
            for simple in (jobs, own):
                simple.put({"for": queue})
                message = simple.get(timeout=10)
                assert message.payload == {"for": queue}
                message.ack()


def refused(url: str, options: dict[str, Any] | None = None, **more: Any) -> Exception:
    """What one gets who may not come in."""
    policy = {"max_retries": 1, "interval_start": 0, "interval_step": 0, "interval_max": 0}
    with Connection(url, transport_options=options or {}, **more) as connection, pytest.raises(OperationalError) as caught:
        connection.Producer().publish({}, routing_key="q", retry=True, retry_policy=policy)
    return caught.value


# -- one server --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def guarded() -> Iterator[Server]:
    with Server(password="p@ss/word") as running:
        yield running


def test_tcp(guarded: Server) -> None:
    quoted = "p%40ss%2Fword"
    where = f"{guarded.host}:{guarded.port}"
    for url in (f"bullmq://:{quoted}@{where}/0", f"bullmq://default:{quoted}@{where}/1", f"bullmq+redis://:{quoted}@{where}/2"):
        round_trip(url)
    round_trip(f"bullmq://{where}", password="p@ss/word")
    for db in (0, 1, 2):
        with redis.Redis(port=guarded.port, password="p@ss/word", db=db) as client:
            assert client.dbsize() > 0


def test_unix_socket(guarded: Server) -> None:
    for scheme in ("bullmq+unix", "bullmq+socket"):
        round_trip(f"{scheme}://:p%40ss%2Fword@{guarded.socket_path}?virtual_host=3")
    round_trip(f"bullmq+unix://{guarded.socket_path}", password="p@ss/word", virtual_host="4")
    for db in (3, 4):
        with redis.Redis(port=guarded.port, password="p@ss/word", db=db) as client:
            assert client.dbsize() > 0


def test_failover_lists(server: Server) -> None:
    with Server() as dead:
        away = dead.url
    for urls in (
        f"{away};{server.url}",
        [away, server.url],
        f"bullmq+redis://{away.partition('://')[2]};bullmq+redis://{server.url.partition('://')[2]}",
    ):
        queue = f"q-{secrets.token_hex(6)}"
        with Connection(urls) as connection:
            connection.Producer().publish({"n": 1}, routing_key=queue, retry=True, retry_policy={"max_retries": 3, "interval_start": 0})
            with connection.SimpleQueue(queue) as jobs:
                assert jobs.get(timeout=5).payload == {"n": 1}


def test_failover_lists_of_the_result_backend(server: Server) -> None:
    """What is stored, and who waits, goes to the next address while the first is away."""
    with Server() as first, Celery(backend=server.url) as plain, Celery(backend=f"{first.url};{server.url}") as listed:
        waiting = listed.AsyncResult(str(uuid.uuid4()))
        listed.backend.store_result(waiting.id, "half", "PROGRESS")
        assert waiting.state == "PROGRESS"
        seen: list[Any] = []
        waiter = threading.Thread(target=lambda: seen.append(waiting.get(timeout=60)))
        waiter.start()
        with first.client() as client:
            wait_until(lambda: client.pubsub_channels(f"*{waiting.id}"), what="it to wait at the first")
        first.stop()
        plain.backend.store_result(waiting.id, "all", "SUCCESS")
        waiter.join(60)
        assert seen == ["all"]
        listed.backend.store_result("another", "here", "SUCCESS")
        assert plain.AsyncResult("another").get(timeout=5) == "here"


@pytest.mark.parametrize("pool", ["prefork", "threads", "gevent"])
def test_a_worker_fails_over(worker: WorkerOf, queue_name: str, tmp_path: Path, pool: str) -> None:
    """Its server is stopped while it consumes and a task runs: the task runs once, to its end, and the next server's are run as ever."""
    at = tmp_path / "it"
    with Server() as first, Server() as second:
        urls = f"{first.url};{second.url}"
        one = worker(on=first, url=urls, pool=pool, settings={"result_backend": urls})
        answers(urls, queue_name)
        with Celery("sender", broker=urls) as app:
            held = app.send_task("hold", args=[str(at)], queue=queue_name)
        wait_until(at.with_suffix(".runs").exists, what="the task to run")
        first.stop()
        at.with_suffix(".go").touch()
        found = re.compile(f"Connected to bullmq.*{second.host}:{second.port}/")
        wait_until(lambda: found.search(one.log), 20, "the worker to find the second server")
        answers(urls, queue_name)
        assert len(at.with_suffix(".runs").read_text().split()) == 1
        with second.client() as client:
            assert not client.exists(f"bull:{queue_name}:{held.id}"), "a job of the first server"
            wait_until(lambda: client.llen(f"bull:{queue_name}:active") == 0, what="all jobs to be ended")
        one.signal(signal.SIGTERM)
        assert one.wait() == 0, "what the first server did not hear is given up"
        assert "ends of jobs were not sent" in one.log


class Credentials(redis.CredentialProvider):
    def get_credentials(self) -> tuple[str, str]:
        return "default", "p@ss/word"


@pytest.mark.skipif(tuple(map(int, kombu.__version__.split(".")[:2])) < (5, 6), reason="Kombu knows them since 5.6")
def test_credential_provider(guarded: Server) -> None:
    address = f"bullmq://{guarded.host}:{guarded.port}/0"
    round_trip(address, credential_provider=Credentials())
    refused(address)


def test_no_form_shows_a_password(guarded: Server) -> None:
    for url in (
        f"bullmq://u:sec-ret@{guarded.host}:{guarded.port}",
        f"bullmq+unix://:sec-ret@{guarded.socket_path}",
        "bullmqs://:sec-ret@h",
    ):
        with Connection(url) as connection:
            address = address_of(connection)
            assert address.password == "sec-ret"
            assert "sec-ret" not in repr(address)
            assert "sec-ret" not in address.where
    error = refused(f"bullmq://:sec-ret@{guarded.host}:{guarded.port}")
    assert "sec-ret" not in str(error)
    with Connection("bullmq://:12/ss-word@h") as connection, pytest.raises(errors.BadInput) as caught:
        address_of(connection)
    assert "ss-word" not in str(caught.value)


# -- a user who may little ---------------------------------------------------------------------------------------------------


def limited(server: Server, prefix: str) -> str:
    """A URL for a user who may do nothing but what BullMQ needs."""
    name = f"u{secrets.token_hex(4)}"
    with server.client() as client:
        # A pattern that is subscribed to has to be allowed word for word.
        patterns = [f"&{prefix}::kombu:0:fanout:{exchange}*" for exchange in ("celery.pidbox/", "celeryev/", "celeryev/worker.")]
        rules = ["resetkeys", f"~{prefix}:*", "resetchannels", f"&{prefix}:*", *patterns, "-@all", *acl(0)]
        client.execute_command("ACL", "SETUSER", name, "on", ">pw", *rules)
        client.execute_command("ACL", "LOG", "RESET")
    return f"bullmq://{name}:pw@{server.host}:{server.port}/0"


def denied(server: Server) -> set[str]:
    with server.client() as client:
        entries: Any = client.execute_command("ACL", "LOG")
    return {entry["object"] if isinstance(entry, dict) else dict(zip(entry[::2], entry[1::2], strict=True))["object"] for entry in entries}


@pytest.mark.parametrize("prefix", ["bull", "{bull}"])
def test_a_user_of_these_keys_alone(server: Server, worker: WorkerOf, queue_name: str, prefix: str) -> None:
    url = limited(server, prefix)
    options = {"prefix": prefix}
    one = worker(url=url, options=options, settings={"result_backend": url, "result_extended": True})
    with Celery("sender", broker=url, backend=url) as app:
        app.conf.broker_transport_options = options
        result = app.send_task("echo", kwargs={"value": 1}, queue=queue_name)
        assert result.get(timeout=15) == 1
        delayed = app.send_task("again", kwargs={"times": 1, "countdown": 0.3}, queue=queue_name)
        assert delayed.get(timeout=15)["retries"] == 1
        failing = app.send_task("boom.late", queue=queue_name)
        with pytest.raises(ValueError, match="the message"):
            failing.get(timeout=15)
        assert app.control.inspect(timeout=3).ping() == {one.name: {"ok": "pong"}}
        assert app.control.purge() >= 0
    one.stop()
    assert {word.partition("|")[0] for word in denied(server)} <= {"info", "client", "config"}
    assert "are not checked" in one.log
    assert one.log.count("have no name") <= 1
    assert "remote control" not in one.log


def test_administration_by_a_user_who_may_do_a_little_more(server: Server, queue_name: str, tmp_path: Path) -> None:
    url = limited(server, "bull")
    with server.client() as client:
        client.execute_command("ACL", "SETUSER", url.partition("//")[2].partition(":")[0], *acl(1))
    with Queue(queue_name, url) as queue, FlowProducer(url) as producer:
        flow = producer.add({"name": "p", "queueName": queue_name, "children": [{"name": "c", "queueName": queue_name}]})
        assert flow.job.get_dependencies_count()["unprocessed"] == 1
        queue.upsert_job_scheduler("s", {"every": 60_000})
        assert [one.id for one in queue.get_job_schedulers()] == ["s"]
        assert len(queue.get_jobs(["waiting", "delayed", "waiting-children"])) == 3
        assert queue.get_counts_per_priority([0]) == {0: 2}
        assert queue.get_workers() == []
        flow.job.remove()
        queue.remove_orphaned_jobs()
        queue.obliterate(force=True)
    for command in ("doctor", "queues"):
        # What the doctor finds elsewhere on this server is not the point.
        line = [sys.executable, "-m", "bullmq_kombu", "--url", url, command]
        subprocess.run(line, cwd=tmp_path, capture_output=True, timeout=60, check=False)
    # The connection then has no name, or its library, which servers know since Redis 7.2. Redis 6 says no more than "client".
    assert denied(server) <= {"client|setname", "client|setinfo", "client"}


# -- TLS ---------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="module")
def tls(certificates: Certificates) -> Iterator[TlsServer]:
    with TlsServer(certificates, password="pw") as running:
        yield running


def test_tls_is_verified_unless_told_otherwise(tls: TlsServer, certificates: Certificates, tmp_path: Path) -> None:
    ca = f"ssl_ca_certs={certificates.ca}"
    round_trip(tls.tls_url(query=ca))
    round_trip(tls.tls_url("bullmq+rediss", ca))
    round_trip(tls.tls_url("bullmqs", ca, host="localhost"))
    round_trip(tls.tls_url(), ssl={"ssl_ca_certs": str(certificates.ca)})
    round_trip(tls.tls_url("bullmq"), ssl={"ssl_ca_certs": str(certificates.ca), "ssl_cert_reqs": ssl.CERT_REQUIRED})
    round_trip(tls.tls_url(query="ssl_cert_reqs=none"))
    round_trip(tls.tls_url("bullmq+rediss", "ssl_cert_reqs=CERT_NONE"))

    for url, more in (
        (tls.tls_url(), {}),
        (tls.tls_url("bullmq+rediss"), {}),
        (tls.tls_url("bullmq"), {"ssl": True}),
        (tls.tls_url(query=f"ssl_ca_certs={Certificates(tmp_path, 'other').ca}"), {}),
    ):
        assert "certificate verify failed" in str(refused(url, **more)).lower(), url
    # Spoken to in the clear, the TLS port says nothing anybody understands.
    refused(tls.tls_url("bullmq"))


def test_tls_checks_the_name(tls: TlsServer, certificates: Certificates) -> None:
    # Another address of the same machine, which is not in the certificate.
    query = f"ssl_ca_certs={certificates.ca}"
    other = tls.tls_url(query=query, host="127.0.0.2")
    assert "mismatch" in str(refused(other))
    round_trip(f"{other}&ssl_check_hostname=false")


def test_tls_client_certificate(certificates: Certificates) -> None:
    with TlsServer(certificates, client_certificate=True) as server:
        mine = f"ssl_certfile={certificates.client}&ssl_keyfile={certificates.client_key}"
        round_trip(server.tls_url(query=f"ssl_ca_certs={certificates.ca}&{mine}"))
        refused(server.tls_url(query=f"ssl_ca_certs={certificates.ca}"))


def test_a_worker_over_tls(tls: TlsServer, certificates: Certificates, worker: WorkerOf, queue_name: str) -> None:
    url = tls.tls_url(query=f"ssl_ca_certs={certificates.ca}")
    worker(on=tls, url=url, settings={"result_backend": url})
    answers(url, queue_name)


def answers(url: Any, *queues: str, options: dict[str, Any] | None = None, times: int = 20) -> None:
    """Tasks are run, their results and the workers' replies come."""
    with Celery("sender", broker=url, backend=url) as app:
        app.conf.broker_transport_options = app.conf.result_backend_transport_options = options or {}
        results = [app.send_task("echo", kwargs={"value": number}, queue=queue) for number in range(times) for queue in queues]
        assert [result.get(timeout=20) for result in results] == [number for number in range(times) for _ in queues]
        replies = app.control.inspect(timeout=3).ping()
        assert replies
        assert all(reply == {"ok": "pong"} for reply in replies.values())


# -- Sentinel ----------------------------------------------------------------------------------------------------------------


def test_sentinel_with_passwords_and_a_failover(worker: WorkerOf, queue_name: str) -> None:
    with Sentinels(password="pw", sentinel_password="spw") as sentinels:
        options = {"master_name": "mymaster", "sentinel_kwargs": {"password": "spw"}, "socket_timeout": 1.0}
        settings = {"result_backend": sentinels.url, "result_backend_transport_options": options}
        one = worker(on=sentinels.master, url=sentinels.url, options=options, settings=settings)
        answers(sentinels.url, queue_name, options=options)
        sentinels.fail_over()
        wait_until(lambda: one.log.count("Connected to bullmq") >= 2, 15, "the worker to find the new master")
        answers(sentinels.url, queue_name, options=options)
        assert "spw" not in one.log


def test_sentinel_over_tls_with_a_password_of_its_own(tls: TlsServer, certificates: Certificates) -> None:
    with TlsSentinel(tls, certificates, "spw") as sentinel, sentinel.client() as client:
        wait_until(lambda: "disconnected" not in client.sentinel_masters()["mymaster"]["flags"], what="the sentinel to know its master")
        url = f"bullmq+sentinels://:pw@{sentinel.host}:{sentinel.tls_port}/0"
        options = {"master_name": "mymaster", "sentinel_kwargs": {"password": "spw"}}
        round_trip(f"{url}?ssl_ca_certs={certificates.ca}", options)
        refused(url, options)  # whom the certificate tells nothing
        wrong = {**options, "sentinel_kwargs": {"password": "s3cret"}}
        assert "s3cret" not in str(refused(f"{url}?ssl_ca_certs={certificates.ca}", wrong))


def test_sentinel_needs_the_name_of_the_master() -> None:
    with Connection("bullmq+sentinel://127.0.0.1:1") as connection, pytest.raises(errors.BadInput, match="master_name"):
        connection.connect()


# -- Cluster -----------------------------------------------------------------------------------------------------------------


def test_cluster(worker: WorkerOf, queue_name: str) -> None:
    queues = [f"{queue_name}-{number}" for number in range(3)]
    with Cluster() as cluster:
        options = {"socket_timeout": 1.0}
        one = worker(*queues, on=cluster.nodes[0], url=cluster.url, options=options, settings={"result_backend": cluster.url})
        answers(cluster.url, *queues, times=7)
        with cluster.client() as client:
            assert client.exists(f"{{bull}}:{queues[0]}:meta"), "the prefix is a hash tag by default"

        cluster.move_slot("{bull}")
        answers(cluster.url, *queues, times=7)

        cluster.fail_over("{bull}")
        answers(cluster.url, *queues, times=7)
        assert one.process is not None
        assert one.process.poll() is None


def test_a_cluster_wants_a_hash_tag_and_has_one_database() -> None:
    with (
        Connection("bullmq+cluster://127.0.0.1:1", transport_options={"prefix": "bull"}) as connection,
        pytest.raises(errors.BadInput, match="hash tag"),
    ):
        connection.connect()
    with Connection("bullmq+cluster://127.0.0.1:1/3") as connection, pytest.raises(errors.BadInput, match="one database"):
        connection.connect()
