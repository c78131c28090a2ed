"""The Django application."""

from django.apps import AppConfig


class LocalSyncConfig(AppConfig):
    """Registers models, system checks and signals; asks no database."""

    name = "django_localsync"
    label = "django_localsync"
    verbose_name = "LocalSync"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        """Register the system checks, and listen to logouts."""
        from . import checks  # noqa: F401
        from .revocation import connect_signals

        connect_signals()
