"""A client that costs little: one connection, bytes searched and counted as they come, nothing parsed."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import orjson

from .servers import token

MARKER = b"#" * 32  # in the recorded update, where each sent one has its own
COMPLETE = b'"checkpoint_complete"'
OPERATION = b'"op_id":'
_OVERLAP = max(len(COMPLETE), len(OPERATION)) - 1


class StreamClient(asyncio.Protocol):
    """An open stream. `operations` and `bytes` are what came up to now; `first_complete` is set with the checkpoint."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.operations = self.bytes = 0
        self.first_complete: asyncio.Future[float] = loop.create_future()
        self.kept: list[bytes] = []
        self.keeps = False
        self._marker, self._found = b"", loop.create_future()
        self._tail = b""
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: Any) -> None:
        """See asyncio."""
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """See asyncio."""
        self.bytes += len(data)
        if self.keeps:
            self.kept.append(data)
        searched = self._tail + data
        self.operations += searched.count(OPERATION) - self._tail.count(OPERATION)
        if COMPLETE in searched and not self.first_complete.done():
            self.first_complete.set_result(time.perf_counter())
        if self._marker and self._marker in searched and not self._found.done():
            self._found.set_result(time.perf_counter())
        self._tail = searched[-_OVERLAP:]

    def connection_lost(self, error: Exception | None) -> None:
        """See asyncio."""
        for waiting in (self.first_complete, self._found):
            if not waiting.done():
                waiting.set_exception(error or ConnectionError("the stream ended"))
                waiting.exception()  # nobody may be waiting

    def expect(self, marker: bytes) -> asyncio.Future[float]:
        """When these bytes arrive, by `time.perf_counter`."""
        self._marker, self._found = marker, asyncio.get_running_loop().create_future()
        return self._found

    def close(self) -> None:
        """End the stream."""
        if self._transport is not None:
            self._transport.abort()


async def open_stream(port: int, user: str, stream: str, *, keep: bool = False) -> StreamClient:
    """Ask for a user's stream on 127.0.0.1. With `keep` everything received is kept, HTTP framing included."""
    _, client = await asyncio.get_running_loop().create_connection(StreamClient, "127.0.0.1", port)
    client.keeps = keep
    subscription = {"stream": stream, "parameters": None, "override_priority": None}
    request: dict[str, Any] = {
        "buckets": [], "include_checksum": True, "raw_data": True, "client_id": user,
        "streams": {"include_defaults": False, "subscriptions": [subscription]},
    }  # fmt: skip
    body = orjson.dumps(request)
    head = (
        f"POST /sync/stream HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {token(user)}\r\n"
        f"Content-Type: application/json\r\nAccept: application/x-ndjson\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    assert client._transport is not None
    client._transport.write(head.encode() + body)
    return client


def unframed(kept: list[bytes]) -> bytes:
    """The body of a chunked answer, as far as it came."""
    head, _, rest = b"".join(kept).partition(b"\r\n\r\n")
    if b" 200 " not in head.split(b"\r\n")[0]:
        raise RuntimeError((head + rest)[:500].decode(errors="replace"))
    parts = []
    while rest:
        size, _, rest = rest.partition(b"\r\n")
        length = int(size, 16)
        parts.append(rest[:length])
        rest = rest[length + 2 :]
    return b"".join(parts)
