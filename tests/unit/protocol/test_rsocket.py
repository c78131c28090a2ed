"""The server's side of RSocket: what a client says, and what is done about it."""

from __future__ import annotations

import struct
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from django_localsync.exceptions import AuthError, RequestError
from django_localsync.protocol.bson import encode_bson
from django_localsync.protocol.requests import StreamRequest
from django_localsync.protocol.rsocket import (
    MAX_CREDIT,
    Authenticate,
    CancelStream,
    Close,
    GrantCredit,
    OpenStream,
    Phase,
    RSocketConnection,
    SendFrame,
)


def frame(kind: int, stream_id: int = 0, flags: int = 0, body: bytes = b"") -> bytes:
    return struct.pack(">IH", stream_id, kind << 10 | flags) + body


def setup(mime: bytes = b"application/json", metadata: bytes = b'{"token": "Token abc"}', lifetime_ms: int = 90_000):
    about = struct.pack(">HHII", 1, 0, 20_000, lifetime_ms) + 2 * (bytes([len(mime)]) + mime)
    return frame(1, 0, 0x100, about + len(metadata).to_bytes(3, "big") + metadata)


def request(
    stream_id: int = 1, credit: int = 10, metadata: bytes = b'{"path":"/sync/stream"}', data: bytes = b"{}"
) -> bytes:
    body = credit.to_bytes(4, "big") + len(metadata).to_bytes(3, "big") + metadata + data
    return frame(6, stream_id, 0x100, body)


def request_n(credit: int, stream_id: int = 1) -> bytes:
    return frame(8, stream_id, 0, credit.to_bytes(4, "big"))


def ready() -> RSocketConnection:
    connection = RSocketConnection()
    connection.receive(setup())
    connection.accept()
    return connection


def streaming(credit: int = 10) -> RSocketConnection:
    connection = ready()
    connection.receive(request(credit=credit))
    return connection


def error(actions: list[Any]) -> tuple[int, int, str]:
    """Stream, code and message of the ERROR, which closes the connection."""
    sent = actions[0].frame
    assert sent[4] >> 2 == 0x0B
    assert actions[-1] == Close()
    return int.from_bytes(sent[:4], "big"), int.from_bytes(sent[6:10], "big"), sent[10:].decode()


def test_the_setup_carries_the_token():
    connection = RSocketConnection()

    assert connection.receive(setup(lifetime_ms=45_000)) == [Authenticate("Token abc")]
    assert connection.lifetime_s == 45


def test_old_clients_speak_bson():
    connection = RSocketConnection()
    said = setup(b"application/bson", encode_bson({"token": "Token abc"}))
    assert connection.receive(said) == [Authenticate("Token abc")]
    connection.accept()

    asked = request(metadata=encode_bson({"path": "/sync/stream"}), data=encode_bson({"client_id": "c"}))

    assert connection.receive(asked) == [OpenStream(StreamRequest(client_id="c"))]


def test_a_request_opens_a_stream():
    data = orjson.dumps({"client_id": "c", "raw_data": True, "streams": {"include_defaults": False}})

    actions = ready().receive(request(data=data))

    assert actions == [OpenStream(StreamRequest(client_id="c", raw_data=True, include_defaults=False))]


def test_credit_is_used_up_and_added():
    connection = streaming(credit=2)

    assert [connection.take_credit() for _ in range(3)] == [True, True, False]
    assert connection.receive(request_n(1)) == [GrantCredit()]
    assert [connection.take_credit() for _ in range(2)] == [True, False]


def test_credit_has_an_end():
    connection = streaming(credit=MAX_CREDIT)

    assert connection.receive(request_n(MAX_CREDIT)) == [GrantCredit()]


def test_credit_of_a_stream_before_is_not_that_of_the_next():
    connection = streaming(credit=5)
    assert connection.receive(frame(9, 1)) == [CancelStream()]
    connection.receive(request(stream_id=3, credit=1))

    assert connection.receive(request_n(7, stream_id=1)) == []
    assert [connection.take_credit() for _ in range(2)] == [True, False]


def test_frames_to_the_client():
    connection = streaming()

    assert connection.encode_line(b"line") == b"\0\0\0\1\x28\x20line"
    assert connection.complete() == [SendFrame(b"\0\0\0\1\x28\x40"), Close()]


