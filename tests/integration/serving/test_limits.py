"""What one client, one user and all together may have of a server."""

from __future__ import annotations

import time
from secrets import token_hex

import httpx2
import pytest

from django_localsync.storage.writer import WriteSet
from tests.integration.serving.conftest import COMMANDS, Lines, RawStream, StartServer, Storage, Streams
from tests.integration.serving.sockets import Socket
from tests.integration.serving.test_mishaps import open_streams
from tests.processes import wait_until

KINDS = [*COMMANDS]


def join(storage: Storage, user: str, lists: int) -> None:
    """Make a user a member of so many lists."""
    changes = WriteSet(added_lookups={storage.member(user, f"list{number}") for number in range(lists)})
    with storage.writer.transaction():
        storage.writer.write(changes)
        storage.writer.publish(storage.source.id, 1)


def refusal(response: httpx2.Response) -> tuple[int, str, str]:
    response.read()
    error = response.json()["error"]
    return response.status_code, error["code"], error["description"]


def test_the_stream_that_gives_too_many_buckets_is_named(storage: Storage, start_server: StartServer, streams: Streams):
    server = start_server(max_buckets=4)
    join(storage, "u1", 3)

    status, code, text = refusal(streams.open(server))

    assert (status, code) == (500, "PSYNC_S2305")
    assert "too many buckets: 5 (at most 4), 3 of them by stream 'lists'" in text
    assert "MAX_BUCKETS" in text


def test_ten_thousand_buckets_work_where_they_are_allowed(
    storage: Storage, start_server: StartServer, streams: Streams
):
    server = start_server(max_buckets=10_002)
    join(storage, "u1", 10_000)

    (first,) = Lines(streams.open(server)).through("checkpoint")

    assert len(first["checkpoint"]["buckets"]) == 10_002


def test_a_server_has_room_for_so_many_streams(storage: Storage, start_server: StartServer, streams: Streams):
    server = start_server(max_streams=2, fresh=True)
    opened = [streams.open(server, user) for user in ("u1", "u2")]

    status, code, text = refusal(streams.open(server, "u3"))
    assert (status, code) == (429, "PSYNC_S2304")
    assert "MAX_STREAMS" in text

    opened[0].close()
    server.wait_for("streams", 1)
    assert Lines(streams.open(server, "u3")).through("checkpoint_complete")


@pytest.mark.parametrize("transport", ["http", "websocket"])
def test_a_user_has_so_many_streams_and_leaves_room_for_others(
    storage: Storage, start_server: StartServer, streams: Streams, transport: str
):
    server, user = start_server(max_streams_per_user=2), token_hex(4)
    opened = [Lines(streams.open(server, user)) for _ in range(2)]
    for lines in opened:
        lines.through("checkpoint_complete")

    if transport == "http":
        status, code, text = refusal(streams.open(server, user))
        assert (status, code) == (429, "PSYNC_S2304")
        assert "MAX_STREAMS_PER_USER" in text
    else:
        socket = Socket(server)
        socket.set_up(user)
        socket.request()
        assert b"PSYNC_S2304" in (socket.receive().data or b"")
        socket.close()
    assert Lines(streams.open(server, "somebody else")).through("checkpoint_complete")


def read_slowly(stream: RawStream, *, through: bytes, pause_s: float) -> float:
    """Read a little at a time; the seconds until the text came."""
    began = time.monotonic()
    while through not in stream.received[-65536:]:
        part = stream.socket.recv(32 << 10)
        assert part, stream.received[-200:]
        stream.received += part
        time.sleep(pause_s)
    return time.monotonic() - began


@pytest.mark.parametrize("kind", KINDS)
def test_a_client_that_takes_nothing_is_cut_off(storage: Storage, start_server: StartServer, kind: str):
    server = start_server(kind, stall_timeout_s=0.5)
    storage.publish(*(("all", (), f"r{number}", {"text": "x" * 20_000}) for number in range(500)))
    stream = RawStream(server, receive_buffer=4096)
    server.wait_for("streams", 1)

    assert 0.2 < server.wait_for("streams", 0) < 4

    stream.close()


def test_a_client_that_is_merely_slow_is_not(storage: Storage, start_server: StartServer):
    server = start_server(stall_timeout_s=1)
    storage.publish(("all", (), "r", {"text": "x" * 12_000_000}))  # the kernel takes a megabyte or two at a time
    stream = RawStream(server, receive_buffer=32 << 10)

    took_s = read_slowly(stream, through=b'"checkpoint_complete"', pause_s=0.012)

    assert took_s > 3  # longer than it may take nothing
    stream.close()


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "daphne"])  # which hands over only whole requests
def test_a_body_must_come_in_time(storage: Storage, start_server: StartServer, kind: str):
    server = start_server(kind, body_timeout_s=0.5)
    stream = RawStream(server, missing_bytes=100)

    stream.read_until(b"the body took more than 0.5 seconds")

    assert stream.received.startswith(b"HTTP/1.1 408")
    stream.close()


def test_the_streams_of_a_user_begin_one_after_another(storage: Storage, start_server: StartServer):
    server = start_server(fresh=True)
    with open_streams(server, 1), storage.connection.transaction():
        storage.connection.execute("LOCK TABLE localsync_checkpoint IN ACCESS EXCLUSIVE MODE")
        mine = [RawStream(server, "stormy") for _ in range(20)]
        server.wait_for("streams", 21)
        others = RawStream(server, "other")
        server.wait_for("streams", 22)
        waiting: list[int] = []
        try:
            wait_until(
                lambda: waiting.append(count_waiting(storage)) or waiting[-1] >= 2, "both users wait for storage"
            )
        except AssertionError as error:
            raise AssertionError(f"connections that waited for storage: {sorted(set(waiting))}") from error
        assert waiting[-1] == 2, "twenty streams of one user wait for storage through one connection"
        for stream in mine[1:10]:
            stream.close()
        server.wait_for("streams", 13)

    for stream in [others, mine[0], *mine[10:]]:
        stream.read_until(b'"checkpoint_complete"')
        stream.close()


def count_waiting(storage: Storage) -> int:
    """How many connections of streams wait for a lock."""
    row = storage.connection.execute(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
        " AND application_name = 'django_localsync'"
    ).fetchone()
    assert row
    return int(row[0])
