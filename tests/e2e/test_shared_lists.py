"""The whole river: Postgres, replicator, server and devices as processes, with two users who share to-do lists.

Every test ends by comparing each device, row by row, with what SQL on Postgres says that its user may see.
"""

from __future__ import annotations

import random
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from tests.databases import temporary_database
from tests.e2e.devices import Device, Devices, Statement, wait_until_equal
from tests.e2e.project import Person, RunningProject, running_project
from tests.processes import Server, wait_until

SEED = random.SystemRandom().randrange(2**32)


class Pair:
    """Alice and Bob, who share a list, and a device of each. Bob has a list of his own, too."""

    def __init__(self, project: RunningProject, devices: Devices) -> None:
        self.project = project
        self.alice, self.bob = project.add_person("alice"), project.add_person("bob")
        self.shared = project.add_list("Shared", self.alice, self.bob)
        self.bobs = project.add_list("Bob's", self.bob)
        self.first_todo = project.add_todo(self.shared, "Buy bread")
        self.alices_device, self.bobs_device = devices.new("alice"), devices.new("bob")

    @property
    def devices(self) -> list[tuple[Person, Device]]:
        """Everybody with a device."""
        return [(self.alice, self.alices_device), (self.bob, self.bobs_device)]

    def connect(self, *, lifetime_s: int | None = None) -> None:
        """Take both devices online."""
        for person, device in self.devices:
            device.connect(self.project.endpoint, person.token(lifetime_s))

    def settle(self) -> None:
        """Wait until each device has uploaded everything and holds what Postgres says for its user."""
        for person, device in self.devices:
            wait_until_equal(device, lambda person=person: self.project.expected(person), what=person.name)


@pytest.fixture
def pair(project: RunningProject, devices: Devices) -> Pair:
    """Alice and Bob online and in sync, in a project that others use, too."""
    return in_sync(Pair(project, devices))


@pytest.fixture(scope="module")
def daphne_project(server_url: str, migrated_database: str) -> Iterator[RunningProject]:
    """A project under the other server, shared as well."""
    with own_project(server_url, migrated_database, "daphne") as project:
        yield project


@contextmanager
def own_project(server_url: str, template: str, kind: Server = "uvicorn") -> Iterator[RunningProject]:
    """A project whose processes may be ended."""
    with temporary_database(server_url, template=template) as url, running_project(url, kind) as project:
        yield project


def in_sync(pair: Pair) -> Pair:
    """Take both devices online and wait until they hold everything."""
    pair.connect()
    pair.settle()
    return pair


def put_todo(list_id: str, title: str, todo_id: str | None = None) -> Statement:
    values = [todo_id or str(uuid.uuid4()), list_id, title]
    return ("INSERT INTO todos (id, list_id, title, done) VALUES (?, ?, ?, 0)", values)


def titles(device: Device) -> set[str]:
    return {title for (title,) in device.query("SELECT title FROM todos")}


def test_first_sync_brings_exactly_what_each_user_may_see(pair: Pair) -> None:
    assert titles(pair.alices_device) == {"Buy bread"}
    assert [name for (name,) in pair.bobs_device.query("SELECT name FROM lists ORDER BY name")] == ["Bob's", "Shared"]
    assert not pair.alices_device.status["imports_django"]


def test_inserts_updates_and_deletes_arrive_live(pair: Pair) -> None:
    project = pair.project
    milk = project.add_todo(pair.shared, "Milk")
    pair.settle()
    project.rows("UPDATE todos SET title = 'Oat milk', done = true WHERE id = %(id)s", id=milk)
    pair.settle()
    assert pair.bobs_device.query("SELECT title, done FROM todos WHERE id = ?", milk) == [("Oat milk", 1)]
    project.rows("DELETE FROM todos WHERE id = %(id)s", id=milk)
    pair.settle()
    project.rows("UPDATE todos SET id = %(new)s WHERE id = %(old)s", new=str(uuid.uuid4()), old=pair.first_todo)
    pair.settle()
    assert titles(pair.alices_device) == {"Buy bread"}


def test_a_row_moves_between_users(pair: Pair) -> None:
    project = pair.project
    move: str = "UPDATE todos SET list_id = %(list)s WHERE id = %(todo)s"
    project.rows(move, list=pair.bobs, todo=pair.first_todo)
    pair.settle()
    assert titles(pair.alices_device) == set()
    assert titles(pair.bobs_device) == {"Buy bread"}
    project.rows(move, list=pair.shared, todo=pair.first_todo)
    pair.settle()
    assert titles(pair.alices_device) == {"Buy bread"}


