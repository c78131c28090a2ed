"""Which rows a request reaches through buckets, from all rows of the tables, in memory."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from django.apps import apps
from django.db import connection

from django_localsync.pgoutput.values import PgType
from django_localsync.sync_rules import compile_rules
from django_localsync.sync_rules.plan import Column, LookupKey, Plan, RequestParameters, TableName

Table = tuple[list[Column], list[tuple[str | None, ...]]]
Tables = dict[TableName, Table]
Row = tuple[str, str]
"""Row type and id."""

_COLUMNS = """
    SELECT column_name, udt_name FROM information_schema.columns
     WHERE table_schema = %s AND table_name = %s AND is_generated = 'NEVER' ORDER BY ordinal_position
"""


def read_tables() -> Tables:
    """All rows of the library and its users, as Postgres prints them to a replication connection."""
    models = [*apps.get_app_config("library").get_models(include_auto_created=True), apps.get_model("auth.User")]
    names = [name_of(model._meta.db_table) for model in models if not model._meta.proxy]
    with connection.cursor() as cursor:
        cursor.execute("SET LOCAL TimeZone = 'UTC'; SET LOCAL DateStyle = 'ISO'; SET LOCAL extra_float_digits = 1")
        tables = {name: _read_table(cursor, name) for name in names}
        cursor.execute(f"SET LOCAL TimeZone = '{connection.timezone_name}'")
    return tables


def name_of(db_table: str) -> TableName:
    """A model's table."""
    parts = db_table.strip('"').split('"."')
    return TableName(parts[0] if len(parts) > 1 else "public", parts[-1])


def _read_table(cursor: Any, name: TableName) -> Table:
    cursor.execute(_COLUMNS, [name.schema, name.name])
    columns = [Column(column, PgType.named(kind)) for column, kind in cursor.fetchall()]
    listed = ", ".join(f'"{column.name}"' for column in columns)
    with cursor.copy(f'COPY (SELECT {listed} FROM "{name.schema}"."{name.name}") TO STDOUT') as copy:
        return columns, [tuple(row) for row in copy.rows()]


class Buckets:
    """What a plan makes of the tables: buckets with rows, and the parameter index."""

    def __init__(self, plan: Plan, tables: Tables) -> None:
        self._plan = plan
        self.errors: list[str] = []
        self._rows: dict[tuple[int, str], set[Row]] = defaultdict(set)
        self._entries: dict[LookupKey, list[str]] = defaultdict(list)
        for name, (columns, rows) in tables.items():
            if plan.uses(name):
                self._add(name, columns, rows)

    def _add(self, name: TableName, columns: list[Column], rows: Sequence[tuple[str | None, ...]]) -> None:
        evaluate = self._plan.row_evaluator(name, columns, lambda _, message: self.errors.append(message))
        for row in rows:
            buckets, lookups = evaluate(row)
            for bucket in buckets:
                self._rows[bucket.source, bucket.parameters].add((bucket.row_type, bucket.row_id))
            for lookup in lookups:
                self._entries[LookupKey(lookup.source, lookup.key)].append(lookup.outputs)

    def reached(self, request: RequestParameters) -> set[Row]:
        """The rows that a request may have."""
        resolving = self._plan.resolve(request)
        try:
            keys = next(resolving)
            while True:
                keys = resolving.send({key: self._entries[key] for key in keys if key in self._entries})
        except StopIteration as done:
            resolution = done.value
        self.errors += [error.message for stream in resolution.streams for error in stream.errors]
        found = (self._rows.get((bucket.source, bucket.parameters), set()) for bucket in resolution.buckets)
        return set().union(*found)


def buckets_of(queries: Sequence[str], tables: Tables) -> Buckets:
    """The buckets of one stream, `tested`."""
    document = {"config": {"edition": 3}, "streams": {"tested": {"queries": list(queries)}}}
    return Buckets(compile_rules(document).plan, tables)
