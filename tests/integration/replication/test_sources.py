"""Several databases feed one bucket storage: shards with the same tables, or unrelated ones."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from django.db import connection

from example_project.database_url import parse_url
from tests.databases import temporary_database
from tests.replication import RunningReplicator
from tests.servers import database_alias
from tests.source import eventually, execute, query, snapshot, streams

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("source")]

NOTES = streams(all="SELECT id, owner, title FROM note", mine="SELECT id, title FROM note WHERE owner = auth.user_id()")
BOTH = {"SOURCES": ["default", "shard2"]}
SCHEMA = "CREATE TABLE note (id int PRIMARY KEY, owner text, title text)"


class Shard:
    """A second database, under the alias `shard2`."""

    def __init__(self, url: str, server_url: str) -> None:
        self._url, self._server_url, self.name = url, server_url, parse_url(url)["NAME"]

    def execute(self, *statements: str) -> None:
        """Run SQL in it; each text is a transaction of its own."""
        with psycopg.connect(self._url, autocommit=True) as session:
            for statement in statements:
                session.execute(statement)

    def query(self, statement: str) -> list[tuple[Any, ...]]:
        """Ask it."""
        with psycopg.connect(self._url, autocommit=True) as session:
            return session.execute(statement).fetchall()

    def close(self) -> None:
        """Nobody gets in any more, and whoever is in is sent away."""
        self._administer(f"ALTER DATABASE {self.name} ALLOW_CONNECTIONS false")
        self._administer(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{self.name}'")

    def open(self) -> None:
        """It can be reached again."""
        self._administer(f"ALTER DATABASE {self.name} ALLOW_CONNECTIONS true")

    def _administer(self, statement: str) -> None:
        with psycopg.connect(self._server_url, autocommit=True) as session:
            session.execute(statement)


@pytest.fixture
def shard(server_url: str) -> Iterator[Shard]:
    """A second source."""
    with temporary_database(server_url) as url, database_alias("shard2", url):
        shard = Shard(url, server_url)
        yield shard
        shard.open()


@pytest.fixture
def replicators() -> Iterator[list[RunningReplicator]]:
    """Those that a test began; stopped afterwards."""
    running: list[RunningReplicator] = []
    yield running
    for replicator in running:
        replicator.stop()
        assert replicator.error is None


def titles(bucket: str = "all|0[]") -> list[tuple[str, str]]:
    """Row id and title of every row of the bucket that any shard holds; a client shows one per id."""
    found = query(f"""
        SELECT row_id, data::json ->> 'title' FROM (
            SELECT DISTINCT ON (operation.row_type, row_id, subkey) row_id, data, operation.kind
              FROM localsync_bucket_operation AS operation
              JOIN localsync_bucket AS bucket ON bucket.id = operation.bucket_id
              JOIN localsync_definition AS definition ON definition.id = bucket.definition_id
             WHERE definition.state = 'served' AND definition.name || parameters = '{bucket}'
             ORDER BY operation.row_type, row_id, subkey, operation.op_id DESC) AS newest
         WHERE kind = 1
    """)
    snapshot()  # for what it checks
    return sorted(found)


def test_shards_with_the_same_tables_meet_in_the_same_buckets(shard, replicators):
    execute(SCHEMA, "INSERT INTO note VALUES (1, 'ann', 'one'), (2, 'bob', 'two')")
    shard.execute(SCHEMA, "INSERT INTO note VALUES (1, 'ann', 'eins'), (3, 'ann', 'drei')")
    replicators.append(RunningReplicator(RULES=NOTES, **BOTH))
    eventually(titles, [("1", "eins"), ("1", "one"), ("2", "two"), ("3", "drei")])
    assert titles('mine|0["ann"]') == [("1", "eins"), ("1", "one"), ("3", "drei")]

    execute("UPDATE note SET title = 'ONE' WHERE id = 1", "DELETE FROM note WHERE id = 2")
    shard.execute("DELETE FROM note WHERE id = 1", "UPDATE note SET owner = 'bob' WHERE id = 3")
    eventually(titles, [("1", "ONE"), ("3", "drei")])
    assert titles('mine|0["ann"]') == [("1", "ONE")]
    assert titles('mine|0["bob"]') == [("3", "drei")]


def test_unrelated_databases(shard, replicators):
    execute("CREATE TABLE note (id int PRIMARY KEY, title text); INSERT INTO note VALUES (1, 'one')")
    shard.execute("CREATE TABLE other (id int PRIMARY KEY, title text)", "INSERT INTO other VALUES (1, 'eins')")
    rules = streams(all=["SELECT * FROM note", "SELECT * FROM other"])
    replicators.append(RunningReplicator(RULES=rules, **BOTH))
    eventually(titles, [("1", "eins"), ("1", "one")])
    execute("INSERT INTO note VALUES (2, 'two')")
    shard.execute("INSERT INTO other VALUES (3, 'drei')")
    eventually(titles, [("1", "eins"), ("1", "one"), ("2", "two"), ("3", "drei")])


def test_a_restart_continues_both(shard, replicators):
    execute(SCHEMA, "INSERT INTO note VALUES (1, 'ann', 'one')")
    shard.execute(SCHEMA, "INSERT INTO note VALUES (2, 'ann', 'zwei')")
    replicators.append(RunningReplicator(RULES=NOTES, **BOTH))
    eventually(titles, [("1", "one"), ("2", "zwei")])
    replicators[0].stop()
    count = "SELECT count(*) FROM localsync_bucket_operation"
    before = query(count)

    execute("INSERT INTO note VALUES (3, 'ann', 'three')")
    shard.execute("INSERT INTO note VALUES (4, 'ann', 'vier')")
    replicators.append(RunningReplicator(RULES=NOTES, **BOTH))
    eventually(titles, [("1", "one"), ("2", "zwei"), ("3", "three"), ("4", "vier")])
    assert query(count) == [(before[0][0] + 4,)]  # two streams


def test_one_source_is_down_and_the_other_goes_on(shard, replicators):
    execute(SCHEMA, "INSERT INTO note VALUES (1, 'ann', 'one')")
    shard.execute(SCHEMA, "INSERT INTO note VALUES (2, 'ann', 'zwei')")
    replicators.append(RunningReplicator(RULES=NOTES, **BOTH))
    eventually(titles, [("1", "one"), ("2", "zwei")])

    shard.execute("UPDATE note SET title = 'ZWEI'")
    shard.close()
    for number in range(3, 6):
        execute(f"INSERT INTO note VALUES ({number}, 'ann', 'more')")
        eventually(lambda number=number: (str(number), "more") in titles(), True)
    shard.open()
    eventually(titles, [("1", "one"), ("2", "ZWEI"), ("3", "more"), ("4", "more"), ("5", "more")])


def test_one_source_is_down_from_the_beginning(shard, replicators):
    """What the rules say of it is unknown, so nothing is served yet; it is as soon as it can be reached."""
    execute(SCHEMA, "INSERT INTO note VALUES (1, 'ann', 'one')")
    shard.execute(SCHEMA, "INSERT INTO note VALUES (2, 'ann', 'zwei')")
    shard.close()
    replicators.append(RunningReplicator(RULES=NOTES, **BOTH))
    execute("INSERT INTO note VALUES (3, 'ann', 'three')")
    shard.open()
    eventually(titles, [("1", "one"), ("2", "zwei"), ("3", "three")])


def test_a_source_is_added_and_taken_away(shard, replicators):
    execute(SCHEMA, "INSERT INTO note VALUES (1, 'ann', 'one')")
    shard.execute(SCHEMA, "INSERT INTO note VALUES (2, 'ann', 'zwei')")
    replicators.append(RunningReplicator(RULES=NOTES, SOURCES=["default"]))
    eventually(titles, [("1", "one")])
    replicators[-1].stop()
    replicators.append(RunningReplicator(RULES=NOTES, **BOTH))
    eventually(titles, [("1", "one"), ("2", "zwei")])
    replicators[-1].stop()
    replicators.append(RunningReplicator(RULES=NOTES, SOURCES=["default"]))
    eventually(titles, [("1", "one")])
    execute("UPDATE note SET title = 'ONE'")
    eventually(titles, [("1", "ONE")])
    assert shard.query("SELECT slot_name FROM pg_replication_slots WHERE database = current_database()") == []
    assert shard.query("SELECT pubname FROM pg_publication") == []


def test_a_source_that_cannot_be_reached_is_taken_away(shard, replicators, caplog):
    """Its rows go; what is left at its server is told."""
    execute(SCHEMA, "INSERT INTO note VALUES (1, 'ann', 'one')")
    shard.execute(SCHEMA, "INSERT INTO note VALUES (2, 'ann', 'zwei')")
    replicators.append(RunningReplicator(RULES=NOTES, **BOTH))
    eventually(titles, [("1", "one"), ("2", "zwei")])
    replicators[-1].stop()
    shard.close()
    replicators.append(RunningReplicator(RULES=NOTES, SOURCES=["default"]))
    eventually(titles, [("1", "one")])
    eventually(lambda: "pg_drop_replication_slot" in caplog.text, True)


def test_a_shard_whose_slot_is_lost_is_read_again_and_the_other_is_not(shard, replicators):
    execute(SCHEMA, "INSERT INTO note VALUES (1, 'ann', 'one')")
    shard.execute(SCHEMA, "INSERT INTO note VALUES (2, 'ann', 'zwei'), (3, 'ann', 'drei')")
    replicators.append(RunningReplicator(RULES=NOTES, **BOTH))
    eventually(titles, [("1", "one"), ("2", "zwei"), ("3", "drei")])
    replicators[-1].stop()
    shard.execute(
        "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE database = current_database()",
        "DELETE FROM note WHERE id = 2",
        "UPDATE note SET title = 'DREI'",
    )
    execute("INSERT INTO note VALUES (4, 'ann', 'four')")
    replicators.append(RunningReplicator(RULES=NOTES, **BOTH))
    eventually(titles, [("1", "one"), ("3", "DREI"), ("4", "four")])


def test_a_write_checkpoint_waits_for_every_source(shard, replicators):
    execute(SCHEMA)
    shard.execute(SCHEMA)
    replicators.append(RunningReplicator(RULES=NOTES, **BOTH))
    eventually(lambda: query("SELECT count(*) FROM localsync_rule_set WHERE state = 'active'"), [(1,)])
    execute("INSERT INTO note VALUES (1, 'ann', 'one')")
    shard.execute("INSERT INTO note VALUES (2, 'ann', 'zwei')")
    request_write_checkpoint(shard)
    eventually(_reached, True)
    assert titles() == [("1", "one"), ("2", "zwei")]

    shard.execute("UPDATE note SET title = 'ZWEI'")
    request_write_checkpoint(shard)
    shard.close()
    execute("INSERT INTO note VALUES (3, 'ann', 'three')")
    eventually(lambda: ("3", "three") in titles(), True)
    assert not _reached() or ("2", "ZWEI") in titles()
    shard.open()
    eventually(_reached, True)
    assert titles() == [("1", "one"), ("2", "ZWEI"), ("3", "three")]


def request_write_checkpoint(shard: Shard) -> None:
    """What the view does for ann: positions of both sources, then messages behind them."""
    position = "SELECT (pg_current_wal_insert_lsn() - '0/0'::pg_lsn)::bigint"
    positions = {"default": query(position)[0][0], "shard2": shard.query(position)[0][0]}
    execute(
        "INSERT INTO localsync_write_checkpoint (user_key, client_id, number, positions, requested_at)"
        f" VALUES ('ann', 'device', 1, '{json.dumps(positions)}', now())"
        " ON CONFLICT (user_key, client_id) DO UPDATE SET number = localsync_write_checkpoint.number + 1,"
        " positions = excluded.positions"
    )
    for run in (execute, shard.execute):
        run("SELECT pg_logical_emit_message(true, 'localsync', '1')")


def _reached() -> bool:
    """Whether readers may announce ann's receipt: each source has passed its own position."""
    with connection.cursor() as cursor:
        cursor.execute("""
            SELECT bool_and(source.lsn >= position.value::bigint)
              FROM localsync_write_checkpoint, jsonb_each_text(positions) AS position
              LEFT JOIN localsync_source AS source ON source.alias = position.key
             WHERE user_key = 'ann'
        """)
        assert cursor.rowcount == 1
        return bool(cursor.fetchone()[0])
