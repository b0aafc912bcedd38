"""Sends tasks from async code. Celery's calls block while they talk to Redis, so they are made in a thread: the event loop goes on."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import FastAPI
from tasks import app, build

api = FastAPI()


@api.post("/reports", status_code=202)
async def order(rows: int) -> dict[str, str]:
    sent = await asyncio.to_thread(build.apply_async, kwargs={"rows": rows}, queue="reports")
    return {"id": sent.id}


@api.get("/reports/{task_id}")
async def look(task_id: str) -> dict[str, Any]:
    # One look at Redis; AsyncResult.get() would hold the thread until the task is done.
    meta = await asyncio.to_thread(app.backend.get_task_meta, task_id)
    return {"state": meta["status"], "value": meta["result"] if meta["status"] == "SUCCESS" else None}
