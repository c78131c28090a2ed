"""Slots and publications that go away: the old data is served until the new is complete, and all heals by itself."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress

import psycopg
import pytest

from django_localsync.replication import follower
from tests.elsewhere import Elsewhere, elsewhere, errors, replicator, served, wait_until_healed
from tests.processes import wait_until

pytestmark = pytest.mark.django_db(transaction=True)

KEEP = {"max_slot_wal_keep_size": "16MB", "checkpoint_timeout": "1h"}


@pytest.fixture
def source() -> Iterator[Elsewhere]:
    """A source that keeps little WAL."""
    with elsewhere(**KEEP) as source:
        yield source


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(follower, "FIRST_RETRY_S", 0.05)
    monkeypatch.setattr(follower, "LONGEST_RETRY_S", 0.5)
    monkeypatch.setattr(follower, "SLOT_FREE_AFTER_S", 0.5)


def change_everything(source: Elsewhere) -> None:
    """A row comes, one changes, one goes."""
    source.execute(
        "INSERT INTO note VALUES (3, 'three')",
        "UPDATE note SET title = 'ONE' WHERE id = 1",
        "DELETE FROM note WHERE id = 2",
    )


def replicate_once(source: Elsewhere) -> None:
    """Have the rows in storage, and no replicator."""
    with replicator():
        wait_until_healed(source)


def test_slot_lost_while_the_replicator_was_down(source):
    replicate_once(source)
    change_everything(source)
    source.lose_slots()
    assert served() == {"1": "one", "2": "two"}
    with replicator():
        wait_until_healed(source)
        source.execute("INSERT INTO note VALUES (4, 'four')")
        wait_until_healed(source)
    assert len(source.slots()) == 1


def test_slot_lost_while_the_network_hung(source):
    with replicator():
        wait_until_healed(source)
        source.proxy.stalled = True
        change_everything(source)
        source.lose_slots()
        assert served() == {"1": "one", "2": "two"}
        source.proxy.stalled = False
        source.proxy.cut()
        wait_until_healed(source)


def test_slot_dropped_while_the_replicator_was_down(source):
    replicate_once(source)
    change_everything(source)
    source.drop_slots()
    with replicator():
        wait_until_healed(source)


def test_slot_dropped_under_the_running_replicator(source):
    with replicator():
        wait_until_healed(source)
        source.drop_slots()
        change_everything(source)
        wait_until_healed(source)
        source.execute("UPDATE note SET title = 'again'")
        wait_until_healed(source)


def test_slot_made_anew_under_its_old_name(source):
    replicate_once(source)
    (slot,) = source.slots()
    source.drop_slots()
    change_everything(source)
    source.execute(f"SELECT pg_create_logical_replication_slot('{slot}', 'pgoutput')")
    with replicator():
        wait_until_healed(source)


def test_slot_moved_on_by_somebody_else(source):
    replicate_once(source)
    (slot,) = source.slots()
    change_everything(source)
    source.execute(f"SELECT pg_replication_slot_advance('{slot}', pg_current_wal_lsn())")
    with replicator():
        wait_until_healed(source)


def test_slot_read_by_somebody_else(source):
    replicate_once(source)
    (slot,) = source.slots()
    change_everything(source)
    with psycopg.connect(source.server.url, replication="database", autocommit=True) as thief:
        command = f"START_REPLICATION SLOT {slot} LOGICAL 0/0 (proto_version '1', publication_names 'localsync')"
        thief.pgconn.exec_(command.encode())
        with replicator():
            wait_until(lambda: "in use" in errors() or "active" in errors(), "the error is told")
            assert served() == {"1": "one", "2": "two"}
            thief.close()
            wait_until_healed(source)
    assert source.slots() == [slot]


def test_slots_of_others_fill_the_server(source):
    source.restart(max_replication_slots="1")
    source.execute("SELECT pg_create_logical_replication_slot('theirs', 'pgoutput')")
    with replicator() as running:
        wait_until(lambda: running.error is not None, "the replicator ends")
    assert "raise max_replication_slots" in str(running.error)
    source.execute("SELECT pg_drop_replication_slot('theirs')")
    replicate_once(source)


@pytest.mark.parametrize(
    "mishap",
    [
        "DROP PUBLICATION localsync",
        "ALTER PUBLICATION localsync DROP TABLE note",
        pytest.param("ALTER PUBLICATION localsync SET (publish = 'insert')", marks=pytest.mark.soak),
        pytest.param("ALTER PUBLICATION localsync SET TABLE note (id)", marks=pytest.mark.soak),
        pytest.param("ALTER PUBLICATION localsync SET TABLE note WHERE (id > 2)", marks=pytest.mark.soak),
        pytest.param("ALTER PUBLICATION localsync RENAME TO renamed", marks=pytest.mark.soak),
    ],
)
@pytest.mark.parametrize("running", [True, False], ids=["running", "down"])
def test_publication_altered(source, mishap, running):
    if running:
        with replicator():
            wait_until_healed(source)
            source.execute(mishap)
            change_everything(source)
            wait_until_healed(source)
    else:
        replicate_once(source)
        source.execute(mishap)
        change_everything(source)
        with replicator():
            wait_until_healed(source)
            source.execute("UPDATE note SET title = 'again'")
            wait_until_healed(source)


@pytest.mark.parametrize("running", [True, False], ids=["running", "down"])
def test_publication_altered_and_put_right_before_anybody_looked(source, running):
    def mishap() -> None:
        source.execute("ALTER PUBLICATION localsync DROP TABLE note")
        change_everything(source)
        with suppress(psycopg.errors.DuplicateObject):  # the replicator was first
            source.execute("ALTER PUBLICATION localsync ADD TABLE ONLY note")

    if running:
        with replicator():
            wait_until_healed(source)
            mishap()
            wait_until_healed(source)
    else:
        replicate_once(source)
        mishap()
        with replicator():
            wait_until_healed(source)
