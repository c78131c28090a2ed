"""What every HTTP consumer here does: it serves a request beside a watch for the client's leaving, and tells errors."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine, Mapping
from typing import Any

from channels.generic.http import AsyncHttpConsumer  # type: ignore[import-untyped]

from ..exceptions import RequestError
from ..protocol.errors import CORS_HEADERS, CORS_PREFLIGHT_HEADERS, encode_error
from .daphne import unsent_bytes_of

log = logging.getLogger(__name__)


class RequestConsumer(AsyncHttpConsumer):  # type: ignore[misc]
    """Serves one request by `serve`.

    The request is served while `receive` is watched beside it: servers tell of a client that went away only there,
    and a consumer that only sends would never end. No channel layer is joined, no Django connection is used.
    """

    method = "GET"
    started: bool
    _receive: Any
    _abandoned: bool

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Serve one request, without the task for each message and the closing of connections that Channels brings."""
        self.scope, self.base_send, self._receive, self._abandoned = scope, send, receive, False
        self.unsent_bytes = unsent_bytes_of(send)
        self.started = False  # whether an answer is on its way, so that no other can be given
        message = await receive()
        if message["type"] == "http.request":
            await self.http_request(message)

    async def http_request(self, message: Mapping[str, Any]) -> None:
        """Answer a request, whose body may begin with this message."""
        try:
            if self.scope["method"] == self.method:
                await self.serve(message)
            else:
                await self._answer_method()
        except RequestError as error:
            await self._refuse(error)
        except (ConnectionError, TimeoutError):
            return  # nobody listens
        if self.started:
            await self.finish()

    async def finish(self) -> None:
        """End an answer that has begun, also where it failed on its way."""
        raise NotImplementedError

    async def serve(self, message: Mapping[str, Any]) -> None:
        """Answer a request of the right method. RequestErrors are told to the client."""
        raise NotImplementedError

    async def run_until_disconnect(self, work: Coroutine[Any, Any, None]) -> None:
        """Do the work; raises ConnectionError when the client goes away."""
        serving = asyncio.current_task()
        assert serving is not None
        watch = asyncio.create_task(self._watch_disconnect(serving))
        try:
            await work
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

    async def _answer_method(self) -> None:
        if self.scope["method"] == "OPTIONS":
            await self.respond(204, b"", CORS_PREFLIGHT_HEADERS)
        else:
            error = RequestError(f"this address takes {self.method}", status=405)
            await self.respond(405, encode_error(error), {"Allow": f"{self.method}, OPTIONS"})

    async def _refuse(self, error: RequestError) -> None:
        """Answer with the error; an open stream can only end."""
        if error.status >= 500:
            log.error("a request %s: %s (%s)", "ends" if self.started else "is refused", error, error.code)
        if not self.started:
            await self.respond(error.status, encode_error(error))

    async def respond(self, status: int, body: bytes, headers: Mapping[str, str] | None = None) -> None:
        """Send a whole answer; a body is JSON."""
        about_body = {"Content-Type": "application/json"} if body else {}
        about_access = {"WWW-Authenticate": "Bearer"} if status == 401 else {}
        merged = {**CORS_HEADERS, **about_body, **about_access, **(headers or {}), "Content-Length": str(len(body))}
        await self.send_response(status, body, headers=encode_headers(merged))

    def header(self, name: bytes) -> str | None:
        """A request header's text; names are lower case."""
        values = [value.decode("latin-1") for key, value in self.scope["headers"] if key == name]
        return ", ".join(values) if values else None


def encode_headers(headers: Mapping[str, str]) -> list[tuple[bytes, bytes]]:
    """Headers as ASGI wants them."""
    return [(name.lower().encode(), value.encode()) for name, value in headers.items()]
