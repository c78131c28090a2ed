"""What one client, one user and all together may have of a server."""

from __future__ import annotations

from secrets import token_hex

import httpx2
import pytest

from django_localsync.storage.writer import WriteSet
from tests.integration.serving.conftest import Lines, StartServer, Storage, Streams
from tests.integration.serving.sockets import Socket


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
