"""Celery's side: how a task's outcome becomes its job's end, the result backend, what a task can ask of its job.

Everything that imports Celery is in this folder. Importing it connects the worker's hooks; a worker needs nothing configured.
"""

from __future__ import annotations

from bullmq_kombu.celery import install

install.connect()
