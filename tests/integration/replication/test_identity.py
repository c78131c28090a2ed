"""How a row is known again: every replica identity, changes between them, keys that move, rows without any."""

from __future__ import annotations

import pytest

from tests.replication import replicating
from tests.source import eventually, execute, rows, streams, values, works

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("source")]

NOTES = streams(all="SELECT * FROM note")
BY_OWNER = streams(mine="SELECT id, title FROM note WHERE owner = auth.user_id()")
LINES = streams(all="SELECT a || '-' || b AS id, a, b FROM line")
IDENTITIES = {
    "default": "ALTER TABLE note ADD PRIMARY KEY (id)",
    "index": "CREATE UNIQUE INDEX note_code ON note (code); ALTER TABLE note REPLICA IDENTITY USING INDEX note_code",
    "index beside a primary key": "ALTER TABLE note ADD PRIMARY KEY (id); CREATE UNIQUE INDEX note_code ON note (code);"
    "ALTER TABLE note REPLICA IDENTITY USING INDEX note_code",
    "full": "ALTER TABLE note ADD PRIMARY KEY (id); ALTER TABLE note REPLICA IDENTITY FULL",
    "full without a key": "ALTER TABLE note REPLICA IDENTITY FULL",
    "composite": "ALTER TABLE note ADD PRIMARY KEY (code, id)",
}
IDENTIFIED = pytest.mark.parametrize("identity", IDENTITIES.values(), ids=IDENTITIES)


def make_notes(identity: str) -> None:
    """A table with this identity, and three rows."""
    execute(
        f"CREATE TABLE note (id int NOT NULL, code text NOT NULL, owner text, title text); {identity};"
        "INSERT INTO note VALUES (1, 'a', 'ann', 'one'), (2, 'b', 'ann', 'two'), (3, 'c', 'bob', 'three')"
    )


@IDENTIFIED
def test_rows_change_move_and_go(identity):
    make_notes(identity)
    with replicating(BY_OWNER) as replicator:
        execute(
            "UPDATE note SET title = 'ONE' WHERE id = 1",
            "UPDATE note SET owner = 'bob' WHERE id = 2",
            "DELETE FROM note WHERE id = 3",
            "INSERT INTO note VALUES (4, 'd', 'ann', 'four')",
        )
        replicator.catch_up()
        assert values("title", 'mine|0["ann"]') == {"1": "ONE", "4": "four"}
        assert values("title", 'mine|0["bob"]') == {"2": "two"}


@IDENTIFIED
def test_a_key_changes(identity):
    make_notes(identity)
    with replicating(BY_OWNER) as replicator:
        execute("UPDATE note SET id = 10, code = 'x' WHERE id = 1", "UPDATE note SET title = 'TEN' WHERE id = 10")
        execute("UPDATE note SET code = 'y' WHERE id = 2", "DELETE FROM note WHERE code = 'y'")
        replicator.catch_up()
        assert values("title", 'mine|0["ann"]') == {"10": "TEN"}


@IDENTIFIED
def test_two_rows_swap_their_keys_in_one_transaction(identity):
    make_notes(identity)
    with replicating(BY_OWNER) as replicator:
        execute(
            "BEGIN; UPDATE note SET id = -1, code = '-' WHERE id = 1; UPDATE note SET id = 1, code = 'a' WHERE id = 2;"
            "UPDATE note SET id = 2, code = 'b' WHERE id = -1; COMMIT"
        )
        replicator.catch_up()
        assert values("title", 'mine|0["ann"]') == {"1": "two", "2": "one"}


@IDENTIFIED
def test_a_chain_of_changes_in_one_transaction(identity):
    make_notes(identity)
    with replicating(BY_OWNER) as replicator:
        execute(
            "BEGIN; DELETE FROM note WHERE id = 1; INSERT INTO note VALUES (1, 'a', 'bob', 'again');"
            "UPDATE note SET id = 5, code = 'e' WHERE id = 1; UPDATE note SET owner = 'ann' WHERE id = 5;"
            "INSERT INTO note VALUES (6, 'f', 'ann', 'six'); DELETE FROM note WHERE id = 6; COMMIT"
        )
        replicator.catch_up()
        assert values("title", 'mine|0["ann"]') == {"2": "two", "5": "again"}
        assert values("title", 'mine|0["bob"]') == {"3": "three"}


@IDENTIFIED
def test_truncate_takes_every_row_back(identity):
    make_notes(identity)
    with replicating(NOTES) as replicator:
        execute("BEGIN; TRUNCATE note; INSERT INTO note VALUES (7, 'g', 'ann', 'seven'); COMMIT")
        replicator.catch_up()
        assert values("title") == {"7": "seven"}