def test_rows_leave_the_device_with_the_membership_and_come_with_it(pair: Pair) -> None:
    project = pair.project
    project.remove_member(pair.shared, pair.bob)
    pair.settle()
    assert titles(pair.bobs_device) == set()
    project.rows("UPDATE todos SET title = 'Unseen by Bob' WHERE id = %(id)s", id=pair.first_todo)
    pair.settle()
    project.add_member(pair.shared, pair.bob)
    project.add_member(pair.bobs, pair.alice)
    pair.settle()
    assert titles(pair.bobs_device) == {"Unseen by Bob"}
    project.rows("DELETE FROM todos WHERE list_id = %(list)s", list=pair.shared)
    project.rows("DELETE FROM memberships WHERE list_id = %(list)s", list=pair.shared)
    pair.settle()


def test_a_transaction_that_grants_and_revokes_at_once_leaves_the_last_word(pair: Pair) -> None:
    project = pair.project
    with project.connection.transaction():
        project.remove_member(pair.shared, pair.bob)
        project.rows("UPDATE todos SET list_id = %(list)s WHERE id = %(id)s", list=pair.bobs, id=pair.first_todo)
        project.add_member(pair.bobs, pair.alice)
        project.add_member(pair.shared, pair.bob)
        project.remove_member(pair.bobs, pair.bob)
    pair.settle()
    assert titles(pair.alices_device) == {"Buy bread"}
    assert titles(pair.bobs_device) == set()


def test_a_write_on_a_device_comes_back_with_what_the_server_adds(pair: Pair) -> None:
    todo_id = str(uuid.uuid4())
    pair.alices_device.write(put_todo(pair.shared, "  Spaces around  ", todo_id))
    pair.settle()
    [(title, author, created_at)] = pair.bobs_device.query(
        "SELECT title, created_by_id, created_at FROM todos WHERE id = ?", todo_id
    )
    assert (title, author) == ("Spaces around", pair.alice.id)
    assert created_at


def test_offline_writes_of_both_converge(pair: Pair) -> None:
    alices, bobs = pair.alices_device, pair.bobs_device
    alices.disconnect()
    bobs.disconnect()
    shared_id = pair.first_todo
    for number in range(3):
        alices.write(put_todo(pair.shared, f"Alice {number}"))
        bobs.write(put_todo(pair.shared, f"Bob {number}"), put_todo(pair.bobs, f"Bob, alone {number}"))
    alices.write(("UPDATE todos SET title = 'By Alice' WHERE id = ?", [shared_id]))
    bobs.write(("UPDATE todos SET title = 'By Bob', done = 1 WHERE id = ?", [shared_id]))
    new_list = str(uuid.uuid4())
    alices.write(
        ("INSERT INTO lists (id, name) VALUES (?, 'New')", [new_list]),
        put_todo(new_list, "In the new list"),
        (
            "INSERT INTO memberships (id, list_id, username) VALUES (?, ?, ?)",
            [str(uuid.uuid4()), new_list, pair.bob.name],
        ),
    )
    pair.project.add_todo(pair.shared, "Meanwhile elsewhere")
    assert "Bob 0" not in titles(alices)
    pair.connect()
    pair.settle()
    assert {"Alice 2", "Bob 2", "In the new list", "Meanwhile elsewhere"} <= titles(alices) & titles(bobs)
    assert "Bob, alone 0" not in titles(alices)
    # Whoever came last has the title; `done` was written by Bob alone, so nobody overwrote it.
    assert alices.query("SELECT title IN ('By Alice', 'By Bob'), done FROM todos WHERE id = ?", shared_id) == [(1, 1)]


def test_a_rejected_write_blocks_nothing_and_is_taken_back(pair: Pair) -> None:
    alices = pair.alices_device
    before = pair.project.expected(pair.alice)
    alices.disconnect()
    alices.write(("UPDATE memberships SET username = 'somebody' WHERE list_id = ?", [pair.shared]))
    alices.write(put_todo(pair.bobs, "In a list that is not hers"))
    alices.write(put_todo(pair.shared, "Good, but in one transaction"), put_todo(pair.bobs, "with a bad one"))
    alices.write(put_todo(pair.shared, "After the bad ones"))
    pair.connect()
    pair.settle()
    assert titles(alices) == {"Buy bread", "After the bad ones"}
    assert pair.project.expected(pair.alice)["memberships"] == before["memberships"]
    assert len(alices.status["rejections"]) == 3


