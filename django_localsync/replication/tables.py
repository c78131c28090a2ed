"""Source tables: what the catalogue says of them, and what a row's identity is.

A row's key is text: the value of a one-column identity, a JSON list of several, or a hash where either is long.
Identity columns follow the replica identity, because they are what an UPDATE or DELETE message brings along:
the primary key (default), an index's columns, and under FULL the primary key again where there is one, else the whole
row (then equal rows are counted as copies). A table with none of these can only be inserted into.
https://www.postgresql.org/docs/current/logical-replication-publication.html
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Any

import orjson

from ..pgoutput.messages import Unchanged
from ..storage.connections import Connection
from ..sync_rules.plan import TableName
from .types import read_types

MAX_KEY_LENGTH = 500  # characters; at most 2000 bytes, which fit an index entry
HASHED = "sha256:"

# A value can only be stored out of line (and then left out of an UPDATE message) when its row is longer than
# toast_tuple_target, 2032 bytes by default and 128 at least. No type's binary form is more than eight times as long
# as its text.
TOAST_EXPANSION = 8
DEFAULT_TOAST_TARGET = 2032

FIRST_USER_OID = 16384  # types below came with the server

KeyValues = Sequence[str | Unchanged | None]


@dataclass(frozen=True, slots=True)
class CatalogColumn:
    """A column as the catalogue has it; `toastable`: its values may be stored out of line.

    `type_name` is the type with its modifier, `type_facts` what shows in values of the definition of a type that a
    project made; `number` tells columns apart that have the same name one after another.
    """

    name: str
    type_oid: int
    toastable: bool
    type_name: str = ""
    number: int = 0
    type_facts: tuple[str, ...] = ()

    @property
    def meaning(self) -> str:
        """What values that were read depend on, a line each; see `still_mean`."""
        return "\n".join([f"column {self.number}", self.type_name, type_line(self.type_oid), *self.type_facts])


@dataclass(frozen=True, slots=True)
class CatalogTable:
    """A table as the catalogue has it; generated columns are left out, as pgoutput leaves them out."""

    oid: int
    name: TableName
    columns: tuple[CatalogColumn, ...]
    identity: str  # "key" of key_columns, "row" (the whole row), or "none": rows can only be inserted
    key_columns: tuple[str, ...]
    estimated_rows: int
    toast_target: int
    file_node: int  # of the table's file, which a rewrite (VACUUM FULL, some ALTER TABLE) replaces

    def meanings(self) -> tuple[tuple[str, str], ...]:
        """Name and meaning of each column, sorted by name."""
        return tuple(sorted((column.name, column.meaning) for column in self.columns))

    def without_size(self) -> CatalogTable:
        """The same table, whatever has become of its size and its file."""
        return replace(self, estimated_rows=0, file_node=0)


CATALOG_TABLES = """
    SELECT class.oid::bigint, namespace.nspname, class.relname, class.relreplident, class.reltuples::bigint,
           pg_relation_filenode(class.oid)::bigint,
           coalesce((SELECT option_value::int FROM pg_options_to_table(class.reloptions)
                      WHERE option_name = 'toast_tuple_target'), %(toast_target)s),
           (SELECT json_agg(json_build_array(attname, atttypid::bigint, attstorage <> 'p',
                                             format_type(atttypid, atttypmod), attnum) ORDER BY attnum)
              FROM pg_attribute
             WHERE attrelid = class.oid AND attnum > 0 AND NOT attisdropped AND attgenerated = ''),
           (SELECT json_agg(attname ORDER BY ordinality)
              FROM pg_index, unnest(indkey::int2[]) WITH ORDINALITY AS key (attnum, ordinality)
              JOIN pg_attribute USING (attnum)
             WHERE indrelid = class.oid AND attrelid = class.oid AND ordinality <= indnkeyatts AND indisvalid
               AND CASE class.relreplident WHEN 'i' THEN indisreplident
                        WHEN 'n' THEN false ELSE indisprimary END)
      FROM pg_class AS class JOIN pg_namespace AS namespace ON namespace.oid = class.relnamespace
     WHERE class.relkind = 'r' AND class.relpersistence = 'p' AND (%(oid)s::oid IS NULL OR class.oid = %(oid)s::oid)
       AND namespace.nspname NOT IN ('pg_catalog', 'information_schema') AND namespace.nspname NOT LIKE 'pg\\_%%'
     ORDER BY 2, 3
