"""A client of the WebSocket stream. The `rsocket` package, which knows nothing of us, makes and reads frames."""

from __future__ import annotations

import json
from typing import Any

import rsocket.frame as frames
from rsocket.frame_builders import to_cancel_frame, to_request_n_frame
from websockets.sync.client import connect

from django_localsync.protocol.bson import decode_bson, encode_bson
from tests.integration.serving.conftest import DEADLINE_S, Server, token_of

Json = dict[str, Any]
STREAM_ID = 1


class Socket:
    """One connection. It gives credit only when told to."""

    def __init__(self, server: Server, *, mime: str = "application/json") -> None:
        url = server.url.replace("http:", "ws:")
        self.socket = connect(url, max_size=None, open_timeout=DEADLINE_S, close_timeout=1, proxy=None, legacy=True)
        self._mime = mime

    def set_up(self, user: str = "u1", *, token: str | None = None, lifetime_ms: int = 90_000) -> None:
        frame = frames.SetupFrame()
        frame.major_version, frame.minor_version = 1, 0
        frame.keep_alive_milliseconds, frame.max_lifetime_milliseconds = 20_000, lifetime_ms
        frame.metadata_encoding = frame.data_encoding = self._mime.encode()
        authorization = f"Token {token or token_of(user)}"
        frame.data, frame.metadata = None, self._encode({"token": authorization, "user_agent": "test"})
        self.send(frame)

    def request(
        self, credit: int = 1000, *, path: str = "/sync/stream", stream_id: int = STREAM_ID, **body: Any
    ) -> None:
        frame = frames.RequestStreamFrame()
        frame.stream_id, frame.initial_request_n = stream_id, credit
        frame.metadata = self._encode({"path": path})
        frame.data = self._encode({"raw_data": True, "client_id": "c1", **body})
        self.send(frame)

    def grant(self, credit: int) -> None:
        self.send(to_request_n_frame(STREAM_ID, credit))

    def cancel(self) -> None:
        self.send(to_cancel_frame(STREAM_ID))

    def keep_alive(self, data: bytes) -> None:
        frame = frames.KeepAliveFrame()
        frame.stream_id, frame.flags_respond, frame.data = 0, True, data
        self.send(frame)

    def send(self, frame: frames.Frame) -> None:
        self.socket.send(frame.serialize())

    def receive(self, timeout_s: float = DEADLINE_S) -> frames.Frame:
        """The next frame; TimeoutError when there is none in time, ConnectionClosed at the end."""
        content = self.socket.recv(timeout_s)
        assert isinstance(content, bytes)
        frame = frames.parse_or_ignore(content)
        assert frame is not None
        return frame

    def next(self, timeout_s: float = DEADLINE_S) -> Json:
        """The next line."""
        frame = self.receive(timeout_s)
        assert isinstance(frame, frames.PayloadFrame), (frame, frame.data)
        assert frame.stream_id % 2 == 1
        assert frame.flags_next
        assert not frame.flags_complete
        return decode_bson(frame.data)

    def through(self, kind: str) -> list[Json]:
        lines = [self.next()]
        while kind not in lines[-1]:
            lines.append(self.next())
        return lines

    def close(self) -> None:
        self.socket.close()

    def _encode(self, document: Json) -> bytes:
        return encode_bson(document) if self._mime == "application/bson" else json.dumps(document).encode()