def test_a_keepalive_is_answered_if_it_asks_for_that():
    connection = ready()

    answer = connection.receive(frame(3, 0, 0x80, bytes(7) + b"\x09data"))

    assert answer == [SendFrame(frame(3, 0, 0, bytes(8) + b"data"))]
    assert connection.receive(frame(3, 0, 0, bytes(8))) == []


def test_a_refused_token_is_told_with_its_code():
    connection = RSocketConnection()
    connection.receive(setup())

    actions = connection.refuse(AuthError("the token has expired", code="PSYNC_S2103"))

    assert error(actions) == (0, 3, "[PSYNC_S2103] the token has expired")


def test_a_stream_that_fails_tells_why_and_details():
    actions = streaming().fail(RequestError("not valid", details="here"))

    assert error(actions) == (1, 0x201, "[PSYNC_S2001] not valid: here")


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        (request(metadata=b'{"path":"/"}'), (1, 0x201, "[PSYNC_S2002]")),
        (request(metadata=b""), (1, 0x201, "[PSYNC_S2002]")),
        (request(metadata=b"[]"), (1, 0x201, "[PSYNC_S2001]")),
        (request(data=b"{"), (1, 0x201, "[PSYNC_S2001]")),
        (request(data=b"[]"), (1, 0x201, "[PSYNC_S2001]")),
        (request(data=b'{"buckets":1}'), (1, 0x201, "[PSYNC_S2001]")),
        (request(credit=0), (0, 0x101, "[PSYNC_S2001] a credit of 0")),
        (request(stream_id=2), (0, 0x101, "[PSYNC_S2001]")),
        (request()[:9], (0, 0x101, "[PSYNC_S2001]")),
        (frame(6, 1, 0x180, b"\0\0\0\1\0\0\0"), (0, 0x101, "[PSYNC_S2001] a request in fragments")),
        (frame(6, 1, 0x100, b"\0\0\0\1\0\0\x09"), (0, 0x101, "[PSYNC_S2001] metadata is longer")),
        (setup(), (0, 0x101, "[PSYNC_S2001] unexpected frame of type 0x01 while waiting for REQUEST_STREAM")),
        (frame(4, 1), (0, 0x101, "[PSYNC_S2001] unexpected frame")),
        (b"\0\0\0", (0, 0x101, "[PSYNC_S2001] a frame is too short")),
    ],
)
def test_what_is_wrong_with_a_request_is_told(asked: bytes, expected: tuple[int, int, str]):
    stream_id, code, text = error(ready().receive(asked))

    assert (stream_id, code, text[: len(expected[2])]) == expected


def test_a_second_stream_beside_the_first_is_refused():
    connection = streaming()

    actions = connection.receive(request(stream_id=3))

    assert error(actions)[:2] == (0, 0x101)
    assert CancelStream() in actions


@pytest.mark.parametrize(
    "said",
    [setup(b"text/plain"), setup(metadata=b"{"), frame(1, 1, 0, b"\0" * 20), frame(1, 0, 0x80, b"\0\1" + b"\0" * 20)],
)
def test_a_bad_setup_is_refused(said: bytes):
    stream_id, code, _ = error(RSocketConnection().receive(said))

    assert stream_id == 0
    assert code in (1, 2)


def test_a_frame_that_may_be_ignored_is():
    assert ready().receive(frame(0x3F, 1, 0x200)) == []


def test_nothing_is_said_after_the_end():
    connection = streaming()
    connection.complete()

    assert connection.receive(request_n(1)) == []
    assert connection.fail(RequestError("late")) == []


@settings(max_examples=300)
@given(
    st.lists(
        st.binary(max_size=40)
        | st.builds(frame, st.integers(0, 63), st.integers(0, 5), st.integers(0, 1023), st.binary(max_size=30)),
        max_size=5,
    )
)
def test_whatever_comes_raises_nothing_and_nothing_follows_the_end(noise: list[bytes]):
    for connection in (RSocketConnection(), ready(), streaming(credit=1)):
        for content in noise:
            phase = connection.phase
            actions = connection.receive(content)
            assert phase is not Phase.CLOSED or not any(
                isinstance(action, OpenStream | SendFrame) for action in actions
            )
