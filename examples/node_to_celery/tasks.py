"""A Celery app as any other; only its broker's URL says BullMQ."""

from __future__ import annotations

from typing import NoReturn

from celery import Celery

app = Celery("tasks", broker="bullmq://127.0.0.1:6379/0")


@app.task(name="invoice.total")
def total(lines: list[dict[str, float]], vat: float = 0) -> dict[str, float]:
    net = sum(line["price"] * line["pieces"] for line in lines)
    return {"net": net, "gross": round(net * (1 + vat), 2)}


@app.task(name="invoice.post")
def post(number: str) -> NoReturn:
    raise ConnectionError(f"the post office does not answer for {number}")
