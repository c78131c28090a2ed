"""Changes of the schema beside a running replicator: rows end as the rules say of the tables as they are now."""

from __future__ import annotations

import pytest

from tests.replication import RunningReplicator, replicating
from tests.source import eventually, execute, open_transaction, query, rows, streams, values

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("source")]

NOTES = streams(all="SELECT * FROM note")
BY_OWNER = streams(mine="SELECT id, title FROM note WHERE owner = auth.user_id()")


def make_notes() -> None:
    """A table with two rows."""
    execute("CREATE TABLE note (id int PRIMARY KEY, owner text, title text, number int)")
    execute("INSERT INTO note VALUES (1, 'ann', 'one', 10), (2, 'bob', 'two', 20)")


WITH_NEXT_ROW = pytest.mark.parametrize("next_row", [False, True], ids=["no next row", "next row"])


def and_then(next_row: bool, *statements: str) -> None:
    """Change the schema, and perhaps a row, which brings the new layout with it."""
    execute(*statements)
    if next_row:
        execute("UPDATE note SET owner = 'ANN' WHERE id = 1")


@WITH_NEXT_ROW
def test_a_column_is_added(next_row):
    make_notes()
    with replicating(NOTES) as replicator:
        and_then(next_row, "ALTER TABLE note ADD extra text DEFAULT 'x'")
        eventually(lambda: values("extra"), {"1": "x", "2": "x"})
        replicator.catch_up()


@WITH_NEXT_ROW
def test_a_column_is_dropped(next_row):
    make_notes()
    with replicating(NOTES) as replicator:
        and_then(next_row, "ALTER TABLE note DROP COLUMN title")
        eventually(lambda: {"title" in row for row in rows().values()}, {False})
        replicator.catch_up()


@WITH_NEXT_ROW
def test_a_column_is_renamed(next_row):
    make_notes()
    with replicating(NOTES) as replicator:
        and_then(next_row, "ALTER TABLE note RENAME title TO heading")
        eventually(lambda: values("heading"), {"1": "one", "2": "two"})
        assert {"title" in row for row in rows().values()} == {False}
        replicator.catch_up()


@WITH_NEXT_ROW
def test_a_column_is_retyped(next_row):
    make_notes()
    with replicating(NOTES) as replicator:
        and_then(next_row, "ALTER TABLE note ALTER number TYPE text USING 'n' || number")
        eventually(lambda: values("number"), {"1": "n10", "2": "n20"})
        replicator.catch_up()


def test_two_columns_change_places():
    make_notes()
    with replicating(NOTES) as replicator:
        execute(
            "BEGIN; ALTER TABLE note RENAME title TO t; ALTER TABLE note RENAME owner TO title;"
            "ALTER TABLE note RENAME t TO owner; COMMIT"
        )
        eventually(lambda: values("title"), {"1": "ann", "2": "bob"})
        replicator.catch_up()


@WITH_NEXT_ROW
def test_a_column_that_the_rules_filter_by_is_renamed_and_comes_back(next_row):
    """Without it no row is in any bucket: what a rule cannot see, it does not grant."""
    make_notes()
    with replicating(BY_OWNER) as replicator:
        execute("ALTER TABLE note RENAME owner TO holder")
        if next_row:
            execute("INSERT INTO note VALUES (3, 'ann', 'three', 30)")
        eventually(lambda: rows('mine|0["ann"]'), {})
        execute("ALTER TABLE note RENAME holder TO owner")
        expected = {"1": "one"} | ({"3": "three"} if next_row else {})
        eventually(lambda: values("title", 'mine|0["ann"]'), expected)
        replicator.catch_up()


