"""The Django application."""

from django.apps import AppConfig


class LocalSyncConfig(AppConfig):
    """Registers models and system checks; connects to nothing."""

    name = "django_localsync"
    label = "django_localsync"
    verbose_name = "LocalSync"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        """Register the system checks."""
        from . import checks  # noqa: F401
