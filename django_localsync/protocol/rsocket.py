"""RSocket 1.0 over WebSocket, as much of it as PowerSync's clients speak, from the server's side and without I/O.

One binary WebSocket message is one frame; one connection has one stream at a time. The client's SETUP carries its
token, its REQUEST_STREAM the request of docs/reference/wire-protocol.md, "POST sync/stream", and each sync line goes
out as a BSON document in a PAYLOAD, which costs one of the credits that the client has given.

`receive` answers a frame with actions; the shell performs them in their order, and tells how authentication ended and
when the stream did. Frames: https://rsocket.io/about/protocol/. Integers are big-endian.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import Enum, IntEnum
from typing import Any

import orjson

from ..exceptions import ProtocolError, RequestError
from .bson import decode_bson
from .errors import NO_SUCH_PATH, UNSUPPORTED_MEDIA_TYPE
from .requests import StreamRequest, read_stream_request

STREAM_PATH = "/sync/stream"
MAX_CREDIT = 2**31 - 1
MAX_LIFETIME_S = 300.0  # a client may be silent for as long as it said, but no longer than this


class FrameType(IntEnum):
    """The frames that either side uses."""

    SETUP = 0x01
    KEEPALIVE = 0x03
    REQUEST_STREAM = 0x06
    REQUEST_N = 0x08
    CANCEL = 0x09
    PAYLOAD = 0x0A
    ERROR = 0x0B


class ErrorCode(IntEnum):
    """What an ERROR frame is about."""

    INVALID_SETUP = 0x001
    UNSUPPORTED_SETUP = 0x002
    REJECTED_SETUP = 0x003
    CONNECTION_ERROR = 0x101
    APPLICATION_ERROR = 0x201


# Flags; some mean something else in each type of frame.
_IGNORE, _METADATA = 0x200, 0x100
_RESUME = _FOLLOWS = _RESPOND = 0x080
_LEASE = _COMPLETE = 0x040
_NEXT = 0x020


@dataclass(frozen=True, slots=True)
class Authenticate:
    """Verify the token; call `accept` or `refuse`."""

    authorization: str | None


@dataclass(frozen=True, slots=True)
class OpenStream:
    """Serve a stream; its lines go through `take_credit` and `encode_line`, its end is told to `complete` or `fail`."""

    request: StreamRequest


@dataclass(frozen=True, slots=True)
class CancelStream:
    """Stop serving: the client wants no more."""


@dataclass(frozen=True, slots=True)
class GrantCredit:
    """Go on sending: there is credit again."""


@dataclass(frozen=True, slots=True)
class SendFrame:
    """Send one binary message."""

    frame: bytes


@dataclass(frozen=True, slots=True)
class Close:
    """Close the socket."""


Action = Authenticate | OpenStream | CancelStream | GrantCredit | SendFrame | Close


class Phase(Enum):
    """What the connection waits for."""

    SETUP = "waiting for SETUP"
    AUTHENTICATING = "authenticating"
    READY = "waiting for REQUEST_STREAM"
    STREAMING = "streaming"
    CLOSED = "closed"


class Encoding(Enum):
    """How a client writes its metadata and requests; the value is the MIME type."""

    JSON = "application/json"
    BSON = "application/bson"


class RSocketConnection:
    """One client's connection."""

    def __init__(self) -> None:
        self.phase = Phase.SETUP
        self.lifetime_s = MAX_LIFETIME_S
        """The connection is dead when no frame came for so long."""
        self._stream_id = 0  # the last one
        self._credit = 0
        self._encoding = Encoding.JSON  # of requests

    def receive(self, content: bytes) -> list[Action]:
        """What to do about a frame. What breaks the protocol ends the connection with an ERROR."""
        try:
            return self._receive(_parse_frame(content))
        except (struct.error, IndexError) as error:
            return self._break_off(ProtocolError(f"a frame is too short: {error}"))
        except ProtocolError as error:
            return self._break_off(error)

    def accept(self) -> None:
        """The token is valid."""
        self.phase = Phase.READY

    def refuse(self, error: RequestError) -> list[Action]:
        """The SETUP is refused."""
        return self._fail(0, ErrorCode.REJECTED_SETUP, error)

    def fail(self, error: RequestError) -> list[Action]:
        """The stream ends with an error."""
        return self._fail(self._stream_id, ErrorCode.APPLICATION_ERROR, error)

    def complete(self) -> list[Action]:
        """The stream ends normally; the client is to connect again."""
        self.phase = Phase.CLOSED
        return [SendFrame(_encode_frame(self._stream_id, FrameType.PAYLOAD, _COMPLETE)), Close()]

    def close(self) -> list[Action]:
        """The connection ends without a word."""
        was_streaming = self.phase is Phase.STREAMING
        self.phase = Phase.CLOSED
        return [*([CancelStream()] if was_streaming else []), Close()]

    def take_credit(self) -> bool:
        """Whether a line may be sent now; it uses up one credit."""
        if self._credit == 0:
            return False
        self._credit -= 1
        return True

    def encode_line(self, line: bytes) -> bytes:
        """The frame that sends a line (a BSON document)."""
        return _encode_frame(self._stream_id, FrameType.PAYLOAD, _NEXT, line)

    def _receive(self, frame: _Frame) -> list[Action]:
        match frame.type, self.phase:
            case FrameType.SETUP, Phase.SETUP:
                return self._set_up(frame)
            case FrameType.KEEPALIVE, Phase.READY | Phase.STREAMING:
                return self._answer_keepalive(frame)
            case FrameType.REQUEST_STREAM, Phase.READY:
                return self._open_stream(frame)
            case FrameType.REQUEST_N, Phase.READY | Phase.STREAMING:
                return self._add_credit(frame)
            case FrameType.CANCEL, Phase.READY | Phase.STREAMING:
                return self._cancel(frame)
            case FrameType.ERROR, _:
                return self.close()
        if frame.flags & _IGNORE:
            return []
        raise ProtocolError(f"unexpected frame of type {frame.type:#04x} while {self.phase.value}")

    def _set_up(self, frame: _Frame) -> list[Action]:
        setup = _parse_setup(frame)
        self.lifetime_s = min(setup.lifetime_s, MAX_LIFETIME_S)
        try:
            metadata = _decode(setup.metadata, _find_encoding(setup.metadata_type))
            self._encoding = _find_encoding(setup.data_type)
            token = metadata.get("token")
        except RequestError as error:
            return self._fail(0, ErrorCode.UNSUPPORTED_SETUP, error)
        self.phase = Phase.AUTHENTICATING
        return [Authenticate(token if isinstance(token, str) else None)]

    def _open_stream(self, frame: _Frame) -> list[Action]:
        if frame.flags & _FOLLOWS:
            raise ProtocolError("a request in fragments is not supported")
        if frame.stream_id <= self._stream_id or frame.stream_id % 2 == 0:
            raise ProtocolError(f"{frame.stream_id} is no number of a new stream")
        self.phase, self._stream_id, self._credit = Phase.STREAMING, frame.stream_id, _parse_credit(frame.body)
        metadata, data = _split_payload(frame.body[4:], frame.flags)
        try:
            path = _decode(metadata, self._encoding).get("path")
            if path != STREAM_PATH:
                raise RequestError("there is no such path", status=404, code=NO_SUCH_PATH)
            return [OpenStream(read_stream_request(_decode(data, self._encoding)))]
        except RequestError as error:
            return self.fail(error)

    def _add_credit(self, frame: _Frame) -> list[Action]:
        credit = _parse_credit(frame.body)
        if frame.stream_id != self._stream_id or self.phase is not Phase.STREAMING:
            return []  # the stream has ended meanwhile
        self._credit = min(self._credit + credit, MAX_CREDIT)
        return [GrantCredit()]

    def _cancel(self, frame: _Frame) -> list[Action]:
        if frame.stream_id != self._stream_id or self.phase is not Phase.STREAMING:
            return []
        self.phase, self._credit = Phase.READY, 0
        return [CancelStream()]

    def _answer_keepalive(self, frame: _Frame) -> list[Action]:
        if len(frame.body) < 8:
            raise ProtocolError("a KEEPALIVE is too short")
        answer = _encode_frame(0, FrameType.KEEPALIVE, 0, bytes(8) + frame.body[8:])
        return [SendFrame(answer)] if frame.flags & _RESPOND else []

    def _break_off(self, error: ProtocolError) -> list[Action]:
        code = ErrorCode.INVALID_SETUP if self.phase is Phase.SETUP else ErrorCode.CONNECTION_ERROR
        return self._fail(0, code, RequestError(str(error)))

    def _fail(self, stream_id: int, code: ErrorCode, error: RequestError) -> list[Action]:
        """Clients look for the PSYNC code in the message: S21… lets them fetch a new token."""
        if self.phase is Phase.CLOSED:
            return []
        details = "" if error.details is None else f": {error.details}"
        text = f"[{error.code}] {error.description}{details}".encode()
        body = code.to_bytes(4, "big") + text
        return [SendFrame(_encode_frame(stream_id, FrameType.ERROR, 0, body)), *self.close()]


