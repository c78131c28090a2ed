"""Reading COPY by libpq's own calls: the same rows as psycopg reads, and a connection that is of use afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

import psycopg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from psycopg import sql

from django_localsync.replication.copying import copy_out
from django_localsync.storage.connections import Connection, connect_for_rows

pytestmark = pytest.mark.django_db(transaction=True)

texts = st.none() | st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))
ENDLESS = sql.SQL("COPY (SELECT generate_series(1, 10000000000)) TO STDOUT")
SPECIAL = ["", "\\N", "\\", "\\\\", "\t", "\n", "\r", "\b\f\v", "a\tb\\n", "\\.", "ä€𝄞", None]


@pytest.fixture(scope="module")
def connection(django_db_setup: None, django_db_blocker: pytest.FixtureRequest) -> Iterator[Connection]:
    """A connection as tables are read by."""
    with closing(connect_for_rows("default")) as connection:
        yield connection


def both(connection: Connection, values: list[str | None]) -> tuple[list[object], list[object]]:
    """One column of these texts and one of numbers, as we read them and as psycopg does."""
    query = sql.SQL("COPY (SELECT v, n FROM unnest({}::text[]) WITH ORDINALITY AS t (v, n)) TO STDOUT").format(
        sql.Literal(values)
    )
    with connection.cursor().copy(query) as copy:
        theirs: list[object] = list(copy.rows())
    return list(copy_out(connection, query)), theirs


@given(st.lists(texts, max_size=20))
@settings(deadline=None)
def test_rows_are_those_that_psycopg_reads(connection, values):
    ours, theirs = both(connection, values)
    assert ours == theirs == [(value, str(n)) for n, value in enumerate(values, 1)]


def test_what_has_a_meaning_in_the_format_is_read_as_written(connection):
    ours, theirs = both(connection, SPECIAL)
    assert ours == theirs == [(value, str(n)) for n, value in enumerate(SPECIAL, 1)]


def test_large_rows_come_whole(connection):
    ours, _ = both(connection, ["x" * 5_000_000, "y" * 70_000])
    assert [len(value) for value, _ in ours] == [5_000_000, 70_000]


def test_an_error_before_the_first_row_is_raised_and_leaves_the_connection_of_use(connection):
    with pytest.raises(psycopg.errors.UndefinedTable):
        list(copy_out(connection, sql.SQL("COPY nowhere TO STDOUT")))
    assert connection.execute("SELECT 1").fetchone() == (1,)


def test_an_error_between_rows_is_raised_after_them_and_leaves_the_connection_of_use(connection):
    query = sql.SQL("COPY (SELECT 1 / (1000 - n) FROM generate_series(1, 2000) AS n) TO STDOUT")
    found: list[object] = []
    with pytest.raises(psycopg.errors.DivisionByZero):
        found += copy_out(connection, query)
    assert len(found) == 999
    assert connection.execute("SELECT 1").fetchone() == (1,)


def test_what_is_not_copied_is_an_error(connection):
    with pytest.raises(psycopg.Error):
        list(copy_out(connection, sql.SQL("SELECT 1")))
    assert connection.execute("SELECT 1").fetchone() == (1,)


def test_the_rest_of_a_large_table_is_not_read(connection):
    with closing(copy_out(connection, ENDLESS)) as rows:
        assert next(rows) == ("1",)
    assert connection.execute("SELECT 1").fetchone() == (1,)


def test_a_connection_that_is_cut_off_is_an_error(connection):
    with closing(connect_for_rows("default")) as other:
        rows = copy_out(other, ENDLESS)
        next(rows)
        connection.execute("SELECT pg_terminate_backend(%s)", [other.info.backend_pid])
        with pytest.raises(psycopg.OperationalError):
            for _ in rows:
                pass
