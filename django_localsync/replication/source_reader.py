"""Reads a source beside the stream: its catalogue again and again, and tables chunk by chunk.

A thread of its own with connections of its own. Whatever it reads takes effect when its mark comes through the stream,
see marks.py and `pgoutput/snapshots.py`, so it needs no lock on the follower's state.
"""

from __future__ import annotations

import logging
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from threading import Event, Thread
from time import monotonic

import orjson
import psycopg
from psycopg import sql

from ..pgoutput.snapshots import Snapshot
from ..storage.connections import connect_for_rows
from ..storage.rule_sets import Feed
from .backfills import Backfill, Backfills
from .changes import ReplicatedTable, Row, evaluate_rows
from .copying import copy_out
from .heartbeat import Heartbeat
from .layout import LayoutBuilder
from .marks import Activation, CatalogRead, ChunkRead, CountBegun, Marks, RowsCounted, TableRead, emit
from .publication import publication_marks, publish_tables
from .slot import SlotWatch
from .tables import HASHED, CatalogTable, read_table, read_tables
from .waiting import Waiting

logger = logging.getLogger(__name__)

CATALOG_INTERVAL_S = 1.0
CHUNK_ROWS = 5000
FIRST_CHUNK_BLOCKS = 8  # so that rows of a megabyte do not fill memory before their size is known
MAX_CHUNK_BLOCKS = 4096
CHUNK_BYTES = 8 << 20  # of text
LOCK_TIMEOUT_MS = 500
BLOCK_BYTES = 8192