@dataclass(frozen=True, slots=True)
class _Frame:
    stream_id: int
    type: int
    flags: int
    body: bytes


@dataclass(frozen=True, slots=True)
class _Setup:
    lifetime_s: float
    metadata_type: str
    data_type: str
    metadata: bytes


def _parse_frame(content: bytes) -> _Frame:
    stream_id, kind_and_flags = struct.unpack_from(">IH", content)
    return _Frame(stream_id, kind_and_flags >> 10, kind_and_flags & 0x3FF, content[6:])


def _encode_frame(stream_id: int, kind: FrameType, flags: int, body: bytes = b"") -> bytes:
    return struct.pack(">IH", stream_id, kind << 10 | flags) + body


def _parse_setup(frame: _Frame) -> _Setup:
    major, _, _, lifetime_ms = struct.unpack_from(">HHII", frame.body)
    if frame.stream_id != 0 or major != 1:
        raise ProtocolError("SETUP must be of RSocket 1 and on stream 0")
    if frame.flags & (_RESUME | _LEASE):
        raise ProtocolError("resumption and leases are not supported")
    metadata_type, position = _parse_type(frame.body, 12)
    data_type, position = _parse_type(frame.body, position)
    metadata, _ = _split_payload(frame.body[position:], frame.flags)
    return _Setup(lifetime_ms / 1000, metadata_type, data_type, metadata)


