"""Settings of the test suite. The database is the one that tests/conftest.py starts or was given."""

import os

from example_project.database_url import parse_url

URL_VARIABLE = "LOCALSYNC_TEST_DATABASE_URL"

SECRET_KEY = "tests only, at least thirty-two bytes long"
DEBUG = False
USE_TZ = True
ALLOWED_HOSTS = ["*"]
INSTALLED_APPS = [
    "django.contrib.admin",
    "django.contrib.contenttypes",
    "django.contrib.auth",
    "django.contrib.messages",
    "django.contrib.sessions",
    "rest_framework",
    "channels",
    "django_localsync",
    "tests.testapp",
    "tests.library",
]
MIDDLEWARE = [
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
]
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
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
ROOT_URLCONF = "tests.urls"
ASGI_APPLICATION = "tests.asgi.application"
DATABASES = {"default": parse_url(os.environ.get(URL_VARIABLE, "postgresql://postgres@127.0.0.1:5432/postgres"))}
