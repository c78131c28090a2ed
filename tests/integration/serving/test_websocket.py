"""What a client receives over WebSocket, and what goes wrong there."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import pytest
import rsocket.frame as frames
from channels.testing import WebsocketCommunicator
from django.core.asgi import get_asgi_application
from rsocket.error_codes import ErrorCode
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from django_localsync.routing import localsync_application
from tests.integration.serving.conftest import Lines, Server, StartServer, Storage, Streams, token_of
from tests.integration.serving.sockets import Socket
from tests.integration.serving.test_streams import kinds, rows

OpenSocket = Callable[..., Socket]


@pytest.fixture
def open_socket() -> Iterator[OpenSocket]:
    sockets: list[Socket] = []

    def open_one(server: Server, **options: str) -> Socket:
        sockets.append(Socket(server, **options))
        return sockets[-1]

    yield open_one
    for socket in sockets:
        socket.close()


def refusal(socket: Socket, stream_id: int, code: ErrorCode) -> str:
    """The message of an ERROR, after which the server closes the socket."""
    frame = socket.receive()
    assert isinstance(frame, frames.ErrorFrame), (frame, frame.data)
    assert (frame.stream_id, frame.error_code) == (stream_id, code)
    with pytest.raises(ConnectionClosed):
        socket.receive()
    return str(frame.data.decode())


@pytest.mark.parametrize("mime", ["application/json", "application/bson"])
def test_lines_are_those_of_http(
    storage: Storage, server: Server, streams: Streams, open_socket: OpenSocket, mime: str
):
    storage.publish(("mine", ("u1",), "a", {"title": "x"}), ("mine", ("u2",), "b", {}), ("all", (), "c", {}))
    socket = open_socket(server, mime=mime)
    socket.set_up()
    socket.request()
    http = Lines(streams.open(server))

    assert socket.through("checkpoint_complete") == http.through("checkpoint_complete")
    storage.publish(("mine", ("u1",), "d", {}))
    assert socket.through("checkpoint_complete") == http.through("checkpoint_complete")


def test_a_request_goes_on_where_the_client_was(storage: Storage, server: Server, open_socket: OpenSocket):
    storage.publish(("mine", ("u1",), "a", {}))
    first = open_socket(server)
    first.set_up()
    first.request()
    checkpoint = first.through("checkpoint_complete")[0]["checkpoint"]
    storage.publish(("mine", ("u1",), "b", {}))

    second = open_socket(server)
    second.set_up()
    second.request(buckets=[{"name": storage.wire_name("mine", "u1"), "after": checkpoint["last_op_id"]}])

    assert rows(second.through("checkpoint_complete")) == ["b"]


def test_each_line_costs_a_credit(storage: Storage, server: Server, open_socket: OpenSocket):
    storage.publish(("mine", ("u1",), "a", {}), ("all", (), "c", {}))
    socket = open_socket(server)
    socket.set_up()
    socket.request(credit=2)

    assert kinds([socket.next(), socket.next()]) == ["checkpoint", "data"]
    with pytest.raises(TimeoutError):
        socket.receive(0.3)
    socket.keep_alive(b"still here")
    answer = socket.receive()
    socket.grant(1)
    third = socket.next()
    with pytest.raises(TimeoutError):
        socket.receive(0.3)
    socket.grant(5)

    assert isinstance(answer, frames.KeepAliveFrame)
    assert (answer.data, answer.flags_respond) == (b"still here", False)
    assert kinds([third, socket.next(), socket.next()]) == [
        "partial_checkpoint_complete", "data", "checkpoint_complete",
    ]  # fmt: skip
    storage.publish(("mine", ("u1",), "b", {}))
    assert rows(socket.through("checkpoint_complete")) == ["b"]


def test_a_token_that_expires_ends_the_stream_and_the_socket(storage: Storage, server: Server, open_socket: OpenSocket):
    socket = open_socket(server)
    socket.set_up(token=token_of("u1", lifetime_s=2))
    socket.request()

    assert socket.through("token_expires_in")[-1] == {"token_expires_in": 0}
    end = socket.receive()

    assert isinstance(end, frames.PayloadFrame)
    assert end.flags_complete
    assert not end.flags_next
    with pytest.raises(ConnectionClosed):
        socket.receive()


def test_no_keepalive_lines_are_sent(storage: Storage, start_server: StartServer, open_socket: OpenSocket):
    socket = open_socket(start_server(keepalive_interval_s=0.2))
    socket.set_up()
    socket.request()
    socket.through("checkpoint_complete")

    with pytest.raises(TimeoutError):
        socket.receive(0.6)


def test_a_cancelled_stream_is_gone_and_another_may_follow(
    storage: Storage, start_server: StartServer, open_socket: OpenSocket
):
    server = start_server()
    server.wait_for("streams", 0)
    socket = open_socket(server)
    socket.set_up()
    socket.request()
    socket.through("checkpoint_complete")
    server.wait_for("streams", 1)

    socket.cancel()
    server.wait_for("streams", 0)
    socket.request(stream_id=3)

    assert kinds(socket.through("checkpoint_complete")) == ["checkpoint", "checkpoint_complete"]


def test_a_refused_token_closes_the_socket(storage: Storage, server: Server, open_socket: OpenSocket):
    socket = open_socket(server)
    socket.set_up(token="abc")

    assert "[PSYNC_S2101]" in refusal(socket, 0, ErrorCode.REJECTED_SETUP)


def test_refused_requests_close_the_socket_with_the_protocols_codes(
    storage: Storage, start_server: StartServer, open_socket: OpenSocket
):
    server = start_server(max_buckets=1, max_request_bytes=2000)

    def refused(**request: object) -> str:
        socket = open_socket(server)
        socket.set_up()
        socket.request(**request)
        return refusal(socket, 1, ErrorCode.APPLICATION_ERROR)

    assert "[PSYNC_S2002]" in refused(path="/elsewhere")
    assert "buckets must be a list" in refused(buckets=1)
    assert "[PSYNC_S2305]" in refused()
    with pytest.raises(ConnectionClosed, match="1009"):
        refused(client_id="x" * 3000)


@pytest.mark.parametrize(
    ("frame", "code"),
    [
        (b"", ErrorCode.INVALID_SETUP),
        (b"\0\0\0\1\x18\0\0\0\0\1", ErrorCode.INVALID_SETUP),  # a request before SETUP
        (b"\0\0\0\0\x04\0\0\1\0\0\0\0\0\0\0\0\0\0\x01x\x01x", ErrorCode.UNSUPPORTED_SETUP),
    ],
)
def test_what_is_no_setup_is_told_and_closes_the_socket(
    storage: Storage, start_server: StartServer, open_socket: OpenSocket, frame: bytes, code: ErrorCode
):
    socket = open_socket(start_server())
    socket.socket.send(frame)

    assert refusal(socket, 0, code).startswith("[PSYNC_S200")


def test_a_client_that_leaves_leaves_nothing_behind(storage: Storage, server: Server, open_socket: OpenSocket):
    server.wait_for("requests", 0)
    sockets = [open_socket(server) for _ in range(15)]
    for number, socket in enumerate(sockets):
        socket.set_up(f"u{number}")
        if number % 3:
            socket.request(credit=number % 3)  # one of them waits for credit
    server.wait_for("streams", 10)
    server.wait_for("requests", 15)
    tasks = server.state()["tasks"]

    for socket in sockets[::2]:
        socket.socket.socket.shutdown(2)  # without a word
    for socket in sockets[1::2]:
        socket.close()

    assert server.wait_for("requests", 0) < 2
    assert server.state()["streams"] == 0
    assert server.state()["tasks"] <= tasks - 25  # a task for each socket, one for each stream


def test_a_silent_client_is_dropped_after_the_lifetime_it_gave(
    storage: Storage, server: Server, open_socket: OpenSocket
):
    socket = open_socket(server)
    socket.set_up(lifetime_ms=500)
    socket.request()
    socket.through("checkpoint_complete")
    begin = time.monotonic()
    while time.monotonic() - begin < 1.5:
        socket.keep_alive(b"")
        assert isinstance(socket.receive(), frames.KeepAliveFrame)
        time.sleep(0.1)

    begin = time.monotonic()
    with pytest.raises(ConnectionClosed):
        socket.receive()

    assert 0.3 < time.monotonic() - begin < 3


def test_a_client_that_does_not_read_costs_little(storage: Storage, start_server: StartServer, open_socket: OpenSocket):
    server = start_server()
    storage.publish(*(("all", (), f"r{number}", {"text": "x" * 20_000}) for number in range(1000)))
    memory = server.state()["memory_kib"]
    stalled = [open_socket(server) for _ in range(10)]
    for socket in stalled:
        socket.socket.socket.setsockopt(1, 8, 4096)  # SO_RCVBUF
        socket.set_up()
        socket.request(credit=2**31 - 1)
    server.wait_for("streams", 10)

    begin = time.monotonic()
    reader = open_socket(server)
    reader.set_up()
    reader.request()
    lines = reader.through("checkpoint_complete")

    assert len(rows(lines)) == 1000
    assert time.monotonic() - begin < 5
    assert server.state()["memory_kib"] - memory < 100_000  # not 10 × 20 MB


@pytest.mark.parametrize("kind", ["uvicorn", "daphne"])
def test_sigterm_ends_a_server_with_open_sockets(
    storage: Storage, start_server: StartServer, open_socket: OpenSocket, kind: str
):
    server = start_server(kind, fresh=True)
    sockets = [open_socket(server) for _ in range(20)]
    for socket in sockets:
        socket.set_up()
        socket.request()
        socket.through("checkpoint_complete")

    assert server.stop() < 3
    assert "Traceback" not in server.log.read_text()


def test_other_sockets_are_the_projects_own(start_server: StartServer):
    with connect(f"ws://127.0.0.1:{start_server().port}/elsewhere", proxy=None) as socket:
        assert socket.recv() == "the project's"


async def test_other_sockets_are_refused_where_the_project_has_none():
    application = localsync_application(get_asgi_application())

    connected, _ = await WebsocketCommunicator(application, "/elsewhere").connect()

    assert not connected
