"""The official JavaScript SDK over WebSocket: its RSocket client against our few frames."""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import pytest

from tests.databases import temporary_database
from tests.processes import print_logs, wait_until
from tests.sdk.backend import Backend, running_backend
from tests.sdk.node_client import NodeClient, node_client

TITLES = "SELECT title FROM todos WHERE list_id = ? ORDER BY title"
INSERT_TODO = "INSERT INTO todos (id, list_id, title) VALUES (?, ?, ?)"
SHORT_LIFETIME_S = 23  # clients are told to fetch new credentials 20 s before the end


@pytest.fixture(scope="module")
def shared_backend(server_url: str, migrated_database: str) -> Iterator[Backend]:
    """One backend for all tests: each makes its own lists there."""
    with temporary_database(server_url, template=migrated_database) as url, running_backend(url) as backend:
        yield backend


@pytest.fixture
def backend(shared_backend: Backend) -> Iterator[Backend]:
    yield shared_backend
    print_logs()


@pytest.fixture
def device() -> Iterator[NodeClient]:
    with node_client() as device:
        yield device


def connect(device: NodeClient, backend: Backend, *tokens: str) -> None:
    device.connect(backend.endpoint, *tokens, connectionMethod="web-socket")
    device.wait_for_first_sync()


def titled(*titles: str) -> list[dict[str, str]]:
    return [{"title": title} for title in titles]


def test_rows_come_down_changes_follow_and_writes_go_up(backend: Backend, device: NodeClient) -> None:
    list_id = backend.add_list("Socket", "bob")
    backend.add_todo(list_id, "Already there")
    connect(device, backend, backend.token("bob"))
    device.wait_for(titled("Already there"), TITLES, list_id)

    backend.rows("UPDATE todos SET title = 'Changed' WHERE list_id = %(id)s", id=list_id)
    device.wait_for(titled("Changed"), TITLES, list_id)
    device.write((INSERT_TODO, [str(uuid.uuid4()), list_id, "  Written "]))
    device.wait_for(titled("Changed", "Written"), TITLES, list_id)

    assert device.status["errors"] == []
    assert device.status["fetches"] == 1


def test_more_rows_than_the_client_gives_credit_for(backend: Backend, device: NodeClient) -> None:
    lists = [backend.add_list(f"Credit {number}", "bob") for number in range(3)]
    for number, list_id in enumerate(lists):
        backend.rows(
            "INSERT INTO todos (id, list_id, title, done, created_at, updated_at)"
            " SELECT gen_random_uuid(), %(list)s, 'T' || n, false, now(), now() FROM generate_series(1, %(n)s) AS n",
            list=list_id,
            n=6000 + number,
        )

    connect(device, backend, backend.token("bob"))

    count = "SELECT list_id, count(*) AS n FROM todos WHERE list_id IN (?, ?, ?) GROUP BY list_id ORDER BY n"
    expected = [{"list_id": list_id, "n": 6000 + number} for number, list_id in enumerate(lists)]
    device.wait_for(expected, count, *lists)


def test_a_refused_token_is_replaced(backend: Backend, device: NodeClient) -> None:
    connect(device, backend, "not-a-token", backend.token("bob"))

    assert device.status["fetches"] == 2


def test_a_new_token_is_fetched_before_the_old_one_expires_and_sync_continues(
    backend: Backend, device: NodeClient
) -> None:
    list_id = backend.add_list("Long", "bob")
    connect(device, backend, backend.short_token("bob", SHORT_LIFETIME_S), backend.token("bob"))

    wait_until(lambda: device.status["fetches"] > 1, "credentials are fetched again")
    backend.add_todo(list_id, "Still here")

    device.wait_for(titled("Still here"), TITLES, list_id)
    assert device.status["errors"] == []
