"""Databases of a test's own, on the server that the suite runs against."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
from psycopg import sql

from example_project.database_url import with_database

DROP_TIMEOUT_S = 20.0


@contextmanager
def temporary_database(server_url: str, *, template: str = "template0", encoding: str = "UTF8") -> Iterator[str]:
    """Make a database, yield its URL, and drop it with whatever slots follow it."""
    name = f"localsync_{secrets.token_hex(4)}"
    with psycopg.connect(server_url, autocommit=True) as connection:
        make = sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(sql.Identifier(name), sql.Identifier(template))
        if encoding != "UTF8":  # only the locale C goes with every encoding
            make += sql.SQL(" ENCODING {} LOCALE_PROVIDER libc LOCALE 'C'").format(sql.Literal(encoding))
        connection.execute(make)
    try:
        yield with_database(server_url, name)
    finally:
        drop_database(server_url, name)


def drop_database(server_url: str, name: str) -> None:
    """Drop a database, whoever is connected to it and whatever slots follow it."""
    deadline = time.monotonic() + DROP_TIMEOUT_S
    with psycopg.connect(server_url, autocommit=True) as connection:
        while not _drop_slots(connection, name) and time.monotonic() < deadline:
            time.sleep(0.05)
        connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


def _drop_slots(connection: psycopg.Connection, name: str) -> bool:
    """Drop the slots that nobody reads, send away the readers of the others; whether none is left."""
    drop = "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE database = %s AND NOT active"
    end = "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE database = %s AND active"
    connection.execute(drop, [name])
    return connection.execute(end, [name]).fetchone() is None
