"""Sources in storage: positions, tables, and what of them is still to be read."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, LiteralString

from ..sync_rules.plan import TableName
from .connections import Connection


@dataclass(frozen=True, slots=True)
class StoredSource:
    """A source as storage knows it: its slot, how far it was followed, and on which server."""

    id: int
    alias: str
    slot: str
    lsn: int
    written_lsn: int
    system_identifier: str
    timeline: int
    prepared_for: int
    published: dict[str, str]


@dataclass(frozen=True, slots=True)
class StoredTable:
    """A source table whose rows are, or are to be, in storage.

    `identity` is "key" (of `key_columns`), "row" or "none"; `columns` are name and meaning of all columns, as the
    rows were read; `followed`: whether changes in the stream are applied.
    """

    id: int
    relation_oid: int
    name: TableName
    identity: str
    key_columns: tuple[str, ...]
    columns: tuple[tuple[str, str], ...]
    followed: bool


@dataclass(frozen=True, slots=True)
class StoredBackfill:
    """Rows of a table that are still to be read for some definitions; see models.Backfill."""

    id: int
    table: int
    definitions: frozenset[int]
    refreshes: bool
    withholds: bool
    only_with: tuple[str, ...]
    counts: bool
    phase: str
    file_node: int | None
    block: int
    blocks: int
    rows: int
    estimated_rows: int

    @property
    def reads_all(self) -> bool:
        """Whether it reads the whole table: not only rows that the stream left incomplete, or that have some values."""
        return not self.only_with and (self.phase != "rereading" or self.blocks > 0)


_SOURCE = "id, alias, slot, lsn, written_lsn, system_identifier, timeline, prepared_for, published"


def load_source(connection: Connection, alias: str) -> StoredSource | None:
    """The source of this alias, or None."""
    row = connection.execute(f"SELECT {_SOURCE} FROM localsync_source WHERE alias = %s", (alias,)).fetchone()
    return StoredSource(*row) if row else None


def begin_source(connection: Connection, alias: str, slot: str, system: tuple[str, int], lsn: int) -> StoredSource:
    """Record a source whose slot begins at `lsn`; nothing that was stored of it before can be continued.

    Positions of its former history say nothing any more: receipts wait for the slot's beginning, because what they
    stand for is either in the rows that are read now, or was lost with that history.
    """
    row = connection.execute(
        f"""
        INSERT INTO localsync_source (alias, slot, lsn, written_lsn, system_identifier, timeline, prepared_for,
               published, error)
        VALUES (%s, %s, 0, %s, %s, %s, 0, '{{}}', '')
            ON CONFLICT (alias) DO UPDATE
           SET slot = excluded.slot, lsn = 0, written_lsn = excluded.written_lsn, timeline = excluded.timeline,
               system_identifier = excluded.system_identifier, prepared_for = 0, published = '{{}}'
        RETURNING {_SOURCE}
        """,
        (alias, slot, lsn, *system),
    ).fetchone()
    assert row is not None
    connection.execute(
        "UPDATE localsync_write_checkpoint SET positions = positions || jsonb_build_object(%s::text, %s::bigint)"
        " WHERE jsonb_exists(positions, %s)",
        (alias, lsn, alias),
    )
    connection.execute("UPDATE localsync_source_table SET retired = true WHERE source_id = %s", (row[0],))
    connection.execute(
        "DELETE FROM localsync_backfill WHERE table_id IN (SELECT id FROM localsync_source_table WHERE source_id = %s)",
        (row[0],),
    )
    return StoredSource(*row)


def other_sources(connection: Connection, aliases: Sequence[str]) -> list[StoredSource]:
    """Sources that storage knows beside these."""
    rows = connection.execute(f"SELECT {_SOURCE} FROM localsync_source WHERE NOT (alias = ANY(%s))", (list(aliases),))
    return [StoredSource(*row) for row in rows]


def forget_sources(connection: Connection, aliases: Sequence[str]) -> None:
    """Delete all sources but these."""
    gone = connection.execute(
        "DELETE FROM localsync_source WHERE NOT (alias = ANY(%s)) RETURNING id", (list(aliases),)
    ).fetchall()
    ids = [row[0] for row in gone]
    connection.execute("UPDATE localsync_source_table SET retired = true WHERE source_id = ANY(%s)", (ids,))
    connection.execute(
        "DELETE FROM localsync_backfill"
        " WHERE table_id IN (SELECT id FROM localsync_source_table WHERE source_id = ANY(%s))",
        (ids,),
    )


def mark_prepared(connection: Connection, source: int, rule_set: int) -> None:
    """Every table of the source that a rule set uses is recorded."""
    connection.execute("UPDATE localsync_source SET prepared_for = %s WHERE id = %s", (rule_set, source))


def save_published(connection: Connection, source: int, marks: Mapping[int, str]) -> None:
    """What is published of each table, as its changes were followed until here."""
    connection.execute("UPDATE localsync_source SET published = %s::jsonb WHERE id = %s", (json.dumps(marks), source))


def continue_on_timeline(connection: Connection, source: int, timeline: int) -> None:
    """The source's history goes on under another number, as a promoted standby's does."""
    connection.execute(
        "UPDATE localsync_source SET timeline = %s WHERE id = %s AND timeline <> %s", (timeline, source, timeline)
    )


def report_error(connection: Connection, alias: str, error: str) -> None:
    """Keep for people what keeps a source from being followed; an empty text ends it."""
    connection.execute(
        "UPDATE localsync_source SET error = %s, error_at = CASE WHEN %s = '' THEN NULL ELSE now() END"
        " WHERE alias = %s AND error <> %s",
        (error, error, alias, error),
    )


_TABLE = "id, relation_oid, schema, name, identity, key_columns, columns, followed"


def load_tables(connection: Connection, source: int) -> list[StoredTable]:
    """The tables of a source."""
    rows = connection.execute(
        f"SELECT {_TABLE} FROM localsync_source_table WHERE source_id = %s AND NOT retired", (source,)
    )
    return [_stored_table(row) for row in rows]


def add_table(
    connection: Connection,
    source: int,
    oid: int,
    name: TableName,
    identity: str,
    key_columns: Sequence[str],
    columns: Iterable[tuple[str, str]],
    problem: str = "",
) -> StoredTable:
    """Record a table whose rows are to be read."""
    row = connection.execute(
        "INSERT INTO localsync_source_table"
        " (source_id, relation_oid, schema, name, identity, key_columns, columns, followed, retired, problem)"
        f" VALUES (%s, %s, %s, %s, %s, %s::jsonb, %s::jsonb, false, false, %s) RETURNING {_TABLE}",
        (
            source,
            oid,
            name.schema,
            name.name,
            identity,
            json.dumps(list(key_columns)),
            json.dumps(list(columns)),
            problem,
        ),
    ).fetchone()
    assert row is not None
    return _stored_table(row)


def follow_table(connection: Connection, table: int, followed: bool) -> None:
    """Apply a table's changes from here on, or ignore them."""
    connection.execute("UPDATE localsync_source_table SET followed = %s WHERE id = %s", (followed, table))


