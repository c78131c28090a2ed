"""ASGI routing: sync streams and probes to consumers, everything else to the project.

A project's `asgi.py`:

    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "mysite.settings")
    application = localsync_application(get_asgi_application(), prefix="localsync/")
"""

from __future__ import annotations

from typing import Any

from channels.routing import ProtocolTypeRouter, URLRouter  # type: ignore[import-untyped]
from django.core.handlers.asgi import ASGIHandler
from django.urls import path, re_path

is_routed = False
"""Whether this process has made an application that serves streams."""


def localsync_application(django_application: Any, prefix: str = "localsync/") -> Any:
    """An ASGI application that serves streams and probes under `prefix` and hands every other request to Django.

    Other WebSockets are handed over, too, unless it is Django itself, which knows none: then they are refused. A
    project that has some gives a ProtocolTypeRouter.

    Use the prefix under which `django_localsync.urls` is included; clients are given the address with it, without
    the slash at the end. Raises ConfigurationError when a key of the settings is too weak: better now than later.
    """
    global is_routed
    is_routed = True
    # Only now: get_asgi_application(), an argument of this call, has made Django's apps ready.
    from .consumers import (
        LivenessConsumer,
        ReadinessConsumer,
        RefuseSocket,
        StartupConsumer,
        SyncSocketConsumer,
        SyncStreamConsumer,
        WriteCheckpointConsumer,
    )
    from .tokens import check_keys

    check_keys()
    address = f"{prefix}sync/stream"
    others = RefuseSocket.as_asgi() if isinstance(django_application, ASGIHandler) else django_application
    return ProtocolTypeRouter(
        {
            "http": URLRouter(
                [
                    path(address, SyncStreamConsumer.as_asgi()),
                    path(f"{prefix}write-checkpoint.json", WriteCheckpointConsumer.as_asgi()),
                    path(f"{prefix}probes/liveness", LivenessConsumer.as_asgi()),
                    path(f"{prefix}probes/readiness", ReadinessConsumer.as_asgi()),
                    path(f"{prefix}probes/startup", StartupConsumer.as_asgi()),
                    re_path("", django_application),
                ]
            ),
            "websocket": URLRouter([path(address, SyncSocketConsumer.as_asgi()), re_path("", others)]),
        }
    )
