"""Publications: exactly the tables that the rules use, without changing what the user's own statements may do.

Tables whose rows cannot be identified go to a second publication that publishes inserts only: in the first one
Postgres would refuse their UPDATE and DELETE. No column lists, because they make DROP COLUMN fail.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence

from psycopg import sql

from ..storage.connections import Connection
from ..sync_rules.plan import TableName
from .tables import CatalogTable

logger = logging.getLogger(__name__)

ALL_CHANGES = "insert, update, delete, truncate"
INSERT_ONLY = "insert, truncate"


def publication_names(name: str) -> tuple[str, str]:
    """Our two publications, by the name in the settings."""
    return name, f"{name}_insert_only"


def publish_tables(connection: Connection, name: str, tables: Iterable[CatalogTable]) -> None:
    """Make both publications publish exactly these tables. Commits each change at once."""
    changeable: list[TableName] = []
    insert_only: list[TableName] = []
    for table in tables:
        (insert_only if table.identity == "none" else changeable).append(table.name)
    for table_name in insert_only:
        logger.warning(
            "%s has no replica identity: its new rows are synced, updates and deletes are not; "
            "give it a primary key, or ALTER TABLE … REPLICA IDENTITY FULL",
            table_name,
        )
    everything, inserts = publication_names(name)
    _set_publication(connection, everything, changeable, ALL_CHANGES)
    _set_publication(connection, inserts, insert_only, INSERT_ONLY)


# Both publications may be of partitions, which are published under their own names.
PUBLISHED = "SELECT schemaname, tablename FROM pg_publication_tables WHERE pubname = %s"


def _set_publication(connection: Connection, name: str, tables: Sequence[TableName], publish: str) -> None:
    identifier = sql.Identifier(name)
    if not connection.execute("SELECT FROM pg_publication WHERE pubname = %s", (name,)).fetchall():
        connection.execute(
            sql.SQL("CREATE PUBLICATION {} WITH (publish = {})").format(identifier, sql.Literal(publish))
        )
    published = {TableName(*row) for row in connection.execute(PUBLISHED, (name,))}
    for table in sorted(set(tables) - published):
        connection.execute(sql.SQL("ALTER PUBLICATION {} ADD TABLE {}").format(identifier, _quoted(table)))
    for table in sorted(published - set(tables)):
        connection.execute(sql.SQL("ALTER PUBLICATION {} DROP TABLE {}").format(identifier, _quoted(table)))


def _quoted(table: TableName) -> sql.Composable:
    return sql.SQL("ONLY {}").format(sql.Identifier(table.schema, table.name))
