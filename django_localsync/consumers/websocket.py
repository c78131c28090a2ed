"""The WebSocket stream, `sync/stream`, as a Channels consumer: RSocket frames that carry sync lines.

What is said when is decided by protocol/rsocket.py, what is sent by the same session as over HTTP.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any, ClassVar

from channels.consumer import AsyncConsumer  # type: ignore[import-untyped]

from ..conf import get_settings
from ..exceptions import RequestError
from ..protocol.lines import LineFormat
from ..protocol.requests import StreamRequest
from ..protocol.rsocket import (
    Action,
    Authenticate,
    CancelStream,
    Close,
    GrantCredit,
    OpenStream,
    Phase,
    RSocketConnection,
    SendFrame,
)
from ..protocol.session import SendLine
from ..streams import Stream, get_stream_server
from ..tokens import Token, authenticate
from .daphne import unsent_bytes_of, wait_until_taken

log = logging.getLogger(__name__)

IDLE_TIMEOUT_S = 30.0  # for a connection that has no stream
NORMAL, TOO_LARGE = 1000, 1009  # close codes (RFC 6455)


class SyncSocketConsumer(AsyncConsumer):  # type: ignore[misc]
    """Serves one connection: a task reads frames, another one serves the stream while there is one.

    The first ends when the client goes away, and takes the second with it. When the second ends, it lets the first
    reach its deadline at once. No channel layer is joined, no Django connection is used.
    """

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Serve one connection."""
        self.scope, self._receive, self.base_send = scope, receive, send
        self._unsent_bytes = unsent_bytes_of(send)
        self._connection = RSocketConnection()
        self._credit_granted = asyncio.Event()
        self._token: Token | None = None
        self._serving: asyncio.Task[None] | None = None
        self._close_code = NORMAL
        with suppress(OSError):  # the client went away
            await self._serve()

    async def _serve(self) -> None:
        await self._receive()  # websocket.connect
        await self.base_send({"type": "websocket.accept"})
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(IDLE_TIMEOUT_S) as self._deadline:
                    await self._read_frames()
                    return  # the client went away
        finally:
            await self._stop_serving()
        await self.base_send({"type": "websocket.close", "code": self._close_code})

    async def _read_frames(self) -> None:
        most = get_settings().max_request_bytes
        while (message := await self._receive())["type"] == "websocket.receive":
            content = message.get("bytes") or b""
            if len(content) > most:
                self._close_code = TOO_LARGE
                await self._perform(self._connection.close())
            else:
                await self._perform(self._connection.receive(content))
                if self._connection.phase is Phase.STREAMING:  # others must ask for a stream, whatever they say
                    self._postpone_deadline(self._connection.lifetime_s)

    def _postpone_deadline(self, seconds: float) -> None:
        with suppress(RuntimeError):  # the connection ends already
            self._deadline.reschedule(asyncio.get_running_loop().time() + seconds)

    async def _perform(self, actions: Iterable[Action]) -> None:
        for action in actions:
            match action:
                case SendFrame(frame):
                    await self.base_send({"type": "websocket.send", "bytes": frame})
                case GrantCredit():
                    self._credit_granted.set()
                case Authenticate(authorization):
                    await self._authenticate(authorization)
                case OpenStream(request):
                    self._serving = asyncio.create_task(self._serve_stream(request))
                case CancelStream():
                    await self._stop_serving()
                    self._postpone_deadline(IDLE_TIMEOUT_S)
                case Close():
                    self._postpone_deadline(0)

    async def _authenticate(self, authorization: str | None) -> None:
        try:
            self._token = await authenticate(authorization)
        except RequestError as error:
            await self._perform(self._connection.refuse(error))
        else:
            self._connection.accept()

    async def _serve_stream(self, request: StreamRequest) -> None:
        """Serve a stream, tell the client how it ended, and end the connection."""
        assert self._token is not None
        try:
            stream = self._stream = Stream(
                get_stream_server(),
                request,
                claims=self._token.claims,
                user_key=self._token.user_key,
                expires_at=self._token.expires_at,
                format=LineFormat.BSON,
                keepalives=False,
            )
            await stream.run(self._send_lines)
            await self._perform(self._connection.complete())
        except RequestError as error:
            if error.status >= 500:
                log.error("a sync stream ends: %s (%s)", error, error.code)
            await self._perform(self._connection.fail(error))
        except OSError:  # TimeoutError: the stream was cut; else the client went away
            await self._perform(self._connection.close())
        except Exception:
            log.exception("a sync stream failed")
            await self._perform(self._connection.fail(RequestError("internal error", status=500)))

    async def _send_lines(self, lines: Sequence[SendLine]) -> None:
        for line in lines:
            while not self._connection.take_credit():
                self._credit_granted.clear()
                await self._credit_granted.wait()
            await self.base_send({"type": "websocket.send", "bytes": self._connection.encode_line(line.line)})
            if self._unsent_bytes is not None:
                await wait_until_taken(self._unsent_bytes)
            self._stream.note_progress()

    async def _stop_serving(self) -> None:
        serving, self._serving = self._serving, None
        if serving is not None and serving is not asyncio.current_task():
            serving.cancel()
            await asyncio.wait([serving])


class RefuseSocket(AsyncConsumer):  # type: ignore[misc]
    """Refuses WebSockets at other addresses, of which Django knows nothing."""

    channel_layer_alias: ClassVar[None] = None

    async def websocket_connect(self, message: Mapping[str, Any]) -> None:
        """Answer the handshake with 403."""
        await self.base_send({"type": "websocket.close"})

    async def websocket_disconnect(self, message: Mapping[str, Any]) -> None:
        """Nothing is left."""
