"""Servers that are more than one plain process: certificates made on the spot, Sentinels, a Cluster.

Each is a context manager that ends everything it started. Times are short, so that a failover takes seconds.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import redis
from servers import Server, free_port, require
from waiting import wait_until

FAILOVER_TIMEOUT_S = 40.0


class Certificates:
    """A certificate authority of its own, a server's certificate for 127.0.0.1 and localhost, and a client's."""

    def __init__(self, folder: Path, name: str = "ca") -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self.ca, self._ca_key = folder / f"{name}.crt", folder / f"{name}.key"
        # Python 3.13 verifies strictly: an authority has to say what its key is for, a certificate by which key it was signed.
        self._openssl("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", f"/CN={name}",
                      "-addext", "keyUsage=critical,keyCertSign,cRLSign", "-keyout", self._ca_key, "-out", self.ca)  # fmt: skip
        self.server, self.server_key = self._signed("server", "subjectAltName=IP:127.0.0.1,DNS:localhost")
        self.client, self.client_key = self._signed("client", "extendedKeyUsage=clientAuth")

    def _signed(self, name: str, extension: str) -> tuple[Path, Path]:
        certificate, key, request = (self._folder / f"{name}.{kind}" for kind in ("crt", "key", "csr"))
        extensions = self._folder / f"{name}.ext"
        extensions.write_text(f"{extension}\nauthorityKeyIdentifier=keyid\nsubjectKeyIdentifier=hash\n")
        self._openssl("req", "-newkey", "rsa:2048", "-nodes", "-subj", f"/CN={name}", "-keyout", key, "-out", request)
        self._openssl("x509", "-req", "-days", "2", "-in", request, "-CA", self.ca, "-CAkey", self._ca_key, "-CAcreateserial",
                      "-extfile", extensions, "-out", certificate)  # fmt: skip
        return certificate, key

    def _openssl(self, *arguments: object) -> None:
        subprocess.run([require("openssl"), *map(str, arguments)], check=True, capture_output=True, timeout=60)


class TlsServer(Server):
    """Also listens with TLS, on `tls_port`; `client_certificate`: whoever connects there has to bring one."""

    def __init__(self, certificates: Certificates, *, client_certificate: bool = False, **options: Any) -> None:
        self.tls_port = free_port()
        extra = [
            "--tls-port", str(self.tls_port), "--tls-cert-file", str(certificates.server), "--tls-key-file", str(certificates.server_key),
            "--tls-ca-cert-file", str(certificates.ca), "--tls-auth-clients", "yes" if client_certificate else "no",
            "--bind", "127.0.0.1 127.0.0.2",
        ]  # fmt: skip
        super().__init__(extra=[*extra, *options.pop("extra", ())], **options)

    def tls_url(self, scheme: str = "bullmqs", query: str = "", host: str = "127.0.0.1") -> str:
        return f"{scheme}://{self._credentials}{host}:{self.tls_port}/0{'?' if query else ''}{query}"


class _Sentinel(Server):
    """One Sentinel that watches `master` under the name `mymaster`."""

    def __init__(self, master: Server, password: str | None, patience_ms: int) -> None:
        super().__init__(password=password)
        self._master = master
        self._patience_ms = patience_ms

    def _arguments(self) -> list[str]:
        master = self._master
        lines = [
            f"port {self.port}", f"bind {self.host}", f"dir {self.directory}",
            f"sentinel monitor mymaster {master.host} {master.port} 2",
            f"sentinel down-after-milliseconds mymaster {self._patience_ms}",
            "sentinel failover-timeout mymaster 10000",
        ]  # fmt: skip
        if master.password:
            lines.append(f"sentinel auth-pass mymaster {master.password}")
        if self.password:
            lines += [f"requirepass {self.password}", f"sentinel sentinel-pass {self.password}"]
        file = self.directory / "sentinel.conf"
        file.write_text("\n".join(lines) + "\n")
        return [str(file), "--sentinel"]


class TlsSentinel(_Sentinel):
    """One that speaks TLS with its master, and on `tls_port` with whoever asks."""

    def __init__(self, master: TlsServer, certificates: Certificates, password: str) -> None:
        super().__init__(master, password, 1000)
        self.tls_port = free_port()
        self._certificates = certificates

    def _arguments(self) -> list[str]:
        master, certificates = self._master, self._certificates
        assert isinstance(master, TlsServer)
        arguments = super()._arguments()
        file = Path(arguments[0])
        monitored = file.read_text().replace(f"{master.host} {master.port} 2", f"{master.host} {master.tls_port} 1")
        tls = [
            f"tls-port {self.tls_port}", f"tls-cert-file {certificates.server}", f"tls-key-file {certificates.server_key}",
            f"tls-ca-cert-file {certificates.ca}", "tls-auth-clients no", "tls-replication yes",
        ]  # fmt: skip
        file.write_text("\n".join([*tls, monitored]))
        return arguments


class Sentinels:
    """A master, a replica and three Sentinels. `password` is Redis', `sentinel_password` the Sentinels' own.

    :param patience_ms: after so long without an answer a Sentinel takes a server for dead.
    """

    def __init__(self, *, password: str | None = None, sentinel_password: str | None = None, patience_ms: int = 1000) -> None:
        self._patience_ms = patience_ms
        self.master = Server(appendonly=True, password=password)
        self._sentinel_password = sentinel_password
        self._password = password
        self._stack = ExitStack()
        self.sentinels: list[_Sentinel] = []

    def __enter__(self) -> Sentinels:
        try:
            enter = self._stack.enter_context
            enter(self.master)
            if self._password:
                with self.master.client() as client:
                    client.config_set("masterauth", self._password)
            self.replica = enter(Server(appendonly=True, password=self._password, extra=self._as_replica()))
            self.sentinels = [enter(_Sentinel(self.master, self._sentinel_password, self._patience_ms)) for _ in range(3)]
            for one in self.sentinels:
                wait_until(lambda one=one: self._knows_all(one), FAILOVER_TIMEOUT_S, "the sentinels to know each other and the replica")
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def _as_replica(self) -> list[str]:
        extra = ["--replicaof", self.master.host, str(self.master.port), "--repl-diskless-sync-delay", "0"]
        return [*extra, "--masterauth", self._password] if self._password else extra

    def _knows_all(self, sentinel: _Sentinel) -> bool:
        with sentinel.client() as client:
            state: Any = client.sentinel_masters()["mymaster"]
            replicas: Any = client.sentinel_slaves("mymaster")
        is_well = state["port"] == self.master.port and "s_down" not in state["flags"]
        return (
            is_well
            and state["num-other-sentinels"] == 2
            and [one["port"] for one in replicas if not one["is_sdown"]] == [self.replica.port]
        )

    @property
    def url(self) -> str:
        credentials = f":{self._password}@" if self._password else ""
        return ";".join(f"bullmq+sentinel://{credentials}{one.host}:{one.port}/0" for one in self.sentinels)

    def fail_over(self, *, at_once: bool = False) -> None:
        """The master is gone; returns when the replica is `master`. `at_once`: the Sentinels are told, and need not find out."""
        self.master.kill()
        if at_once:
            with self.sentinels[0].client() as client:
                client.execute_command("SENTINEL", "FAILOVER", "mymaster")
        wait_until(lambda: self._role(self.replica) == "master", FAILOVER_TIMEOUT_S, "the replica to be promoted")
        self.master, self.replica = self.replica, self.master

    def catch_up(self) -> None:
        """Nothing more is written, and the replica has all that was: Redis promises nothing for the rest."""
        with self.master.client() as master, self.replica.client() as replica:
            master.execute_command("CLIENT", "PAUSE", 60_000, "WRITE")
            wait_until(lambda: _offset(replica) >= _offset(master), FAILOVER_TIMEOUT_S, "the replica to have all")

    def heal(self) -> None:
        """The master that was is the replica of the one that is; it could fail over again."""
        self.replica.extra = tuple(self._as_replica())
        self.replica.start()
        for one in self.sentinels:
            wait_until(lambda one=one: self._knows_all(one), FAILOVER_TIMEOUT_S, "the sentinels to know the new replica")

    def _role(self, server: Server) -> str:
        """Nothing while the server sends everybody away, as it does where its role changes."""
        try:
            with server.client() as client:
                info: Any = client.info("replication")
        except redis.ConnectionError:
            return ""
        return str(info["role"])


def _offset(client: redis.Redis) -> int:
    info: Any = client.info("replication")
    return int(info["master_repl_offset"])


class Cluster:
    """Three masters with a replica each, on loopback."""

    def __init__(self) -> None:
        self.nodes: list[Server] = []
        self._stack = ExitStack()

    def __enter__(self) -> Cluster:
        try:
            extra = [
                "--cluster-enabled",
                "yes",
                "--cluster-config-file",
                "nodes.conf",
                "--cluster-node-timeout",
                "1500",
                "--repl-diskless-sync-delay",
                "0",
            ]
            self.nodes = [self._stack.enter_context(Server(appendonly=True, extra=extra)) for _ in range(6)]
            self.cli("--cluster", "create", *(f"{one.host}:{one.port}" for one in self.nodes), "--cluster-replicas", "1", "--cluster-yes")
            wait_until(lambda: all(self._is_well(one) for one in self.nodes), FAILOVER_TIMEOUT_S, "the cluster to be well")
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def cli(self, *arguments: str) -> str:
        done = subprocess.run([require("redis-cli"), *arguments], capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def _is_well(self, server: Server) -> bool:
        with server.client() as client:
            state: Any = client.execute_command("CLUSTER INFO")
            nodes: Any = client.execute_command("CLUSTER NODES")
            role: Any = client.info("replication")
        text = str(state)
        linked = role["role"] == "master" or role["master_link_status"] == "up"
        return (
            "cluster_state:ok" in text.replace("': '", ":")
            and len(str(nodes).splitlines() if isinstance(nodes, str) else nodes) == 6
            and linked
        )

    @property
    def url(self) -> str:
        return ";".join(f"bullmq+cluster://{one.host}:{one.port}" for one in self.nodes[:3])

    def owner_of(self, key: str, but: Sequence[Server] = ()) -> Server:
        """The node that is master of the key's slot, as the others see it."""
        for one in self.nodes:
            if one in but or one.process is None:
                continue
            with one.client() as client:
                slot = client.execute_command("CLUSTER KEYSLOT", key)
                slots: Any = client.execute_command("CLUSTER SLOTS")
            found = slots if isinstance(slots, list) else [[first, last, value["primary"]] for (first, last), value in slots.items()]
            for first, last, node, *_ in found:
                if first <= slot <= last:
                    return next(server for server in self.nodes if server.port == int(node[1]))
        raise AssertionError("no node knows")

    def client(self) -> redis.RedisCluster:
        one = next(node for node in self.nodes if node.process is not None)
        return redis.RedisCluster(host=one.host, port=one.port, decode_responses=True)

    def fail_over(self, key: str) -> None:
        """The master of the key is gone; returns when its replica has taken over."""
        before = self.owner_of(key)
        before.kill()
        wait_until(lambda: self._has_new_owner(key, before), FAILOVER_TIMEOUT_S, "a replica to take over")

    def _has_new_owner(self, key: str, before: Server) -> bool:
        return self.owner_of(key, (before,)) is not before and any(self._is_ok(one) for one in self.nodes if one.process is not None)

    def _is_ok(self, server: Server) -> bool:
        with server.client() as client:
            return "ok" in str(client.execute_command("CLUSTER INFO"))

    def move_slot(self, key: str) -> None:
        """The key's slot, and all that is in it, goes to another master."""
        with self.moving_slot(key):
            pass

    @contextmanager
    def moving_slot(self, key: str) -> Iterator[None]:
        """Within the block half of the slot's keys are at one master and half at another; afterwards all are."""
        source = self.owner_of(key)
        with source.client() as client:
            slot = int(client.execute_command("CLUSTER KEYSLOT", key))
            source_id = str(client.execute_command("CLUSTER MYID"))
            target = next(one for one in self.nodes if one is not source and self._is_master(one))
        with target.client() as client:
            target_id = str(client.execute_command("CLUSTER MYID"))
            client.execute_command("CLUSTER SETSLOT", slot, "IMPORTING", source_id)
        with source.client() as client:

            def move(count: int) -> bool:
                keys: Any = client.execute_command("CLUSTER GETKEYSINSLOT", slot, count)
                if keys:
                    client.execute_command("MIGRATE", target.host, target.port, "", 0, 5000, "KEYS", *keys)
                return bool(keys)

            client.execute_command("CLUSTER SETSLOT", slot, "MIGRATING", target_id)
            move(int(client.execute_command("CLUSTER COUNTKEYSINSLOT", slot)) // 2)
            yield
            while move(1000):
                pass
        for one in (target, source, *self.nodes):
            with one.client() as client:
                if self._is_master(one):
                    client.execute_command("CLUSTER SETSLOT", slot, "NODE", target_id)

    def _is_master(self, server: Server) -> bool:
        with server.client() as client:
            info: Any = client.info("replication")
        return bool(info["role"] == "master")
