"""The source's side of replication tests: statements, and waiting for what they do to storage."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
from django.db import OperationalError, connection, transaction

from django_localsync.storage.connections import connect
from tests.replication import DEADLINE_S, Rows, drop_replication, stored_buckets

POLL_INTERVAL_S = 0.02


def execute(*statements: str) -> None:
    """Run SQL; each text is a transaction of its own."""
    with cursor_of_thread() as cursor:
        for statement in statements:
            cursor.execute(statement)


@contextmanager
def cursor_of_thread() -> Iterator[Any]:
    """A cursor of Django's connection, which is closed again in any thread but the test's own: it would outlive it."""
    try:
        with connection.cursor() as cursor:
            yield cursor
    finally:
        if threading.current_thread() is not threading.main_thread() and not connection.in_atomic_block:
            connection.close()


def works(statement: str) -> bool:
    """Run it; False where Postgres refuses to publish an UPDATE or DELETE without a replica identity."""
    try:
        execute(statement)
    except OperationalError as error:
        if "replica identity" in str(error):
            return False
        raise
    return True


def query(statement: str) -> list[tuple[Any, ...]]:
    """Ask the test database."""
    with cursor_of_thread() as cursor:
        cursor.execute(statement)
        return list(cursor.fetchall())


@contextmanager
def open_transaction(*statements: str) -> Iterator[psycopg.Connection[Any]]:
    """A session that has run these statements, and commits when the block ends."""
    with connect("default") as session, session.transaction():
        for statement in statements:
            session.execute(statement)
        yield session


def streams(**queries: str | list[str]) -> dict[str, Any]:
    """Rules of these streams, each a query or several."""
    kinds = {str: "query", list: "queries"}
    return {"config": {"edition": 3}, "streams": {name: {kinds[type(q)]: q} for name, q in queries.items()}}


def rows(bucket: str = "all|0[]") -> dict[str, Any]:
    """The rows that a client of the bucket ends with, by row id; no rows where there is no such bucket."""
    return {row_id: row for (_, row_id), row in snapshot().get(bucket, {}).items()}


def snapshot() -> dict[str, Rows]:
    """All served buckets as one snapshot shows them, for use while the replicator writes."""
    with cursor_of_thread(), transaction.atomic():
        execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        return stored_buckets()


def values(column: str, bucket: str = "all|0[]") -> dict[str, Any]:
    """One column of `rows`."""
    return {row_id: row.get(column) for row_id, row in rows(bucket).items()}


def wait_until(condition: Callable[[], object], what: str = "it comes true") -> None:
    """Wait until a condition holds."""
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, f"waited {DEADLINE_S:.0f} s in vain until {what}"
        time.sleep(POLL_INTERVAL_S)


def eventually(read: Callable[[], Any], expected: Any) -> None:
    """Wait until `read` answers this; the last answer is shown when it never does."""
    deadline = time.monotonic() + DEADLINE_S
    while (found := read()) != expected and time.monotonic() < deadline:
        time.sleep(POLL_INTERVAL_S)
    assert found == expected, _difference(found, expected)


def _difference(found: Any, expected: Any) -> str:
    if isinstance(found, dict) and isinstance(expected, dict):
        keys = [key for key in found.keys() | expected.keys() if found.get(key) != expected.get(key)]
        found, expected = ({key: each[key] for key in keys if key in each} for each in (found, expected))
    return f"{str(found)[:1000]} instead of {str(expected)[:1000]}"


@contextmanager
def source_tables() -> Iterator[None]:
    """Whatever tables a test makes: afterwards neither they nor slots and publications are left."""
    before = set(query(TABLES))
    try:
        yield
    finally:
        drop_replication()
        for (table,) in set(query(TABLES)) - before:
            execute(f"DROP TABLE IF EXISTS {table} CASCADE")


TABLES = """
    SELECT format('%I.%I', nspname, relname) FROM pg_class JOIN pg_namespace AS n ON n.oid = relnamespace
     WHERE relkind IN ('r', 'p') AND nspname !~ '^(pg_|information_schema)'
"""