def test_rows_change_within_the_transaction_that_changes_their_table():
    make_notes()
    with replicating(NOTES) as replicator:
        execute(
            "BEGIN; UPDATE note SET title = 'ONE' WHERE id = 1; ALTER TABLE note ADD extra int;"
            "UPDATE note SET extra = id; ALTER TABLE note DROP COLUMN number; INSERT INTO note VALUES (3, 'c', 'x', 3);"
            "ALTER TABLE note RENAME extra TO more; UPDATE note SET more = more + 1; COMMIT"
        )
        eventually(lambda: values("more"), {"1": 2, "2": 3, "3": 4})
        eventually(lambda: rows()["1"], {"id": 1, "owner": "ann", "title": "ONE", "more": 2})
        replicator.catch_up()


def test_a_table_is_dropped():
    make_notes()
    with replicating(BY_OWNER) as replicator:
        execute("DROP TABLE note")
        eventually(lambda: (rows('mine|0["ann"]'), rows('mine|0["bob"]')), ({}, {}))
        replicator.catch_up()


def test_a_table_is_created():
    with replicating(NOTES) as replicator:
        make_notes()
        eventually(lambda: values("title"), {"1": "one", "2": "two"})
        execute("DELETE FROM note WHERE id = 1")
        replicator.catch_up()
        assert set(rows()) == {"2"}


def test_a_table_is_dropped_and_created_anew_in_one_transaction():
    make_notes()
    with replicating(NOTES) as replicator:
        execute(
            "BEGIN; DROP TABLE note; CREATE TABLE note (id text PRIMARY KEY, title text);"
            "INSERT INTO note VALUES ('a', 'new'); COMMIT"
        )
        eventually(rows, {"a": {"id": "a", "title": "new"}})
        replicator.catch_up()


def test_a_table_is_renamed_out_of_the_rules_and_back():
    make_notes()
    with replicating(NOTES) as replicator:
        execute("ALTER TABLE note RENAME TO other")
        eventually(rows, {})
        execute("UPDATE other SET title = 'uno' WHERE id = 1")
        replicator.catch_up()
        assert rows() == {}
        execute("ALTER TABLE other RENAME TO note")
        eventually(lambda: values("title"), {"1": "uno", "2": "two"})
        replicator.catch_up()


def test_two_tables_swap_their_names():
    make_notes()
    execute("CREATE TABLE other (id int PRIMARY KEY, title text); INSERT INTO other VALUES (2, 'zwei'), (3, 'drei')")
    with replicating(NOTES) as replicator:
        execute(
            "BEGIN; ALTER TABLE note RENAME TO t; ALTER TABLE other RENAME TO note; ALTER TABLE t RENAME TO other;"
            "COMMIT"
        )
        eventually(rows, {"2": {"id": 2, "title": "zwei"}, "3": {"id": 3, "title": "drei"}})
        execute("DELETE FROM note WHERE id = 2", "DELETE FROM other")
        replicator.catch_up()
        assert set(rows()) == {"3"}


def test_two_tables_of_the_rules_swap_their_names():
    make_notes()
    execute("CREATE TABLE other (id int PRIMARY KEY, title text); INSERT INTO other VALUES (2, 'zwei'), (3, 'drei')")
    rules = streams(notes="SELECT id, title FROM note", others="SELECT id, title FROM other")
    with replicating(rules) as replicator:
        execute(
            "BEGIN; ALTER TABLE note RENAME TO t; ALTER TABLE other RENAME TO note; ALTER TABLE t RENAME TO other;"
            "COMMIT"
        )
        eventually(lambda: values("title", "notes|0[]"), {"2": "zwei", "3": "drei"})
        eventually(lambda: values("title", "others|0[]"), {"1": "one", "2": "two"})
        replicator.catch_up()


def test_a_table_moves_to_another_schema():
    make_notes()
    execute("CREATE SCHEMA IF NOT EXISTS elsewhere")
    try:
        with replicating(NOTES) as replicator:
            execute("ALTER TABLE note SET SCHEMA elsewhere")
            eventually(rows, {})
            execute("ALTER TABLE elsewhere.note SET SCHEMA public")
            eventually(lambda: values("title"), {"1": "one", "2": "two"})
            replicator.catch_up()
    finally:
        execute("DROP SCHEMA elsewhere CASCADE")