"""


def read_tables(connection: Connection, uses: Callable[[TableName], bool]) -> list[CatalogTable]:
    """Ordinary tables that the rules use."""
    rows = connection.execute(CATALOG_TABLES, {"toast_target": DEFAULT_TOAST_TARGET, "oid": None})
    return _with_type_facts(connection, [_catalog_table(row) for row in rows if uses(TableName(row[1], row[2]))])


def read_table(connection: Connection, oid: int) -> CatalogTable | None:
    """One ordinary table, or None where it is gone."""
    row = connection.execute(CATALOG_TABLES, {"toast_target": DEFAULT_TOAST_TARGET, "oid": oid}).fetchone()
    return _with_type_facts(connection, [_catalog_table(row)])[0] if row else None


def type_line(oid: int) -> str:
    """The line of a meaning that names the type as the stream does."""
    return f"type {oid}"


def still_mean(before: str, now: str | None) -> bool:
    """Whether values read under one `CatalogColumn.meaning` are those that would be read under another.

    Lines may be added, as by a new label of an enum; when one is gone, something was renamed, dropped or retyped.
    """
    return now is not None and set(before.split("\n")).issubset(now.split("\n"))


def key_function(positions: Sequence[int]) -> Callable[[KeyValues], str]:
    """The function from a tuple to its row's key; without positions the whole row is the key.

    Runs once a row. Raises TypeError when an identity column is NULL or absent, which Postgres rules out.
    """
    if not positions:
        return lambda values: HASHED + sha256(orjson.dumps(list(values))).hexdigest()
    if len(positions) == 1:
        (only,) = positions
        return lambda values: _bounded(values[only])
    return lambda values: _bounded(orjson.dumps([values[position] for position in positions]).decode())


def large_values(
    values: Sequence[str | None], toastable: Iterable[tuple[int, str]], toast_target: int
) -> dict[str, str]:
    """Texts that a later UPDATE of the row may leave out, by column name; `toastable` lists position and name."""
    if sum(map(len, filter(None, values))) * TOAST_EXPANSION < toast_target:
        return {}
    return {name: value for position, name in toastable if (value := values[position])}


def _bounded(key: str | Unchanged | None) -> str:
    if not isinstance(key, str):
        raise TypeError("a column of the row's identity is missing")
    if len(key) > MAX_KEY_LENGTH or key.startswith(HASHED):
        return HASHED + sha256(key.encode()).hexdigest()
    return key


def _with_type_facts(connection: Connection, tables: list[CatalogTable]) -> list[CatalogTable]:
    oids = {column.type_oid for table in tables for column in table.columns if column.type_oid >= FIRST_USER_OID}
    if not oids:
        return tables
    facts = {oid: tuple(sorted(pg_type.all_facts())) for oid, pg_type in read_types(connection, oids).items()}
    return [
        replace(
            table,
            columns=tuple(replace(column, type_facts=facts.get(column.type_oid, ())) for column in table.columns),
        )
        for table in tables
    ]


def _catalog_table(row: tuple[Any, ...]) -> CatalogTable:
    oid, schema, name, identity, estimated_rows, file_node, toast_target, columns, key = row
    return CatalogTable(
        oid=oid,
        name=TableName(schema, name),
        columns=tuple(CatalogColumn(*column) for column in columns or ()),
        identity="key" if key else "row" if identity == "f" else "none",
        key_columns=tuple(key or ()),
        estimated_rows=max(estimated_rows, 0),
        toast_target=toast_target,
        file_node=file_node,
    )