def test_what_is_written_offline_into_a_list_that_was_revoked_is_refused(pair: Pair) -> None:
    bobs = pair.bobs_device
    bobs.disconnect()
    bobs.write(put_todo(pair.shared, "Too late"))
    bobs.write(("UPDATE todos SET done = 1 WHERE id = ?", [pair.first_todo]))
    pair.project.remove_member(pair.shared, pair.bob)
    pair.connect()
    pair.settle()
    assert titles(bobs) == set()
    assert titles(pair.alices_device) == {"Buy bread"}


def test_a_token_is_renewed_before_it_expires(pair: Pair) -> None:
    for person, device in pair.devices:
        device.connect(pair.project.endpoint, person.token(lifetime_s=2), person.token())
        wait_until(lambda device=device: device.status["fetches"] == 2, "the token is fetched ahead of time")
    time.sleep(2.5)  # both first tokens are of no use now
    pair.alices_device.write(put_todo(pair.shared, "With the second token"))
    pair.settle()
    assert [device.status["fetches"] for _, device in pair.devices] == [2, 2]


def test_a_token_that_expired_while_no_other_could_be_had_is_replaced_when_one_can(pair: Pair) -> None:
    alices, token = pair.alices_device, pair.alice.token
    alices.connect(pair.project.endpoint, token(lifetime_s=1), None, None, None, token(lifetime_s=-100), token())
    pair.project.add_todo(pair.shared, "While it was away")
    wait_until(lambda: alices.status["fetches"] == 6, "the sixth token is fetched")
    pair.settle()


def test_a_device_that_is_killed_loses_nothing_that_it_acknowledged(pair: Pair, devices: Devices) -> None:
    chance = random.Random(SEED)
    print(f"seed: {SEED}")
    acknowledged: list[str] = []
    for _ in range(3):
        for _ in range(chance.randrange(3, 10)):
            todo_id = str(uuid.uuid4())
            pair.alices_device.write(put_todo(pair.shared, f"Todo {todo_id}", todo_id))
            acknowledged.append(todo_id)
        for _ in range(3):
            pair.alices_device.begin_write(put_todo(pair.shared, "Perhaps"))
        time.sleep(chance.uniform(0, 0.03))
        pair.alices_device.kill()
        pair.alices_device = devices.adopt(pair.alices_device.restarted())
        assert {f"Todo {todo_id}" for todo_id in acknowledged} <= titles(pair.alices_device)
        pair.alices_device.connect(pair.project.endpoint, pair.alice.token())
    pair.settle()
    stored = pair.project.rows("SELECT id::text FROM todos WHERE list_id = %(list)s", list=pair.shared)
    assert set(acknowledged) <= {todo_id for (todo_id,) in stored}


def test_a_server_is_replaced_while_devices_write(server_url: str, migrated_database: str, devices: Devices) -> None:
    with own_project(server_url, migrated_database) as project:
        pair = in_sync(Pair(project, devices))
        for number in range(3):
            pair.alices_device.write(put_todo(pair.shared, f"Before {number}"))
            if number == 1:
                project.server.kill()
            else:
                project.server.stop()
            pair.bobs_device.write(put_todo(pair.shared, f"Without a server {number}"))
            pair.project.add_todo(pair.shared, f"In Postgres {number}")
            project.start_server()
        pair.settle()
        assert len(titles(pair.alices_device)) == 10


def test_a_replicator_is_killed_between_uploads(server_url: str, migrated_database: str, devices: Devices) -> None:
    with own_project(server_url, migrated_database) as project:
        pair = in_sync(Pair(project, devices))
        for number in range(3):
            pair.alices_device.write(put_todo(pair.shared, f"Before {number}"))
            project.replicator.kill()
            pair.bobs_device.write(put_todo(pair.shared, f"Without a replicator {number}"))
            pair.project.rows("UPDATE todos SET done = NOT done WHERE list_id = %(list)s", list=pair.shared)
            project.begin_replicator()
        pair.settle()
        assert len(titles(pair.alices_device)) == 7
        assert "copying" not in project.replicator.log, "what was replicated before was copied again"


@pytest.mark.parametrize(
    "test",
    [
        test_inserts_updates_and_deletes_arrive_live,
        test_a_row_moves_between_users,
        test_rows_leave_the_device_with_the_membership_and_come_with_it,
        test_offline_writes_of_both_converge,
        test_a_rejected_write_blocks_nothing_and_is_taken_back,
    ],
)
def test_under_daphne(daphne_project: RunningProject, devices: Devices, test: Callable[[Pair], None]) -> None:
    test(in_sync(Pair(daphne_project, devices)))