def set_table_columns(connection: Connection, table: int, columns: Iterable[tuple[str, str]]) -> None:
    """Record the columns with which a table's rows are read from here on."""
    connection.execute(
        "UPDATE localsync_source_table SET columns = %s::jsonb WHERE id = %s", (json.dumps(list(columns)), table)
    )


def set_table_problem(connection: Connection, table: int, problem: str) -> None:
    """Record what of a table cannot be followed; an empty text ends it."""
    connection.execute(
        "UPDATE localsync_source_table SET problem = %s WHERE id = %s AND problem <> %s", (problem, table, problem)
    )


def retire_table(connection: Connection, table: int) -> None:
    """Forget a table; what is remembered of its rows is deleted later, piece by piece."""
    connection.execute("UPDATE localsync_source_table SET retired = true WHERE id = %s", (table,))
    connection.execute("DELETE FROM localsync_backfill WHERE table_id = %s", (table,))


_BACKFILL = """backfill.id, backfill.table_id, backfill.definitions, backfill.refreshes, backfill.withholds,
    backfill.only_with, backfill.counts, backfill.phase, backfill.file_node, backfill.block, backfill.blocks,
    backfill.rows, backfill.estimated_rows"""


def load_backfills(connection: Connection, source: int, living: Collection[int]) -> list[StoredBackfill]:
    """What is still to be read of a source for definitions that live; what is for none of them is deleted.

    A count goes on whatever it was begun for: it says which rows there are, for every definition.
    """
    query: LiteralString = f"""
        SELECT {_BACKFILL} FROM localsync_backfill AS backfill
          JOIN localsync_source_table AS source_table ON source_table.id = backfill.table_id
         WHERE source_table.source_id = %s AND NOT source_table.retired ORDER BY backfill.id
    """
    found = [_stored_backfill(row) for row in connection.execute(query, (source,))]
    needed = [backfill for backfill in found if backfill.counts or not backfill.definitions.isdisjoint(living)]
    for backfill in found:
        if backfill not in needed:
            end_backfill(connection, backfill.id)
    return [replace(backfill, definitions=backfill.definitions & frozenset(living)) for backfill in needed]


