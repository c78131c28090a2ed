"""ASGI routing: sync streams to the consumer, everything else to the project.

A project's `asgi.py`:

    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "mysite.settings")
    application = localsync_application(get_asgi_application(), prefix="localsync/")
"""

from __future__ import annotations

from typing import Any

from channels.routing import ProtocolTypeRouter, URLRouter  # type: ignore[import-untyped]
from django.urls import path, re_path


def localsync_application(django_application: Any, prefix: str = "localsync/") -> Any:
    """An ASGI application that serves streams under `prefix` and hands every other request to Django.

    Use the prefix under which `django_localsync.urls` is included; clients are given the address with it, without
    the slash at the end.
    """
    # Only now: get_asgi_application(), an argument of this call, has made Django's apps ready.
    from .consumers import SyncStreamConsumer

    streams = path(f"{prefix}sync/stream", SyncStreamConsumer.as_asgi())
    return ProtocolTypeRouter({"http": URLRouter([streams, re_path("", django_application)])})
