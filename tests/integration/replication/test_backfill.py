"""Tables are read while the stream flows: whatever happens to them meanwhile, storage ends with what they hold."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from threading import Event, Lock, Thread
from typing import Any

import psycopg
import pytest

from django_localsync.replication import source_reader
from django_localsync.replication.backfills import Backfill, Backfills
from django_localsync.replication.marks import ChunkRead, CountBegun, Mark, Marks, RowsCounted
from django_localsync.replication.source_reader import SourceReader
from django_localsync.storage.connections import connect
from django_localsync.storage.sources import StoredBackfill, StoredTable
from django_localsync.sync_rules.plan import TableName
from tests.conftest import ROOT
from tests.processes import project_environment, running
from tests.replication import RunningReplicator, replicating
from tests.source import eventually, execute, open_transaction, query, rows, streams, values, wait_until

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("source")]

NOTES = streams(all="SELECT * FROM note")
ROWS = 60


class Reading:
    """The reading of tables, a block at a time; `then` runs when so many chunks were read and none is applied yet."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.chunks = 0
        self._then: dict[int, Callable[[], object]] = {}
        self._set, self._lock = Marks.set, Lock()
        patch.setattr(source_reader, "FIRST_CHUNK_BLOCKS", 1)
        patch.setattr(source_reader, "MAX_CHUNK_BLOCKS", 1)
        patch.setattr(Marks, "set", lambda marks, connection, mark: self._note(marks, connection, mark))

    def then(self, chunk: int, what: Callable[[], object]) -> None:
        """Do this once the chunk of this number (from 1) was read, before the stream hears of it."""
        self._then[chunk] = what

    def _note(self, marks: Marks, connection: psycopg.Connection, mark: Mark) -> None:
        if isinstance(mark, ChunkRead | CountBegun | RowsCounted):
            self.chunks += 1
            self._then.pop(self.chunks, lambda: None)()
        self._set(marks, connection, mark)

    @property
    def is_done(self) -> bool:
        """Whether everything that was to be done was done."""
        return not self._then


@pytest.fixture
def reading(monkeypatch: pytest.MonkeyPatch) -> Iterator[Reading]:
    """Chunks of one block each, of which a test knows."""
    reading = Reading(monkeypatch)
    yield reading
    assert reading.is_done, f"only {reading.chunks} chunks were read"


def make_notes(identity: str = "ALTER TABLE note ADD PRIMARY KEY (id)") -> None:
    """A table of about ten blocks, in order of ids, some with large values."""
    execute(
        f"CREATE TABLE note (id int NOT NULL, title text, body text); {identity};"
        "ALTER TABLE note ALTER title SET STORAGE PLAIN, ALTER body SET STORAGE EXTERNAL;"
        "INSERT INTO note SELECT i, rpad('t', 1200), CASE WHEN i % 2 = 0 THEN repeat(md5(i::text), 100) END"
        f"  FROM generate_series(1, {ROWS}) AS i"
    )


def source_rows() -> dict[str, dict[str, object]]:
    """What the rules say of the table now."""
    names = ("id", "title", "body")
    return {str(row[0]): dict(zip(names, row, strict=True)) for row in query("SELECT id, title, body FROM note")}


IDENTITIES = {
    "default": "ALTER TABLE note ADD PRIMARY KEY (id)",
    "full": "ALTER TABLE note ADD PRIMARY KEY (id); ALTER TABLE note REPLICA IDENTITY FULL",
    "full without a key": "ALTER TABLE note REPLICA IDENTITY FULL",
}
IDENTIFIED = pytest.mark.parametrize("identity", IDENTITIES.values(), ids=IDENTITIES)