def _parse_type(content: bytes, start: int) -> tuple[str, int]:
    """A MIME type with its length before it, and where it ends."""
    end = start + 1 + content[start]
    return content[start + 1 : end].decode("ascii", "replace"), end


def _split_payload(content: bytes, flags: int) -> tuple[bytes, bytes]:
    """Metadata and data."""
    if not flags & _METADATA:
        return b"", content
    if len(content) < 3 or (end := 3 + int.from_bytes(content[:3], "big")) > len(content):
        raise ProtocolError("metadata is longer than its frame")
    return content[3:end], content[end:]


def _parse_credit(body: bytes) -> int:
    (credit,) = struct.unpack_from(">I", body)
    if not 1 <= credit <= MAX_CREDIT:
        raise ProtocolError(f"a credit of {credit}")
    return int(credit)


def _find_encoding(mime_type: str) -> Encoding:
    try:
        return Encoding(mime_type.lower())
    except ValueError:
        text = "metadata and data must be application/json or application/bson"
        raise RequestError(text, status=415, code=UNSUPPORTED_MEDIA_TYPE) from None


def _decode(content: bytes, encoding: Encoding) -> dict[str, Any]:
    """An object; nothing at all is an empty one. Raises RequestError."""
    if not content:
        return {}
    try:
        document = decode_bson(content) if encoding is Encoding.BSON else orjson.loads(content)
    except (ProtocolError, orjson.JSONDecodeError) as error:
        raise RequestError(f"the payload is not {encoding.value}", details=str(error)) from None
    if not isinstance(document, dict):
        raise RequestError("the payload must be an object")
    return document
