"""The replicator on a real Postgres: copy, stream, restarts, row identities."""

from __future__ import annotations

import time
from collections.abc import Iterator

import psycopg
import pytest
from django.db import connection

from django_localsync.exceptions import ConfigurationError
from django_localsync.replication.stream import Stream
from django_localsync.storage.connections import connect
from django_localsync.storage.writer import StorageWriter
from tests.replication import (
    DEADLINE_S,
    RunningReplicator,
    drop_replication,
    replicating,
    stored_buckets,
    stored_lsn,
)

pytestmark = pytest.mark.django_db(transaction=True)

BY_OWNER = """
config: {edition: 3}
streams:
  mine:
    query: SELECT * FROM note WHERE owner = auth.user_id()
"""
ALL_LINES = """
config: {edition: 3}
streams:
  all:
    query: SELECT a || '-' || b AS id, a, b FROM line
"""


@pytest.fixture
def tables() -> Iterator[None]:
    """A table with a key and one without; afterwards neither they nor slots and publications are left."""
    execute(
        "CREATE TABLE note (id int PRIMARY KEY, owner text, title text, body text);"
        "ALTER TABLE note ALTER body SET STORAGE EXTERNAL;"
        "CREATE TABLE line (a int, b text);"
    )
    yield
    drop_replication()
    execute("DROP TABLE IF EXISTS note, line")


def execute(statements: str) -> None:
    """Run SQL in a transaction of its own."""
    with connection.cursor() as cursor:
        cursor.execute(statements)


def titles(bucket: str = 'mine|0["ann"]') -> dict[str, str]:
    """Row id → title of a bucket's rows."""
    return {row_id: row["title"] for (_, row_id), row in stored_buckets().get(bucket, {}).items()}


def operation_count() -> int:
    """How many operations are stored."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM localsync_bucket_operation")
        return int(cursor.fetchone()[0])


def active_rule_set() -> int:
    """The number of the rule set that is served."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT id FROM localsync_rule_set WHERE state = 'active'")
        return int(cursor.fetchone()[0])


