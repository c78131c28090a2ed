"""Transactions larger than memory: shown at once or not at all, whatever happens in the middle."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator

import psycopg
import pytest

from django_localsync.storage.writer import StorageWriter, WriteSet
from tests.conftest import SOAK
from tests.replication import RunningReplicator, replicating
from tests.source import eventually, execute, query, rows, snapshot, streams

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("source")]

NOTES = streams(all="SELECT id, title FROM note", others="SELECT * FROM other")
ROWS = 500_000 if SOAK else 20_000
KILLS = 40 if SOAK else 6


@pytest.fixture(autouse=True)
def tables(source: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two tables, and batches small enough for a transaction to be many of them."""
    monkeypatch.setattr("django_localsync.replication.stream.BATCH_ROWS", 500)
    execute("CREATE TABLE note (id int PRIMARY KEY, title text); CREATE TABLE other (id int PRIMARY KEY)")


def insert_many(first: int = 1) -> None:
    """One transaction of `ROWS` rows."""
    execute(f"INSERT INTO note SELECT i, 'x' FROM generate_series({first}, {first + ROWS - 1}) AS i")


@pytest.fixture
def sizes() -> Iterator[set[int]]:
    """Every number of rows that a reader saw."""
    seen: set[int] = set()
    stop = threading.Event()

    def observe() -> None:
        while not stop.is_set():
            [(count,)] = query("""
                SELECT coalesce(sum(operations), 0)::int FROM localsync_bucket AS bucket
                  JOIN localsync_definition AS definition ON definition.id = definition_id
                 WHERE definition.name = 'all|0'
            """)
            seen.add(count)

    observer = threading.Thread(target=observe)
    observer.start()
    yield seen
    stop.set()
    observer.join()


def test_it_shows_at_once_or_not_at_all(sizes):
    with replicating(NOTES) as replicator:
        insert_many()
        replicator.catch_up()
        assert len(rows()) == ROWS
        execute("UPDATE note SET title = 'y'")
        replicator.catch_up()
        execute("DELETE FROM note")
        replicator.catch_up()
        assert rows() == {}
    assert sizes <= {0, ROWS, 2 * ROWS, 3 * ROWS}


def test_large_rows_are_no_more_than_memory_holds_either(monkeypatch: pytest.MonkeyPatch):
    """Ten kilobytes each, of which a batch may have a hundred."""
    monkeypatch.setattr("django_localsync.replication.stream.BATCH_BYTES", 100_000)
    write, numbers = StorageWriter.write, list[int]()

    def look(self: StorageWriter, changes: WriteSet) -> None:
        numbers.append(len(changes.drafts))
        write(self, changes)

    monkeypatch.setattr(StorageWriter, "write", look)
    with replicating(NOTES) as replicator:
        numbers.clear()
        execute("INSERT INTO note SELECT i, repeat('x', 10000) FROM generate_series(1, 200) AS i")
        replicator.catch_up()
        assert len(rows()) == 200
    assert sum(numbers) == 200
    assert max(numbers) == 20


def test_the_replicator_is_cut_off_at_every_stage(sizes):
    """Its connections break, later and later within the same transaction, until it gets through."""
    with replicating(NOTES):
        pass
    insert_many()
    choose = random.Random(ROWS)
    replicator = RunningReplicator(RULES=NOTES)
    try:
        for kill in range(KILLS):
            time.sleep(choose.uniform(0, 0.05 + 0.1 * kill))
            terminate_replicator()
        replicator.catch_up()
        assert len(rows()) == ROWS
    finally:
        replicator.stop()
    assert sizes <= {0, ROWS}


def terminate_replicator() -> None:
    """Break all of its connections."""
    execute("""
        SELECT pg_terminate_backend(pid) FROM pg_stat_activity
         WHERE datname = current_database() AND application_name LIKE 'django_localsync %'
    """)


def test_everything_in_one_transaction(sizes):
    """Rows that come, change their keys and go again, a TRUNCATE and savepoints within it."""
    execute("INSERT INTO note SELECT i, 'old' FROM generate_series(-1000, -1) AS i")
    with replicating(NOTES) as replicator:
        execute(
            f"BEGIN; INSERT INTO note SELECT i, 'x' FROM generate_series(1, {ROWS // 4}) AS i;"
            "UPDATE note SET title = 'changed', id = id - 1000000 WHERE id < 0;"
            "SAVEPOINT a; UPDATE note SET title = 'rolled back'; ROLLBACK TO a;"
            "DELETE FROM note WHERE id % 2 = 0; UPDATE note SET title = title || id WHERE id % 3 = 0;"
            "INSERT INTO other VALUES (1); COMMIT"
        )
        replicator.catch_up()
        assert {row_id: row["title"] for row_id, row in rows().items()} == source_titles()
        execute(
            f"BEGIN; UPDATE note SET title = 'y'; TRUNCATE note; INSERT INTO note SELECT i, 'z'"
            f" FROM generate_series(1, {ROWS // 4}) AS i; DELETE FROM note WHERE id > 10; COMMIT"
        )
        replicator.catch_up()
        assert {row_id: row["title"] for row_id, row in rows().items()} == source_titles()


def source_titles() -> dict[str, str]:
    """What the rules say of `note` now."""
    return {str(key): title for key, title in query("SELECT id, title FROM note")}


def test_it_is_rolled_back():
    with replicating(NOTES) as replicator:
        execute(f"BEGIN; INSERT INTO note SELECT i, 'x' FROM generate_series(1, {ROWS}) AS i; ROLLBACK")
        execute("INSERT INTO other VALUES (1)")
        replicator.catch_up()
        assert (len(rows()), len(rows("others|0[]"))) == (0, 1)


def test_the_replicator_is_stopped_within_it(sizes):
    with replicating(NOTES):
        pass
    insert_many()
    for pause in (0.1, 0.3, 0.5):
        running = RunningReplicator(RULES=NOTES)
        time.sleep(pause)
        running.stop()
        snapshot()
    with replicating(NOTES):
        assert len(rows()) == ROWS
    assert sizes <= {0, ROWS}


def test_many_tiny_transactions_are_stored_several_at_a_time():
    with replicating(NOTES):
        pass
    count = 10_000 if SOAK else 1000
    with psycopg.connect(**psycopg_parameters(), autocommit=True) as session:
        session.execute("SET synchronous_commit = off")
        with session.pipeline():
            for number in range(count):
                session.execute("INSERT INTO note VALUES (%s, 'x')", (number,))
    [(before,)] = query("SELECT sum(n_tup_upd) FROM pg_stat_user_tables WHERE relname = 'localsync_checkpoint'")
    with replicating(NOTES):
        eventually(lambda: len(rows()), count)
    execute("SELECT pg_stat_clear_snapshot()")
    [(after,)] = query("SELECT sum(n_tup_upd) FROM pg_stat_user_tables WHERE relname = 'localsync_checkpoint'")
    assert after - before < count / 10


def psycopg_parameters() -> dict[str, object]:
    """Of the test database."""
    from django_localsync.storage.connections import connection_parameters

    return connection_parameters("default")
