"""Rows that are write checkpoints: seen with their transaction, never before, and never lost (I7)."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from django_localsync.storage.writer import StorageWriter
from tests.replication import RunningReplicator, drop_replication, replicating
from tests.source import execute, open_transaction, query, streams, values, wait_until

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("source")]

Receipts = dict[tuple[str, str], int]

PLAIN = streams(all="SELECT id, title FROM note")
PAYLOAD = "SELECT user_id, client_id, checkpoint FROM done"
RULES = {**PLAIN, "event_definitions": {"write_checkpoints": {"payloads": [PAYLOAD]}}}


@pytest.fixture(autouse=True)
def tables(source: None) -> None:
    """A table of rows and one of receipts."""
    execute(
        "CREATE TABLE note (id int PRIMARY KEY, title text);"
        "CREATE TABLE done (id serial PRIMARY KEY, user_id text, client_id text, checkpoint text)"
    )


def receipts() -> Receipts:
    """The write checkpoints that readers announce now, by user and client; as StorageReader.HEAD has it."""
    return {
        (user, client): number
        for user, client, number in query("""
            SELECT user_key, client_id, number FROM localsync_write_checkpoint
             WHERE NOT EXISTS (SELECT FROM jsonb_each_text(positions) AS position (alias, lsn)
                                 JOIN localsync_source AS source ON source.alias = position.alias
                                WHERE source.lsn < position.lsn::bigint)
        """)
    }


def give(number: object, user: str = "ann", client: str | None = "c1") -> str:
    """The statement that adds a row."""
    named = "NULL" if client is None else f"'{client}'"
    return f"INSERT INTO done (user_id, client_id, checkpoint) VALUES ('{user}', {named}, '{number}')"


def test_a_row_is_a_receipt_which_comes_with_its_transaction():
    with replicating(RULES) as replicator:
        with open_transaction("INSERT INTO note VALUES (1, 'one')", give(5), give(2, "bob", None)):
            execute("INSERT INTO note VALUES (2, 'two')")
            replicator.catch_up()
            assert receipts() == {}
        replicator.catch_up()
        assert receipts() == {("ann", "c1"): 5, ("bob", ""): 2}
        assert values("title") == {"1": "one", "2": "two"}
        assert query("SELECT count(*) FROM localsync_parameter_lookup") == [(0,)]


def test_rows_that_are_there_when_the_table_is_first_read_are_receipts():
    execute(give(3), give(7), give(6))
    with replicating(RULES):
        assert receipts() == {("ann", "c1"): 7}


def test_rows_are_receipts_when_the_event_comes_with_new_rules():
    execute(give(3))
    with replicating(PLAIN):
        assert receipts() == {}
    with replicating(RULES) as replicator:
        assert receipts() == {("ann", "c1"): 3}
        execute(give(4))
        replicator.catch_up()
        assert receipts() == {("ann", "c1"): 4}


def test_numbers_only_rise_and_stay_when_rows_go():
    with replicating(RULES) as replicator:
        execute(give(5), "UPDATE done SET checkpoint = '9'", "UPDATE done SET checkpoint = '6'", give(8))
        replicator.catch_up()
        assert receipts() == {("ann", "c1"): 9}
        execute("DELETE FROM done", give(1), "TRUNCATE done")
        replicator.catch_up()
        assert receipts() == {("ann", "c1"): 9}


def test_a_row_that_is_deleted_in_its_own_transaction_was_a_receipt():
    with replicating(RULES) as replicator:
        execute(f"{give(5)}; DELETE FROM done", f"{give(1, 'bob')}; UPDATE done SET checkpoint = '2'; DELETE FROM done")
        replicator.catch_up()
        assert receipts() == {("ann", "c1"): 5, ("bob", "c1"): 2}


@pytest.mark.parametrize("identity", ["ALTER TABLE done REPLICA IDENTITY FULL", "ALTER TABLE done DROP COLUMN id"])
def test_a_table_of_another_identity_has_receipts_too(identity: str):
    execute(identity, give(1))
    with replicating(RULES) as replicator:
        execute(give(2), give(2), give(3, "bob"))
        replicator.catch_up()
        assert receipts() == {("ann", "c1"): 2, ("bob", "c1"): 3}


def test_a_bad_row_is_left_out_and_reported(caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.WARNING), replicating(RULES) as replicator:
        execute(give("soon"), "INSERT INTO done (checkpoint) VALUES ('1')", give(4))
        replicator.catch_up()
        assert receipts() == {("ann", "c1"): 4}
    assert (
        "write_checkpoints left out a row of public.done: the checkpoint of a write checkpoint must be" in caplog.text
    )
    assert "write_checkpoints left out a row of public.done: the write checkpoint has no user_id" in caplog.text


def test_a_large_transaction_shows_its_receipt_at_its_end(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("django_localsync.replication.stream.BATCH_ROWS", 100)
    seen: list[Receipts] = []
    write = StorageWriter.write

    def look(self: StorageWriter, changes: Any) -> None:
        write(self, changes)
        seen.append(receipts())

    with replicating(RULES) as replicator:
        monkeypatch.setattr(StorageWriter, "write", look)
        execute(f"{give(5)}; INSERT INTO note SELECT i, 'x' FROM generate_series(1, 1000) AS i")
        replicator.catch_up()
        assert len(seen) > 5
        assert all(found == {} for found in seen[:5])
        assert receipts() == {("ann", "c1"): 5}


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_crash_before_the_commit_leaves_neither_row_nor_receipt_and_the_next_run_has_both(
    monkeypatch: pytest.MonkeyPatch,
):
    publish = StorageWriter.publish
    crashed: list[tuple[Receipts, dict[str, Any]]] = []

    def crash(self: StorageWriter, *arguments: Any, **named: Any) -> None:
        raised = bool(self._raised)
        publish(self, *arguments, **named)
        if raised and not crashed:
            crashed.append((receipts(), values("title")))
            raise SystemExit("killed between publishing and COMMIT")

    replicator = RunningReplicator(RULES=RULES)
    try:
        replicator.catch_up()
        monkeypatch.setattr(StorageWriter, "publish", crash)
        execute(f"INSERT INTO note VALUES (1, 'one'); {give(5)}")
        wait_until(lambda: crashed)
    finally:
        replicator.stop()
    assert crashed == [({}, {})]
    assert (receipts(), values("title")) == ({}, {})
    with replicating(RULES):
        assert (receipts(), values("title")) == ({("ann", "c1"): 5}, {"1": "one"})


def test_a_receipt_waits_while_something_is_withheld(monkeypatch: pytest.MonkeyPatch):
    """Withheld by hand here; what ends it is a table that was read whole, as always."""
    with replicating(RULES) as replicator, monkeypatch.context() as patch:
        patch.setattr("django_localsync.storage.sources.must_withhold", lambda _: True)
        execute("INSERT INTO note VALUES (1, 'one')", give(1))
        replicator.catch_up()
        execute("UPDATE localsync_checkpoint SET withheld = true")
        execute(f"UPDATE note SET title = 'ONE' WHERE id = 1; {give(2)}")
        wait_until(lambda: query("SELECT number FROM localsync_write_checkpoint") == [(2,)])
        assert (receipts(), values("title")) == ({}, {"1": "one"})
    with replicating({**RULES, "streams": {**RULES["streams"], **streams(ids="SELECT id FROM note")["streams"]}}):
        assert (receipts(), values("title")) == ({("ann", "c1"): 2}, {"1": "ONE"})


def test_a_receipt_waits_for_rows_that_are_read_again_after_a_lost_slot(monkeypatch: pytest.MonkeyPatch):
    with replicating(RULES) as replicator:
        execute("INSERT INTO note VALUES (1, 'one')", give(1))
        replicator.catch_up()
    wait_until(
        lambda: query("SELECT active FROM pg_replication_slots WHERE database = current_database()") == [(False,)]
    )
    drop_replication()
    execute(f"UPDATE note SET title = 'ONE'; {give(2)}")
    seen: list[tuple[int | None, str | None]] = []
    write = StorageWriter.write

    def look(self: StorageWriter, changes: Any) -> None:
        seen.append((receipts().get(("ann", "c1")), values("title").get("1")))
        write(self, changes)

    monkeypatch.setattr(StorageWriter, "write", look)
    with replicating(RULES):
        assert (receipts(), values("title")) == ({("ann", "c1"): 2}, {"1": "ONE"})
    assert len(seen) > 1
    assert all(number != 2 for number, title in seen if title != "ONE")
