"""Settings of the example project. What django_localsync needs is marked; the rest is any Django project.

The database is DATABASE_URL, or the one that `make demo` runs.
"""

import os
from pathlib import Path

from django.core.exceptions import ImproperlyConfigured

from .database_url import parse_url
from .places import database_url_file

HERE = Path(__file__).parent


def _database_url() -> str:
    if url := os.environ.get("DATABASE_URL"):
        return url
    if (left_by_demo := database_url_file()).exists():
        return left_by_demo.read_text().strip()
    raise ImproperlyConfigured("no database: set DATABASE_URL=postgresql://…, or start one with `make demo`")


SECRET_KEY = os.environ.get("SECRET_KEY", "an example on loopback, not a secret: set SECRET_KEY elsewhere")
DEBUG = True
ALLOWED_HOSTS = ["127.0.0.1", "localhost", "[::1]"]
ROOT_URLCONF = "example_project.urls"
DATABASES = {"default": parse_url(_database_url())}
USE_TZ = True
TIME_ZONE = "UTC"
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

INSTALLED_APPS = [
    "daphne",
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.messages",
    "django.contrib.sessions",
    "django.contrib.staticfiles",
    "rest_framework",
    "django_localsync",  # ← django_localsync
    "example_project.lists",
]
ASGI_APPLICATION = "example_project.asgi.application"  # ← django_localsync: streams need ASGI

LOCALSYNC = {  # ← django_localsync
    "RULES": "example_project.lists.streams.streams",
    "UPLOAD_HANDLER": "example_project.uploads.ListsUploadHandler",
}

MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
]
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "DIRS": [HERE / "templates"],
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ]
        },
    }
]
STATIC_URL = "/static/"
LOGIN_REDIRECT_URL = LOGOUT_REDIRECT_URL = "/"
# `sessionid` and `csrftoken` belong to every project that a developer runs on localhost.
SESSION_COOKIE_NAME, CSRF_COOKIE_NAME = "localsync_example_session", "localsync_example_csrf"
