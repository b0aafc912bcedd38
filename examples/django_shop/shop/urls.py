"""One view, which sends a task when its transaction is committed."""

from django.db import transaction
from django.http import HttpRequest, JsonResponse
from django.urls import path

from shop.tasks import invoice


@transaction.atomic
def order(request: HttpRequest, number: int) -> JsonResponse:
    task_id = f"invoice-{number}"
    # A worker may be quicker than the commit: so the task is sent after it. The task id is the job's id.
    transaction.on_commit(lambda: invoice.apply_async((number,), task_id=task_id))
    return JsonResponse({"order": number, "task": task_id}, status=201)


urlpatterns = [path("orders/<int:number>", order)]
