"""Settings: only the last three are about Celery."""

import os

SECRET_KEY = "for this example only"
DEBUG = True
ALLOWED_HOSTS = ["testserver"]
ROOT_URLCONF = "shop.urls"
INSTALLED_APPS = ["shop"]
DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": "shop.sqlite3"}}
USE_TZ = True

CELERY_BROKER_URL = os.environ.get("CELERY_BROKER_URL", "bullmq://127.0.0.1:6379/0")
CELERY_RESULT_BACKEND = os.environ.get("CELERY_RESULT_BACKEND", "bullmq://127.0.0.1:6379/0")
CELERY_TASK_ROUTES = {"shop.tasks.*": {"queue": "shop", "bullmq": {"attempts": 3, "backoff": 1000}}}
