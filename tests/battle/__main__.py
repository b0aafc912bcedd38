"""`python -m tests.battle`: workers, producers, and a mixture of faults that the seed determines; then the ledger is read.

The same for `bullmq://`, for Kombu's `redis://` and for celery-redis-plus, which needs an interpreter that has it:

    python -m tests.battle --kills 300 --restarts 30 --cuts 30 --seconds 480 --seed 1
    python -m tests.battle --broker redis --seconds 240 …
    python -m tests.battle --broker celery-redis-plus --python /path/to/its/python …

Ends with 1 where a bar does not hold: nothing lost, nothing run twice but what was running when its worker was killed, and a median
recovery below lock_duration + stalled_interval.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from pathlib import Path

_TESTS = Path(__file__).parent.parent
# Not the checkout: what is installed is what fights.
sys.path[:] = [
    str(Path(__file__).parent),
    str(_TESTS),
    str(_TESTS / "chaos"),
    *(one for one in sys.path if one not in ("", str(_TESTS.parent))),
]

from field import Battlefield, Broker  # noqa: E402
from verdict import Ledger, Verdict, judge, percentile  # noqa: E402

#: Shorter than the defaults, which are half a minute each, so that there is more to see in the time.
LOCK_S = 5.0
STALLED_S = 5.0


def broker_of(name: str, python: str) -> Broker:
    if name == "bullmq":
        # A job may lose its worker as often as it happens: here that is what is done all the time.
        options = {"lock_duration": LOCK_S, "stalled_interval": STALLED_S, "max_stalled_count": 1000, "drain_delay": 1.0}
        return Broker(name, python, "bullmq", options)
    # What comes nearest to a lock: after this time a message is somebody else's, whether its worker is dead or alive.
    options = {"visibility_timeout": LOCK_S + STALLED_S}
    if name == "redis":
        return Broker(name, python, "redis", options)
    return Broker(name, python, "valkey", options, "celery_redis_plus")


def schedule(seconds: float, kills: int, restarts: int, cuts: int, seed: str) -> list[tuple[float, str]]:
    draw = random.Random(f"schedule {seed}")
    events = [(draw.uniform(0, seconds), "kill_worker") for _ in range(kills)]
    events += [(draw.uniform(0, seconds), "restart_server") for _ in range(restarts)]
    events += [(draw.uniform(0, seconds), "cut") for _ in range(cuts)]
    return sorted(events)


def read(field: Battlefield) -> Ledger:
    ledger = Ledger(kills=field.kills, outages=field.outages)
    if field.ledger_file.exists():
        ledger.read(line for line in field.ledger_file.read_text().splitlines(keepends=True) if line.endswith("\n"))
    return ledger


def missing(field: Battlefield) -> bool:
    ledger = read(field)
    return any(not any(run.end is not None for run in ledger.runs.get(task, ())) for task in ledger.sent)


def row(arguments: argparse.Namespace, field: Battlefield, verdict: Verdict, ended: int) -> str:
    cells = [
        f"`{arguments.broker}` {arguments.pool}, {arguments.acks} ack", *(field.counts[what] for what in ("kills", "restarts", "cuts")),
        verdict.sent, verdict.once, verdict.rerun, len(verdict.duplicated), len(verdict.lost), ended,
        *(f"{percentile(verdict.recovery, share):.1f}" for share in (0.5, 0.95, 0.99)),
        *(f"{percentile(verdict.latency, share):.2f}" for share in (0.5, 0.99)),
    ]  # fmt: skip
    return "| " + " | ".join(map(str, cells)) + " |"


HEADER = (
    "| broker | kills | restarts | cuts | tasks sent | ran once | ran again after a kill | duplicated | lost"
    " | workers that ended by themselves | recovery p50 (s) | p95 | p99 | start p50 (s) | p99 |\n" + "|---" * 15 + "|"
)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.battle", description=__doc__.partition("\n")[0])
    parser.add_argument("--broker", choices=["bullmq", "redis", "celery-redis-plus"], default="bullmq")
    parser.add_argument("--python", default=sys.executable, help="the interpreter that has the broker's packages")
    parser.add_argument("--pool", default="prefork")
    parser.add_argument("--acks", choices=["late", "early"], default="late")
    parser.add_argument("--workers", type=int, default=3)
    parser.add_argument("--concurrency", type=int, default=2)
    parser.add_argument("--rate", type=float, default=6.0, help="tasks a second")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--restarts", type=int, default=3)
    parser.add_argument("--cuts", type=int, default=3)
    parser.add_argument("--seed", default=str(random.randrange(10**6)))
    parser.add_argument("--keep", action="store_true", help="keep ledger and logs, and say where")
    arguments = parser.parse_args()
    print(f"seed {arguments.seed}", file=sys.stderr)

    folder = Path(tempfile.mkdtemp(prefix="battle-"))
    ended = 0
    broker = broker_of(arguments.broker, arguments.python)
    with Battlefield(
        folder, broker, arguments.pool, arguments.workers, arguments.concurrency, arguments.rate, arguments.acks, arguments.seed
    ) as field:
        began = time.monotonic()
        for at, what in schedule(arguments.seconds, arguments.kills, arguments.restarts, arguments.cuts, arguments.seed):
            time.sleep(max(began + at - time.monotonic(), 0.0))
            ended += field.replace_the_dead()
            getattr(field, what)()
        field.finish(lambda: missing(field))
        ledger = read(field)
    verdict = judge(ledger)
    print(HEADER)
    print(row(arguments, field, verdict, ended))
    (folder / "verdict.json").write_text(
        json.dumps({**vars(verdict), "outages": field.outages, "kills": [(at, sorted(pids)) for at, pids in field.kills]})
    )
    if arguments.keep or verdict.lost or verdict.duplicated:
        print(f"lost {verdict.lost[:10]}\nduplicated {verdict.duplicated[:10]}\nledger and logs: {folder}", file=sys.stderr)
    fast = not verdict.recovery or percentile(verdict.recovery, 0.5) < LOCK_S + STALLED_S
    return 0 if arguments.acks == "early" or (not verdict.lost and not verdict.duplicated and not ended and fast) else 1


if __name__ == "__main__":
    raise SystemExit(main())