def test_tables_come_and_go_by_a_wildcard():
    rules = streams(all='SELECT * FROM "log_%" AS log')
    execute("CREATE TABLE log_a (id int PRIMARY KEY); INSERT INTO log_a VALUES (1)")
    with replicating(rules) as replicator:
        execute("CREATE TABLE log_b (id int PRIMARY KEY); INSERT INTO log_b VALUES (2)")
        eventually(lambda: set(rows()), {"1", "2"})
        execute("ALTER TABLE log_a RENAME TO archived", "CREATE TABLE log_c AS SELECT 3 AS id")
        eventually(lambda: set(rows()), {"2", "3"})
        execute("DROP TABLE log_b")
        eventually(lambda: set(rows()), {"3"})
        replicator.catch_up()


def test_truncate_of_several_tables_by_cascade():
    make_notes()
    execute(
        "CREATE TABLE comment (id int PRIMARY KEY, note int REFERENCES note);"
        "INSERT INTO comment VALUES (1, 1), (2, 2);"
        "CREATE TABLE other (id int PRIMARY KEY); INSERT INTO other VALUES (7)"
    )
    rules = streams(notes="SELECT id FROM note", comments="SELECT * FROM comment", others="SELECT * FROM other")
    with replicating(rules) as replicator:
        execute(
            "BEGIN; TRUNCATE note, other CASCADE; INSERT INTO note VALUES (5);INSERT INTO comment VALUES (9, 5); COMMIT"
        )
        replicator.catch_up()
        buckets = ("notes|0[]", "comments|0[]", "others|0[]")
        assert [set(rows(bucket)) for bucket in buckets] == [{"5"}, {"9"}, set()]
        execute("BEGIN; TRUNCATE note CASCADE; ROLLBACK")
        replicator.catch_up()
        assert set(rows("notes|0[]")) == {"5"}
        execute("BEGIN; SAVEPOINT a; TRUNCATE note CASCADE; ROLLBACK TO a; DELETE FROM comment; COMMIT")
        replicator.catch_up()
        assert [set(rows(bucket)) for bucket in buckets] == [{"5"}, set(), set()]


def test_truncate_of_a_table_without_identity():
    execute("CREATE TABLE line (id int, title text); INSERT INTO line VALUES (1, 'x'), (1, 'x'), (2, 'y')")
    with replicating(streams(all="SELECT * FROM line")) as replicator:
        execute("INSERT INTO line VALUES (3, 'z')", "BEGIN; TRUNCATE line; INSERT INTO line VALUES (4, 'n'); COMMIT")
        replicator.catch_up()
        assert set(rows()) == {"4"}


@pytest.mark.parametrize(
    "statement", ["VACUUM FULL note", "CLUSTER note USING note_pkey", "ANALYZE note", "REINDEX TABLE note"]
)
def test_a_table_is_rewritten(statement):
    make_notes()
    with replicating(NOTES) as replicator:
        execute("UPDATE note SET title = 'ONE' WHERE id = 1", statement, "UPDATE note SET title = 'TWO' WHERE id = 2")
        replicator.catch_up()
        eventually(lambda: values("title"), {"1": "ONE", "2": "TWO"})


def test_the_schema_changes_between_two_crashes():
    """Each run sees another schema, and the WAL between them holds rows of all of them."""
    make_notes()
    with replicating(NOTES):
        pass
    execute("INSERT INTO note VALUES (3, 'c', 'three', 30)", "ALTER TABLE note ADD extra int DEFAULT 5")
    execute("INSERT INTO note VALUES (4, 'd', 'four', 40, 4)")
    RunningReplicator(RULES=NOTES).stop()
    execute(
        "ALTER TABLE note RENAME extra TO more", "DELETE FROM note WHERE id = 1", "ALTER TABLE note DROP COLUMN owner"
    )
    RunningReplicator(RULES=NOTES).stop()
    execute("ALTER TABLE note ALTER more TYPE text", "INSERT INTO note VALUES (5, 'five', 50, '5')")
    with replicating(NOTES) as replicator:
        eventually(lambda: values("more"), {"2": "5", "3": "5", "4": "4", "5": "5"})
        replicator.catch_up()
        assert rows()["3"] == {"id": 3, "title": "three", "number": 30, "more": "5"}


