"""A sync server of a few lines, which knows one user, one bucket and one row: for tests of the driver itself.

It takes the token `good`, sends the row of `todos`, accepts an upload, and then sends the row as the backend would
have changed it, with the write checkpoint. What it sends is written out by hand, so that a mistake that the driver
and django_localsync had in common would show.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn

from tests.processes import free_port, wait_until

BUCKET = "1#mine|0[]"
FIRST = {"op_id": "1", "op": "PUT", "object_type": "todos", "object_id": "a", "checksum": 5, "data": '{"title":"Milk"}'}
CORRECTED = {**FIRST, "op_id": "2", "object_id": "b", "checksum": 4294967295, "data": '{"title":"Bread","done":1}'}


class StandIn:
    """The ASGI application; `uploads` holds the bodies that came, `refused` counts requests with another token; a
    longer upload than `most_bytes` is a 413."""

    def __init__(self) -> None:
        self.uploads: list[dict[str, Any]] = []
        self.refused = 0
        self.most_bytes = 1_000_000
        self._uploaded = asyncio.Event()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer one request."""
        if dict(scope["headers"]).get(b"authorization") not in (b"Token good", b"Bearer good"):
            self.refused += 1
            await _answer(send, 401, {"error": {"code": "PSYNC_S2101", "status": 401, "description": "a bad token"}})
        elif scope["path"] == "/sync/stream":
            await self._stream(receive, send)
        elif scope["path"] == "/upload":
            body = (await receive())["body"]
            if len(body) > self.most_bytes:
                await _answer(send, 413, {"error": {"code": "PSYNC_S2001", "status": 413, "description": "too long"}})
                return
            self.uploads.append(json.loads(body))
            results = [{"id": item["id"], "status": "applied"} for item in self.uploads[-1]["transactions"]]
            await _answer(send, 200, {"data": {"transactions": results}})
        elif scope["path"] == "/write-checkpoint2.json":
            await _answer(send, 200, {"data": {"write_checkpoint": "1"}})
            self._uploaded.set()
        else:
            await _answer(send, 404, {"error": {"code": "PSYNC_S2002", "status": 404, "description": "no such path"}})

    async def _stream(self, receive: Any, send: Any) -> None:
        await receive()
        await _start(send, 200, b"application/x-ndjson")
        streams = [{"name": "mine", "is_default": True, "errors": []}]
        await _send_lines(
            send,
            {"checkpoint": {"last_op_id": "1", "buckets": [_bucket(5, 1)], "streams": streams}},
            {"data": {"bucket": BUCKET, "data": [FIRST]}},
            {"checkpoint_complete": {"last_op_id": "1"}},
        )
        await self._uploaded.wait()
        changes = {"updated_buckets": [_bucket(4, 2)], "removed_buckets": []}
        await _send_lines(
            send,
            {"checkpoint_diff": {"last_op_id": "2", "write_checkpoint": "1", **changes}},
            {"data": {"bucket": BUCKET, "data": [CORRECTED]}},
            {"checkpoint_complete": {"last_op_id": "2"}},
        )
        await receive()  # the client goes away


@contextmanager
def stand_in() -> Iterator[tuple[StandIn, str]]:
    """A stand-in that runs in a thread, and its address."""
    application, port = StandIn(), free_port()
    config = uvicorn.Config(application, port=port, log_level="warning", lifespan="off", timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        wait_until(lambda: server.started, "the stand-in listens")
        yield application, f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join()


def _bucket(checksum: int, count: int) -> dict[str, Any]:
    """A bucket of a checkpoint. Its checksum is the sum of its operations' modulo 2**32."""
    return {"bucket": BUCKET, "checksum": checksum, "count": count, "priority": 3, "subscriptions": [{"default": 0}]}


async def _answer(send: Any, status: int, body: dict[str, Any]) -> None:
    await _start(send, status, b"application/json")
    await send({"type": "http.response.body", "body": json.dumps(body).encode()})


async def _start(send: Any, status: int, content_type: bytes) -> None:
    await send({"type": "http.response.start", "status": status, "headers": [(b"content-type", content_type)]})


async def _send_lines(send: Any, *lines: dict[str, Any]) -> None:
    body = b"".join(json.dumps(line).encode() + b"\n" for line in lines)
    await send({"type": "http.response.body", "body": body, "more_body": True})
