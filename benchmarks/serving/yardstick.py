"""The least that an ASGI server needs for the same bytes: recorded answers, and a line that is sent to everybody.

`POST /sync/stream` is answered with the recording of the stream or user that the body names; the connection stays open.
`POST /announce` with a marker sends the recorded update, with this marker, to all open streams.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

from .client import MARKER

FOLDER = Path(os.environ["BENCH_RECORDED"])
RECORDED = {path.stem.encode(): path.read_bytes() for path in FOLDER.glob("*.ndjson")}
UPDATE = (FOLDER / "update.line").read_bytes()
PIECE_BYTES = 64 << 10  # as much as our streams give the server at once

_OPEN: set[asyncio.Future[bytes]] = set()


async def application(scope: Any, receive: Any, send: Any) -> None:
    """The ASGI application."""
    if scope["type"] != "http":
        return
    body = b""
    while (message := await receive())["type"] == "http.request":
        body += message.get("body", b"")
        if not message.get("more_body"):
            break
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/x-ndjson")]})
    if scope["path"] == "/announce":
        for waiter in list(_OPEN):
            if not waiter.done():
                waiter.set_result(UPDATE.replace(MARKER, body))
        await send({"type": "http.response.body", "body": b""})
        return
    (name,) = (name for name in RECORDED if b'"' + name + b'"' in body)
    await _serve(RECORDED[name], receive, send)


async def _serve(recorded: bytes, receive: Any, send: Any) -> None:
    for start in range(0, len(recorded), PIECE_BYTES):
        piece = recorded[start : start + PIECE_BYTES]
        await send({"type": "http.response.body", "body": piece, "more_body": True})
    gone = asyncio.ensure_future(receive())
    while not gone.done():
        waiter: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        _OPEN.add(waiter)
        await asyncio.wait([gone, waiter], return_when=asyncio.FIRST_COMPLETED)
        _OPEN.discard(waiter)
        if waiter.done():
            await send({"type": "http.response.body", "body": waiter.result(), "more_body": True})
