"""The driver itself.

What later tests say through it is only worth something when Node alone, through it, does what BullMQ does.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import redis
from node_driver import HERE, VERSIONS, Node, NodeError
from servers import SERVER_VARIABLE, Server, require
from waiting import wait_until


def test_each_version_is_the_one_of_its_lock_file(node: Node) -> None:
    lock = json.loads((HERE / node.version / "package-lock.json").read_text())["packages"]
    assert node.versions["bullmq"] == lock["node_modules/bullmq"]["version"]
    assert node.versions["bullmq"].split(".")[0] == node.version.removeprefix("v")
    assert node.versions["ioredis"] == lock["node_modules/ioredis"]["version"]


@pytest.mark.parametrize("version", VERSIONS)
def test_the_lock_file_names_no_registry_of_ours(version: str) -> None:
    lock = json.loads((HERE / version / "package-lock.json").read_text())["packages"]
    hosts = {entry["resolved"].split("/")[2] for entry in lock.values() if "resolved" in entry}
    assert hosts <= {"registry.npmjs.org"}


def test_add_makes_a_waiting_job(node: Node, queue_name: str, redis_client: redis.Redis) -> None:
    added = node.call("add", queue=queue_name, name="send", data={"to": "ä@b.c"}, opts={"attempts": 3, "priority": 0})

    job = node.job(queue_name, added["id"])
    assert (job["name"], job["data"], job["opts"]["attempts"]) == ("send", {"to": "ä@b.c"}, 3)
    assert (job["returnvalue"], job["finishedOn"], job["processedOn"], job["attemptsMade"]) == (None, None, None, 0)
    assert node.call("getState", queue=queue_name, jobId=added["id"]) == "waiting"
    assert node.call("getJobCounts", queue=queue_name)["waiting"] == 1
    assert redis_client.hget(f"bull:{queue_name}:{added['id']}", "name") == "send"


def test_a_prefix_is_kept_apart(node: Node, queue_name: str, redis_client: redis.Redis) -> None:
    added = node.call("add", queue=queue_name, prefix="other", name="send", data=1)
    assert redis_client.exists(f"other:{queue_name}:{added['id']}")
    assert node.call("getJob", queue=queue_name, jobId=added["id"]) is None


def test_a_worker_completes_and_the_waiter_gets_the_value(node: Node, queue_name: str) -> None:
    node.call("worker", queue=queue_name, opts={"name": "nodeworker"}, behaviours={"double": {"return": {"n": 4}}})
    added = node.call("add", queue=queue_name, name="double", data={"n": 2})

    value = node.call("waitUntilFinished", queue=queue_name, jobId=added["id"], ttl=10000)

    assert value == {"n": 4}
    job = node.wait_for_state(queue_name, added["id"], "completed")
    assert (job["returnvalue"], job["processedBy"], job["attemptsMade"]) == ({"n": 4}, "nodeworker", 1)
    assert job["finishedOn"] >= job["processedOn"] >= job["timestamp"]
    (run,) = node.call("runs", queue=queue_name)
    assert (run["jobId"], run["name"], run["data"], run["attemptsMade"]) == (added["id"], "double", {"n": 2}, 0)
    assert run["finished"] >= run["started"]
    assert (run["returned"], run["threw"]) == ({"n": 4}, None)


def test_the_default_behaviour_echoes(node: Node, queue_name: str) -> None:
    node.call("worker", queue=queue_name)
    added = node.call("addBulk", queue=queue_name, jobs=[{"name": "a", "data": [1]}, {"name": "b", "data": {"x": None}}])
    values = [node.call("waitUntilFinished", queue=queue_name, jobId=job["id"], ttl=10000) for job in added]
    assert values == [[1], {"x": None}]


def test_a_failure_reaches_the_waiter_and_can_be_retried(node: Node, queue_name: str) -> None:
    worker = node.call("worker", queue=queue_name, default={"throw": "no such address"})
    job_id = node.call("add", queue=queue_name, name="send", data={})["id"]

    with pytest.raises(NodeError, match="no such address"):
        node.call("waitUntilFinished", queue=queue_name, jobId=job_id, ttl=10000)
    job = node.wait_for_state(queue_name, job_id, "failed")
    assert job["failedReason"] == "no such address"
    assert "no such address" in job["stacktrace"][0]
    wait_until(lambda: [n for n in node.notifications if n["event"] == "worker.failed"], what="the notification")

    node.call("behave", worker=worker, default={"return": "sent"})
    node.job_call(queue_name, job_id, "retry")
    assert node.wait_for_state(queue_name, job_id, "completed")["returnvalue"] == "sent"


def test_attempts_are_counted(node: Node, queue_name: str) -> None:
    behaviour = {"throwTimes": 2, "message": "busy", "then": {"return": "at last"}}
    node.call("worker", queue=queue_name, default=behaviour, backoffTable=[1, 2])
    opts = {"attempts": 3, "backoff": {"type": "custom"}}
    job_id = node.call("add", queue=queue_name, name="send", data={}, opts=opts)["id"]

    assert node.call("waitUntilFinished", queue=queue_name, jobId=job_id, ttl=10000) == "at last"
    assert [run["attemptsMade"] for run in node.call("runs", jobId=job_id)] == [0, 1, 2]
    assert len(node.job(queue_name, job_id)["stacktrace"]) == 2


def test_an_unrecoverable_error_is_final(node: Node, queue_name: str) -> None:
    node.call("worker", queue=queue_name, default={"unrecoverable": "never"})
    job_id = node.call("add", queue=queue_name, name="send", data={}, opts={"attempts": 5})["id"]
    job = node.wait_for_state(queue_name, job_id, "failed")
    assert (job["attemptsMade"], job["failedReason"]) == (1, "never")


def test_events_are_seen_from_the_moment_of_asking(node: Node, queue_name: str) -> None:
    node.call("add", queue=queue_name, name="before", data={}, opts={"jobId": "before"})
    node.call("queueEvents", queue=queue_name)
    node.call("add", queue=queue_name, name="after", data={}, opts={"jobId": "after"})
    node.call("worker", queue=queue_name, default={"progress": [10, {"half": True}], "log": ["hello"], "return": 1})

    node.wait_for_event(queue_name, "completed", jobId="after", returnvalue=1)
    events = node.call("events", queue=queue_name)
    added = [event["args"]["jobId"] for event in events if event["event"] == "added"]
    assert added == ["after"]
    progress = [event["args"]["data"] for event in events if event["event"] == "progress" and event["args"]["jobId"] == "after"]
    assert progress == [10, {"half": True}]
    assert all("-" in event["id"] for event in events)
    assert node.queue_call(queue_name, "getJobLogs", "after") == {"logs": ["hello"], "count": 1}


def test_a_gate_holds_a_job_until_released(node: Node, queue_name: str) -> None:
    node.call("worker", queue=queue_name, default={"hold": "gate", "return": "through"})
    job_id = node.call("add", queue=queue_name, name="send", data={})["id"]
    waiter = node.begin("waitUntilFinished", queue=queue_name, jobId=job_id, ttl=10000)
    wait_until(lambda: node.call("runs", jobId=job_id), what="the job to start")
    assert node.call("getState", queue=queue_name, jobId=job_id) == "active"
    assert not waiter.done()

    node.call("release", gate="gate")
    assert waiter.result(10) == "through"


def test_a_flow_runs_children_first(node: Node, queue_name: str) -> None:
    child = f"{queue_name}-child"
    node.call("worker", queue=queue_name, default={"childrenValues": True})
    node.call("worker", queue=child, default={"return": 7})
    flow = {"name": "parent", "queueName": queue_name, "children": [{"name": "c", "queueName": child, "data": {}}]}

    added = node.call("flowAdd", flow=flow)

    child_id = added["children"][0]["job"]["id"]
    value = node.call("waitUntilFinished", queue=queue_name, jobId=added["job"]["id"], ttl=10000)
    assert value == {f"bull:{child}:{child_id}": 7}


@pytest.mark.parametrize("outcome", ["delayed", "toWait", "rateLimit"])
def test_a_processor_may_leave_a_job_for_later(node: Node, queue_name: str, outcome: str) -> None:
    node.call("worker", queue=queue_name, default={outcome: 20, "return": "later"})
    job_id = node.call("add", queue=queue_name, name="send", data={})["id"]
    assert node.call("waitUntilFinished", queue=queue_name, jobId=job_id, ttl=10000) == "later"
    assert len(node.call("runs", jobId=job_id)) == 2


def test_queue_and_job_methods_are_called_by_name(node: Node, queue_name: str) -> None:
    node.queue_call(queue_name, "pause")
    assert node.queue_call(queue_name, "isPaused") is True
    node.queue_call(queue_name, "resume")
    job_id = node.call("add", queue=queue_name, name="send", data={}, opts={"delay": 100000})["id"]
    node.job_call(queue_name, job_id, "changePriority", {"priority": 5})
    node.job_call(queue_name, job_id, "updateData", {"to": "c"})
    node.job_call(queue_name, job_id, "promote")
    (job,) = node.queue_call(queue_name, "getPrioritized")
    assert (job["id"], job["priority"], job["data"]) == (job_id, 5, {"to": "c"})

    repeat, template = {"every": 100000}, {"name": "tick", "data": {"n": 1}}
    scheduled = node.queue_call(queue_name, "upsertJobScheduler", "nightly", repeat, template)
    assert scheduled["name"] == "tick"
    (scheduler,) = node.queue_call(queue_name, "getJobSchedulers")
    assert scheduler["key"] == "nightly"
    node.queue_call(queue_name, "obliterate", {"force": True})
    assert node.call("getJob", queue=queue_name, jobId=job_id) is None


def test_errors_carry_name_and_code(node: Node, queue_name: str) -> None:
    with pytest.raises(NodeError) as nothing:
        node.job_call(queue_name, "nothing", "retry")
    assert nothing.value.name == "JobNotFound"

    job_id = node.call("add", queue=queue_name, name="send", data={})["id"]
    with pytest.raises(NodeError) as not_finished:
        node.job_call(queue_name, job_id, "retry")
    assert not_finished.value.code == -3

    with pytest.raises(NodeError, match="no command fly"):
        node.call("fly")


def test_a_worker_by_hand(node: Node, queue_name: str, redis_client: redis.Redis) -> None:
    for name in ("one", "two", "three"):
        node.call("add", queue=queue_name, name=name, data={}, opts={"jobId": name, "attempts": 2})

    one = node.call("getNextJob", queue=queue_name, token="t1")
    assert (one["id"], one["token"]) == ("one", "t1")
    assert redis_client.get(f"bull:{queue_name}:one:lock") == "t1"
    assert node.call("extendLock", queue=queue_name, jobId="one", token="t1", duration=60000) == 1

    after = node.call("moveToCompleted", queue=queue_name, jobId="one", token="t1", value=[1], fetchNext=True)
    assert after["next"]["id"] == "two"
    assert node.job(queue_name, "one")["returnvalue"] == [1]

    done = node.call("moveToFailed", queue=queue_name, jobId="two", token="t1", message="bad", unrecoverable=True)
    assert done["next"] is None
    assert node.call("getState", queue=queue_name, jobId="two") == "failed"

    three = node.call("getNextJob", queue=queue_name, token="t2")
    with pytest.raises(NodeError) as wrong_token:
        node.call("moveToCompleted", queue=queue_name, jobId="three", token="not mine", value=None)
    assert wrong_token.value.code == -6
    later = three["timestamp"] + 1_000_000
    node.call("moveToDelayed", queue=queue_name, jobId="three", token="t2", timestamp=later)
    assert node.call("getState", queue=queue_name, jobId="three") == "delayed"
    assert node.call("getNextJob", queue=queue_name, token="t3") is None

    node.job_call(queue_name, "three", "promote")
    node.call("getNextJob", queue=queue_name, token="t4")
    node.call("moveToWait", queue=queue_name, jobId="three", token="t4")
    assert node.call("getState", queue=queue_name, jobId="three") == "waiting"


def test_many_jobs_at_once(node: Node, queue_name: str) -> None:
    jobs = [{"name": "n", "data": {"n": n, "text": "x" * 200}} for n in range(1000)]
    node.call("addBulk", queue=queue_name, jobs=jobs)
    node.call("worker", queue=queue_name, opts={"concurrency": 50})
    wait_until(lambda: node.call("getJobCounts", queue=queue_name)["completed"] == 1000, 30, "all jobs to complete")
    assert sorted(run["returned"]["n"] for run in node.call("runs", queue=queue_name)) == list(range(1000))
    finished = [one for one in node.notifications if one["event"] == "run.finished"]
    assert len(finished) == 1000


def test_a_worker_that_records_nothing(node: Node, queue_name: str) -> None:
    node.call("worker", queue=queue_name, record=False)
    job_id = node.call("add", queue=queue_name, name="send", data=1)["id"]
    assert node.wait_for_state(queue_name, job_id, "completed")["returnvalue"] == 1
    assert node.call("runs", queue=queue_name) == []
    assert [one for one in node.notifications if one["event"].startswith(("run.", "worker."))] == []


def test_both_versions_work_at_once(node_of: Callable[[str], Node], queue_name: str) -> None:
    v5, v6 = node_of("v5"), node_of("v6")
    v5.call("worker", queue=queue_name)
    job_id = v6.call("add", queue=queue_name, name="send", data="hello")["id"]
    assert v6.call("waitUntilFinished", queue=queue_name, jobId=job_id, ttl=10000) == "hello"
    assert len(v5.call("runs", jobId=job_id)) == 1


def test_a_reset_forgets_everything(node: Node, queue_name: str) -> None:
    node.call("worker", queue=queue_name, worker="mine")
    job_id = node.call("add", queue=queue_name, name="send", data={})["id"]
    node.wait_for_state(queue_name, job_id, "completed")
    node.reset()
    assert node.call("runs") == []
    with pytest.raises(NodeError, match="no worker mine"):
        node.call("closeWorker", worker="mine")


def test_a_killed_node_leaves_its_job_active(server: Server, queue_name: str, node: Node) -> None:
    with Node(node.version, server) as victim:
        victim.call("worker", queue=queue_name, default={"hold": "for ever"})
        job_id = victim.call("add", queue=queue_name, name="send", data={})["id"]
        wait_until(lambda: victim.call("runs", jobId=job_id), what="the job to start")
        answer = victim.begin("getNextJob", queue="empty", token="t", block=True)
        victim.kill()
        with pytest.raises(AssertionError, match="ended without an answer"):
            answer.result(10)
    assert node.call("getState", queue=queue_name, jobId=job_id) == "active"


def test_a_server_is_ours_and_comes_back_on_its_port(tmp_path: Path) -> None:
    with Server(appendonly=True, password="secret", extra=["--databases", "3"]) as server, server.client() as client:
        client.set("key", "value")
        assert client.config_get("databases") == {"databases": "3"}
        port, first = server.port, server.pid
        assert server.url == f"bullmq://:secret@127.0.0.1:{port}/0"
        assert server.redis_url == f"redis://:secret@127.0.0.1:{port}/0"
        with redis.Redis(unix_socket_path=str(server.socket_path), password="secret") as through_socket:
            assert through_socket.ping()

        server.kill()
        server.start()

        assert (server.port, client.get("key")) == (port, "value")
        assert server.pid != first
        server.freeze()
        with server.client(socket_timeout=0.2, retry=None) as impatient, pytest.raises(redis.TimeoutError):
            impatient.ping()
        server.thaw()
        assert client.ping()
        directory = server.directory
    assert not directory.exists()


def test_nothing_outlives_a_killed_run(tmp_path: Path) -> None:
    here = Path(__file__).parent
    script = tmp_path / "run.py"
    script.write_text(
        f"import sys; sys.path[:0] = [{str(here.parent)!r}, {str(here)!r}]\n"
        "from servers import Server\n"
        "from node_driver import Node\n"
        "server = Server().start()\n"
        "node = Node('v6', server).start()\n"
        "print(server.pid, node.pid, flush=True)\n"
        "sys.stdin.read()\n"
    )
    with subprocess.Popen([sys.executable, str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout is not None
        pids = [int(pid) for pid in run.stdout.readline().split()]
        assert len(pids) == 2
        run.kill()
    wait_until(lambda: not any(_alive(pid) for pid in pids), what="both children to end")


def _alive(pid: int) -> bool:
    # A child whose parent is gone may stay a zombie where nothing reaps; that is dead enough.
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_missing_tool_skips_on_a_laptop_and_fails_in_ci(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SERVER_VARIABLE, "/no/such/server")
    monkeypatch.delenv("CI", raising=False)
    with pytest.raises(pytest.skip.Exception, match="/no/such/server is not installed"):
        require("redis-server")
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match="CI must not skip"):
        require("redis-server")


def test_waiting_tells_what_it_waited_for() -> None:
    values = iter([0, "", "there"])
    assert wait_until(lambda: next(values)) == "there"
    with pytest.raises(AssertionError, match=r"waited 0.01 s for the moon; last seen: None"):
        wait_until(lambda: None, 0.01, "the moon")