def add_backfill(
    connection: Connection,
    table: int,
    definitions: Collection[int],
    estimated_rows: int,
    *,
    refreshes: bool = False,
    withholds: bool = False,
    only_with: Collection[str] = (),
    counts: bool = False,
    phase: str = "waiting",
) -> StoredBackfill:
    """Record that a table is to be read for some definitions, all of it or the rows that have values `only_with`."""
    row = connection.execute(
        "INSERT INTO localsync_backfill AS backfill (table_id, definitions, refreshes, withholds, only_with, counts,"
        " phase, block, blocks, rows, estimated_rows, began_at)"
        f" VALUES (%s, %s::jsonb, %s, %s, %s::jsonb, %s, %s, 0, 0, 0, %s, now()) RETURNING {_BACKFILL}",
        (
            table,
            json.dumps(sorted(definitions)),
            refreshes,
            withholds,
            json.dumps(sorted(only_with)),
            counts,
            phase,
            estimated_rows,
        ),
    ).fetchone()
    assert row is not None
    return _stored_backfill(row)


def save_backfill(connection: Connection, backfill: StoredBackfill) -> None:
    """Record how far a backfill is."""
    connection.execute(
        "UPDATE localsync_backfill"
        "   SET phase = %s, withholds = %s, file_node = %s, block = %s, blocks = %s, rows = %s WHERE id = %s",
        (
            backfill.phase,
            backfill.withholds,
            backfill.file_node,
            backfill.block,
            backfill.blocks,
            backfill.rows,
            backfill.id,
        ),
    )


def end_backfill(connection: Connection, backfill: int) -> None:
    """A backfill is complete, or nobody needs it any more."""
    connection.execute("DELETE FROM localsync_backfill WHERE id = %s", (backfill,))


def must_withhold(connection: Connection) -> bool:
    """Whether something is being read without which nothing may be shown (I2)."""
    row = connection.execute(
        "SELECT EXISTS (SELECT FROM localsync_backfill WHERE withholds)"
        " OR EXISTS (SELECT FROM localsync_rule_set WHERE state = 'processing' AND starts_over)"
    ).fetchone()
    return bool(row and row[0])


def _stored_table(row: tuple[Any, ...]) -> StoredTable:
    table, oid, schema, name, identity, key_columns, columns, followed = row
    return StoredTable(
        table,
        oid,
        TableName(schema, name),
        identity,
        tuple(key_columns),
        tuple((column, type_name) for column, type_name in columns),
        followed,
    )


def _stored_backfill(row: tuple[Any, ...]) -> StoredBackfill:
    backfill, table, definitions, refreshes, withholds, only_with, *rest = row
    return StoredBackfill(backfill, table, frozenset(definitions), refreshes, withholds, tuple(only_with), *rest)
