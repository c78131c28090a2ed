"""Not only our own client: the official JavaScript SDK, unmodified, against replicator and server as they are run."""

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
SHORT_LIFETIME_S = 25  # clients are told to fetch new credentials 20 s before the end

# What the SDK keeps of write checkpoints: the one it waits for, the newest that came, the newest whose rows it shows.
RECEIPTS = """
    SELECT replace(key, '_checkpoint_request_id', '') AS receipt, CAST(value AS TEXT) AS number
      FROM ps_kv WHERE key LIKE '%_checkpoint_request_id' ORDER BY receipt
"""

DEVICE_TODOS = "SELECT id, list_id, title, done, created_by_id, created_at, updated_at FROM todos ORDER BY id"
POSTGRES_TODOS = """
    SELECT id::text, list_id::text, title, done::int, created_by_id,
           to_char(created_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"') AS created_at,
           to_char(updated_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"') AS updated_at
      FROM todos WHERE list_id = ANY(%(lists)s::uuid[]) ORDER BY id
"""


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


def connect(device: NodeClient, backend: Backend, user: str) -> None:
    device.connect(backend.endpoint, backend.token(user))
    device.wait_for_first_sync()


def titled(*titles: str) -> list[dict[str, str]]:
    return [{"title": title} for title in titles]


def test_the_first_sync_brings_the_users_rows_and_no_others(backend: Backend, device: NodeClient) -> None:
    connect(device, backend, "bob")

    bobs = lists_of(backend, "bob")
    assert [row["id"] for row in device.query("SELECT id FROM lists ORDER BY id")] == bobs
    assert device.query(DEVICE_TODOS) == backend.rows(POSTGRES_TODOS, lists=bobs)
    assert len(bobs) < backend.rows("SELECT count(*) FROM lists")[0]["count"]


def test_changes_committed_in_postgres_appear(backend: Backend, device: NodeClient) -> None:
    list_id = backend.add_list("Live", "alice")
    connect(device, backend, "alice")

    todo = backend.add_todo(list_id, "Milk")
    device.wait_for(titled("Milk"), TITLES, list_id)
    backend.rows("UPDATE todos SET title = 'Oat milk' WHERE id = %(id)s", id=todo)
    device.wait_for(titled("Oat milk"), TITLES, list_id)
    backend.rows("DELETE FROM todos WHERE id = %(id)s", id=todo)
    device.wait_for([], TITLES, list_id)

    assert device.status["errors"] == []


def test_a_local_write_reaches_postgres_and_comes_back_as_the_backend_made_it(
    backend: Backend, device: NodeClient
) -> None:
    list_id = backend.add_list("Shopping", "bob")
    connect(device, backend, "bob")

    todo = str(uuid.uuid4())
    device.write((INSERT_TODO, [todo, list_id, "  Bread "]))
    made = {"title": "Bread", "done": 0, "created_by_id": backend.user_id("bob")}
    device.wait_for([made], "SELECT title, done, created_by_id FROM todos WHERE id = ?", todo)

    assert backend.rows("SELECT title, done::int, created_by_id FROM todos WHERE id = %(id)s", id=todo) == [made]


def test_a_write_checkpoint_comes_back_though_nothing_changed(backend: Backend, device: NodeClient) -> None:
    list_id = backend.add_list("Quiet", "alice")
    todo = backend.add_todo(list_id, "Tea")
    connect(device, backend, "alice")
    device.wait_for(titled("Tea"), TITLES, list_id)

    device.write(("UPDATE todos SET created_by_id = 99 WHERE id = ?", [todo]))  # which only the backend may
    receipts = ("last_applied", "last_seen", "target")
    device.wait_for([{"receipt": receipt, "number": "1"} for receipt in receipts], RECEIPTS)

    device.wait_for([{"created_by_id": None}], "SELECT created_by_id FROM todos WHERE id = ?", todo)
    assert device.status["queued"] == 0