def test_a_table_is_dropped_created_and_renamed_while_nobody_follows():
    make_notes()
    execute("CREATE TABLE other (id int PRIMARY KEY, title text); INSERT INTO other VALUES (1, 'eins')")
    rules = streams(all=["SELECT id, title FROM note", "SELECT id, title FROM other"])
    with replicating(rules):
        pass
    execute("DROP TABLE note", "UPDATE other SET title = 'x'", "ALTER TABLE other RENAME TO note")
    with replicating(rules) as replicator:
        eventually(lambda: values("title"), {"1": "x"})
        execute("CREATE TABLE other (id int PRIMARY KEY, title text); INSERT INTO other VALUES (2, 'zwei')")
        eventually(lambda: values("title"), {"1": "x", "2": "zwei"})
        replicator.catch_up()


def test_a_type_changes():
    execute("DROP TYPE IF EXISTS mood CASCADE; CREATE TYPE mood AS ENUM ('sad', 'fine')")
    execute("DROP TYPE IF EXISTS spot CASCADE; CREATE TYPE spot AS (x int)")
    execute(
        "CREATE TABLE note (id int PRIMARY KEY, feeling mood, place spot); INSERT INTO note VALUES (1, 'sad', '(1)')"
    )
    try:
        with replicating(NOTES) as replicator:
            execute("ALTER TYPE mood RENAME VALUE 'sad' TO 'blue'")
            execute("ALTER TYPE mood ADD VALUE 'glad'", "ALTER TYPE spot ADD ATTRIBUTE y int")
            execute("INSERT INTO note VALUES (2, 'glad', '(1,2)')")
            replicator.catch_up()
            assert values("feeling")["2"] == "glad"
            assert values("place")["2"] == '{"x":1,"y":2}'
    finally:
        execute("DROP TABLE note; DROP TYPE mood; DROP TYPE spot")


def test_the_catalogue_is_read_while_a_migration_holds_its_lock():
    """A schema change that lasts must neither stop the stream of other tables nor be seen half."""
    make_notes()
    execute("CREATE TABLE other (id int PRIMARY KEY); INSERT INTO other VALUES (1)")
    rules = streams(all="SELECT * FROM note", others="SELECT * FROM other")
    with replicating(rules) as replicator:
        with open_transaction("ALTER TABLE note ADD extra int DEFAULT 1", "UPDATE note SET extra = 2 WHERE id = 2"):
            execute("INSERT INTO other VALUES (2)")
            eventually(lambda: set(rows("others|0[]")), {"1", "2"})
            assert "extra" not in rows()["1"]
        eventually(lambda: values("extra"), {"1": 1, "2": 2})
        replicator.catch_up()


def test_a_column_that_is_added_empty_costs_clients_nothing():
    """They cannot tell NULL from a column that is missing, so rows that have no value in it stay as they are."""
    make_notes()
    with replicating(NOTES) as replicator:
        before = query("SELECT max(op_id) FROM localsync_bucket_operation")
        execute("ALTER TABLE note ADD extra text", "UPDATE note SET extra = 'x' WHERE id = 2")
        eventually(lambda: values("extra"), {"1": None, "2": "x"})
        replicator.catch_up()
        [(operations,)] = query(f"SELECT count(*) FROM localsync_bucket_operation WHERE op_id > {before[0][0]}")
        assert operations <= 2  # of the stream, and of reading it again


def test_a_column_that_was_added_with_values_and_rewritten():
    """Then nothing in the catalogue tells that old rows have values."""
    make_notes()
    with replicating(NOTES) as replicator:
        execute("ALTER TABLE note ADD extra int DEFAULT 7", "VACUUM FULL note")
        execute("ALTER TABLE note ADD serial serial")
        eventually(lambda: (values("extra"), values("serial")), ({"1": 7, "2": 7}, {"1": 1, "2": 2}))
        replicator.catch_up()


