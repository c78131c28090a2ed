"""The application under test: streams over the plan of plans.py, and a page that shows what the process holds."""

from __future__ import annotations

import asyncio
import json
import os
from typing import Any

import django
from django.conf import settings

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.settings")
settings.LOCALSYNC = json.loads(os.environ.get("TEST_LOCALSYNC", "{}"))
django.setup()

from django_localsync import streams  # noqa: E402
from django_localsync.routing import localsync_application  # noqa: E402
from tests.integration.serving.plans import ListedPlan  # noqa: E402

streams.compile_plan = ListedPlan  # type: ignore[assignment]


async def show_state(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """Answers {open streams, requests to streams, tasks, resident memory in KiB, announcements that were heard}."""
    if scope["type"] == "websocket":
        await send({"type": "websocket.accept"})
        await send({"type": "websocket.send", "text": "the project's"})
        return
    server = streams.get_stream_server()
    with open("/proc/self/status") as status:
        memory = next(int(line.split()[1]) for line in status if line.startswith("VmRSS"))
    tasks = len(asyncio.all_tasks())
    state = {
        "streams": len(server.streams),
        "requests": len(requests),
        "tasks": tasks,
        "memory_kib": memory,
        "announcements": server.notifications.mark(),
    }
    await send({"type": "http.response.start", "status": 200, "headers": [(b"connection", b"close")]})
    await send({"type": "http.response.body", "body": json.dumps(state).encode()})


routed = localsync_application(show_state, prefix="any/prefix/")
requests: set[int] = set()


async def application(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """Counts the requests that are being served."""
    if scope["type"] == "lifespan" or scope["path"] == "/":
        await routed(scope, receive, send)
        return
    requests.add(id(scope))
    try:
        await routed(scope, receive, send)
    finally:
        requests.discard(id(scope))