class SourceReader(Thread):
    """Runs until `stop`; `failure` is what ended it otherwise."""

    def __init__(
        self,
        alias: str,
        publication: str,
        feeds: Sequence[Feed],
        backfills: Backfills,
        marks: Marks,
        heartbeat_interval_s: float,
        published: Mapping[str, str],
        slot: str,
    ) -> None:
        """`published` are the marks of what is published of each table, by oid, as of the last life's last look."""
        super().__init__(name=f"localsync reader of {alias}", daemon=True)
        self._alias, self._publication, self._feeds = alias, publication, feeds
        self._backfills, self._marks = backfills, marks
        self._heartbeat_interval_s, self._slot = heartbeat_interval_s, slot
        self._stopping = Event()
        self._passed_commit = Event()
        self._shapes: list[object] | None = None
        self._published = {int(oid): mark for oid, mark in published.items()}
        self._catalog_due = 0.0
        self._plans: dict[int, _Reading] = {}
        self.failure: BaseException | None = None

    def stop(self) -> None:
        """End as soon as possible, and wait for the end."""
        self._stopping.set()
        with self._backfills.changed:
            self._backfills.changed.notify_all()
        if self.ident is not None:
            self.join()

    def note_commit(self) -> None:
        """A commit of the source has come through, so no heartbeat is needed."""
        self._passed_commit.set()

    def run(self) -> None:
        """Read what is due, again and again."""
        try:
            with closing(connect_for_rows(self._alias)) as source, closing(connect_for_rows(self._alias)) as marker:
                self._source, self._marker = source, marker
                self._layouts = LayoutBuilder(source, self._feeds)
                source.execute(f"SET lock_timeout = {LOCK_TIMEOUT_MS}")
                heartbeat = Heartbeat(marker, self._heartbeat_interval_s)
                watch = SlotWatch(marker, self._slot)
                while not self._stopping.is_set():
                    if self._passed_commit.is_set():
                        self._passed_commit.clear()
                        heartbeat.note_commit()
                    watch.look_when_due()
                    self._step(heartbeat)
        except Exception as error:
            self.failure = error

    def _step(self, heartbeat: Heartbeat) -> None:
        if monotonic() >= self._catalog_due or self._backfills.catalog_in_doubt:
            try:
                self._watch_catalog()
            except psycopg.errors.LockNotAvailable as error:
                logger.info("%s: %s; what is published is looked at later", self._alias, error.diag.message_primary)
                self._shapes = None  # nothing that was to be told is forgotten
                self._catalog_due = monotonic() + CATALOG_INTERVAL_S
        heartbeat.beat_when_due()
        backfill = self._backfills.next_to_read()
        if backfill is None:
            with self._backfills.changed:
                self._backfills.changed.wait(min(max(self._catalog_due - monotonic(), 0.001), 0.25))
            return
        try:
            self._read(backfill)
        except (psycopg.errors.LockNotAvailable, psycopg.errors.UndefinedTable) as error:
            logger.info("%s: %s; the table is read later", backfill.table.name, error.diag.message_primary)
            self._pause(0.2)

    def _watch_catalog(self) -> None:
        """Tell the follower when tables, or what is published of them, are not what they were; or when it asks."""
        in_doubt = self._backfills.take_doubt()
        tables = read_tables(self._source, self._layouts.uses)
        unpublished = publish_tables(self._source, self._publication, tables)
        shapes, published = [_shape(table) for table in tables], publication_marks(self._source, self._publication)
        if in_doubt or (shapes, published) != (self._shapes, self._published):
            before = self._published
            altered = {table.name for table in tables if before.get(table.oid) not in (None, published.get(table.oid))}
            self._marks.set(self._marker, CatalogRead(tables, frozenset(unpublished | altered), published))
            self._shapes, self._published = shapes, published
        self._catalog_due = monotonic() + CATALOG_INTERVAL_S

    def _read(self, backfill: Backfill) -> None:
        reading = self._plans.setdefault(backfill.stored.id, _Reading())
        if reading.attempt != backfill.attempt:
            self._plans[backfill.stored.id] = reading = _Reading(backfill.attempt, barrier=reading.barrier)
        if not self._has_passed_barrier(backfill, reading):
            return
        match backfill.stored.phase:
            case "waiting" if backfill.stored.counts:
                self._count(backfill)
            case "scanning" if backfill.stored.counts:  # the table was emptied, so nothing is left to be counted
                self._announce(backfill, TableRead(backfill.stored.id, backfill.attempt))
            case "waiting":
                self._announce(backfill, Activation(backfill.stored.id))
            case "scanning":
                self._scan(backfill, reading)
            case _:
                self._read_wanted(backfill, reading)

    def _has_passed_barrier(self, backfill: Backfill, reading: _Reading) -> bool:
        """Whether every transaction that wrote before this backfill began has ended.

        Of those, changes may be missing in the stream: they began before the table was published, or before what the
        stream delivers was remembered. The message takes a transaction number, so all others so far are below it.
        """
        if reading.barrier is None:
            emit(self._marker, "barrier")
            reading.barrier = self._snapshot().xmax
            reading.waiting = Waiting(self._source, lambda: backfill.table.name)
        snapshot = self._snapshot()
        self._backfills.horizon = snapshot
        if snapshot.xmin >= reading.barrier and self._shows_all(backfill, snapshot):
            return True
        reading.waiting.tell_when_long()
        self._pause(0.02 if reading.waiting.seconds() < 1 else 0.25)
        return False

    def _shows_all(self, backfill: Backfill, snapshot: Snapshot) -> bool:
        if backfill.must_see is None:
            return True
        if not all(map(snapshot.shows, backfill.must_see)):
            return False
        backfill.must_see = None
        return True

    def _announce(self, backfill: Backfill, mark: Activation | TableRead) -> None:
        with self._backfills.changed:
            if isinstance(mark, TableRead) and mark.attempt != backfill.attempt:
                return  # what was read is void
            backfill.announced = True
        self._marks.set(self._marker, mark)

    def _send(self, backfill: Backfill, chunk: ChunkRead) -> None:
        with self._backfills.changed:
            if chunk.attempt != backfill.attempt:
                return
            backfill.on_the_way += 1
        self._marks.set(self._marker, chunk)

    def _scan(self, backfill: Backfill, reading: _Reading) -> None:
        stored = backfill.stored
        if reading.next_block is None:
            reading.next_block, reading.file_node = stored.block, stored.file_node
        with self._snapshot_of(backfill) as (snapshot, table):
            if table is None:
                return
            if table.file_node != reading.file_node:
                reading.begin(table.file_node, self._count_blocks(table))
            elif not reading.blocks:
                reading.blocks = stored.blocks
            end = min(reading.next_block + reading.chunk_blocks, reading.blocks)
            rows = list(self._copy(table, _block_range(reading.next_block, end, _existing(stored.only_with, table))))
        if reading.next_block < end:
            reading.advance(end, rows)
            part = self._part(backfill, table, reading)
            chunk = evaluate_rows(part, rows)
            attempt, blocks = reading.attempt, reading.blocks
            self._send(backfill, ChunkRead(stored.id, attempt, snapshot, table, part, chunk, end, blocks))
        if reading.next_block >= reading.blocks:
            self._announce(backfill, TableRead(stored.id, reading.attempt))

    def _read_wanted(self, backfill: Backfill, reading: _Reading) -> None:
        """Read rows again by key. Long keys are stored as hashes: then every block is read again."""
        if backfill.wanted is None:
            self._announce(backfill, TableRead(backfill.stored.id, reading.attempt))
            return
        wanted, backfill.wanted = backfill.wanted, None
        with self._snapshot_of(backfill) as (snapshot, table):
            if table is None:
                backfill.wanted = wanted
                return
            rows = list(self._copy(table, _keys_condition(backfill, table, wanted)))
        part = self._part(backfill, table, reading)
        chunk, asked = evaluate_rows(part, rows), frozenset(wanted)
        self._send(backfill, ChunkRead(backfill.stored.id, reading.attempt, snapshot, table, part, chunk, asked=asked))

    def _part(self, backfill: Backfill, table: CatalogTable, reading: _Reading) -> ReplicatedTable:
        """The table as it is evaluated for what is being filled."""
        layout = table.without_size()
        if reading.layout != layout:
            definitions = backfill.stored.definitions
            reading.layout, reading.part = layout, self._layouts.from_catalog(backfill.table, table, definitions)
        return reading.part

    def _count(self, backfill: Backfill) -> None:
        """Read a table without a key whole, in one snapshot: equal rows can only be told by their number."""
        stored, attempt = backfill.stored, backfill.attempt
        with self._snapshot_of(backfill) as (snapshot, table):
            if table is None:
                return
            self._marks.set(self._marker, CountBegun(stored.id, attempt, snapshot, table))
            rows: list[Row] = []
            with closing(self._copy(table, sql.SQL(""))) as all_rows:
                for row in all_rows:
                    rows.append(row)
                    if len(rows) >= CHUNK_ROWS:
                        if not self._may_send(backfill, attempt):
                            return
                        self._marks.set(self._marker, RowsCounted(stored.id, attempt, table, rows))
                        rows = []
            if rows:
                self._marks.set(self._marker, RowsCounted(stored.id, attempt, table, rows))
        self._announce(backfill, TableRead(stored.id, attempt))

    def _may_send(self, backfill: Backfill, attempt: int) -> bool:
        """Wait for the follower; answers False when what is being read is void, or was given up."""

        def is_wanted() -> bool:
            known = self._backfills.get(backfill.stored.id) is backfill
            return known and backfill.attempt == attempt and not self._stopping.is_set()

        with self._backfills.changed:
            backfill.on_the_way += 1
            while backfill.on_the_way > 2 and is_wanted():
                self._backfills.changed.wait(0.25)
            return is_wanted()

    @contextmanager
    def _snapshot_of(self, backfill: Backfill) -> Iterator[tuple[Snapshot, CatalogTable]]:
        """A snapshot that shows the table in one layout. Without a table: it has changed, and the follower must know.

        The lock comes before the snapshot: in between, an ALTER TABLE that rewrites the table could commit, after
        which the snapshot would find it empty.
        """
        name, source = backfill.table.name, self._source
        with source.transaction():
            source.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
            source.execute(
                sql.SQL("LOCK TABLE ONLY {} IN ACCESS SHARE MODE").format(sql.Identifier(name.schema, name.name))
            )
            snapshot = self._snapshot()
            table = read_table(source, backfill.table.relation_oid)
            if table is None or not _is_as_stored(backfill, table):
                self._catalog_due = 0.0
                table = None
            yield snapshot, table  # type: ignore[misc]
        if table is None:
            self._pause(0.05)

    def _copy(self, table: CatalogTable, condition: sql.Composable) -> Generator[Row]:
        columns = sql.SQL(", ").join(sql.SQL("t.{}").format(sql.Identifier(column.name)) for column in table.columns)
        query = sql.SQL("COPY (SELECT {} FROM ONLY {} AS t {}) TO STDOUT").format(
            columns, sql.Identifier(table.name.schema, table.name.name), condition
        )
        return copy_out(self._source, query)

    def _snapshot(self) -> Snapshot:
        row = self._source.execute("SELECT pg_current_snapshot()::text").fetchone()
        assert row is not None
        return Snapshot.parse(row[0])

    def _count_blocks(self, table: CatalogTable) -> int:
        row = self._source.execute("SELECT pg_relation_size(%s::oid)", (table.oid,)).fetchone()
        assert row is not None
        return int(row[0]) // BLOCK_BYTES

    def _pause(self, seconds: float) -> None:
        self._stopping.wait(seconds)


