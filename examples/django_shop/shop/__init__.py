"""Celery's app is there as soon as Django is, so that tasks find it."""

from shop.celery import app as celery_app

__all__ = ["celery_app"]
