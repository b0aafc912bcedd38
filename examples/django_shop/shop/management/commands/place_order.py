"""`manage.py place_order 7`: calls the view and waits for the task that it sent."""

from celery.result import AsyncResult
from django.core.management.base import BaseCommand
from django.test import Client


class Command(BaseCommand):
    def add_arguments(self, parser):
        parser.add_argument("number", type=int)

    def handle(self, *args, number, **options):
        response = Client().post(f"/orders/{number}")
        self.stdout.write(f"{response.status_code} {response.json()}")
        self.stdout.write(AsyncResult(response.json()["task"]).get(timeout=30))