class _Reading:
    """How far the reading thread is with a backfill; the follower stores only what has come through."""

    def __init__(self, attempt: int = 0, *, barrier: int | None = None) -> None:
        self.attempt, self.barrier = attempt, barrier
        self.waiting: Waiting
        self.next_block: int | None = None
        self.file_node: int | None = None
        self.blocks = 0
        self.chunk_blocks = FIRST_CHUNK_BLOCKS
        self.layout: CatalogTable | None = None
        self.part: ReplicatedTable

    def begin(self, file_node: int, blocks: int) -> None:
        """Begin, or begin again because the table was rewritten."""
        self.next_block, self.file_node, self.blocks = 0, file_node, blocks

    def advance(self, end: int, rows: list[Row]) -> None:
        """A chunk was read; the next one is as many blocks as are likely to have the right size."""
        size = sum(sum(map(len, filter(None, row))) for row in rows)
        factor = min(CHUNK_ROWS / max(len(rows), 1), CHUNK_BYTES / max(size, 1), 4.0)
        self.chunk_blocks = max(1, min(int(self.chunk_blocks * factor), MAX_CHUNK_BLOCKS))
        self.next_block = end


def _shape(table: CatalogTable) -> object:
    """What of a table matters: not its size, nor its file."""
    return (
        table.oid,
        table.name,
        table.identity,
        table.key_columns,
        [(column.name, column.type_oid, column.meaning) for column in table.columns],
    )


