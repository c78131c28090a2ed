"""The HTTP stream, `POST sync/stream`, as a Channels consumer. Its answer is a stream of sync lines."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from channels.exceptions import StopConsumer  # type: ignore[import-untyped]
from channels.generic.http import AsyncHttpConsumer  # type: ignore[import-untyped]

from ..auth import authenticate
from ..conf import get_settings
from ..exceptions import LimitExceeded, RequestError
from ..protocol.codings import Coding, ContentEncoder
from ..protocol.errors import CORS_HEADERS, CORS_PREFLIGHT_HEADERS, encode_error
from ..protocol.negotiation import choose_coding, choose_format
from ..protocol.requests import parse_stream_request
from ..protocol.session import SendLine
from ..streams import Stream, get_stream_server

log = logging.getLogger(__name__)

BODY_TIMEOUT_S = 30.0
STREAM_HEADERS = {
    **CORS_HEADERS,
    "Cache-Control": "no-store",
    "Vary": "Accept, Accept-Encoding",
    "X-Accel-Buffering": "no",  # nginx would hold lines back
}


class SyncStreamConsumer(AsyncHttpConsumer):  # type: ignore[misc]
    """Serves one stream a connection.

    The request is served while `receive` is watched beside it: servers tell of a client that went away only there,
    and a consumer that only sends would never end. No channel layer is joined, no Django connection is used.
    """

    channel_layer_alias: ClassVar[None] = None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Serve one request."""
        self._receive, self._started, self._abandoned = receive, False, False
        await super().__call__(scope, receive, send)

    async def dispatch(self, message: Mapping[str, Any]) -> None:
        """Handle a message, without the thread in which Channels would close Django's old connections."""
        if message["type"] == "http.request":
            await self.http_request(message)
        raise StopConsumer

    async def http_request(self, message: Mapping[str, Any]) -> None:
        """Answer a request, whose body may begin with this message."""
        try:
            if self.scope["method"] == "POST":
                await self._serve(message)
            else:
                await self._answer_method()
        except RequestError as error:
            await self._refuse(error)
        except (ConnectionError, TimeoutError):
            return  # nobody listens
        if self._started:
            await self.send_body(self._encoder.finish())

    async def _serve(self, message: Mapping[str, Any]) -> None:
        token = await authenticate(self._header(b"authorization"))
        try:
            async with asyncio.timeout(BODY_TIMEOUT_S):
                request = parse_stream_request(await self._read_body(message))
        except TimeoutError:
            raise RequestError(f"the body took more than {BODY_TIMEOUT_S:.0f} seconds", status=408) from None
        self._format = choose_format(self._header(b"accept"))
        self._coding = choose_coding(self._header(b"accept-encoding"))
        self._encoder = ContentEncoder(self._coding)
        stream = Stream(
            get_stream_server(),
            request,
            claims=token.claims,
            user_key=token.user_key,
            expires_at=token.expires_at,
            format=self._format,
            coding=self._coding,
        )
        try:
            await self._run_until_disconnect(stream)
        except TimeoutError:
            if self._started:
                raise
        if not self._started:
            raise RequestError("the server is stopping; try again", status=503, code="PSYNC_S2003")

    async def _run_until_disconnect(self, stream: Stream) -> None:
        serving = asyncio.current_task()
        assert serving is not None
        watch = asyncio.create_task(self._watch_disconnect(serving))
        try:
            await stream.run(self._send_lines)
        except asyncio.CancelledError:
            if not self._abandoned:
                raise  # the server cancels us
            serving.uncancel()
            raise ConnectionError("the client went away") from None
        finally:
            watch.cancel()

    async def _watch_disconnect(self, serving: asyncio.Task[Any]) -> None:
        """Cancel the task that serves when the client goes away."""
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._abandoned = True
        serving.cancel()

    async def _send_lines(self, lines: Sequence[SendLine]) -> None:
        if not self._started:
            self._started = True
            await self.send_headers(status=200, headers=_encode_headers(self._stream_headers()))
        await self.base_send({"type": "http.response.body", "body": self._encoder.encode(lines), "more_body": True})

    def _stream_headers(self) -> dict[str, str]:
        about_coding = {} if self._coding is Coding.IDENTITY else {"Content-Encoding": self._coding.value}
        return {**STREAM_HEADERS, "Content-Type": self._format.value, **about_coding}

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

    async def _answer_method(self) -> None:
        if self.scope["method"] == "OPTIONS":
            await self._respond(204, b"", CORS_PREFLIGHT_HEADERS)
        else:
            error = RequestError("this address takes POST", status=405)
            await self._respond(405, encode_error(error), {"Allow": "POST, OPTIONS"})

    async def _refuse(self, error: RequestError) -> None:
        """Answer with the error; an open stream can only end."""
        if error.status >= 500:
            log.error("a sync stream %s: %s (%s)", "ends" if self._started else "is refused", error, error.code)
        if not self._started:
            await self._respond(error.status, encode_error(error))

    async def _respond(self, status: int, body: bytes, headers: Mapping[str, str] | None = None) -> None:
        about_body = {"Content-Type": "application/json"} if body else {}
        about_access = {"WWW-Authenticate": "Bearer"} if status == 401 else {}
        merged = {**CORS_HEADERS, **about_body, **about_access, **(headers or {}), "Content-Length": str(len(body))}
        await self.send_response(status, body, headers=_encode_headers(merged))

    def _header(self, name: bytes) -> str | None:
        """A request header's text; names are lower case."""
        values = [value.decode("latin-1") for key, value in self.scope["headers"] if key == name]
        return ", ".join(values) if values else None


def _encode_headers(headers: Mapping[str, str]) -> list[tuple[bytes, bytes]]:
    return [(name.lower().encode(), value.encode()) for name, value in headers.items()]
