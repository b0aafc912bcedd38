"""Tasks, as in any Django project."""

from celery import shared_task


@shared_task
def invoice(number: int) -> str:
    return f"invoice for order {number}"