def _is_as_stored(backfill: Backfill, table: CatalogTable) -> bool:
    stored = backfill.table
    return (table.name, table.identity, set(table.key_columns)) == (
        stored.name,
        stored.identity,
        set(stored.key_columns),
    )


def _block_range(begin: int, end: int, only_with: Sequence[str]) -> sql.Composable:
    condition = sql.SQL("WHERE t.ctid >= {} AND t.ctid < {}").format(
        sql.Literal(f"({begin},0)"), sql.Literal(f"({end},0)")
    )
    if not only_with:
        return condition
    parts = [sql.SQL("t.{} IS NOT NULL").format(sql.Identifier(name)) for name in only_with]
    return sql.SQL("{} AND ({})").format(condition, sql.SQL(" OR ").join(parts))


def _existing(only_with: Sequence[str], table: CatalogTable) -> Sequence[str]:
    """None of them, so that all rows are read, where one was dropped or renamed since."""
    return only_with if {column.name for column in table.columns}.issuperset(only_with) else ()


def _keys_condition(backfill: Backfill, table: CatalogTable, keys: list[str]) -> sql.Composable:
    if any(key.startswith(HASHED) for key in keys):
        return sql.SQL("")
    names = backfill.table.key_columns
    types = {column.name: column.type_name for column in table.columns}
    wanted = [[key] if len(names) == 1 else orjson.loads(key) for key in keys]
    parts = [
        sql.SQL("t.{} = (v.key ->> {})::{}").format(sql.Identifier(name), sql.Literal(n), sql.SQL(types[name]))
        for n, name in enumerate(names)
    ]
    return sql.SQL("JOIN json_array_elements({}::json) AS v (key) ON {}").format(
        sql.Literal(orjson.dumps(wanted).decode()), sql.SQL(" AND ").join(parts)
    )
