"""A source's schema, and random statements for it. Whether one succeeds depends on what came before."""

from __future__ import annotations

from random import Random
from typing import Any

import psycopg

USERS = ("ann", "bob", "cat")
BULK_ID = 1000
ZONES = 40  # rows of a table that never changes: whoever sees any sees all

NOTE = """
    CREATE TABLE note (id int NOT NULL PRIMARY KEY, owner text, list_id int, title text, body text);
    ALTER TABLE note ALTER body SET STORAGE EXTERNAL;
"""
SCHEMA = f"""
    {NOTE}
    CREATE TABLE member (list_id int, user_id text, PRIMARY KEY (list_id, user_id));
    CREATE TABLE line (a int, b text);
    ALTER TABLE line REPLICA IDENTITY FULL;
    CREATE TABLE log (id int, text text);
    CREATE TABLE event (id int, day int, PRIMARY KEY (id, day)) PARTITION BY RANGE (day);
    CREATE TABLE event_0 PARTITION OF event FOR VALUES FROM (0) TO (10);
    CREATE TABLE event_1 PARTITION OF event FOR VALUES FROM (10) TO (20);
    CREATE TABLE account (id int PRIMARY KEY, amount int);
    INSERT INTO account SELECT i, 0 FROM generate_series(0, 4) AS i;
    INSERT INTO note SELECT i, 'bob', i % 3, repeat('f', 900), '' FROM generate_series(20, 60) AS i;
    INSERT INTO note SELECT i, 'ann', i % 3, 'first', repeat(md5(i::text), 100) FROM generate_series(1, 12) AS i;
    CREATE TABLE zone (id int PRIMARY KEY, title text);
    INSERT INTO zone SELECT i, repeat('z', 900) FROM generate_series(1, {ZONES}) AS i;
    INSERT INTO line SELECT i % 3, 'ann' FROM generate_series(1, 6) AS i;
    INSERT INTO member SELECT i, 'ann' FROM generate_series(0, 1) AS i;
"""

TRANSFER = "UPDATE account SET amount = amount + CASE id WHEN {} THEN {} ELSE -{} END WHERE id IN ({}, {})"
COUNT_UP = "UPDATE account SET amount = amount + 1 WHERE id = 0 RETURNING amount"


def random_change(choose: Random) -> str:
    """A change of some rows."""
    number, user, some_list = choose.randrange(1, 70), choose.choice(USERS), choose.randrange(3)
    body = choose.choice(["NULL", "'short'", f"repeat(md5('{choose.random()}'), 100)"])
    note = choose.choice(["note", "note", "note", "spare"])
    line = f"WHERE ctid = (SELECT ctid FROM line ORDER BY a, b, ctid OFFSET {choose.randrange(4)} LIMIT 1)"
    one, other = choose.sample(range(1, 5), 2)
    return choose.choice(
        [
            f"INSERT INTO {note} (id, owner, list_id, body) VALUES ({number}, '{user}', {some_list}, {body})",
            f"INSERT INTO {note} (id, title) VALUES ({number}, 'new')",
            f"UPDATE {note} SET title = title || '!' WHERE id = {number}",
            f"UPDATE {note} SET owner = '{user}', list_id = {some_list} WHERE id % 10 = {number % 10}",
            f"UPDATE {note} SET body = {body} WHERE id = {number}",
            f"UPDATE {note} SET id = 100 + id WHERE id IN ({number}, {number + 1})",
            f"UPDATE {note} SET id = id - 100 WHERE id > 100 AND id < {BULK_ID}",
            f"UPDATE {note} SET id = {2 * number + 1} - id WHERE id IN ({number}, {number + 1})",
            f"DELETE FROM {note} WHERE id = {number}",
            f"DELETE FROM {note} WHERE id % 5 = {number % 5}",
            f"INSERT INTO member VALUES ({some_list}, '{user}')",
            f"DELETE FROM member WHERE user_id = '{user}' AND list_id = {some_list}",
            f"UPDATE member SET user_id = user_id || 'x' WHERE list_id = {some_list} AND length(user_id) < 9",
            f"UPDATE member SET user_id = '' WHERE list_id = {some_list}",
            f"INSERT INTO line VALUES ({some_list}, '{user}')",
            f"UPDATE line SET b = '{user}' {line}",
            f"UPDATE line SET b = '{user}', a = a + 1 WHERE a = {some_list}",
            f"DELETE FROM line {line}",
            f"INSERT INTO log VALUES ({number}, '{user}')",
            f"INSERT INTO event VALUES ({number}, {choose.randrange(30)})",
            f"UPDATE event SET day = {choose.randrange(30)} WHERE id % 7 = {number % 7}",
            f"DELETE FROM event WHERE id % 7 = {number % 7}",
            TRANSFER.format(one, number, number, one, other),
            "UPDATE account SET id = id",
        ]
    )


