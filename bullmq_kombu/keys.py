"""Every key name; this docstring is the data model.

`base` is `prefix:queue:`; all keys of a queue follow from it, so that one hash tag in the prefix keeps them in one cluster slot.
BullMQ's own keys (owned jointly with Node, described in BullMQ's documentation and sources):

    meta hash · id counter · wait, paused, active lists · prioritized, delayed, waiting-children, completed, failed zsets ·
    pc priority counter · marker zset · events stream · stalled set · stalled-check, limiter strings · repeat zset ·
    de:<id> string, dn:<id> hash · metrics:<state> hash, metrics:<state>:data list
    <id> hash, <id>:lock string, <id>:logs list, <id>:dependencies set, <id>:processed hash, <id>:failed hash,
    <id>:unsuccessful zset

The job hash has two fields of ours, which BullMQ ignores and keeps: `celery` (see codec.py), and `silent`, the `finishedOn` of an end that
tells nothing of the job's task: it or its result is ignored, or it went on elsewhere.

What Kombu needs besides queues lives where no queue can be, behind an empty queue name, `prefix::kombu:`:

    messages:<queue>   zset     messages of a queue that Celery made for itself, by priority; expires
    queue:<queue>      string   that there is such a queue, and for how many ms it is kept; expires
    sequence           string   numbers the messages
    marker:<queue>     zset     wakes its consumer, as BullMQ's marker does; expires
    bindings:<exchange>  hash   routing key, pattern, queue (JSON) -> when it expires, ms, 0 for never
    versions           hash     exchange -> how often its bindings have changed
    fanouts            set      the exchanges that are broadcasts; expires
    <db>:fanout:<exchange>/<routing key>   PUB/SUB channel
    queues             set      the BullMQ queues that Celery has declared: where the job of a task id may be
    job:<task id>      string   queue:job id of a task whose job has another id; expires
    result:<task id>   hash     status and meta as a Celery worker stored them; expires. Also the PUB/SUB channel where that is told
    group:<group id>   string   a saved group; expires
    chord:<group id>   hash     size, parts and claim of a chord; expires
    never              -        no such key is ever made: who waits while all its queues are closed by a rate limit waits for it
"""

from __future__ import annotations

from bullmq_kombu.errors import BadInput

DEFAULT_PREFIX = "bull"
#: On Redis Cluster: a hash tag, so that all keys are on one node.
CLUSTER_PREFIX = "{bull}"


def queue_base(prefix: str, queue: str) -> str:
    """`prefix:queue:`, or BadInput where BullMQ refuses the name."""
    if not queue:
        raise BadInput("Queue name must be provided")
    if ":" in queue:
        raise BadInput(f"Queue name cannot contain ':' (it separates the parts of BullMQ's keys): {queue!r}")
    return f"{prefix}:{queue}:"


class KombuKeys:
    """The keys behind `prefix::kombu:`."""

    def __init__(self, prefix: str, db: int | str = 0) -> None:
        self.base = f"{prefix}::kombu:"
        self.versions = f"{self.base}versions"
        self.queues = f"{self.base}queues"
        self.fanouts = f"{self.base}fanouts"
        self.never = f"{self.base}never"
        self._fanout = f"{self.base}{db}:fanout:"

    def job(self, task_id: str) -> str:
        return f"{self.base}job:{task_id}"

    def messages(self, queue: str) -> str:
        return f"{self.base}messages:{queue}"

    def marker(self, queue: str) -> str:
        return f"{self.base}marker:{queue}"

    def bindings(self, exchange: str) -> str:
        return f"{self.base}bindings:{exchange}"

    def fanout(self, exchange: str, routing_key: str = "") -> str:
        return f"{self._fanout}{exchange}/{routing_key}"
