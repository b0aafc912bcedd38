"""Tasks, as in any Django project."""

from celery import shared_task


@shared_task
def invoice(number):
    return f"invoice for order {number}"