def random_ddl(choose: Random) -> str:
    """A change of the schema, or of a whole table."""
    part = choose.randrange(3)
    bounds = f"FOR VALUES FROM ({10 * part}) TO ({10 * part + 10})"
    return choose.choice(
        [
            f"ALTER TABLE note ADD extra {choose.choice(['int', 'text'])} DEFAULT {choose.randrange(9)}",
            "ALTER TABLE note ADD extra text",
            "ALTER TABLE note DROP COLUMN extra",
            "ALTER TABLE note RENAME extra TO more",
            "ALTER TABLE note RENAME more TO extra",
            "ALTER TABLE note RENAME owner TO holder",
            "ALTER TABLE note RENAME holder TO owner",
            "ALTER TABLE note ALTER list_id TYPE text",
            "ALTER TABLE note ALTER list_id TYPE int USING list_id::int",
            "ALTER TABLE note RENAME TO spare",
            "ALTER TABLE spare RENAME TO note",
            "ALTER TABLE note RENAME TO t; ALTER TABLE spare RENAME TO note; ALTER TABLE t RENAME TO spare",
            "CREATE TABLE spare (id int PRIMARY KEY, title text); INSERT INTO spare VALUES (1, 'spare'), (2, 'spare')",
            "DROP TABLE spare",
            f"DROP TABLE note; {NOTE}",
            f"{NOTE} INSERT INTO note VALUES (1, 'cat', 1, 'again')",
            "TRUNCATE note",
            "TRUNCATE line, member",
            "TRUNCATE log",
            "TRUNCATE event",
            "ALTER TABLE account ADD extra int DEFAULT 1",
            "ALTER TABLE account DROP COLUMN extra",
            f"CREATE TABLE event_{part} PARTITION OF event {bounds}",
            f"ALTER TABLE event DETACH PARTITION event_{part}",
            f"ALTER TABLE event ATTACH PARTITION event_{part} {bounds}",
            f"ALTER TABLE event_{part} RENAME TO archive_{part}",
            f"DROP TABLE event_{part}",
        ]
        + [random_identity(choose)] * 12
    )


def random_identity(choose: Random) -> str:
    """Another identity of rows."""
    table = choose.choice(["note", "note", "note", "spare", "account", "line", "member"])
    return choose.choice(
        [
            f"ALTER TABLE {table} REPLICA IDENTITY FULL",
            f"ALTER TABLE {table} REPLICA IDENTITY DEFAULT",
            "ALTER TABLE note REPLICA IDENTITY NOTHING",
            "ALTER TABLE note DROP CONSTRAINT note_pkey; ALTER TABLE note REPLICA IDENTITY FULL",
            "ALTER TABLE note ADD CONSTRAINT note_pkey PRIMARY KEY (id)",
            "ALTER TABLE note ALTER owner SET NOT NULL; ALTER TABLE note DROP CONSTRAINT note_pkey;"
            "ALTER TABLE note ADD CONSTRAINT note_pkey PRIMARY KEY (owner, id)",
            "CREATE UNIQUE INDEX note_index ON note (id); ALTER TABLE note REPLICA IDENTITY USING INDEX note_index",
            "ALTER TABLE line ADD COLUMN k serial PRIMARY KEY",
            "ALTER TABLE line DROP COLUMN k",
        ]
    )


def random_rewrite(choose: Random) -> str:
    """A statement that writes a table anew without changing rows; not for a transaction."""
    table = choose.choice(["note", "note", "account", "line", "member"])
    return choose.choice([f"VACUUM FULL {table}", f"VACUUM {table}", f"CLUSTER {table} USING {table}_pkey"])


# Rows of a table without identity are followed as they come only. `log` is such a table: its rows never change.
WITHOUT_IDENTITY = """
    SELECT relname FROM pg_class
     WHERE relname IN ('note', 'spare', 'line', 'account', 'member') AND relnamespace = 'public'::regnamespace
       AND relreplident <> 'f'
       AND NOT EXISTS (SELECT FROM pg_index WHERE indrelid = pg_class.oid AND indisvalid
                          AND CASE relreplident WHEN 'i' THEN indisreplident WHEN 'n' THEN false
                                                ELSE indisprimary END)
"""


def followed_without_identity(session: psycopg.Connection[Any]) -> list[str]:
    """Tables whose rows change though nothing identifies them: what storage holds of them is not up to date."""
    return [row[0] for row in session.execute(WITHOUT_IDENTITY)]
