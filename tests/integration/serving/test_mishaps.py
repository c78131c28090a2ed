"""What goes wrong while streams are open."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager

from example_project.postgres import free_port
from tests.integration.serving.conftest import Lines, RawStream, Server, StartServer, Storage, Streams


@contextmanager
def open_streams(
    server: Server, number: int, *, until: bytes = b'"checkpoint_complete"', receive_buffer: int = 1 << 16
) -> Iterator[list[RawStream]]:
    """Streams of so many users, each read until it said this."""
    streams = [RawStream(server, f"u{index}", receive_buffer=receive_buffer) for index in range(number)]
    try:
        for stream in streams:
            stream.read_until(until)
        yield streams
    finally:
        for stream in streams:
            stream.close()


def terminate_servers_connections(storage: Storage, condition: str) -> None:
    """Terminate the connections to this database, but the test's own, that meet a condition."""
    ended = storage.connection.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE datname = current_database() AND application_name = 'django_localsync'"
        f" AND pid <> pg_backend_pid() AND {condition}"
    ).fetchall()
    assert ended


def test_abandoned_streams_are_gone_within_two_seconds(storage: Storage, server: Server):
    server.wait_for("streams", 0)
    with open_streams(server, 20):
        server.wait_for("streams", 20)

    assert server.wait_for("streams", 0) < 2


def test_a_client_that_leaves_before_its_request_is_complete_is_forgotten(storage: Storage, start_server: StartServer):
    server = start_server()  # daphne hands over only complete requests
    server.wait_for("requests", 0)
    stream = RawStream(server, missing_bytes=100)
    server.wait_for("requests", 1)

    stream.close()

    assert server.wait_for("requests", 0) < 2


def test_sigterm_ends_streams_normally(storage: Storage, start_server: StartServer):
    server = start_server(fresh=True)
    with open_streams(server, 5) as streams:
        assert server.stop() < 3
        for stream in streams:
            stream.read_until(b"\r\n0\r\n\r\n")  # not a broken response
    assert "Traceback" not in server.log.read_text()


def test_sigterm_ends_a_stream_that_waits_for_the_database(storage: Storage, start_server: StartServer):
    server = start_server(fresh=True)
    with open_streams(server, 1), storage.connection.transaction():
        storage.connection.execute("LOCK TABLE localsync_checkpoint IN ACCESS EXCLUSIVE MODE")
        waiting = RawStream(server)
        server.wait_for("streams", 2)

        took_s = server.stop()
        waiting.read_until(b"PSYNC_S2003")

    assert took_s < 3
    waiting.close()


def test_a_lost_announcement_connection_loses_no_change(storage: Storage, server: Server, streams: Streams):
    lines = Lines(streams.open(server))
    lines.through("checkpoint_complete")

    terminate_servers_connections(storage, "query = 'SELECT op_id FROM localsync_checkpoint'")
    storage.publish(("mine", ("u1",), "a", {}))

    assert "data" in lines.through("checkpoint_complete")[1]


def test_dead_pool_connections_do_not_refuse_clients(storage: Storage, start_server: StartServer, streams: Streams):
    server = start_server()
    Lines(streams.open(server)).through("checkpoint_complete")

    terminate_servers_connections(storage, "true")

    assert Lines(streams.open(server)).through("checkpoint_complete")


def test_a_client_that_does_not_read_delays_nobody(storage: Storage, start_server: StartServer, streams: Streams):
    server = start_server()
    storage.publish(*(("all", (), f"r{number}", {"text": "x" * 20_000}) for number in range(1000)))
    memory = server.state()["memory_kib"]
    stalled = [RawStream(server, receive_buffer=4096) for _ in range(10)]
    server.wait_for("streams", 10)

    begin = time.monotonic()
    lines = Lines(streams.open(server)).through("checkpoint_complete")

    assert len(lines) > 10
    assert time.monotonic() - begin < 5
    assert server.state()["memory_kib"] - memory < 100_000  # not 10 × 20 MB
    for stream in stalled:
        stream.close()
    streams.client.close()
    server.wait_for("streams", 0)


def test_without_a_database_clients_are_told_to_try_again(
    storage: Storage, start_server: StartServer, streams: Streams
):
    server = start_server(fresh=True, database_url=f"postgresql://postgres@127.0.0.1:{free_port()}/nowhere")

    response = streams.open(server)

    assert response.status_code == 503
    assert json.loads(response.read())["error"]["code"] == "PSYNC_S2003"
    assert server.stop() < 3
    assert "Traceback" not in server.log.read_text()
