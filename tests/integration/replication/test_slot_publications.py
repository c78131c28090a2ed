"""Publications as somebody else left them: what is wrong is named, and made right."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from django_localsync.exceptions import ConfigurationError
from django_localsync.replication.publication import (
    drop_publications,
    publication_marks,
    publication_problems,
    publish_tables,
)
from django_localsync.replication.tables import CatalogTable, read_tables
from tests.databases import temporary_database

Session = psycopg.Connection[tuple[Any, ...]]


@pytest.fixture(scope="module")
def database(server_url: str) -> Iterator[Session]:
    """A database of its own: table `note` with a key, table `line` without one."""
    with temporary_database(server_url) as url, psycopg.connect(url, autocommit=True) as connection:
        yield connection


@pytest.fixture
def session(database: Session) -> Iterator[Session]:
    """The tables, published as they must be."""
    database.execute("CREATE TABLE note (id int PRIMARY KEY, a text); CREATE TABLE line (a int)")
    publish_tables(database, "p", tables(database))
    yield database
    database.execute("DROP TABLE IF EXISTS note, line; DROP PUBLICATION IF EXISTS p, p_insert_only")


def tables(session: Session) -> list[CatalogTable]:
    """Every table, as the catalogue has it."""
    return read_tables(session, lambda table: True)


def problems(session: Session) -> list[str]:
    """What is wrong with the publications."""
    return [str(problem) for problem in publication_problems(session, "p", tables(session))]


def test_what_we_publish_has_no_problem_and_is_not_touched_again(session):
    before = publication_marks(session, "p")
    assert len(before) == 2
    assert publish_tables(session, "p", tables(session)) == set()
    assert (problems(session), publication_marks(session, "p")) == ([], before)


@pytest.mark.parametrize(
    ("mishap", "told"),
    [
        ("DROP PUBLICATION p", "publication 'p' does not exist"),
        ("ALTER PUBLICATION p DROP TABLE note", "public.note is not in publication 'p'"),
        (
            "ALTER PUBLICATION p SET (publish = 'insert')",
            "publication 'p' publishes insert instead of insert, update, delete, truncate",
        ),
        (
            "ALTER PUBLICATION p_insert_only SET (publish = 'insert, delete')",
            "publication 'p_insert_only' publishes insert, delete instead of insert, truncate",
        ),
        (
            "ALTER PUBLICATION p SET (publish_via_partition_root = true)",
            "publication 'p' publishes partitions under the name of their root",
        ),
        ("ALTER PUBLICATION p SET TABLE note (id)", "public.note has a column list in publication 'p'"),
        ("ALTER PUBLICATION p SET TABLE note WHERE (id > 5)", "public.note has a row filter in publication 'p'"),
        ("ALTER PUBLICATION p RENAME TO q; DROP PUBLICATION q", "publication 'p' does not exist"),
        ("ALTER TABLE line ADD PRIMARY KEY (a)", "public.line is not in publication 'p'"),
    ],
)
def test_a_publication_that_somebody_changed_is_told_and_healed(session, mishap, told):
    before = publication_marks(session, "p")
    session.execute(mishap)
    assert problems(session) == [told]

    changed = publish_tables(session, "p", tables(session))

    assert problems(session) == []
    affected = "line" if "line" in mishap or "insert_only" in mishap else "note"
    assert {table.name for table in changed} == {affected}
    oid = session.execute("SELECT %s::regclass::oid::bigint", (affected,)).fetchone()[0]
    assert publication_marks(session, "p")[oid] != before[oid]


@pytest.mark.parametrize(
    "mishap",
    [
        "ALTER PUBLICATION p DROP TABLE note; ALTER PUBLICATION p ADD TABLE ONLY note",
        "ALTER PUBLICATION p SET (publish = 'insert');"
        "ALTER PUBLICATION p SET (publish = 'insert, update, delete, truncate')",
        "DROP PUBLICATION p; CREATE PUBLICATION p FOR TABLE ONLY note",
    ],
)
def test_a_change_that_was_undone_before_anybody_looked_leaves_another_mark(session, mishap):
    before = publication_marks(session, "p")
    for statement in mishap.split(";"):
        session.execute(statement)
    assert problems(session) == []
    oid = session.execute("SELECT 'note'::regclass::oid::bigint").fetchone()[0]
    after = publication_marks(session, "p")
    assert (after.pop(oid) != before.pop(oid), after == before) == (True, True)


def test_tables_that_nobody_uses_are_taken_out(session):
    session.execute("CREATE TABLE other (id int PRIMARY KEY); ALTER PUBLICATION p ADD TABLE other")
    used = [table for table in tables(session) if table.name.name != "other"]
    assert publish_tables(session, "p", used) == set()
    assert len(publication_marks(session, "p")) == 2
    session.execute("DROP TABLE other")


def test_a_publication_for_all_tables_is_refused(session):
    session.execute("DROP PUBLICATION p")
    session.execute("CREATE PUBLICATION p FOR ALL TABLES")
    with pytest.raises(ConfigurationError, match="FOR ALL TABLES; drop it"):
        publish_tables(session, "p", tables(session))


def test_a_role_that_does_not_own_the_tables_is_told_what_their_owner_must_run(session):
    session.execute("DROP PUBLICATION p")
    session.execute("DROP ROLE IF EXISTS localsync_guest; CREATE ROLE localsync_guest")
    session.execute("SET ROLE localsync_guest")
    try:
        with pytest.raises(ConfigurationError) as refused:
            publish_tables(session, "p", tables(session))
    finally:
        session.execute("RESET ROLE")
    for statement in str(refused.value).partition("run: ")[2].split("; "):
        session.execute(statement)
    assert problems(session) == []
    session.execute("SET ROLE localsync_guest")
    assert publish_tables(session, "p", tables(session)) == set()  # nothing is left to do, so no right is needed
    session.execute("RESET ROLE; DROP ROLE localsync_guest")


def test_dropping_both_publications_names_them(session):
    assert drop_publications(session, "p") == ["p", "p_insert_only"]
    assert drop_publications(session, "p") == []
