"""The source: two tables, and transactions of any size.

Rows are as those of the other benchmarks: 8 columns, about 200 bytes of values, 300 of JSON. Row `i` has a key that
follows from `i`, in random order, so that updates and deletes need no list of keys. Notes are in 1000 buckets, tasks
in 50.
"""

from __future__ import annotations

from typing import LiteralString

import psycopg

TABLES = ("bench_notes", "bench_tasks")
PUBLICATION = "bench_yardstick"

_TABLE: LiteralString = """
    CREATE TABLE {} (
        id uuid PRIMARY KEY,
        owner_id text,
        group_id text,
        name text NOT NULL,
        body text NOT NULL,
        n bigint NOT NULL DEFAULT 0,
        done boolean NOT NULL DEFAULT false,
        created_at timestamptz NOT NULL DEFAULT now()
    )
"""
_STATEMENTS: dict[str, LiteralString] = {
    "insert": """
        INSERT INTO {table} (id, owner_id, group_id, name, body, n)
        SELECT md5(i::text)::uuid, 'user-' || i % 1000, 'group-' || i % 50, 'row ' || i,
               md5((i * 3)::text) || md5((i * 3 + 1)::text) || md5((i * 3 + 2)::text), i
          FROM generate_series({first}, {last}) AS i
    """,
    "update": """
        UPDATE {table} SET n = n + 1, name = 'changed ' || i
          FROM generate_series({first}, {last}) AS i WHERE id = md5(i::text)::uuid
    """,
    "delete": "DELETE FROM {table} USING generate_series({first}, {last}) AS i WHERE id = md5(i::text)::uuid",
}
OPERATIONS = tuple(_STATEMENTS)


def create_tables(connection: psycopg.Connection) -> None:
    """Make the empty tables, and the publication that the plain receiver reads."""
    for table in TABLES:
        connection.execute(_TABLE.format(table))
    connection.execute(f"CREATE PUBLICATION {PUBLICATION} FOR TABLE {', '.join(TABLES)}")
    # A stopped or slow reader is not to be cut off.
    connection.execute(f"ALTER DATABASE {connection.info.dbname} SET wal_sender_timeout = 0")


def write(connection: psycopg.Connection, operation: str, table: str, rows: range, transaction_rows: int) -> None:
    """Insert, update or delete these rows in transactions of that many rows; durable when it returns."""
    statement = _STATEMENTS[operation].format(
        table=table, first="start", last=f"least(start + {transaction_rows - 1}, {rows[-1]})"
    )
    connection.execute("SET synchronous_commit = off")
    connection.execute(f"""
        DO $$ BEGIN
            FOR start IN {rows[0]} .. {rows[-1]} BY {transaction_rows} LOOP
                {statement};
                COMMIT;
            END LOOP;
        END $$
    """)
    connection.execute("SET synchronous_commit = on")
    connection.execute("SELECT pg_logical_emit_message(true, 'bench', '')")


def position(connection: psycopg.Connection) -> str:
    """The end of what is committed now, as an LSN."""
    row = connection.execute("SELECT pg_current_wal_insert_lsn()").fetchone()
    assert row is not None
    return str(row[0])