def test_nothing_as_identity_takes_new_rows_and_the_application_is_told(caplog):
    make_notes("ALTER TABLE note REPLICA IDENTITY NOTHING")
    with replicating(NOTES) as replicator:
        execute(
            "INSERT INTO note VALUES (4, 'd', 'ann', 'four')",
            "UPDATE note SET title = 'ONE' WHERE id = 1",
            "DELETE FROM note WHERE id = 2",
        )
        replicator.catch_up()
        assert set(values("title")) == {"1", "2", "3", "4"}
        assert "note has no replica identity" in caplog.text
        execute("TRUNCATE note")
        replicator.catch_up()
        assert rows() == {}


CHANGES = {
    "nothing to default": ("ALTER TABLE note REPLICA IDENTITY NOTHING", "ALTER TABLE note REPLICA IDENTITY DEFAULT"),
    "default to full": ("", "ALTER TABLE note REPLICA IDENTITY FULL"),
    "full to default": ("ALTER TABLE note REPLICA IDENTITY FULL", "ALTER TABLE note REPLICA IDENTITY DEFAULT"),
    "default to index": (
        "CREATE UNIQUE INDEX note_code ON note (code)",
        "ALTER TABLE note REPLICA IDENTITY USING INDEX note_code",
    ),
    "full to index": (
        "CREATE UNIQUE INDEX note_code ON note (code); ALTER TABLE note REPLICA IDENTITY FULL",
        "ALTER TABLE note REPLICA IDENTITY USING INDEX note_code",
    ),
    "another primary key": ("", "ALTER TABLE note DROP CONSTRAINT note_pkey, ADD PRIMARY KEY (code)"),
    "keyless full to a primary key": (
        "ALTER TABLE note DROP CONSTRAINT note_pkey; ALTER TABLE note REPLICA IDENTITY FULL",
        "ALTER TABLE note ADD PRIMARY KEY (id)",
    ),
    "a primary key to keyless full": (
        "ALTER TABLE note REPLICA IDENTITY FULL",
        "ALTER TABLE note DROP CONSTRAINT note_pkey",
    ),
    "no key to a primary key": ("ALTER TABLE note DROP CONSTRAINT note_pkey", "ALTER TABLE note ADD PRIMARY KEY (id)"),
    "the identity's index is renamed": (
        "CREATE UNIQUE INDEX note_code ON note (code); ALTER TABLE note REPLICA IDENTITY USING INDEX note_code",
        "ALTER INDEX note_code RENAME TO note_other",
    ),
}


