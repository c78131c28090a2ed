"""A bare project whose rules put every row into one bucket: one operation a row."""

import os

from example_project.database_url import parse_url

SECRET_KEY = "benchmarks only, at least thirty-two bytes long"
USE_TZ = True
INSTALLED_APPS = [
    "django.contrib.contenttypes",
    "django.contrib.auth",
    "rest_framework",
    "channels",
    "django_localsync",
]
SILENCED_SYSTEM_CHECKS = ["localsync.W020"]  # nothing is served here
DATABASES = {
    "default": parse_url(os.environ["BENCH_SOURCE_URL"]),
    "storage": parse_url(os.environ["BENCH_STORAGE_URL"]),
}
LOCALSYNC = {
    "STORAGE": "default" if DATABASES["default"] == DATABASES["storage"] else "storage",
    "RULES": """
config:
  edition: 3
streams:
  notes:
    query: SELECT * FROM bench_notes WHERE owner_id = auth.user_id()
  tasks:
    query: SELECT * FROM bench_tasks WHERE group_id = auth.parameter('group')
""",
}
