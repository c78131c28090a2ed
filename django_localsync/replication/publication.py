"""Publications: exactly the tables that the rules use, without changing what the user's own statements may do.

Tables whose rows cannot be identified go to a second publication that publishes inserts only: in the first one
Postgres would refuse their UPDATE and DELETE. No column lists, because they make DROP COLUMN fail.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import psycopg
from psycopg import sql

from ..exceptions import ConfigurationError
from ..storage.connections import Connection
from ..sync_rules.plan import TableName
from .tables import CatalogTable

ALL_CHANGES = ("insert", "update", "delete", "truncate")
INSERT_ONLY = ("insert", "truncate")


@dataclass(frozen=True, slots=True)
class PublicationProblem:
    """Changes of a table (None: of all of a publication's tables) are not published as they must be."""

    table: TableName | None
    text: str

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True, slots=True)
class _Published:
    """A table in a publication. `mark` is another whenever anybody changed what is published of it."""

    oid: int
    name: TableName
    mark: str
    partial: str | None  # what leaves out columns or rows


@dataclass(frozen=True, slots=True)
class _Publication:
    everything: bool
    via_root: bool
    publish: tuple[str, ...]
    tables: tuple[_Published, ...]

    def names(self) -> set[TableName]:
        return {table.name for table in self.tables}


def publication_names(name: str) -> tuple[str, str]:
    """Our two publications, by the name in the settings."""
    return name, f"{name}_insert_only"


def publish_tables(connection: Connection, name: str, tables: Iterable[CatalogTable]) -> set[TableName]:
    """Make both publications publish exactly these tables. Commits each change at once.

    Answers the tables whose changes may not all have been published until now: their rows must be read (again).
    Raises ConfigurationError, with the statements to run, where the role may not alter publications.
    """
    changed: set[TableName] = set()
    statements: list[sql.Composed] = []
    for publication, names, publish in _wanted(name, tables):
        changed |= _amend(connection, publication, names, publish, statements)
    _execute(connection, statements)
    return changed


def publication_problems(connection: Connection, name: str, tables: Iterable[CatalogTable]) -> list[PublicationProblem]:
    """What of these tables is not published as it must be; `publish_tables` heals it, and tells what to read again.

    Worth asking again and again: since Postgres 18, a publication that is gone ends no stream, and its tables' changes
    are silently left out.
    """
    return [
        problem
        for publication, names, publish in _wanted(name, tables)
        for problem in _problems(_read_publication(connection, publication), publication, names, publish)
    ]


def publication_marks(connection: Connection, name: str) -> dict[int, str]:
    """For each published table, by oid, a text that is another whenever anybody changed what is published of it.

    It tells of changes that were undone before anybody looked: a table taken out and put back, another set of
    operations for a moment, a publication dropped and made again.
    """
    return {
        table.oid: table.mark
        for publication in publication_names(name)
        if (found := _read_publication(connection, publication))
        for table in found.tables
    }


def drop_publications(connection: Connection, name: str) -> list[str]:
    """Drop both publications; answers the names of those that there were."""
    dropped = [found for found in publication_names(name) if _read_publication(connection, found)]
    for found in dropped:
        connection.execute(sql.SQL("DROP PUBLICATION IF EXISTS {}").format(sql.Identifier(found)))
    return dropped


Wanted = tuple[str, set[TableName], tuple[str, ...]]


def _wanted(name: str, tables: Iterable[CatalogTable]) -> tuple[Wanted, Wanted]:
    changeable: set[TableName] = set()
    insert_only: set[TableName] = set()
    for table in tables:
        (insert_only if table.identity == "none" else changeable).add(table.name)
    everything, inserts = publication_names(name)
    return (everything, changeable, ALL_CHANGES), (inserts, insert_only, INSERT_ONLY)


