"""`manage.py place_order 7`: calls the view and waits for the task that it sent."""

from typing import Any

from celery.result import AsyncResult
from django.core.management.base import BaseCommand, CommandParser
from django.test import Client


class Command(BaseCommand):
    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("number", type=int)

    def handle(self, *args: Any, number: int, **options: Any) -> None:
        response = Client().post(f"/orders/{number}")
        self.stdout.write(f"{response.status_code} {response.json()}")
        invoice: AsyncResult[str] = AsyncResult(response.json()["task"])
        self.stdout.write(invoice.get(timeout=30))
