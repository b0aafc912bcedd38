"""A Celery app as any other; only its broker's URL says BullMQ."""

from celery import Celery

app = Celery("tasks", broker="bullmq://127.0.0.1:6379/0")


@app.task(name="invoice.total")
def total(lines, vat=0):
    net = sum(line["price"] * line["pieces"] for line in lines)
    return {"net": net, "gross": round(net * (1 + vat), 2)}


@app.task(name="invoice.post")
def post(number):
    raise ConnectionError(f"the post office does not answer for {number}")