def table_identity(name: str) -> str:
    """How storage tells a table's rows apart."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT identity FROM localsync_source_table WHERE name = %s AND NOT retired", [name])
        return str(cursor.fetchone()[0])


def wait_until(condition) -> None:  # type: ignore[no-untyped-def]
    """Wait until a condition holds."""
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, "it did not come true in time"
        time.sleep(0.02)


def test_existing_rows_are_copied_and_later_changes_follow(tables):
    execute("INSERT INTO note VALUES (1, 'ann', 'one'), (2, 'bob', 'two')")
    with replicating(BY_OWNER) as replicator:
        assert titles() == {"1": "one"}
        execute("INSERT INTO note VALUES (3, 'ann', 'three'); UPDATE note SET title = 'ONE' WHERE id = 1")
        execute("DELETE FROM note WHERE id = 2")
        replicator.catch_up()
        assert titles() == {"1": "ONE", "3": "three"}
        assert titles('mine|0["bob"]') == {}


def test_a_row_moves_between_buckets(tables):
    execute("INSERT INTO note VALUES (1, 'ann', 'one')")
    with replicating(BY_OWNER) as replicator:
        execute("UPDATE note SET owner = 'bob'")
        replicator.catch_up()
        assert (titles(), titles('mine|0["bob"]')) == ({}, {"1": "one"})


def test_a_rolled_back_transaction_leaves_nothing(tables):
    with replicating(BY_OWNER) as replicator:
        execute("BEGIN; INSERT INTO note VALUES (1, 'ann', 'one'); ROLLBACK")
        replicator.catch_up()
        assert operation_count() == 0


def test_unchanged_large_values_are_kept(tables):
    execute("INSERT INTO note SELECT 1, 'ann', 'one', repeat(md5('x'), 300)")
    with replicating(BY_OWNER) as replicator:
        execute("INSERT INTO note SELECT 2, 'ann', 'two', repeat(md5('y'), 300)")
        execute("UPDATE note SET title = upper(title); UPDATE note SET id = id + 10")
        replicator.catch_up()
        rows = stored_buckets()['mine|0["ann"]']
        assert {key[1]: len(row["body"]) for key, row in rows.items()} == {"11": 9600, "12": 9600}


def test_two_rows_swap_their_keys_in_one_transaction(tables):
    execute("INSERT INTO note VALUES (1, 'ann', 'one'), (2, 'ann', 'two')")
    with replicating(BY_OWNER) as replicator:
        execute(
            "BEGIN; UPDATE note SET id = -1 WHERE id = 1; UPDATE note SET id = 1 WHERE id = 2;"
            "UPDATE note SET id = 2 WHERE id = -1; COMMIT"
        )
        replicator.catch_up()
        assert titles() == {"1": "two", "2": "one"}


def test_a_deleted_key_comes_back_in_the_same_batch(tables):
    execute("INSERT INTO note VALUES (1, 'ann', 'one')")
    with replicating(BY_OWNER) as replicator:
        execute("BEGIN; DELETE FROM note; INSERT INTO note VALUES (1, 'ann', 'again'); COMMIT")
        execute("BEGIN; INSERT INTO note VALUES (2, 'ann', 'two'); DELETE FROM note WHERE id = 2; COMMIT")
        replicator.catch_up()
        assert titles() == {"1": "again"}


def test_truncate_takes_every_row_back(tables):
    execute("INSERT INTO note SELECT i, 'ann', i FROM generate_series(1, 6000) AS i; INSERT INTO line VALUES (1, 'x')")
    with replicating(BY_OWNER) as replicator:
        execute(
            "BEGIN; INSERT INTO note VALUES (0, 'ann', ''); TRUNCATE note;"
            "INSERT INTO note VALUES (1, 'ann', 'new'); COMMIT"
        )
        replicator.catch_up()
        assert titles() == {"1": "new"}


def test_a_table_without_a_key_is_inserted_into_and_stays_usable(tables):
    execute("INSERT INTO line VALUES (1, 'x')")
    with replicating(ALL_LINES) as replicator:
        execute("INSERT INTO line VALUES (2, 'y'); UPDATE line SET b = 'z' WHERE a = 1; DELETE FROM line WHERE a = 1")
        replicator.catch_up()
        assert set(stored_buckets()["all|0[]"]) == {("line", "1-x"), ("line", "2-y")}
        execute("TRUNCATE line; INSERT INTO line VALUES (3, 'z')")
        replicator.catch_up()
        assert set(stored_buckets()["all|0[]"]) == {("line", "3-z")}


def test_identical_rows_under_full_identity_are_counted(tables):
    execute("ALTER TABLE line REPLICA IDENTITY FULL; INSERT INTO line VALUES (1, 'x'), (1, 'x')")
    one = "WHERE ctid = (SELECT ctid FROM line LIMIT 1)"
    with replicating(ALL_LINES) as replicator:
        execute(f"INSERT INTO line VALUES (1, 'x'); DELETE FROM line {one}; UPDATE line SET b = 'y' {one}")
        replicator.catch_up()
        assert set(stored_buckets()["all|0[]"]) == {("line", "1-x"), ("line", "1-y")}
        execute("DELETE FROM line WHERE b = 'x'")
        replicator.catch_up()
        assert set(stored_buckets()["all|0[]"]) == {("line", "1-y")}


def test_a_large_transaction_shows_at_once_or_not_at_all(tables):
    with replicating(BY_OWNER) as replicator, connection.cursor() as cursor:
        execute("INSERT INTO note SELECT i, 'ann', i FROM generate_series(1, 30000) AS i")
        seen = set()
        deadline = time.monotonic() + DEADLINE_S
        while 30000 not in seen and time.monotonic() < deadline:
            cursor.execute("SELECT op_id, (SELECT max(operations) FROM localsync_bucket) FROM localsync_checkpoint")
            op_id, operations = cursor.fetchone()
            assert op_id == (operations or 0)
            seen.add(op_id)
        assert seen <= {0, 30000}
        replicator.catch_up()


def test_a_backlog_is_published_in_parts_so_that_a_crash_repeats_only_the_last(tables, monkeypatch):
    with replicating(BY_OWNER):
        pass
    for number in range(300):
        execute(f"INSERT INTO note VALUES ({number}, 'ann', 'a'), (-1 - {number}, 'ann', 'b')")
    published: list[int] = []
    publish = StorageWriter.publish
    monkeypatch.setattr("django_localsync.replication.stream.BATCH_ROWS", 50)
    monkeypatch.setattr(
        StorageWriter,
        "publish",
        lambda self, source, lsn, **more: (published.append(lsn), publish(self, source, lsn, **more)),
    )

    with replicating(BY_OWNER):
        assert len(titles()) == 600

    assert len(published) >= 600 / 50
    assert published == sorted(published)


def test_a_restart_continues_without_loss_or_repetition(tables):
    with replicating(BY_OWNER):
        execute("INSERT INTO note VALUES (1, 'ann', 'one')")
    execute("INSERT INTO note VALUES (2, 'ann', 'two')")
    with replicating(BY_OWNER):
        assert titles() == {"1": "one", "2": "two"}
        assert operation_count() == 2


def test_a_crash_after_the_storage_commit_repeats_nothing(tables, monkeypatch):
    def crash(self: Stream) -> None:
        raise psycopg.OperationalError("cut off before the LSN was confirmed")

    with replicating(BY_OWNER):
        pass
    with monkeypatch.context() as patch:
        patch.setattr(Stream, "_confirm", crash)
        broken = RunningReplicator(RULES=BY_OWNER)
        execute("INSERT INTO note VALUES (1, 'ann', 'one')")
        wait_until(lambda: operation_count() == 1)
        broken.stop()
    with replicating(BY_OWNER):
        assert operation_count() == 1


def test_a_crash_before_the_storage_commit_loses_nothing(tables, monkeypatch):
    crashes = []

    def crash(self: StorageWriter, *args: object, **kwargs: object) -> None:
        crashes.append(1)
        raise psycopg.OperationalError("cut off before the commit")

    with replicating(BY_OWNER):
        pass
    with monkeypatch.context() as patch:
        patch.setattr(StorageWriter, "publish", crash)
        broken = RunningReplicator(RULES=BY_OWNER)
        execute("INSERT INTO note SELECT i, 'ann', i FROM generate_series(1, 7000) AS i")
        wait_until(lambda: crashes)
        broken.stop()
    assert operation_count() == 0
    with replicating(BY_OWNER):
        assert len(titles()) == 7000


def test_a_renamed_stream_keeps_its_buckets(tables):
    execute("INSERT INTO note VALUES (1, 'ann', 'one')")
    with replicating(BY_OWNER):
        first = active_rule_set()
    with replicating(BY_OWNER.replace("mine", "yours")):
        assert active_rule_set() > first
        assert titles() == {"1": "one"}
        assert operation_count() == 1


def test_changed_rules_are_filled_beside_the_served_ones(tables):
    execute("INSERT INTO note VALUES (1, 'ann', 'one')")
    with replicating(BY_OWNER):
        pass
    with replicating(BY_OWNER.replace("owner = auth", "title = auth")):
        assert titles('mine|0["one"]') == {"1": "one"}
        wait_until(lambda: operation_count() == 1)  # the former definition's operations are deleted
    with connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM pg_replication_slots WHERE database = current_database()")
        assert cursor.fetchone() == (1,)


def test_a_dropped_slot_heals_by_a_new_copy(tables):
    with replicating(BY_OWNER):
        pass
    drop_replication()
    execute("INSERT INTO note VALUES (1, 'ann', 'one')")
    with replicating(BY_OWNER):
        assert titles() == {"1": "one"}


def test_a_changed_replica_identity_heals_by_a_new_copy(tables):
    execute("INSERT INTO line VALUES (1, 'x')")
    with replicating(ALL_LINES) as replicator:
        execute("ALTER TABLE line REPLICA IDENTITY FULL; INSERT INTO line VALUES (2, 'y')")
        wait_until(lambda: table_identity("line") == "row")
        replicator.catch_up()
        execute("DELETE FROM line WHERE a = 1")
        replicator.catch_up()
        assert set(stored_buckets()["all|0[]"]) == {("line", "2-y")}


def test_a_standby_takes_over(tables):
    with replicating(BY_OWNER) as first:
        standby = RunningReplicator(RULES=BY_OWNER)
        try:
            execute("INSERT INTO note VALUES (1, 'ann', 'one')")
            first.catch_up()
            first.stop()
            execute("INSERT INTO note VALUES (2, 'ann', 'two')")
            standby.catch_up()
            assert titles() == {"1": "one", "2": "two"}
            assert operation_count() == 2
        finally:
            standby.stop()


def test_what_is_stored_is_confirmed_to_postgres(tables):
    with replicating(BY_OWNER), connect("default") as session:
        confirmed = (
            "SELECT (confirmed_flush_lsn - '0/0'::pg_lsn)::bigint FROM pg_replication_slots"
            " WHERE database = current_database()"
        )
        wait_until(lambda: session.execute(confirmed).fetchone() == (stored_lsn(session),))


def test_missing_tables_are_named():
    execute("ALTER TABLE localsync_checkpoint RENAME TO hidden")
    try:
        running = RunningReplicator(RULES=BY_OWNER)
        wait_until(lambda: running.error is not None)
    finally:
        execute("ALTER TABLE hidden RENAME TO localsync_checkpoint")
    assert isinstance(running.error, ConfigurationError)
    assert "manage.py migrate" in str(running.error)