@pytest.mark.parametrize(("before", "after"), CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize("next_change", ["at once", "later"])
def test_the_identity_changes(before, after, next_change):
    make_notes("ALTER TABLE note ADD PRIMARY KEY (id)")
    execute(*filter(None, [before]))
    with replicating(NOTES) as replicator:
        execute("INSERT INTO note VALUES (4, 'd', 'ann', 'four')")
        replicator.catch_up()
        execute(after)
        if next_change == "later":
            replicator.catch_up()
        # Under the former publication of inserts alone, what happens before the change is noticed needs a repair.
        execute(
            "UPDATE note SET title = 'ONE' WHERE id = 1",
            "DELETE FROM note WHERE id = 2",
            "UPDATE note SET id = 30, code = 'cc' WHERE id = 3",
        )
        eventually(lambda: values("title"), {"1": "ONE", "30": "three", "4": "four"})
        execute("DELETE FROM note WHERE id = 1", "UPDATE note SET title = 'FOUR' WHERE id = 4")
        eventually(lambda: values("title"), {"30": "three", "4": "FOUR"})


def test_full_identity_becomes_nothing():
    make_notes("ALTER TABLE note REPLICA IDENTITY FULL")
    with replicating(NOTES) as replicator:
        execute("ALTER TABLE note REPLICA IDENTITY NOTHING", "INSERT INTO note VALUES (4, 'd', 'ann', 'four')")
        eventually(lambda: sorted(rows()), ["1", "2", "3", "4"])
        eventually(lambda: works("UPDATE note SET title = '' WHERE id = 1"), True)
        replicator.catch_up()


def test_identical_rows_under_full_identity_are_counted():
    execute("CREATE TABLE line (a int, b text); ALTER TABLE line REPLICA IDENTITY FULL")
    execute("INSERT INTO line VALUES (1, 'x'), (1, 'x'), (2, 'y'), (2, 'y'), (2, 'y')")
    one = "WHERE ctid = (SELECT ctid FROM line WHERE a = 1 LIMIT 1)"
    with replicating(LINES) as replicator:
        execute(f"DELETE FROM line {one}; INSERT INTO line VALUES (3, NULL); INSERT INTO line VALUES (3, NULL)")
        replicator.catch_up()
        assert set(rows()) == {"1-x", "2-y", ""}
        execute("UPDATE line SET b = 'z' WHERE a = 2 AND ctid = (SELECT max(ctid) FROM line WHERE a = 2)")
        replicator.catch_up()
        assert set(rows()) == {"1-x", "2-y", "2-z", ""}
        execute(f"DELETE FROM line {one}; DELETE FROM line WHERE b = 'y'; DELETE FROM line WHERE a = 3")
        replicator.catch_up()
        assert set(rows()) == {"2-z"}


def test_copies_become_one_row_and_part_again_in_one_transaction():
    execute("CREATE TABLE line (a int, b text); ALTER TABLE line REPLICA IDENTITY FULL")
    execute("INSERT INTO line SELECT i, 'x' FROM generate_series(1, 4) AS i")
    with replicating(LINES) as replicator:
        execute("BEGIN; UPDATE line SET a = 1; UPDATE line SET a = 9 WHERE ctid = (SELECT min(ctid) FROM line); COMMIT")
        replicator.catch_up()
        assert set(rows()) == {"1-x", "9-x"}
        execute("DELETE FROM line WHERE a = 1")
        replicator.catch_up()
        assert set(rows()) == {"9-x"}


IDS = streams(all="SELECT id FROM note")
TWO_IDS = streams(all="SELECT code AS id, id AS number FROM note")


@IDENTIFIED
def test_two_source_rows_have_one_client_id_in_a_bucket(identity):
    """They are two rows of the bucket; clients show the newer one, and the other once that is gone."""
    make_notes(identity.replace("UNIQUE INDEX note_code ON note (code)", "UNIQUE INDEX note_code ON note (code, id)"))
    execute("INSERT INTO note VALUES (4, 'a', 'ann', 'four')")
    with replicating(TWO_IDS) as replicator:
        execute("DELETE FROM note WHERE id = 4")
        replicator.catch_up()
        assert values("number")["a"] == 1
        execute("INSERT INTO note VALUES (5, 'a', 'ann', 'five')")
        replicator.catch_up()
        assert values("number")["a"] == 5
        execute("DELETE FROM note WHERE id = 1")
        replicator.catch_up()
        assert values("number")["a"] == 5


OTHER_IDS = streams(all="SELECT title AS id, id AS number FROM note")


@IDENTIFIED
def test_the_client_id_is_not_the_identity(identity):
    make_notes(identity)
    with replicating(OTHER_IDS) as replicator:
        assert values("number") == {"one": 1, "two": 2, "three": 3}
        execute(
            "UPDATE note SET title = 'uno' WHERE id = 1",
            "BEGIN; UPDATE note SET title = 'three' WHERE id = 2; UPDATE note SET title = 'two' WHERE id = 3; COMMIT",
        )
        replicator.catch_up()
        assert values("number") == {"uno": 1, "three": 2, "two": 3}


@pytest.mark.parametrize("kind", ["varchar", "uuid", "numeric", "timestamptz", "bytea", "int[]", "float8"])
def test_a_key_of_any_type(kind):
    first, second, third = {
        "varchar": ("'a'", "'[\"a\"]'", "''"),
        "uuid": tuple(f"'00000000-0000-0000-0000-00000000000{i}'" for i in range(3)),
        "numeric": ("1.50", "1.5e20", "'NaN'"),
        "timestamptz": ("'2024-01-01 00:00+02'", "'infinity'", "'0044-01-01 BC'"),
        "bytea": ("'\\x00'", "'\\xff'", "''"),
        "int[]": ("'{1}'", "'{}'", "'{1,NULL}'"),
        "float8": ("0.1", "'-0'", "'infinity'"),
    }[kind]
    execute(f"CREATE TABLE note (k {kind} PRIMARY KEY, id text)")
    execute(f"INSERT INTO note VALUES ({first}, 'one'), ({second}, 'two'), ({third}, 'three')")
    with replicating(IDS) as replicator:
        execute(
            f"UPDATE note SET id = 'ONE' WHERE k = {first}",
            f"DELETE FROM note WHERE k = {second}",
            f"UPDATE note SET k = {second} WHERE k = {third}",
            f"UPDATE note SET id = 'THREE' WHERE k = {second}",
        )
        replicator.catch_up()
        assert set(rows()) == {"ONE", "THREE"}


def test_a_long_key():
    execute("CREATE TABLE note (k text PRIMARY KEY, id text)")
    execute("INSERT INTO note SELECT repeat(i::text, 2000), i FROM generate_series(1, 3) AS i")
    with replicating(IDS) as replicator:
        execute("UPDATE note SET id = 'two' WHERE id = '2'", "UPDATE note SET k = k || '!' WHERE id = '3'")
        execute("DELETE FROM note WHERE id IN ('1', '3')")
        replicator.catch_up()
        assert set(rows()) == {"two"}
