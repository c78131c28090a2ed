"""The HTTP stream, `POST sync/stream`, as a Channels consumer. Its answer is a stream of sync lines."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from ..conf import get_settings
from ..exceptions import LimitExceeded, RequestError
from ..protocol.codings import Coding, ContentEncoder
from ..protocol.errors import CORS_HEADERS
from ..protocol.negotiation import choose_coding, choose_format
from ..protocol.requests import parse_stream_request
from ..protocol.session import SendLine
from ..streams import Stream, get_stream_server
from ..tokens import authenticate
from .base import RequestConsumer, encode_headers
from .daphne import wait_until_taken

PIECE_BYTES = 64 << 10  # some servers hold several pieces for a client that does not read, however large they are
STREAM_HEADERS = {
    **CORS_HEADERS,
    "Cache-Control": "no-store",
    "Vary": "Accept, Accept-Encoding",
    "X-Accel-Buffering": "no",  # nginx would hold lines back
}


class SyncStreamConsumer(RequestConsumer):
    """Serves one stream a connection."""

    method = "POST"

    async def serve(self, message: Mapping[str, Any]) -> None:
        """Serve a stream to its end."""
        token = await authenticate(self.header(b"authorization"))
        timeout_s = get_settings().body_timeout_s
        try:
            async with asyncio.timeout(timeout_s):
                request = parse_stream_request(await self._read_body(message))
        except TimeoutError:
            raise RequestError(f"the body took more than {timeout_s:g} seconds", status=408) from None
        self._format = choose_format(self.header(b"accept"))
        self._coding = choose_coding(self.header(b"accept-encoding"))
        self._encoder = ContentEncoder(self._coding)
        stream = self._stream = Stream(
            get_stream_server(),
            request,
            claims=token.claims,
            user_key=token.user_key,
            expires_at=token.expires_at,
            format=self._format,
            coding=self._coding,
        )
        try:
            await self.run_until_disconnect(stream.run(self._send_lines))
        except TimeoutError:
            if self.started:
                raise
        if not self.started:
            raise RequestError("the server is stopping; try again", status=503, code="PSYNC_S2003")

    async def finish(self) -> None:
        """End the stream's body."""
        await self.send_body(self._encoder.finish())

    async def _send_lines(self, lines: Sequence[SendLine]) -> None:
        if not self.started:
            self.started = True
            await self.send_headers(status=200, headers=encode_headers(self._stream_headers()))
        body = self._encoder.encode(lines)
        for start in range(0, len(body), PIECE_BYTES):
            piece = body[start : start + PIECE_BYTES]
            await self.base_send({"type": "http.response.body", "body": piece, "more_body": True})
            if self.unsent_bytes is not None:
                await wait_until_taken(self.unsent_bytes)
            self._stream.note_progress()

    def _stream_headers(self) -> dict[str, str]:
        about_coding = {} if self._coding is Coding.IDENTITY else {"Content-Encoding": self._coding.value}
        # Who comes back shall find another process; and some servers do not end while a connection is kept alive.
        about_connection = {"Connection": "close"} if self.scope["http_version"].startswith("1") else {}
        return {**STREAM_HEADERS, "Content-Type": self._format.value, **about_coding, **about_connection}

    async def _read_body(self, message: Mapping[str, Any]) -> bytes:
        """The whole body. Raises LimitExceeded (413) for too large a one, ConnectionError when the client leaves."""
        parts, size, most = [], 0, get_settings().max_request_bytes
        while True:
            if message["type"] == "http.disconnect":
                raise ConnectionError("the client went away")
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            if size > most:
                raise LimitExceeded(f"the body is larger than {most} bytes", status=413, code="PSYNC_S2001")
            if not message.get("more_body"):
                return b"".join(parts)
            message = await self._receive()
