"""Large values that an UPDATE leaves out: in every identity mode, when the key changes, when nobody remembers them."""

from __future__ import annotations

import pytest

from tests.replication import replicating
from tests.source import eventually, execute, query, rows, streams

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("source")]

NOTES = streams(all="SELECT id, title, body, other FROM note")
WITHOUT_BODY = streams(all="SELECT id, title FROM note")
IDENTITIES = {
    "default": "ALTER TABLE note ADD PRIMARY KEY (id)",
    "index": "CREATE UNIQUE INDEX note_code ON note (code); ALTER TABLE note REPLICA IDENTITY USING INDEX note_code",
    "full": "ALTER TABLE note ADD PRIMARY KEY (id); ALTER TABLE note REPLICA IDENTITY FULL",
    "full without a key": "ALTER TABLE note REPLICA IDENTITY FULL",
    "composite": "ALTER TABLE note ADD PRIMARY KEY (code, id)",
}
IDENTIFIED = pytest.mark.parametrize("identity", IDENTITIES.values(), ids=IDENTITIES)


def make_notes(identity: str) -> None:
    """A table whose `body` and `other` are stored out of line, with three such rows."""
    execute(
        "CREATE TABLE note (id int NOT NULL, code text NOT NULL, title text, body text, other text);"
        "ALTER TABLE note ALTER body SET STORAGE EXTERNAL, ALTER other SET STORAGE EXTERNAL;"
        f"{identity}; INSERT INTO note SELECT i, i, 'old', {large('i::text')}, {large('i::text')}"
        " FROM generate_series(1, 3) AS i"
    )


def large(seed: str) -> str:
    """An SQL expression of 9600 characters."""
    return f"repeat(md5({seed}), 300)"


def source_rows() -> dict[str, dict[str, object]]:
    """What `NOTES` says of the table now."""
    names = ("id", "title", "body", "other")
    return {str(row[0]): dict(zip(names, row, strict=True)) for row in query("SELECT id, title, body, other FROM note")}


@IDENTIFIED
def test_unchanged_large_values_are_kept(identity):
    make_notes(identity)
    with replicating(NOTES) as replicator:
        execute(f"INSERT INTO note SELECT 4, '4', 'new', {large('4::text')}, NULL")
        execute("UPDATE note SET title = upper(title)", f"UPDATE note SET other = {large('id || title')} WHERE id <> 2")
        execute("UPDATE note SET body = NULL WHERE id = 3", "UPDATE note SET title = 'x' WHERE id = 3")
        replicator.catch_up()
        assert rows() == source_rows()


@IDENTIFIED
def test_unchanged_large_values_move_with_a_changed_key(identity):
    make_notes(identity)
    with replicating(NOTES) as replicator:
        execute("UPDATE note SET id = id + 10, code = id + 10")
        execute(
            "BEGIN; UPDATE note SET id = 0, code = 0 WHERE id = 11; UPDATE note SET id = 11, code = 11 WHERE id = 12;"
            "UPDATE note SET id = 12, code = 12 WHERE id = 0; UPDATE note SET title = 'swapped'; COMMIT"
        )
        replicator.catch_up()
        assert rows() == source_rows()


@IDENTIFIED
def test_unchanged_large_values_of_rows_that_were_written_in_the_same_transaction(identity):
    make_notes(identity)
    with replicating(NOTES) as replicator:
        execute(
            f"BEGIN; INSERT INTO note SELECT 5, '5', 'new', {large('5::text')}, {large('6::text')};"
            "UPDATE note SET title = 'again' WHERE id = 5; UPDATE note SET id = 6, code = 6 WHERE id = 5;"
            f"UPDATE note SET body = {large('7::text')} WHERE id = 6; UPDATE note SET title = 'last' WHERE id = 6;"
            f"DELETE FROM note WHERE id = 1; INSERT INTO note SELECT 1, '1', 'new', {large('1::text')}, 'short';"
            "UPDATE note SET title = 'newer' WHERE id = 1; COMMIT"
        )
        replicator.catch_up()
        assert rows() == source_rows()