def test_a_column_that_a_rule_names_comes_later():
    """Until then the rule leaves rows out; afterwards it has them, also where the column is NULL."""
    make_notes()
    with replicating(streams(all="SELECT id, extra FROM note WHERE owner = 'ann' OR extra IS NULL")) as replicator:
        assert rows() == {}
        execute("ALTER TABLE note ADD extra text")
        eventually(lambda: set(rows()), {"1", "2"})
        replicator.catch_up()


def test_a_column_is_dropped_and_added_anew():
    make_notes()
    with replicating(NOTES) as replicator:
        execute("ALTER TABLE note DROP COLUMN title; ALTER TABLE note ADD title text")
        eventually(lambda: values("title"), {"1": None, "2": None})
        replicator.catch_up()


def test_the_key_gets_another_type():
    make_notes()
    with replicating(streams(all="SELECT owner AS id, title FROM note")) as replicator:
        execute("ALTER TABLE note ALTER id TYPE numeric(5, 2)", "UPDATE note SET title = 'ONE' WHERE id = 1")
        execute("DELETE FROM note WHERE id = 2")
        eventually(lambda: values("title"), {"ann": "ONE"})
        replicator.catch_up()


KEYLESS = [
    "ALTER TABLE note ADD extra int",
    "ALTER TABLE note DROP COLUMN number",
    "ALTER TABLE note ALTER id TYPE text",
]
PASSING = "ALTER TABLE note ADD k serial; UPDATE note SET owner = 'x' WHERE id = 1; ALTER TABLE note DROP COLUMN k"


@pytest.mark.parametrize("statement", [*KEYLESS, "ALTER TABLE note RENAME owner TO holder", PASSING])
def test_columns_of_a_table_without_a_key_change(statement):
    """A row is known by all of its columns, so every row is another one then."""
    make_notes()
    execute("ALTER TABLE note DROP CONSTRAINT note_pkey; ALTER TABLE note REPLICA IDENTITY FULL")
    execute("INSERT INTO note VALUES (2, 'bob', 'two', 20), (3, 'cat', 'three', 30)")
    with replicating(streams(all="SELECT id, title FROM note")) as replicator:
        execute(
            statement, "UPDATE note SET title = 'ONE' WHERE title = 'one'", "DELETE FROM note WHERE title = 'three'"
        )
        eventually(lambda: values("title"), {"1": "ONE", "2": "two"})
        replicator.catch_up()
        execute("DELETE FROM note WHERE ctid = (SELECT max(ctid) FROM note WHERE title = 'two')")
        replicator.catch_up()
        eventually(lambda: set(rows()), {"1", "2"})
        execute("DELETE FROM note WHERE title = 'two'")
        eventually(lambda: set(rows()), {"1"})
        replicator.catch_up()


@pytest.mark.parametrize("between", ["", "COMMIT; BEGIN;"], ids=["within a transaction", "between transactions"])
@pytest.mark.parametrize(
    ("away", "back"),
    [
        ("RENAME owner TO holder", "RENAME holder TO owner"),
        ("ALTER number TYPE text", "ALTER number TYPE int USING number::int"),
        ("ADD extra int DEFAULT 1", "DROP extra"),
    ],
    ids=["another name", "another type", "one more"],
)
def test_a_column_is_another_one_for_a_moment(between, away, back):
    """Nobody who looks at the catalogue sees it; rows that changed meanwhile were evaluated with it."""
    make_notes()
    with replicating(streams(all="SELECT * FROM note WHERE owner <> 'nobody'")) as replicator:
        before = rows()
        assert len(before) == 2
        execute(
            f"BEGIN; ALTER TABLE note {away}; {between} UPDATE note SET title = title || '!'; {between}"
            f" ALTER TABLE note {back}; COMMIT"
        )
        replicator.catch_up()
        eventually(rows, {key: {**row, "title": row["title"] + "!"} for key, row in before.items()})