@IDENTIFIED
def test_rows_change_in_every_way_while_they_are_read(identity, reading):
    make_notes(identity)
    keyless = "ADD" not in identity
    for chunk in range(1, 2 if keyless else 8):
        reading.then(
            chunk,
            lambda n=chunk: execute(
                f"INSERT INTO note VALUES ({ROWS + n}, 'new', repeat('n', 3000))",
                f"UPDATE note SET title = 'updated' WHERE id % 7 = {n % 7}",
                f"UPDATE note SET body = 'short' WHERE id = {n} OR id = {ROWS - n}",
                f"DELETE FROM note WHERE id IN ({n + 10}, {ROWS - 10 - n})",
                f"UPDATE note SET id = id + 1000 WHERE id IN ({n + 20}, {ROWS - 20 - n})",
                f"UPDATE note SET id = CASE id WHEN {n} THEN {ROWS - n} ELSE {n} END WHERE false",
                f"BEGIN; UPDATE note SET id = -1 WHERE id = {n}; UPDATE note SET id = {n} WHERE id = {ROWS - n};"
                f"UPDATE note SET id = {ROWS - n} WHERE id = -1; COMMIT",
                f"BEGIN; DELETE FROM note WHERE id = {n + 30}; INSERT INTO note VALUES ({n + 30}, 'again'); COMMIT",
                "BEGIN; UPDATE note SET title = 'rolled back'; ROLLBACK",
            ),
        )
    with replicating(NOTES) as replicator:
        replicator.catch_up()
        assert rows() == source_rows()


def test_rows_that_the_scan_has_not_reached_move_behind_it(reading):
    """An update writes a row where there is room: in blocks that were read, or at the end."""
    make_notes()
    execute("DELETE FROM note WHERE id <= 10", "VACUUM note")
    reading.then(3, lambda: execute(f"UPDATE note SET title = title WHERE id > {ROWS - 15}"))
    reading.then(5, lambda: execute(f"UPDATE note SET id = id + 1000 WHERE id > {ROWS - 5}"))
    with replicating(NOTES):
        assert rows() == source_rows()