def _problems(
    publication: _Publication | None, name: str, tables: set[TableName], publish: tuple[str, ...]
) -> Iterator[PublicationProblem]:
    if publication is None:
        yield PublicationProblem(None, f"publication {name!r} does not exist")
        return
    if publication.everything:
        yield PublicationProblem(None, _everything(name))
        return
    if publication.publish != publish:
        text = f"publication {name!r} publishes {', '.join(publication.publish) or 'nothing'}"
        yield PublicationProblem(None, f"{text} instead of {', '.join(publish)}")
    if publication.via_root:
        yield PublicationProblem(None, f"publication {name!r} publishes partitions under the name of their root")
    for table in sorted(tables - publication.names()):
        yield PublicationProblem(table, f"{table} is not in publication {name!r}")
    for found in publication.tables:
        if found.partial and found.name in tables:
            yield PublicationProblem(found.name, f"{found.name} has {found.partial} in publication {name!r}")


PUBLICATION = """
    SELECT oid, xmin::text, puballtables, pubviaroot, pubinsert, pubupdate, pubdelete, pubtruncate
      FROM pg_publication WHERE pubname = %s
"""
PUBLISHED = """
    SELECT class.oid::bigint, namespace.nspname, class.relname, member.oid::text || '.' || member.xmin::text,
           CASE WHEN prattrs IS NOT NULL THEN 'a column list' WHEN prqual IS NOT NULL THEN 'a row filter' END
      FROM pg_publication_rel AS member
      JOIN pg_class AS class ON class.oid = prrelid
      JOIN pg_namespace AS namespace ON namespace.oid = class.relnamespace
     WHERE prpubid = %s
"""


def _read_publication(connection: Connection, name: str) -> _Publication | None:
    row = connection.execute(PUBLICATION, (name,)).fetchone()
    if row is None:
        return None
    oid, version, everything, via_root, *publishes = row
    return _Publication(
        everything,
        via_root,
        tuple(kind for kind, published in zip(ALL_CHANGES, publishes, strict=True) if published),
        tuple(
            _Published(relation, TableName(schema, table), f"{oid}.{version}/{member}", partial)
            for relation, schema, table, member, partial in connection.execute(PUBLISHED, (oid,))
        ),
    )


def _amend(
    connection: Connection, name: str, tables: set[TableName], publish: tuple[str, ...], statements: list[sql.Composed]
) -> set[TableName]:
    """Add the statements that make a publication what it must be; answers the tables it may have left out."""
    identifier, options = sql.Identifier(name), sql.Literal(", ".join(publish))
    publication = _read_publication(connection, name)
    changed: set[TableName] = set()
    if publication is None:
        statements.append(sql.SQL("CREATE PUBLICATION {} WITH (publish = {})").format(identifier, options))
        publication = _Publication(False, False, publish, ())
    elif publication.everything:
        raise ConfigurationError(_everything(name))
    elif publication.publish != publish or publication.via_root:
        settings = sql.SQL("ALTER PUBLICATION {} SET (publish = {}, publish_via_partition_root = false)")
        statements.append(settings.format(identifier, options))
        changed |= tables
    whole = {table.name for table in publication.tables if not table.partial}
    drop, add = sql.SQL("ALTER PUBLICATION {} DROP TABLE {}"), sql.SQL("ALTER PUBLICATION {} ADD TABLE {}")
    unwanted, missing = publication.names() - (whole & tables), tables - whole
    statements += [drop.format(identifier, _quoted(table)) for table in sorted(unwanted)]
    statements += [add.format(identifier, _quoted(table)) for table in sorted(missing)]
    return changed | missing


def _execute(connection: Connection, statements: list[sql.Composed]) -> None:
    for number, statement in enumerate(statements):
        try:
            connection.execute(statement)
        except psycopg.errors.InsufficientPrivilege as error:
            rest = "; ".join(each.as_string(connection) for each in statements[number:])
            raise ConfigurationError(
                f"the database role may not publish tables ({error.diag.message_primary}); as their owner run: {rest}"
            ) from error


def _everything(name: str) -> str:
    return f"publication {name!r} is FOR ALL TABLES; drop it, or name another one in PUBLICATION_NAME"


def _quoted(table: TableName) -> sql.Composable:
    return sql.SQL("ONLY {}").format(sql.Identifier(table.schema, table.name))
