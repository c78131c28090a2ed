"""Partitions are tables of their own, read under one name by a wildcard; they come, go and exchange rows."""

from __future__ import annotations

import pytest

from tests.replication import replicating
from tests.source import eventually, execute, query, rows, streams

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("source")]

EVENTS = streams(all='SELECT id, day, title FROM "event_%" AS event')


def make_events() -> None:
    """A partitioned table with two partitions and a row in each."""
    execute(
        "CREATE TABLE event (id int, day int, title text, PRIMARY KEY (id, day)) PARTITION BY RANGE (day);"
        "CREATE TABLE event_1 PARTITION OF event FOR VALUES FROM (0) TO (10);"
        "CREATE TABLE event_2 PARTITION OF event FOR VALUES FROM (10) TO (20);"
        "INSERT INTO event VALUES (1, 5, 'one'), (2, 15, 'two')"
    )


def source_rows() -> dict[str, dict[str, object]]:
    """What the rules say of the partitions of now."""
    found = query("SELECT id, day, title FROM event")
    return {str(row[0]): dict(zip(("id", "day", "title"), row, strict=True)) for row in found}


def test_rows_change_and_move_between_partitions():
    make_events()
    with replicating(EVENTS) as replicator:
        execute("INSERT INTO event VALUES (3, 3, 'three')", "UPDATE event SET day = 16 WHERE id = 1")
        execute("UPDATE event SET title = 'TWO', day = day - 10 WHERE id = 2", "DELETE FROM event WHERE id = 3")
        replicator.catch_up()
        assert rows() == source_rows()


def test_a_partition_is_added():
    make_events()
    with replicating(EVENTS) as replicator:
        execute("CREATE TABLE event_3 PARTITION OF event FOR VALUES FROM (20) TO (30)")
        execute("INSERT INTO event VALUES (4, 25, 'four')", "UPDATE event SET day = 26 WHERE id = 1")
        eventually(rows, source_rows())
        replicator.catch_up()


def test_a_partition_is_attached_with_its_rows():
    make_events()
    with replicating(EVENTS) as replicator:
        execute(
            "CREATE TABLE waiting (id int, day int NOT NULL, title text); INSERT INTO waiting VALUES (5, 35, 'five')"
        )
        execute("ALTER TABLE waiting ADD PRIMARY KEY (id, day)", "ALTER TABLE waiting RENAME TO event_4")
        execute("ALTER TABLE event ATTACH PARTITION event_4 FOR VALUES FROM (30) TO (40)")
        execute("UPDATE event SET title = 'FIVE' WHERE id = 5")
        eventually(rows, source_rows())
        replicator.catch_up()


def test_a_partition_is_detached_and_leaves_the_rules():
    make_events()
    with replicating(EVENTS) as replicator:
        execute("ALTER TABLE event DETACH PARTITION event_2", "ALTER TABLE event_2 RENAME TO archived_2")
        eventually(rows, source_rows())
        execute("DROP TABLE event_1")
        eventually(rows, {})
        replicator.catch_up()


def test_a_detached_partition_that_keeps_its_name_is_still_a_table_of_the_rules():
    make_events()
    with replicating(EVENTS) as replicator:
        execute("ALTER TABLE event DETACH PARTITION event_2", "UPDATE event_2 SET title = 'TWO'")
        eventually(lambda: {row["title"] for row in rows().values()}, {"one", "TWO"})
        replicator.catch_up()


def test_a_partition_is_split_in_one_transaction():
    make_events()
    with replicating(EVENTS) as replicator:
        execute(
            "BEGIN; ALTER TABLE event DETACH PARTITION event_2; ALTER TABLE event_2 RENAME TO old_2;"
            "CREATE TABLE event_2a PARTITION OF event FOR VALUES FROM (10) TO (15);"
            "CREATE TABLE event_2b PARTITION OF event FOR VALUES FROM (15) TO (20);"
            "INSERT INTO event SELECT * FROM old_2; DROP TABLE old_2; INSERT INTO event VALUES (9, 11, 'nine'); COMMIT"
        )
        eventually(rows, source_rows())
        replicator.catch_up()


def test_truncate_of_the_parent_and_of_one_partition():
    make_events()
    with replicating(EVENTS) as replicator:
        execute("TRUNCATE event_1")
        replicator.catch_up()
        assert set(rows()) == {"2"}
        execute("BEGIN; TRUNCATE event; INSERT INTO event VALUES (6, 6, 'six'); COMMIT")
        replicator.catch_up()
        assert rows() == source_rows()


def test_a_column_is_added_to_all_partitions():
    make_events()
    with replicating(streams(all='SELECT * FROM "event_%" AS event')) as replicator:
        execute("ALTER TABLE event ADD extra int DEFAULT 3", "UPDATE event SET extra = 4 WHERE id = 2")
        eventually(lambda: {row_id: row.get("extra") for row_id, row in rows().items()}, {"1": 3, "2": 4})
        replicator.catch_up()


def test_the_parent_under_full_identity():
    """Replica identity is each partition's own."""
    make_events()
    execute("ALTER TABLE event_1 REPLICA IDENTITY FULL")
    with replicating(EVENTS) as replicator:
        execute("UPDATE event SET day = 15 WHERE id = 1", "UPDATE event SET day = 5 WHERE id = 2")
        execute("UPDATE event SET id = id + 10")
        replicator.catch_up()
        assert rows() == source_rows()