@pytest.fixture
def voided(reading: Reading, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The third chunk is void, since a transaction touched more rows than are remembered; that shows as the fourth is
    being read. The list tells how often this came.
    """
    monkeypatch.setattr("django_localsync.pgoutput.snapshots.MAX_TOUCHED_KEYS", 3)
    evaluate, restart, times, is_void = source_reader.evaluate_rows, Backfills.restart, list[int](), Event()
    monkeypatch.setattr(
        Backfills, "restart", lambda self, backfill: (restart(self, backfill), times.append(1), is_void.set())
    )

    def slowly(*arguments: Any) -> Any:
        chunk = evaluate(*arguments)
        if reading.chunks == 2:
            execute("UPDATE note SET title = 'touched' WHERE id > 50")
        elif reading.chunks == 3:
            assert is_void.wait(20)
        return chunk

    set_mark = Marks.set

    def set_and_rest(self: Marks, connection: psycopg.Connection, mark: Mark) -> None:
        set_mark(self, connection, mark)
        if reading.chunks == 4 and isinstance(mark, ChunkRead):
            time.sleep(0.5)  # so that it is applied before the thread looks where to go on

    monkeypatch.setattr(source_reader, "evaluate_rows", slowly)
    monkeypatch.setattr(Marks, "set", set_and_rest)
    yield times
    assert times == [1]


def test_what_is_read_while_the_reading_begins_again_counts_for_nothing(voided):
    """It was behind the rows that are read again, and would have been taken for all that came before it."""
    make_notes()
    with replicating(NOTES):
        assert rows() == source_rows()


def test_large_values_of_rows_that_were_not_read_yet(reading):
    """The stream leaves them out, and the block they were in is not there any more when it is read."""
    make_notes()
    reading.then(1, lambda: execute(f"UPDATE note SET title = 'x' WHERE id > {ROWS - 10}"))
    reading.then(3, lambda: execute(f"UPDATE note SET id = id + 100 WHERE id > {ROWS - 10}"))
    reading.then(
        4,
        lambda: execute(
            f"UPDATE note SET title = 'y' WHERE id > {ROWS}", f"DELETE FROM note WHERE id = {ROWS + 100}", "VACUUM note"
        ),
    )
    with replicating(NOTES) as replicator:
        assert rows() == source_rows()
        execute("UPDATE note SET title = 'last'")
        replicator.catch_up()
        assert rows() == source_rows()


REWRITES = [
    "VACUUM FULL note",
    "CLUSTER note USING note_pkey",
    "ALTER TABLE note ALTER id TYPE bigint",
    "TRUNCATE note",
    "BEGIN; TRUNCATE note; INSERT INTO note VALUES (1, 'new', repeat('n', 3000)), (2, 'new', NULL); COMMIT",
    "BEGIN; CREATE TEMP TABLE t AS SELECT * FROM note; TRUNCATE note; INSERT INTO note SELECT * FROM t; COMMIT",
]


@pytest.mark.parametrize("statement", REWRITES, ids=[statement[:30] for statement in REWRITES])
def test_the_table_is_rewritten_while_it_is_read(statement, reading):
    """Blocks are others afterwards; what was read of the former ones stays true, and reading begins again."""
    make_notes()
    reading.then(2, lambda: execute(f"DELETE FROM note WHERE id IN (3, 4, {ROWS - 1})"))
    reading.then(
        4,
        lambda: execute(statement, "UPDATE note SET title = 'after' WHERE id % 5 = 0", "DELETE FROM note WHERE id = 1"),
    )
    with replicating(NOTES):
        eventually(rows, source_rows())


@pytest.mark.parametrize(
    "statement",
    [
        "ALTER TABLE note ADD extra int DEFAULT 5",
        "ALTER TABLE note DROP COLUMN body",
        "ALTER TABLE note RENAME body TO text",
        "ALTER TABLE note REPLICA IDENTITY FULL",
        "ALTER TABLE note DROP CONSTRAINT note_pkey, ADD PRIMARY KEY (id, title)",
        "DROP TABLE note; CREATE TABLE note (id int PRIMARY KEY, title text); INSERT INTO note VALUES (1, 'new')",
        "ALTER TABLE note RENAME TO other; ALTER TABLE other RENAME TO note",
    ],
    ids=lambda statement: statement[:40],
)
def test_the_schema_changes_while_the_table_is_read(statement, reading):
    make_notes()
    reading.then(3, lambda: execute(statement, "UPDATE note SET title = 'after' WHERE id = 1"))

    def expected() -> dict[str, dict[str, object]]:
        columns = [
            row[0]
            for row in query(
                "SELECT attname FROM pg_attribute WHERE attrelid = 'note'::regclass"
                " AND attnum > 0 AND NOT attisdropped ORDER BY attnum"
            )
        ]
        return {str(row[0]): dict(zip(columns, row, strict=True)) for row in query("SELECT * FROM note")}

    with replicating(NOTES) as replicator:
        eventually(rows, expected())
        execute("UPDATE note SET title = 'last'")
        replicator.catch_up()
        eventually(rows, expected())


def test_the_table_is_dropped_while_it_is_read(reading):
    make_notes()
    reading.then(3, lambda: execute("DROP TABLE note"))
    with replicating(NOTES):
        eventually(rows, {})


def test_a_table_without_a_key_is_a_multiset(reading):
    execute("CREATE TABLE line (a int, b text); ALTER TABLE line REPLICA IDENTITY FULL")
    execute("INSERT INTO line SELECT i % 3, repeat('b', 500) FROM generate_series(1, 60) AS i")
    one = "ctid = (SELECT max(ctid) FROM line WHERE a = {})"
    reading.then(
        1,
        lambda: execute(
            f"DELETE FROM line WHERE {one.format(0)}",
            "DELETE FROM line WHERE a = 1",
            f"UPDATE line SET a = 5 WHERE {one.format(2)}",
            "INSERT INTO line VALUES (1, repeat('b', 500)), (7, 'x'), (7, 'x')",
            "DELETE FROM line WHERE ctid = (SELECT max(ctid) FROM line WHERE a = 7)",
        ),
    )
    with replicating(streams(all="SELECT a AS id FROM line")) as replicator:
        replicator.catch_up()
        assert set(rows()) == {"0", "1", "2", "5", "7"}
        for number, left in (
            (0, 19),
            (2, 19),
            (1, 1),
            (5, 1),
            (7, 1),
        ):  # each copy that is deleted but the last one stays
            assert query(f"SELECT count(*) FROM line WHERE a = {number}") == [(left,)]
            for _ in range(left - 1):
                execute(f"DELETE FROM line WHERE {one.format(number)}")
            replicator.catch_up()
            assert str(number) in rows()
            execute(f"DELETE FROM line WHERE a = {number}")
            replicator.catch_up()
            assert str(number) not in rows()


def test_rows_of_a_table_without_a_key_go_while_they_are_counted(reading, monkeypatch):
    """A deletion may come through before the row that it deletes was counted."""
    monkeypatch.setattr(source_reader, "CHUNK_ROWS", 10)
    execute("CREATE TABLE line (a int, b text); ALTER TABLE line REPLICA IDENTITY FULL")
    execute("INSERT INTO line SELECT i % 30, 'x' FROM generate_series(1, 90) AS i")
    for chunk in range(2, 6):
        reading.then(
            chunk,
            lambda n=chunk: execute(
                f"DELETE FROM line WHERE a IN ({n}, {30 - n})",
                f"UPDATE line SET a = 100 WHERE a = {10 + n}",
                f"INSERT INTO line VALUES ({n + 50}, 'x'), ({n}, 'x')",
                f"DELETE FROM line WHERE ctid = (SELECT max(ctid) FROM line WHERE a = {5 + n})",
            ),
        )
    with replicating(streams(all="SELECT a AS id FROM line")) as replicator:
        check_multiset(replicator)


def test_a_table_without_a_key_is_emptied_while_it_is_counted(reading, monkeypatch):
    """TRUNCATE waits until the last row was read, and comes before or after the mark that tells so."""
    monkeypatch.setattr(source_reader, "CHUNK_ROWS", 10)
    execute("CREATE TABLE line (a int, b text); ALTER TABLE line REPLICA IDENTITY FULL")
    execute("INSERT INTO line SELECT i % 30, 'x' FROM generate_series(1, 90) AS i")

    def empty() -> None:
        with connect("default") as session:
            session.execute("TRUNCATE line")
            session.execute("INSERT INTO line SELECT i % 3, 'x' FROM generate_series(1, 9) AS i")

    truncating = Thread(target=empty)
    reading.then(4, truncating.start)
    with replicating(streams(all="SELECT a AS id FROM line")) as replicator:
        truncating.join()
        check_multiset(replicator)


def check_multiset(replicator: RunningReplicator) -> None:
    """Rows are those of the table, and go with their last copy."""
    while found := {str(key) for (key,) in query("SELECT DISTINCT a FROM line")}:
        replicator.catch_up()
        assert set(rows()) == found
        execute("DELETE FROM line WHERE ctid IN (SELECT max(ctid) FROM line GROUP BY a)")
    replicator.catch_up()
    assert rows() == {}


def test_a_restart_resumes_where_the_reading_was(reading):
    make_notes()
    stopped = Event()
    reading.then(6, stopped.wait)
    running = RunningReplicator(RULES=NOTES)
    try:
        wait_until(lambda: progress() >= 3, "some chunks are stored")
        execute("UPDATE note SET title = 'x' WHERE id < 5", f"DELETE FROM note WHERE id > {ROWS - 5}")
    finally:
        stopped.set()
        running.stop()
    read = reading.chunks
    with replicating(NOTES):
        assert rows() == source_rows()
    assert reading.chunks - read < read + 3, "it began again"


def progress() -> int:
    """How many blocks are done."""
    return query("SELECT coalesce(max(block), 0) FROM localsync_backfill")[0][0]


SLOW = """
import time
from django_localsync.replication import source_reader
from django_localsync.replication.marks import ChunkRead, Marks
set_mark = Marks.set
def slowly(marks, connection, mark):
    if isinstance(mark, ChunkRead):
        print("read until block", mark.next_block, flush=True)
        time.sleep(0.05)
    set_mark(marks, connection, mark)
Marks.set, source_reader.FIRST_CHUNK_BLOCKS, source_reader.MAX_CHUNK_BLOCKS = slowly, 1, 1
import os, sys
from django.core.management import execute_from_command_line
execute_from_command_line(["manage.py", "run_replicator"])
"""


def test_a_killed_replicator_resumes_at_the_chunk(fresh_database):
    """kill -9, twice; meanwhile rows of every part of the table change."""
    blocks: list[list[int]] = []
    active = "SELECT count(*) FROM localsync_rule_set WHERE state = 'active'"
    with psycopg.connect(fresh_database, autocommit=True) as session:
        session.execute(
            "INSERT INTO auth_user (id, username, password, first_name, last_name, email, is_superuser, is_staff,"
            " is_active, date_joined) VALUES (1, 'ann', '!', '', '', '', false, false, true, now())"
        )
        session.execute(
            "INSERT INTO lists (id, name, owner_id, created_at)"
            " SELECT gen_random_uuid(), repeat('n', 90), 1, now() FROM generate_series(1, 3000)"
        )
        for attempt in range(3):
            command = (sys.executable, "-c", SLOW)
            environment = project_environment(fresh_database, {"PYTHONPATH": str(ROOT)})
            with running("replicator", *command, environment=environment) as process:
                if attempt < 2:
                    wait_until(lambda log=process: len(_blocks(log.log)) > 5, "some chunks were read")
                    session.execute("UPDATE lists SET name = left(name, 5) WHERE random() < 0.1")
                    session.execute("DELETE FROM lists WHERE random() < 0.01")
                    process.kill()
                else:
                    wait_until(lambda: session.execute(active).fetchone() == (1,), "the rules are served")
                blocks.append(_blocks(process.log))
        assert blocks[0][0] == 1
        assert 1 < blocks[1][0] <= blocks[0][-1] + 1
        assert blocks[1][0] < blocks[2][0] <= blocks[1][-1] + 1
        stored = session.execute("""
            SELECT data::json ->> 'id', data::json ->> 'name' FROM (
                SELECT DISTINCT ON (row_id, subkey) kind, data FROM localsync_bucket_operation
                 WHERE row_type = 'lists' ORDER BY row_id, subkey, op_id DESC) AS newest WHERE kind = 1
        """)
        assert dict(stored.fetchall()) == dict(session.execute("SELECT id::text, name FROM lists").fetchall())


def _blocks(log: str) -> list[int]:
    lines = [line for line in log.splitlines() if line.startswith("read until block")]
    return [int(line.split()[-1]) for line in lines]


def test_a_long_transaction_is_waited_for_and_named(caplog, monkeypatch):
    """What it did before the table was published is in no stream, so the table is read when it has ended."""
    monkeypatch.setattr("django_localsync.replication.waiting.SAY_WHO_AFTER_S", 0.1)
    execute("CREATE TABLE other (id int PRIMARY KEY)")
    make_notes()
    with replicating(streams(others="SELECT id FROM other")):
        pass
    long = open_transaction("UPDATE note SET title = 'late' WHERE id = 1", "INSERT INTO note VALUES (999, 'late')")
    with long as old:
        running = RunningReplicator(RULES=streams(others="SELECT id FROM other", all="SELECT * FROM note"))
        wait_until(lambda: f"note waits for process {old.info.backend_pid}" in caplog.text, "who is waited for is told")
        assert query("SELECT phase FROM localsync_backfill") == [("waiting",)]
        assert rows() == {}
    running.catch_up()
    assert rows() == source_rows()
    running.stop()


def test_a_transaction_that_is_older_than_the_slot_is_waited_for_and_named(caplog, monkeypatch):
    monkeypatch.setattr("django_localsync.replication.waiting.SAY_WHO_AFTER_S", 0.1)
    make_notes()
    with open_transaction("UPDATE note SET title = 'late' WHERE id = 1") as old:
        running = RunningReplicator(RULES=NOTES)
        wait_until(lambda: f"waits for process {old.info.backend_pid}" in caplog.text, "who is waited for is told")
    running.catch_up()
    assert rows() == source_rows()
    running.stop()


def test_a_replicator_that_waits_to_make_its_slot_can_be_stopped():
    make_notes()
    with open_transaction("UPDATE note SET title = 'late' WHERE id = 1"):
        running = RunningReplicator(RULES=NOTES)
        making = "SELECT count(*) FROM pg_replication_slots WHERE database = current_database()"
        wait_until(lambda: query(making) == [(1,)], "a slot is being made")
        running.stop()
        wait_until(lambda: query(making) == [(0,)], "no slot is left")
    assert running.error is None


def test_served_tables_stay_live_while_another_is_read(reading):
    make_notes()
    execute("CREATE TABLE other (id int PRIMARY KEY); INSERT INTO other VALUES (1)")
    others = {"others": "SELECT id FROM other"}
    go_on = Event()
    with replicating(streams(**others)):
        pass
    reading.then(reading.chunks + 3, go_on.wait)
    running = RunningReplicator(RULES=streams(**others, all="SELECT * FROM note"))
    try:
        wait_until(lambda: reading.is_done, "the third chunk is being read")
        execute("INSERT INTO other VALUES (2)", "UPDATE note SET title = 'x' WHERE id = 1")
        eventually(lambda: set(rows("others|0[]")), {"1", "2"})
        assert rows() == {}
    finally:
        go_on.set()
    eventually(rows, source_rows())
    running.stop()


def test_the_slot_advances_while_a_table_is_read(reading):
    make_notes()
    go_on = Event()
    reading.then(3, go_on.wait)
    running = RunningReplicator(RULES=NOTES)
    confirmed = "SELECT confirmed_flush_lsn FROM pg_replication_slots WHERE database = current_database()"
    try:
        wait_until(lambda: reading.is_done, "the third chunk is being read")
        before = query(confirmed)
        execute("INSERT INTO note VALUES (1000, 'new')")
        wait_until(lambda: query(confirmed) > before, "the slot advances")
    finally:
        go_on.set()
    running.catch_up()
    assert rows() == source_rows()
    running.stop()


def test_two_tables_and_a_new_definition_of_one_that_is_read_already(reading):
    make_notes()
    execute("CREATE TABLE other AS SELECT * FROM note; ALTER TABLE other ADD PRIMARY KEY (id)")
    first = {"all": "SELECT * FROM note", "others": "SELECT id, title FROM other"}
    stop = Event()
    reading.then(4, stop.wait)
    running = RunningReplicator(RULES=streams(**first))
    wait_until(lambda: reading.is_done, "the fourth chunk is being read")
    stop.set()
    running.stop()
    execute("UPDATE note SET title = 'between'", "UPDATE other SET title = 'between' WHERE id < 5")
    with replicating(streams(**first, more="SELECT id, body FROM other")) as replicator:
        replicator.catch_up()
        eventually(rows, source_rows())
        assert len(rows("others|0[]")) == len(rows("more|0[]")) == ROWS
        assert values("title", "others|0[]")["4"] == "between"


def test_two_readings_of_one_new_table_begin_together(reading, monkeypatch, caplog):
    """Neither finds a row in the first blocks; then each brings rows that the other one has not read yet."""
    caplog.set_level("INFO")
    monkeypatch.setattr("django_localsync.replication.backfills.MAX_ON_THE_WAY", 1)
    make_notes()
    execute("DELETE FROM note WHERE id <= 30", "CREATE TABLE other (id int PRIMARY KEY)")
    rules = {"others": "SELECT * FROM other"}
    with replicating(streams(**rules)):
        pass
    waiting = "SELECT count(*) FROM localsync_backfill WHERE phase = 'waiting'"
    with open_transaction("INSERT INTO other VALUES (1)"):
        rules["all"] = "SELECT * FROM note"
        replicator = RunningReplicator(RULES=streams(**rules))
        wait_until(lambda: query(waiting) == [(1,)])
        replicator.stop()
        rules["ids"] = "SELECT id FROM note"
        replicator = RunningReplicator(RULES=streams(**rules))
        wait_until(lambda: query(waiting) == [(2,)])
    try:
        replicator.catch_up()
        assert rows() == source_rows()
        assert rows("ids|0[]").keys() == source_rows().keys()
    finally:
        replicator.stop()
    assert "held equal keys" not in caplog.text


@pytest.mark.parametrize("moment", ["before", "while it waits"])
def test_a_table_is_given_up_while_its_rows_are_counted(moment):
    """The reading thread waits for chunks to be applied; those of a table that is not read any more never are."""
    backfills, marks = Backfills(), Marks()
    stored = StoredBackfill(1, 1, frozenset(), False, False, (), True, "waiting", None, 0, 0, 0, 0)
    backfill = Backfill(stored, StoredTable(1, 1, TableName("public", "note"), "row", (), (), True))
    backfills.add(backfill)
    backfill.on_the_way = 5
    reader = SourceReader("default", "localsync", (), backfills, marks, 0, {}, "slot")
    answers: list[bool] = []
    reading = Thread(target=lambda: answers.append(reader._may_send(backfill, backfill.attempt)))
    if moment == "before":
        backfills.end(1)
        reading.start()
    else:
        reading.start()
        wait_until(lambda: backfill.on_the_way == 6)
        backfills.end(1)

    reading.join(10)
    assert answers == [False]
