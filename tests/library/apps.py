"""Django's configuration of the app."""

from django.apps import AppConfig


class LibraryConfig(AppConfig):
    """Integer keys where a model names none, as in older projects."""

    name = "tests.library"
    default_auto_field = "django.db.models.AutoField"
