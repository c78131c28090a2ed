"""The driver of the JavaScript SDK, against a stand-in: what the tests of our own server count on."""

from __future__ import annotations

import pytest

from tests.processes import wait_until
from tests.sdk.node_client import node_client
from tests.sdk.stand_in import stand_in

TABLES = {"todos": {"title": "text", "done": "integer"}}
TODOS = "SELECT id, title, done FROM todos ORDER BY id"


def test_the_sdk_runs_without_anything_compiled_and_syncs() -> None:
    with stand_in() as (server, address), node_client(TABLES) as device:
        assert device.versions["runtime"].startswith("Node 24.")
        device.connect(address, "bad", "good")
        device.wait_for_first_sync()
        assert device.query(TODOS) == [{"id": "a", "title": "Milk", "done": None}]
        assert server.refused == 1
        assert device.status["fetches"] == 2


def test_local_writes_are_uploaded_by_transactions_and_replaced_by_the_backends_rows() -> None:
    with stand_in() as (server, address), node_client(TABLES) as device:
        device.write(("INSERT INTO todos (id, title) VALUES (?, ?)", ["b", " Bread "]))
        device.write(("UPDATE todos SET done = 1 WHERE id = 'b'", []), ("DELETE FROM todos WHERE id = 'b'", []))
        device.connect(address, "good")
        device.wait_for([{"id": "a", "title": "Milk", "done": None}, {"id": "b", "title": "Bread", "done": 1}], TODOS)
        assert device.status["queued"] == 0
    assert server.uploads == [
        {
            "version": 1,
            "client_id": device.versions["client_id"],
            "transactions": [
                {
                    "id": 1,
                    "operations": [{"op_id": 1, "op": "PUT", "type": "todos", "id": "b", "data": {"title": " Bread "}}],
                },
                {
                    "id": 2,
                    "operations": [
                        {"op_id": 2, "op": "PATCH", "type": "todos", "id": "b", "data": {"done": 1}},
                        {"op_id": 3, "op": "DELETE", "type": "todos", "id": "b"},
                    ],
                },
            ],
        }
    ]


def test_an_upload_that_is_too_long_goes_in_parts_in_order() -> None:
    with stand_in() as (server, address), node_client(TABLES) as device:
        server.most_bytes = 600
        insert = "INSERT INTO todos (id, title) VALUES (?, ?)"
        device.write(*((insert, [f"x{number}", "T" * 60]) for number in range(9)))
        for number in range(3):
            device.write((insert, [f"y{number}", "T" * 60]))
        device.connect(address, "good")
        wait_until(lambda: device.status["queued"] == 0, "the queue is empty")

    sent = [
        (part["id"], item["op_id"])
        for body in server.uploads
        for part in body["transactions"]
        for item in part["operations"]
    ]
    assert sent == [(1, number) for number in range(1, 10)] + [(2, 10), (3, 11), (4, 12)]
    assert len(server.uploads) > 3


def test_what_the_sdk_refuses_fails_the_test() -> None:
    with node_client(TABLES) as device, pytest.raises(AssertionError, match="no such table: absent"):
        device.query("SELECT * FROM absent")
