"""The example's ASGI application, which tells at /requests how many POST requests it is serving."""

from __future__ import annotations

from typing import Any

from example_project.asgi import application as example

_served = 0


async def application(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """Count requests until the application has ended, whatever the server knows of the connection."""
    global _served
    if scope["type"] != "http" or scope["method"] != "POST":
        if scope.get("path") == "/requests":
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": str(_served).encode()})
            return
        await example(scope, receive, send)
        return
    _served += 1
    try:
        await example(scope, receive, send)
    finally:
        _served -= 1