def test_offline_writes_of_several_transactions_arrive_in_order(backend: Backend, device: NodeClient) -> None:
    list_id, first, second = backend.add_list("Camping", "alice"), str(uuid.uuid4()), str(uuid.uuid4())
    connect(device, backend, "alice")
    device.disconnect()

    device.write((INSERT_TODO, [first, list_id, "Tent"]), (INSERT_TODO, [second, list_id, "Rope"]))
    device.write(("UPDATE todos SET done = 1, title = 'Big tent' WHERE id = ?", [first]))
    device.write(("DELETE FROM todos WHERE id = ?", [second]))
    backend.add_todo(list_id, "Stove")
    connect(device, backend, "alice")

    device.wait_for(titled("Big tent", "Stove"), TITLES, list_id)
    wait_until(lambda: device.status["queued"] == 0, "the upload queue is empty")
    device.wait_for(backend.rows(POSTGRES_TODOS, lists=lists_of(backend, "alice")), DEVICE_TODOS)


def test_a_rejected_write_is_undone_and_blocks_nothing(backend: Backend, device: NodeClient) -> None:
    allowed, forbidden = backend.add_list("Ours", "bob"), backend.add_list("Theirs", "alice")
    connect(device, backend, "bob")

    device.write((INSERT_TODO, [str(uuid.uuid4()), forbidden, "Sneaked in"]))
    device.write((INSERT_TODO, [str(uuid.uuid4()), allowed, "Fine"]))

    device.wait_for([], TITLES, forbidden)
    device.wait_for(titled("Fine"), TITLES, allowed)
    wait_until(lambda: device.status["queued"] == 0, "the upload queue is empty")
    assert backend.rows("SELECT title FROM todos WHERE list_id = %(id)s", id=forbidden) == []
    assert backend.rows("SELECT title FROM todos WHERE list_id = %(id)s", id=allowed) == titled("Fine")


def test_a_new_token_is_fetched_before_the_old_one_expires_and_sync_continues(
    backend: Backend, device: NodeClient
) -> None:
    list_id = backend.add_list("Long", "bob")
    device.connect(backend.endpoint, backend.short_token("bob", SHORT_LIFETIME_S), backend.token("bob"))
    device.wait_for_first_sync()
    assert device.status["fetches"] == 1

    wait_until(lambda: device.status["fetches"] > 1, "credentials are fetched again")
    backend.add_todo(list_id, "Still here")

    device.wait_for(titled("Still here"), TITLES, list_id)
    assert device.status["errors"] == []


def test_a_refused_token_is_replaced(backend: Backend, device: NodeClient) -> None:
    device.connect(backend.endpoint, "not-a-token", backend.token("bob"))
    device.wait_for_first_sync()

    assert device.status["fetches"] == 2
    assert [row["id"] for row in device.query("SELECT id FROM lists ORDER BY id")] == lists_of(backend, "bob")


def test_rows_come_with_a_membership_and_leave_with_it(backend: Backend, device: NodeClient) -> None:
    list_id = backend.add_list("Club", "alice")
    backend.add_todo(list_id, "Plan the party")
    connect(device, backend, "bob")
    assert device.query(TITLES, list_id) == []

    backend.add_member(list_id, "bob")
    device.wait_for(titled("Plan the party"), TITLES, list_id)
    backend.remove_member(list_id, "bob")
    device.wait_for([], TITLES, list_id)

    everything = "SELECT id FROM lists WHERE id = ?1 UNION ALL SELECT id FROM memberships WHERE list_id = ?1"
    assert device.query(everything, list_id) == []


def test_a_subscription_with_parameters_brings_what_it_asks_for_and_is_allowed(backend: Backend) -> None:
    mine, other, hidden = (
        backend.add_list(name, *users) for name, *users in (("A", "bob"), ("B", "bob"), ("C", "alice"))
    )
    for list_id in (mine, other, hidden):
        backend.add_todo(list_id, "Chosen")

    with node_client({"chosen_todos": {"title": "text"}}) as device:
        connect(device, backend, "bob")
        device.subscribe("one_list", list=hidden)
        assert device.query("SELECT title FROM chosen_todos") == []
        device.subscribe("one_list", list=mine)
        device.wait_for(titled("Chosen"), "SELECT title FROM chosen_todos")
        backend.rows("UPDATE todos SET title = 'Changed' WHERE list_id = %(id)s", id=mine)
        device.wait_for(titled("Changed"), "SELECT title FROM chosen_todos")
        device.unsubscribe("one_list", list=mine)
        device.wait_for([], "SELECT title FROM chosen_todos")


def lists_of(backend: Backend, user: str) -> list[str]:
    memberships = "SELECT list_id::text AS id FROM memberships WHERE username = %(user)s ORDER BY list_id"
    return [row["id"] for row in backend.rows(memberships, user=user)]
