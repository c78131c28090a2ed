"""What a client receives over HTTP, from uvicorn and from daphne."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor, wait
from functools import partial
from typing import Any

import httpx2
import pytest

from django_localsync.buckets.announcement import write_checkpoint_digest
from django_localsync.protocol.bson import decode_bson
from tests.integration.serving.conftest import Lines, Server, StartServer, Storage, Streams, token_of

Json = dict[str, Any]


def kinds(lines: list[Json]) -> list[str]:
    return [next(iter(line)) for line in lines]


def rows(lines: list[Json]) -> list[str]:
    return [operation["object_id"] for line in lines if "data" in line for operation in line["data"]["data"]]


def test_a_client_receives_a_checkpoint_its_operations_and_completion(
    storage: Storage, server: Server, streams: Streams
):
    storage.publish(("mine", ("u1",), "a", {"title": "x"}), ("mine", ("u2",), "b", {}), ("all", (), "c", {}))

    response = streams.open(server)
    lines = Lines(response).through("checkpoint_complete")

    assert response.headers["content-type"] == "application/x-ndjson"
    assert response.headers["access-control-allow-origin"] == "*"
    assert response.headers["x-accel-buffering"] == "no"
    assert kinds(lines) == ["checkpoint", "data", "partial_checkpoint_complete", "data", "checkpoint_complete"]
    announced = {bucket["bucket"]: bucket["count"] for bucket in lines[0]["checkpoint"]["buckets"]}
    assert announced == {storage.wire_name("all"): 1, storage.wire_name("mine", "u1"): 1}
    assert lines[1]["data"]["bucket"] == storage.wire_name("all")
    assert rows(lines) == ["c", "a"]


def test_an_open_stream_receives_what_changes(storage: Storage, server: Server, streams: Streams):
    lines = Lines(streams.open(server))
    assert kinds(lines.through("checkpoint_complete")) == ["checkpoint", "checkpoint_complete"]

    storage.publish(("mine", ("u1",), "a", {}))
    first = lines.through("checkpoint_complete")
    storage.publish(("mine", ("u1",), "b", {}))
    second = lines.through("checkpoint_complete")

    assert kinds(first) == kinds(second) == ["checkpoint_diff", "data", "checkpoint_complete"]
    assert (rows(first), rows(second)) == (["a"], ["b"])
    assert second[0]["checkpoint_diff"]["updated_buckets"][0]["count"] == 2


def test_membership_gives_and_takes_buckets(storage: Storage, server: Server, streams: Streams):
    storage.publish(("lists", ("l1",), "a", {}))
    lines = Lines(streams.open(server))
    lines.through("checkpoint_complete")

    storage.publish(join=("u1", "l1"))
    joined = lines.through("checkpoint_complete")
    storage.publish(leave=("u1", "l1"))
    left = lines.through("checkpoint_complete")

    assert rows(joined) == ["a"]
    assert left[0]["checkpoint_diff"]["removed_buckets"] == [storage.wire_name("lists", "l1")]


def test_a_client_that_comes_back_receives_only_what_is_new(storage: Storage, server: Server, streams: Streams):
    storage.publish(("mine", ("u1",), "a", {}))
    first = Lines(streams.open(server)).through("checkpoint_complete")
    storage.publish(("mine", ("u1",), "b", {}))

    bucket = {"name": storage.wire_name("mine", "u1"), "after": first[0]["checkpoint"]["last_op_id"]}
    second = Lines(streams.open(server, buckets=[bucket])).through("checkpoint_complete")

    assert rows(second) == ["b"]


def test_a_write_checkpoint_is_sent_when_its_position_is_reached(storage: Storage, server: Server, streams: Streams):
    lines = Lines(streams.open(server))
    lines.through("checkpoint_complete")

    storage.request_write_checkpoint("u1", "c1", number=7, lsn=100)
    digest = write_checkpoint_digest("u1", "c1")
    storage.publish(("mine", ("u1",), "a", {}), lsn=99, write_checkpoints=[digest])
    before = lines.through("checkpoint_complete")
    storage.publish(lsn=100, write_checkpoints=[digest])
    reached = lines.through("checkpoint_complete")

    assert "write_checkpoint" not in before[0]["checkpoint_diff"]
    assert kinds(reached) == ["checkpoint_diff", "checkpoint_complete"]
    assert reached[0]["checkpoint_diff"]["write_checkpoint"] == "7"
    assert reached[0]["checkpoint_diff"]["updated_buckets"] == []


def test_very_old_clients_wait_for_the_checkpoint_with_their_uploads(storage: Storage, start_server: StartServer):
    server = start_server()
    storage.publish(("mine", ("u1",), "a", {}))
    url = server.url.replace("sync/stream", "write-checkpoint.json")
    get = partial(httpx2.get, url, headers={"Authorization": f"Token {token_of('u1')}"}, timeout=10)
    digest = write_checkpoint_digest("u1", "")

    with ThreadPoolExecutor() as pool:
        answer = pool.submit(get)
        wait([answer], timeout=0.5)
        waited = not answer.done()
        storage.publish(("mine", ("u1",), "b", {}), lsn=2**62, write_checkpoints=[digest])
        response = answer.result()

    assert waited
    assert response.status_code == 200
    assert response.json() == {"data": {"checkpoint": str(storage.op_id())}}


def test_an_old_client_that_waits_no_longer_is_forgotten(storage: Storage, start_server: StartServer):
    server = start_server()
    with pytest.raises(httpx2.ReadTimeout):
        httpx2.get(
            server.url.replace("sync/stream", "write-checkpoint.json"),
            headers={"Authorization": f"Token {token_of('u1')}"},
            timeout=0.5,
        )

    assert server.wait_for("requests", 0) < 2


def test_pages_are_bounded_by_operations_and_by_bytes(storage: Storage, server: Server, streams: Streams):
    storage.publish(*((("all", (), f"s{number}", {})) for number in range(1500)))
    storage.publish(*((("all", (), f"l{number}", {"text": "x" * 300_000})) for number in range(5)))

    lines = Lines(streams.open(server)).through("checkpoint_complete")

    pages = [len(line["data"]["data"]) for line in lines if "data" in line]
    assert sum(pages) == 1505
    assert pages == [1000, 502, 2, 1]  # a page ends with the operation that reaches 512 KiB
    assert [line["data"]["has_more"] for line in lines if "data" in line] == [True, True, True, False]


def test_a_token_that_expires_ends_the_stream(storage: Storage, server: Server, streams: Streams):
    response = streams.open(server, token=token_of("u1", lifetime_s=2))

    lines = Lines(response).rest()

    assert kinds(lines) == ["checkpoint", "checkpoint_complete", "token_expires_in"]
    assert lines[-1] == {"token_expires_in": 0}


def test_replaced_rules_end_the_stream(storage: Storage, server: Server, streams: Streams):
    lines = Lines(streams.open(server))
    lines.through("checkpoint_complete")

    storage.activate([{"name": "other", "of": "user"}])
    storage.publish(rules_replaced=True)

    assert lines.rest() == []
    again = Lines(streams.open(server)).through("checkpoint_complete")
    assert [stream["name"] for stream in again[0]["checkpoint"]["streams"]] == ["other"]


def test_keepalives_come_while_nothing_happens(storage: Storage, start_server: StartServer, streams: Streams):
    lines = Lines(streams.open(start_server(keepalive_interval_s=0.2)))
    lines.through("checkpoint_complete")

    keepalives = [lines.next() for _ in range(2)]

    assert all(290 < line["token_expires_in"] <= 300 for line in keepalives)


def test_very_old_clients_receive_rows_as_objects(storage: Storage, start_server: StartServer, streams: Streams):
    storage.publish(("mine", ("u1",), "a", {"n": 1}))

    lines = Lines(streams.open(start_server(), raw_data=False)).through("checkpoint_complete")

    assert lines[1]["data"]["data"][0]["data"] == {"id": "a", "n": 1}


@pytest.mark.parametrize("coding", ["gzip", "zstd"])
def test_compressed_lines_arrive_at_once_and_the_answer_ends_well(
    storage: Storage, server: Server, streams: Streams, coding: str
):
    storage.publish(*((("mine", ("u1",), f"r{number}", {"text": "x" * 100})) for number in range(500)))
    response = streams.open(server, headers={"Accept-Encoding": coding}, token=token_of("u1", lifetime_s=4))
    lines = Lines(response)

    first = lines.through("checkpoint_complete")
    arrived = response.num_bytes_downloaded
    storage.publish(("mine", ("u1",), "a", {}))
    second = lines.through("checkpoint_complete")

    assert response.headers["content-encoding"] == coding
    assert len(rows(first)) == 500
    assert arrived < 20_000
    assert rows(second) == ["a"]
    assert kinds(lines.rest()) == ["token_expires_in"]  # and no error of the decoder at the end


def test_who_accepts_only_bson_receives_the_same_lines(storage: Storage, server: Server, streams: Streams):
    storage.publish(("mine", ("u1",), "a", {"n": 1}))
    bson = "application/vnd.powersync.bson-stream"

    plain = Lines(streams.open(server)).through("checkpoint_complete")
    response = streams.open(server, headers={"Accept": bson}, token=token_of("u1", lifetime_s=2), raw_data=False)

    assert response.headers["content-type"] == bson
    assert split_documents(response.read()) == [*plain, {"token_expires_in": 0}]


def split_documents(content: bytes) -> list[Json]:
    documents = []
    while content:
        length = int.from_bytes(content[:4], "little")
        documents.append(decode_bson(content[:length]))
        content = content[length:]
    return documents


@pytest.mark.parametrize(
    ("headers", "body", "status", "code"),
    [
        ({}, b"{}", 401, "PSYNC_S2106"),
        ({"Authorization": "Basic abc"}, b"{}", 401, "PSYNC_S2101"),
        ({"Authorization": "Token abc"}, b"{}", 401, "PSYNC_S2101"),
        (None, b"{", 400, "PSYNC_S2001"),
        (None, b'{"buckets": 1}', 400, "PSYNC_S2001"),
        (None, b'{"client_id": "' + b"x" * 2000 + b'"}', 413, "PSYNC_S2001"),
    ],
)
def test_bad_requests_are_refused_with_the_protocols_codes(
    storage: Storage, start_server: StartServer, headers: Json | None, body: bytes, status: int, code: str
):
    server = start_server(max_request_bytes=1000)
    headers = {"Authorization": f"Bearer {token_of('u1')}"} if headers is None else headers

    response = httpx2.post(server.url, content=body, headers=headers)

    assert response.status_code == status
    assert response.json()["error"]["code"] == code
    assert response.headers["access-control-allow-origin"] == "*"


def test_browsers_may_ask_from_any_origin_and_only_post(storage: Storage, server: Server):
    preflight = httpx2.options(server.url, headers={"Origin": "https://app.example"})
    got = httpx2.get(server.url)

    assert (preflight.status_code, got.status_code) == (204, 405)
    assert "Authorization" in preflight.headers["access-control-allow-headers"]
    assert "access-control-allow-credentials" not in preflight.headers


def test_without_active_rules_the_answer_names_the_command(
    storage: Storage, start_server: StartServer, streams: Streams
):
    storage.rule_set.delete()

    response = streams.open(start_server())

    assert response.status_code == 500
    assert b"manage.py run_replicator" in response.read()


def test_too_many_buckets_are_refused_and_end_an_open_stream(
    storage: Storage, start_server: StartServer, streams: Streams
):
    server = start_server(max_buckets=2)
    lines = Lines(streams.open(server))
    lines.through("checkpoint_complete")

    storage.publish(join=("u1", "l1"))

    assert lines.rest() == []
    refused = streams.open(server)
    assert refused.status_code == 500
    assert refused.read().count(b"PSYNC_S2305") == 1
