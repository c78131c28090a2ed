"""The other ASGI servers of production do what uvicorn does; most tests of this folder run under uvicorn and daphne."""

from __future__ import annotations

import socket
import time

import pytest

from tests.conftest import SOAK
from tests.integration.serving.conftest import Lines, StartServer, Storage, Streams
from tests.integration.serving.sockets import Socket
from tests.integration.serving.test_mishaps import open_streams

OTHERS = ["granian", "hypercorn"]
STALLED = 10
OPEN_AT_SIGTERM = 1000 if SOAK else 200


@pytest.mark.parametrize("kind", OTHERS)
def test_streams_are_live_over_http_and_websocket(
    storage: Storage, start_server: StartServer, streams: Streams, kind: str
):
    server = start_server(kind)
    http, web = Lines(streams.open(server)), Socket(server)
    web.set_up()
    web.request()
    assert http.through("checkpoint_complete") == web.through("checkpoint_complete")

    for number in range(3):
        storage.publish(("mine", ("u1",), f"r{number}", {}))
        assert http.through("checkpoint_complete") == web.through("checkpoint_complete")
    web.close()


@pytest.mark.parametrize("kind", OTHERS)
def test_abandoned_streams_are_gone_within_two_seconds(storage: Storage, start_server: StartServer, kind: str):
    server = start_server(kind)
    server.wait_for("streams", 0)
    with open_streams(server, 20):
        server.wait_for("streams", 20)

    assert server.wait_for("streams", 0) < 2


@pytest.mark.parametrize("kind", ["uvicorn", "daphne", *OTHERS])
def test_a_reader_that_stops_costs_less_than_two_megabytes(
    storage: Storage, start_server: StartServer, streams: Streams, kind: str
):
    server = start_server(kind, fresh=True)
    storage.publish(*(("all", (), f"r{number}", {"text": "x" * 20_000}) for number in range(1000)))
    for _ in range(2):
        Lines(streams.open(server)).through("checkpoint_complete")  # lines that are kept for all are no reader's
    before = server.state()["memory_kib"]

    with open_streams(server, STALLED, receive_buffer=4096, until=b'"checkpoint"'):
        server.wait_for("streams", STALLED)
        Lines(streams.open(server)).through("checkpoint_complete")
        growth = server.state()["memory_kib"] - before

    assert growth < STALLED * 2048


@pytest.mark.parametrize("kind", ["uvicorn", "daphne"])
def test_a_socket_that_is_not_read_costs_less_than_four_megabytes(
    storage: Storage, start_server: StartServer, streams: Streams, kind: str
):
    server = start_server(kind, fresh=True)
    storage.publish(*(("all", (), f"r{number}", {"text": "x" * 20_000}) for number in range(1000)))
    warm = Socket(server)
    warm.set_up()
    warm.request()
    warm.through("checkpoint_complete")
    before = server.state()["memory_kib"]

    stalled = [Socket(server) for _ in range(STALLED)]
    for each in stalled:
        each.socket.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        each.set_up()
        each.request(credit=2**31 - 1)
    server.wait_for("streams", STALLED + 1)
    time.sleep(1)  # what could be sent was sent
    growth = server.state()["memory_kib"] - before

    assert growth < STALLED * 4096  # a line of a megabyte is one message
    for each in [*stalled, warm]:
        each.socket.socket.close()


@pytest.mark.parametrize("kind", ["uvicorn", "daphne", *OTHERS])
def test_sigterm_ends_a_server_with_open_streams(storage: Storage, start_server: StartServer, kind: str):
    server = start_server(kind, fresh=True)
    with open_streams(server, OPEN_AT_SIGTERM):
        took_s = server.stop()

    assert took_s < 3
    if kind != "hypercorn":  # which cancels its own tasks
        assert "Traceback" not in server.log.read_text()
