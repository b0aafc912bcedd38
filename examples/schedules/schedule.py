"""Makes two job schedulers, watches one at work, and removes them. They live in Redis: no beat has to run."""

from __future__ import annotations

from tasks import app

from bullmq_kombu import Queue, QueueEvents

if __name__ == "__main__":
    with Queue("stock", app) as queue, QueueEvents("stock", app) as events:
        template = {"name": "stock.count", "data": {"shelf": "A7"}, "opts": {"removeOnComplete": 10}}
        # Run again at every start of the program, this changes nothing: an id has one scheduler.
        queue.upsert_job_scheduler("often", {"every": 500, "limit": 3}, template)
        queue.upsert_job_scheduler("nightly", {"pattern": "0 0 3 * * *", "tz": "Europe/Berlin"}, template)
        print("schedulers:", ", ".join(sorted(one.id for one in queue.get_job_schedulers())))

        runs = 0
        for event in events:
            if event.name == "completed":
                runs += 1
                print(f"run {runs}:", event.args["returnvalue"])
            if runs == 3:
                break
        for name in ("often", "nightly"):
            queue.remove_job_scheduler(name)
