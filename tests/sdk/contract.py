"""What every JavaScript SDK may count on, over HTTP and WebSocket alike. Each is tested by a subclass of `Contract`, in
a module that gives the fixture `new_device`."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Any

from tests.processes import free_port, wait_until
from tests.proxies import proxied
from tests.sdk.backend import Backend
from tests.sdk.device import SYNC_TIMEOUT_S, TABLES, Device

NewDevice = Callable[..., Device]
"""Makes a device of the kind under test; `tables` are those of its schema."""

CHOSEN_TABLES = {**TABLES, "chosen_todos": {"title": "text"}}
CHOSEN = "SELECT title FROM chosen_todos"
TITLES = "SELECT title FROM todos WHERE list_id = ? ORDER BY title"
INSERT_TODO = "INSERT INTO todos (id, list_id, title) VALUES (?, ?, ?)"
SHORT_LIFETIME_S = 24  # clients are told to fetch new credentials 20 s before the end

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

# An operation that never came, as far as the SDK's bookkeeping of its oplog shows: the row is not there, and the
# bucket's checksum is of what is there.
LOSE_OPERATION = (
    "UPDATE ps_buckets SET op_checksum = op_checksum - (SELECT hash FROM ps_oplog WHERE row_id = ?1)"
    " WHERE id = (SELECT bucket FROM ps_oplog WHERE row_id = ?1)",
    "DELETE FROM ps_oplog WHERE row_id = ?1",
    "DELETE FROM ps_data__todos WHERE id = ?1",
)


def connect(device: Device, backend: Backend, user: str) -> None:
    """Connect as a user, and wait for the first sync."""
    device.connect(backend.endpoint, backend.token(user))
    device.wait_for_first_sync()


def reconnect_after(ttl: int, device: Device, backend: Backend, user: str) -> None:
    """Connect anew, which is when the SDK looks at times to live, as if those of `ttl` seconds were over by now."""
    device.disconnect()
    device.write(("UPDATE ps_stream_subscriptions SET expires_at = 1 WHERE ttl = ?", [ttl]))
    connect(device, backend, user)


def titled(*titles: str) -> list[dict[str, Any]]:
    """The rows that a query for titles gives."""
    return [{"title": title} for title in titles]


class Contract:
    """Conversations of one device, or two, with replicator and server as they are run."""

    def test_the_first_sync_brings_the_users_rows_and_no_others(self, backend: Backend, device: Device) -> None:
        connect(device, backend, "bob")

        bobs = lists_of(backend, "bob")
        assert [row["id"] for row in device.query("SELECT id FROM lists ORDER BY id")] == bobs
        assert device.query(DEVICE_TODOS) == backend.rows(POSTGRES_TODOS, lists=bobs)
        assert len(bobs) < backend.rows("SELECT count(*) FROM lists")[0]["count"]

    def test_changes_committed_in_postgres_appear(self, backend: Backend, device: Device) -> None:
        list_id = backend.add_list("Live", "alice")
        connect(device, backend, "alice")

        todo = backend.add_todo(list_id, "Milk")
        device.wait_for(titled("Milk"), TITLES, list_id)
        backend.rows("UPDATE todos SET title = 'Oat milk' WHERE id = %(id)s", id=todo)
        device.wait_for(titled("Oat milk"), TITLES, list_id)
        backend.rows("DELETE FROM todos WHERE id = %(id)s", id=todo)
        device.wait_for([], TITLES, list_id)

        assert device.status["errors"] == []
        assert device.status["fetches"] == 1

    def test_a_local_write_reaches_postgres_and_comes_back_as_the_backend_made_it(
        self, backend: Backend, device: Device
    ) -> None:
        list_id = backend.add_list("Shopping", "bob")
        connect(device, backend, "bob")

        todo = str(uuid.uuid4())
        device.write((INSERT_TODO, [todo, list_id, "  Bread "]))
        made = {"title": "Bread", "done": 0, "created_by_id": backend.user_id("bob")}
        device.wait_for([made], "SELECT title, done, created_by_id FROM todos WHERE id = ?", todo)

        assert backend.rows("SELECT title, done::int, created_by_id FROM todos WHERE id = %(id)s", id=todo) == [made]

    def test_a_write_checkpoint_comes_back_though_nothing_changed(self, backend: Backend, device: Device) -> None:
        list_id = backend.add_list("Quiet", "alice")
        todo = backend.add_todo(list_id, "Tea")
        connect(device, backend, "alice")
        device.wait_for(titled("Tea"), TITLES, list_id)

        device.write(("UPDATE todos SET created_by_id = 99 WHERE id = ?", [todo]))  # which only the backend may
        receipts = ("last_applied", "last_seen", "target")
        device.wait_for([{"receipt": receipt, "number": "1"} for receipt in receipts], RECEIPTS)

        device.wait_for([{"created_by_id": None}], "SELECT created_by_id FROM todos WHERE id = ?", todo)
        assert device.status["queued"] == 0

    def test_offline_writes_of_several_transactions_arrive_in_order(self, backend: Backend, device: Device) -> None:
        list_id, first, second = backend.add_list("Camping", "alice"), str(uuid.uuid4()), str(uuid.uuid4())
        connect(device, backend, "alice")
        device.disconnect()

        device.write((INSERT_TODO, [first, list_id, "Tent"]), (INSERT_TODO, [second, list_id, "Rope"]))
        device.write(("UPDATE todos SET done = 1, title = 'Big tent' WHERE id = ?", [first]))
        device.write(("DELETE FROM todos WHERE id = ?", [second]))
        backend.add_todo(list_id, "Stove")
        connect(device, backend, "alice")

        device.wait_for(titled("Big tent", "Stove"), TITLES, list_id)
        wait_until(lambda: device.status["queued"] == 0, "the upload queue is empty", SYNC_TIMEOUT_S)
        device.wait_for(backend.rows(POSTGRES_TODOS, lists=lists_of(backend, "alice")), DEVICE_TODOS)

    def test_a_network_that_breaks_and_comes_back(self, backend: Backend, device: Device) -> None:
        list_id = backend.add_list("Tunnel", "bob")
        with proxied(backend.endpoint) as (proxy, _):
            device.connect(f"http://127.0.0.1:{proxy.port}/localsync", backend.token("bob"))
            device.wait_for_first_sync()
            there, proxy.target = proxy.target, free_port()
            proxy.cut()
            wait_until(lambda: not device.status["connected"], "the device notices", SYNC_TIMEOUT_S)

            device.write((INSERT_TODO, [str(uuid.uuid4()), list_id, "Written inside"]))
            backend.add_todo(list_id, "Changed outside")
            wait_until(lambda: device.status["errors"], "the device has tried again", SYNC_TIMEOUT_S)
            assert device.query(TITLES, list_id) == titled("Written inside")
            proxy.target = there

            device.wait_for(titled("Changed outside", "Written inside"), TITLES, list_id)
            wait_until(lambda: device.status["queued"] == 0, "the upload queue is empty", SYNC_TIMEOUT_S)

    def test_two_devices_work_on_one_list(self, backend: Backend, device: Device, new_device: NewDevice) -> None:
        list_id, todo = backend.add_list("Both", "alice", "bob"), str(uuid.uuid4())
        other = new_device()
        connect(device, backend, "alice")
        connect(other, backend, "bob")

        device.write((INSERT_TODO, [todo, list_id, "Tent"]))
        other.wait_for(titled("Tent"), TITLES, list_id)
        other.write(("UPDATE todos SET title = 'Big tent' WHERE id = ?", [todo]))
        device.wait_for(titled("Big tent"), TITLES, list_id)
        device.write(("DELETE FROM todos WHERE id = ?", [todo]))
        other.wait_for([], TITLES, list_id)

        assert device.status["rejections"] == other.status["rejections"] == []

    def test_a_rejected_write_is_undone_and_blocks_nothing(self, backend: Backend, device: Device) -> None:
        allowed, forbidden = backend.add_list("Ours", "bob"), backend.add_list("Theirs", "alice")
        connect(device, backend, "bob")

        device.write((INSERT_TODO, [str(uuid.uuid4()), forbidden, "Sneaked in"]))
        device.write((INSERT_TODO, [str(uuid.uuid4()), allowed, "Fine"]))

        device.wait_for([], TITLES, forbidden)
        device.wait_for(titled("Fine"), TITLES, allowed)
        wait_until(lambda: device.status["queued"] == 0, "the upload queue is empty", SYNC_TIMEOUT_S)
        assert backend.rows("SELECT title FROM todos WHERE list_id = %(id)s", id=forbidden) == []
        assert backend.rows("SELECT title FROM todos WHERE list_id = %(id)s", id=allowed) == titled("Fine")

    def test_a_new_token_is_fetched_before_the_old_one_expires_and_sync_continues(
        self, backend: Backend, device: Device
    ) -> None:
        list_id = backend.add_list("Long", "bob")
        device.connect(backend.endpoint, backend.short_token("bob", SHORT_LIFETIME_S), backend.token("bob"))
        device.wait_for_first_sync()

        wait_until(lambda: device.status["fetches"] > 1, "credentials are fetched again", SHORT_LIFETIME_S)
        backend.add_todo(list_id, "Still here")

        device.wait_for(titled("Still here"), TITLES, list_id)
        assert device.status["errors"] == []

    def test_a_refused_token_is_replaced(self, backend: Backend, device: Device) -> None:
        device.connect(backend.endpoint, "not-a-token", backend.token("bob"))
        device.wait_for_first_sync()

        assert device.status["fetches"] == 2
        assert [row["id"] for row in device.query("SELECT id FROM lists ORDER BY id")] == lists_of(backend, "bob")

    def test_rows_come_with_a_membership_and_leave_with_it(self, backend: Backend, device: Device) -> None:
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

    def test_more_lines_than_a_client_gives_credit_for(self, backend: Backend, device: Device) -> None:
        backend.add_user(user := f"user-{uuid.uuid4()}")
        lists = [backend.add_list(f"Credit {number}", user) for number in range(40)]
        backend.rows(
            "INSERT INTO todos (id, list_id, title, done, created_at, updated_at)"
            " SELECT gen_random_uuid(), list, n, false, now(), now()"
            "   FROM unnest(%(lists)s::uuid[]) AS list, generate_series(1, 50) AS n",
            lists=lists,
        )

        connect(device, backend, user)

        count = "SELECT count(*) AS n FROM todos GROUP BY list_id"
        device.wait_for([{"n": 50}] * 40, count)

    def test_a_subscription_with_parameters_brings_what_it_asks_for_and_is_allowed(
        self, backend: Backend, new_device: NewDevice
    ) -> None:
        mine, other, hidden = (
            backend.add_list(name, *users) for name, *users in (("A", "bob"), ("B", "bob"), ("C", "alice"))
        )
        for list_id in (mine, other, hidden):
            backend.add_todo(list_id, "Chosen")
        device = new_device(tables=CHOSEN_TABLES)
        connect(device, backend, "bob")

        device.subscribe("one_list", {"list": hidden})
        device.wait_for_stream()
        assert device.query(CHOSEN) == []
        device.subscribe("one_list", {"list": mine})
        device.wait_for_stream()
        device.wait_for(titled("Chosen"), CHOSEN)
        backend.rows("UPDATE todos SET title = 'Changed' WHERE list_id = %(id)s", id=mine)
        device.wait_for(titled("Changed"), CHOSEN)
        device.unsubscribe_all("one_list", {"list": mine})
        device.wait_for([], CHOSEN)

    def test_the_rows_of_a_stream_stay_for_their_time_to_live(self, backend: Backend, new_device: NewDevice) -> None:
        kept, dropped = backend.add_list("Kept", "bob"), backend.add_list("Dropped", "bob")
        for list_id in (kept, dropped):
            backend.add_todo(list_id, f"Of {list_id}")
        device = new_device(tables=CHOSEN_TABLES)
        connect(device, backend, "bob")
        for list_id, ttl in ((kept, 3600), (dropped, 600)):
            device.subscribe("one_list", {"list": list_id}, ttl=ttl)
            device.wait_for_stream()
        assert len(device.query(CHOSEN)) == 2

        for list_id in (kept, dropped):
            device.unsubscribe("one_list", {"list": list_id})
        reconnect_after(600, device, backend, "bob")

        device.wait_for(titled(f"Of {kept}"), CHOSEN)
        backend.rows("UPDATE todos SET title = 'Followed' WHERE list_id = %(id)s", id=kept)
        device.wait_for(titled("Followed"), CHOSEN)

    def test_a_stream_of_a_higher_priority_is_complete_before_the_rest(
        self, backend: Backend, new_device: NewDevice
    ) -> None:
        list_id = backend.add_list("Urgent", "bob")
        backend.add_todo(list_id, "First")
        device = new_device(tables=CHOSEN_TABLES)

        device.subscribe("one_list", {"list": list_id}, priority=1)
        connect(device, backend, "bob")

        assert device.query(CHOSEN) == titled("First")
        synced = device.status["synced"]
        assert {"priorities": [1], "all": False} in synced
        assert synced[-1]["all"]

    def test_a_device_whose_checksums_do_not_match_downloads_anew(self, backend: Backend, device: Device) -> None:
        list_id = backend.add_list("Lossy", "bob")
        lost = backend.add_todo(list_id, "Lost")
        connect(device, backend, "bob")
        device.wait_for(titled("Lost"), TITLES, list_id)

        device.write(*((statement, [lost]) for statement in LOSE_OPERATION))
        assert device.query(TITLES, list_id) == []
        backend.add_todo(list_id, "Next")

        device.wait_for(titled("Lost", "Next"), TITLES, list_id)
        assert device.query(DEVICE_TODOS) == backend.rows(POSTGRES_TODOS, lists=lists_of(backend, "bob"))


def lists_of(backend: Backend, user: str) -> list[str]:
    """The ids of a user's lists, in order."""
    memberships = "SELECT list_id::text AS id FROM memberships WHERE username = %(user)s ORDER BY list_id"
    return [row["id"] for row in backend.rows(memberships, user=user)]
