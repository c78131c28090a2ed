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

from ..replication.tables import CatalogTable, read_tables
from ..replication.types import read_types
from ..storage.connections import TEXT_FORMAT, Connection
from ..sync_rules.plan import Column, Plan, TableName

Values = tuple[str | None, ...]


@dataclass(frozen=True, slots=True)
class LiveTable:
    """A source table in the layout that it has now. `key` are the positions of its identity's columns."""

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
    """Reads tables through the connection of a Django alias; opens a transaction only while it reads."""

    def __init__(self, alias: str, plan: Plan) -> None:
        self.alias = alias
        with self._raw() as connection:
            catalog = read_tables(connection, plan.uses)
            types = read_types(connection, {column.type_oid for table in catalog for column in table.columns})
        self.tables = {
            table.oid: _live_table(
                table, tuple(Column(column.name, types[column.type_oid]) for column in table.columns)
            )
            for table in catalog
        }

    def rows(self, table: LiveTable, where: sql.Composable | None = None) -> Iterator[Values]:
        """The rows of a table that a condition selects, or all of them."""
        query = sql.SQL("COPY (SELECT {} FROM ONLY {} WHERE {}) TO STDOUT").format(
            sql.SQL(", ").join(sql.Identifier(column.name) for column in table.columns),
            sql.Identifier(table.name.schema, table.name.name),
            where or sql.SQL("true"),
        )
        with self._raw() as connection, connection.cursor().copy(query) as copy:
            yield from copy.rows()

    def find(self, instance: models.Model) -> tuple[LiveTable | None, Values | None]:
        """The table that holds a model's row (None: no rule reads it) and the row (None: it is not there).

        Of a partitioned table it is the partition; of a model that inherits from another, the model's own table.
        """
        connection = connections[self.alias]
        fields = [*instance._meta.pk_fields]
        key = [field.get_db_prep_value(getattr(instance, field.attname), connection) for field in fields]
        quote = connection.ops.quote_name
        condition = " AND ".join(f"{quote(str(field.column))} = %s" for field in fields)
        with connection.cursor() as cursor:
            cursor.execute(
                f"SELECT tableoid::bigint, ctid::text FROM {quote(instance._meta.db_table)} WHERE {condition}", key
            )
            found = cursor.fetchone()
        if found is None:
            return self.table_of(type(instance)), None
        table = self.tables.get(found[0])
        if table is None:
            return None, None
        where = sql.SQL("ctid = {}::pg_catalog.tid").format(sql.Literal(found[1]))
        return table, next(iter([*self.rows(table, where)]), None)

    def tables_of(self, model: type[models.Model]) -> list[LiveTable]:
        """The tables that hold a model's rows, as far as rules read them: its own, or that one's partitions."""
        connection = connections[self.alias]
        with connection.cursor() as cursor:
            cursor.execute(_WITH_PARTITIONS, [connection.ops.quote_name(model._meta.db_table)])
            return [self.tables[oid] for (oid,) in cursor.fetchall() if oid in self.tables]

    def table_of(self, model: type[models.Model]) -> LiveTable | None:
        """The first of `tables_of`."""
        return next(iter(self.tables_of(model)), None)

    @contextmanager
    def _raw(self) -> Iterator[Connection]:
        """The psycopg connection behind the alias, in a transaction that prints values as replication does."""
        django_connection = connections[self.alias]
        with transaction.atomic(using=self.alias):
            with django_connection.cursor() as cursor:
                cursor.execute(f"SELECT {', '.join(['set_config(%s, %s, true)'] * len(TEXT_FORMAT))}", _SETTINGS)
            yield django_connection.connection
            transaction.set_rollback(True, using=self.alias)


_SETTINGS = [item for setting in TEXT_FORMAT.items() for item in setting]

_WITH_PARTITIONS = """
    WITH RECURSIVE found (oid) AS (
        SELECT to_regclass(%s)::oid
         UNION SELECT inhrelid FROM pg_inherits JOIN found ON inhparent = found.oid)
    SELECT oid::bigint FROM found WHERE oid IS NOT NULL
"""


def _live_table(table: CatalogTable, columns: tuple[Column, ...]) -> LiveTable:
    names = [column.name for column in table.columns]
    key = tuple(names.index(name) for name in table.key_columns)
    return LiveTable(table.oid, table.name, columns, key, table.estimated_rows)