@IDENTIFIED
def test_rules_begin_to_read_a_large_column_while_the_rows_change(identity):
    """What no rule read was not remembered, and an UPDATE meanwhile does not bring it."""
    make_notes(identity)
    with replicating(WITHOUT_BODY):
        pass
    execute("UPDATE note SET title = 'between' WHERE id = 1")
    with replicating(NOTES) as replicator:
        execute("UPDATE note SET title = 'after' WHERE id = 2", "UPDATE note SET id = 30, code = 30 WHERE id = 3")
        eventually(rows, source_rows())
        execute("UPDATE note SET title = 'last'")
        replicator.catch_up()
        assert rows() == source_rows()


def test_a_column_becomes_large_only_later():
    """Storage remembers only what is large; a row grows beyond the limit by another column."""
    make_notes("ALTER TABLE note ADD PRIMARY KEY (id)")
    execute("UPDATE note SET body = repeat('b', 500), other = NULL")
    with replicating(NOTES) as replicator:
        execute("UPDATE note SET other = repeat('o', 1990)", "UPDATE note SET title = 'x'")
        execute("ALTER TABLE note SET (toast_tuple_target = 128)", "UPDATE note SET body = body || '!'")
        execute("UPDATE note SET title = 'y'", "UPDATE note SET title = 'z', id = id + 10")
        eventually(rows, source_rows())
        replicator.catch_up()
        assert rows() == source_rows()


def test_values_that_are_compressed_only():
    """Plain storage keeps them in the row, and an UPDATE repeats them; the next one is stored outside again."""
    make_notes("ALTER TABLE note ADD PRIMARY KEY (id)")
    execute("ALTER TABLE note ALTER body SET STORAGE MAIN", "UPDATE note SET body = repeat('x', 20000), other = NULL")
    with replicating(NOTES) as replicator:
        execute("UPDATE note SET title = 'one'", "ALTER TABLE note ALTER body SET STORAGE EXTERNAL")
        execute("UPDATE note SET body = body || 'y'", "UPDATE note SET title = 'two'", "UPDATE note SET id = -id")
        replicator.catch_up()
        eventually(rows, source_rows())


@pytest.mark.parametrize("kind", ["jsonb", "bytea", "numeric", "int[]", "citext_like"])
def test_large_values_of_other_types(kind):
    value = {
        "jsonb": "(SELECT jsonb_object_agg(i, md5(i::text)) FROM generate_series(1, 300) AS i)",
        "bytea": "decode(repeat(md5('x'), 300), 'hex')",
        "numeric": "(repeat('123456789', 1200) || '.5')::numeric",
        "int[]": "(SELECT array_agg(i * 7919) FROM generate_series(1, 3000) AS i)",
        "citext_like": "repeat(md5('x'), 300)",
    }[kind]
    execute("DROP DOMAIN IF EXISTS citext_like CASCADE; CREATE DOMAIN citext_like AS text")
    execute(
        f"CREATE TABLE note (id int PRIMARY KEY, title text, body {kind});"
        "ALTER TABLE note ALTER body SET STORAGE EXTERNAL"
    )
    execute(f"INSERT INTO note SELECT 1, 'one', {value}")
    rules = streams(all="SELECT id, title, hex(body) AS body FROM note" if kind == "bytea" else "SELECT * FROM note")
    try:
        with replicating(rules) as replicator:
            execute(f"INSERT INTO note SELECT 2, 'two', {value}")
            replicator.catch_up()
            copied, streamed = (row["body"] for _, row in sorted(rows().items()))
            execute("UPDATE note SET title = 'x'", "UPDATE note SET id = id + 10")
            replicator.catch_up()
            assert copied == streamed
            assert rows() == {str(i): {"id": i, "title": "x", "body": copied} for i in (11, 12)}
    finally:
        execute("DROP TABLE note; DROP DOMAIN citext_like")
