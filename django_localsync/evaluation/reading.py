"""Rows of source tables as Postgres's texts, through Django's own connection.

COPY prints values exactly as logical replication does, and its output settings are fixed while it runs. Everything
happens below a savepoint that is rolled back, so that the connection has its own settings again afterwards.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from django.db import connections, models, transaction
from psycopg import sql

from ..replication.tables import read_tables
from ..replication.types import read_types
from ..storage.connections import TEXT_FORMAT, Connection
from ..sync_rules.plan import Column, Plan, TableName

Values = tuple[str | None, ...]


@dataclass(frozen=True, slots=True)
class LiveTable:
    """A table of a source in the layout that it has now. `key` are the positions of its identity's columns."""

    alias: str
    oid: int
    name: TableName
    columns: tuple[Column, ...]
    key: tuple[int, ...]
    estimated_rows: int

    def describe_row(self, values: Sequence[str | None]) -> str:
        """Table and key of a row, for people: `todos id=7`."""
        positions = self.key or range(min(3, len(self.columns)))
        key = ", ".join(f"{self.columns[position].name}={values[position]}" for position in positions)
        return f"{self.name.name if self.name.schema == 'public' else self.name} {key}"


class Reader:
    """Reads the sources' tables through Django's connections; is in a transaction only while it reads."""

    def __init__(self, aliases: Sequence[str], plan: Plan) -> None:
        self._aliases = tuple(aliases)
        self.tables = [table for alias in aliases for table in _live_tables(alias, plan)]

    def rows(self, table: LiveTable, where: sql.Composable | None = None) -> Iterator[Values]:
        """The rows of a table that a condition selects, or all of them."""
        query = sql.SQL("COPY (SELECT {} FROM ONLY {} WHERE {}) TO STDOUT").format(
            sql.SQL(", ").join(sql.Identifier(column.name) for column in table.columns),
            sql.Identifier(table.name.schema, table.name.name),
            where or sql.SQL("true"),
        )
        with _raw(table.alias) as connection, connection.cursor().copy(query) as copy:
            yield from copy.rows()

    def find(self, instance: models.Model) -> tuple[LiveTable | None, Values | None]:
        """The table that holds a model's row (None: no rule reads it) and the row (None: it is not there).

        Of a partitioned table it is the partition; of a model that inherits from another, the model's own table. A row
        that was loaded from a source is looked for there alone.
        """
        loaded_from = instance._state.db
        for alias in [loaded_from] if loaded_from in self._aliases else self._aliases:
            place = _find_place(alias, instance)
            if place is not None:
                table = next((table for table in self.tables if (table.alias, table.oid) == (alias, place[0])), None)
                where = sql.SQL("ctid = {}::pg_catalog.tid").format(sql.Literal(place[1]))
                return table, next(iter([*self.rows(table, where)]), None) if table else None
        return next(iter(self.tables_of(type(instance))), None), None

    def tables_of(self, model: type[models.Model]) -> list[LiveTable]:
        """The tables that hold a model's rows, as far as rules read them: its own, or that one's partitions."""
        found = []
        for alias in self._aliases:
            connection = connections[alias]
            with connection.cursor() as cursor:
                cursor.execute(_WITH_PARTITIONS, [connection.ops.quote_name(model._meta.db_table)])
                oids = {oid for (oid,) in cursor.fetchall()}
            found += [table for table in self.tables if table.alias == alias and table.oid in oids]
        return found


def _live_tables(alias: str, plan: Plan) -> list[LiveTable]:
    with _raw(alias) as connection:
        catalog = read_tables(connection, plan.uses)
        types = read_types(connection, {column.type_oid for table in catalog for column in table.columns})
    found = []
    for table in catalog:
        names = [column.name for column in table.columns]
        columns = tuple(Column(column.name, types[column.type_oid]) for column in table.columns)
        key = tuple(names.index(name) for name in table.key_columns)
        found.append(LiveTable(alias, table.oid, table.name, columns, key, table.estimated_rows))
    return found


def _find_place(alias: str, instance: models.Model) -> tuple[int, str] | None:
    """Table (oid) and place (ctid) of a model's row."""
    connection = connections[alias]
    quote, fields = connection.ops.quote_name, [*instance._meta.pk_fields]
    key = [field.get_db_prep_value(getattr(instance, field.attname), connection) for field in fields]
    condition = " AND ".join(f"{quote(str(field.column))} = %s" for field in fields)
    query = f"SELECT tableoid::bigint, ctid::text FROM {quote(instance._meta.db_table)} WHERE {condition}"
    with connection.cursor() as cursor:
        cursor.execute(query, key)
        place: tuple[int, str] | None = cursor.fetchone()
    return place


@contextmanager
def _raw(alias: str) -> Iterator[Connection]:
    """The psycopg connection behind an alias, in a transaction that prints values as replication does."""
    django_connection = connections[alias]
    with transaction.atomic(using=alias):
        with django_connection.cursor() as cursor:
            cursor.execute(f"SELECT {', '.join(['set_config(%s, %s, true)'] * len(TEXT_FORMAT))}", _SETTINGS)
        yield django_connection.connection
        transaction.set_rollback(True, using=alias)


_SETTINGS = [item for setting in TEXT_FORMAT.items() for item in setting]

_WITH_PARTITIONS = """
    WITH RECURSIVE found (oid) AS (
        SELECT to_regclass(%s)::oid
         UNION SELECT inhrelid FROM pg_inherits JOIN found ON inhparent = found.oid)
    SELECT oid::bigint FROM found WHERE oid IS NOT NULL
"""
