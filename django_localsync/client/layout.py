"""Brings a client's database to a schema: internal tables, data tables, views. One transaction, at every start.

Rows are never lost by a change of schema: those of a table that goes are kept in ps_untyped, where a table that
comes finds them.
"""

from __future__ import annotations

from typing import cast

import apsw

from ..exceptions import ConfigurationError
from .ddl import INTERNAL_TABLES, LAYOUT_VERSION, VIEW_MARK, data_tables, identifier, schema_objects
from .schema import Schema

_OWN_OBJECTS = """
    SELECT type, name, sql FROM sqlite_master
     WHERE (type = 'view' AND sql LIKE '%' || :mark)
        OR (type = 'index' AND tbl_name GLOB 'ps_data_*' AND sql IS NOT NULL)
        OR (type = 'trigger' AND name GLOB 'ps_view_*')
"""


def bring_to_schema(connection: apsw.Connection, schema: Schema) -> None:
    """Create or change whatever differs from the schema; call it inside a transaction.

    Raises ConfigurationError when the file was written by a newer version of this package.
    """
    connection.execute(INTERNAL_TABLES)
    _check_version(connection)
    _change_data_tables(connection, schema)
    _change_objects(connection, schema_objects(schema))


def _check_version(connection: apsw.Connection) -> None:
    version = connection.execute("SELECT max(id) FROM ps_migration").fetchone()[0]  # type: ignore[index]
    if version is None:
        connection.execute("INSERT INTO ps_migration(id) VALUES(?)", (LAYOUT_VERSION,))
    elif version != LAYOUT_VERSION:
        raise ConfigurationError(
            f"the database file has layout version {version}, this version of the package needs {LAYOUT_VERSION}; "
            "use another file name, and the data is downloaded again"
        )


def _change_data_tables(connection: apsw.Connection, schema: Schema) -> None:
    wanted = data_tables(schema)
    present = {
        name
        for (name,) in connection.execute(
            "SELECT name FROM sqlite_master WHERE type = 'table' "
            "AND (name GLOB 'ps_data__*' OR name GLOB 'ps_data_local__*')"
        )
    }
    for name in present - wanted.keys():
        if row_type := _row_type(name):
            connection.execute(
                f"INSERT INTO ps_untyped(type, id, data) SELECT ?, id, data FROM {identifier(name)} WHERE true "
                "ON CONFLICT(type, id) DO UPDATE SET data = excluded.data",
                (row_type,),
            )
        _drop_views_of(connection, name)
        connection.execute(f"DROP TABLE {identifier(name)}")
    for name, sql in wanted.items():
        if name not in present:
            connection.execute(sql)
            _take_untyped_rows(connection, name)


def _take_untyped_rows(connection: apsw.Connection, name: str) -> None:
    if row_type := _row_type(name):
        connection.execute(
            f"INSERT INTO {identifier(name)}(id, data) SELECT id, data FROM ps_untyped WHERE type = ?", (row_type,)
        )
        connection.execute("DELETE FROM ps_untyped WHERE type = ?", (row_type,))


def _row_type(data_table: str) -> str:
    """The synced type that a data table holds; empty for a local-only one."""
    return data_table.removeprefix("ps_data__") if data_table.startswith("ps_data__") else ""


def _drop_views_of(connection: apsw.Connection, data_table: str) -> None:
    mark = f"%FROM {identifier(data_table)} {VIEW_MARK}"
    views = connection.execute("SELECT name FROM sqlite_master WHERE type = 'view' AND sql LIKE ?", (mark,)).fetchall()
    for (view,) in views:
        connection.execute(f"DROP VIEW {identifier(str(view))}")


def _change_objects(connection: apsw.Connection, wanted: dict[str, str]) -> None:
    present = connection.execute(_OWN_OBJECTS, {"mark": VIEW_MARK}).fetchall()
    for kind, name, sql in cast("list[tuple[str, str, str]]", present):
        if wanted.get(name) != sql:
            connection.execute(f"DROP {kind} IF EXISTS {identifier(name)}")  # a view takes its triggers along
    kept = {name for _, name, _ in connection.execute(_OWN_OBJECTS, {"mark": VIEW_MARK})}
    for name, sql in wanted.items():
        if name not in kept:
            connection.execute(sql)
