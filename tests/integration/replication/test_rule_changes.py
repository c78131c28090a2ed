"""Changed rules: what they have in common with the former ones stays, the rest is filled beside what is served."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from django.db import connection

from tests.replication import RunningReplicator, replicating
from tests.source import (
    eventually,
    execute,
    open_transaction,
    query,
    rows,
    snapshot,
    streams,
    values,
    wait_until,
)

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("source")]

NOTES = "SELECT id, title FROM note"
MINE = "SELECT id, title FROM note WHERE owner = auth.user_id()"
OTHERS = "SELECT id, title FROM other"
FIRST = streams(notes=NOTES, others=OTHERS)
SECOND = streams(notes=NOTES, mine=MINE)


@pytest.fixture(autouse=True)
def tables(source: None) -> None:
    """Two tables of three and two rows."""
    execute(
        "CREATE TABLE note (id int PRIMARY KEY, owner text, title text);"
        "INSERT INTO note VALUES (1, 'ann', 'one'), (2, 'bob', 'two'), (3, 'ann', 'three');"
        "CREATE TABLE other (id int PRIMARY KEY, title text); INSERT INTO other VALUES (1, 'eins'), (2, 'zwei')"
    )


def buckets() -> dict[str, tuple[int, int, int, int]]:
    """The served buckets: id, number of operations, checksum and last op id by name."""
    found = query("""
        SELECT definition.name || bucket.parameters, bucket.id, operations, checksum, last_op_id
          FROM localsync_bucket AS bucket JOIN localsync_definition AS definition ON definition.id = definition_id
         WHERE definition.state = 'served'
    """)
    return {name: tuple(totals) for name, *totals in found}


def active_rules() -> int:
    """The number of the rule set that is served."""
    [(number,)] = query("SELECT max(id) FROM localsync_rule_set WHERE state = 'active'")
    return number or 0


def is_filling() -> bool:
    """Whether a rule set is being filled."""
    return query("SELECT count(*) FROM localsync_rule_set WHERE state = 'processing'") == [(1,)]


@contextmanager
def held_up() -> Iterator[None]:
    """No backfill begins meanwhile: it waits for a transaction that writes, as it must."""
    with open_transaction("CREATE TABLE IF NOT EXISTS held (id int)", "INSERT INTO held VALUES (1)"):
        yield


def test_unchanged_definitions_keep_their_buckets_and_operations():
    with replicating(FIRST):
        before = buckets()
    with replicating(SECOND) as replicator:
        eventually(lambda: values("title", 'mine|0["ann"]'), {"1": "one", "3": "three"})
        assert buckets()["notes|0[]"] == before["notes|0[]"]
        assert "others|0[]" not in buckets()
        execute("UPDATE note SET title = upper(title) WHERE id = 1", "UPDATE other SET title = 'x'")
        replicator.catch_up()
        assert values("title", "notes|0[]") == {"1": "ONE", "2": "two", "3": "three"}
        assert values("title", 'mine|0["ann"]') == {"1": "ONE", "3": "three"}
        id_, operations, *_ = buckets()["notes|0[]"]
        assert (id_, operations) == (before["notes|0[]"][0], before["notes|0[]"][1] + 1)


def test_the_same_rules_in_another_order_change_nothing():
    with replicating(FIRST):
        before = (active_rules(), buckets())
    with replicating(streams(others=OTHERS, notes=NOTES)):
        assert buckets() == before[1]


def test_the_former_set_is_served_and_lives_while_the_new_one_is_filled():
    with replicating(FIRST):
        pass
    with held_up():
        running = RunningReplicator(RULES=SECOND)
        try:
            wait_until(is_filling, "the new rules are being filled")
            execute("UPDATE other SET title = 'EINS' WHERE id = 1", "INSERT INTO note VALUES (4, 'ann', 'four')")
            eventually(lambda: values("title", "others|0[]"), {"1": "EINS", "2": "zwei"})
            eventually(lambda: set(rows("notes|0[]")), {"1", "2", "3", "4"})
            assert is_filling()
            assert not any(name.startswith("mine") for name in snapshot())
        except BaseException:
            running.stop()
            raise
    eventually(lambda: set(rows('mine|0["ann"]')), {"1", "3", "4"})
    assert not any(name.startswith("others") for name in snapshot())
    running.catch_up()
    running.stop()


def test_the_swap_is_atomic():
    execute("INSERT INTO note SELECT i, 'ann', i FROM generate_series(10, 3000) AS i")
    first, second = streams(all="SELECT id FROM note"), streams(all="SELECT id, title FROM note")
    seen: list[set[tuple[str, ...]]] = []
    stop = threading.Event()

    def observe() -> None:
        while not stop.is_set():
            found = rows()
            seen.append({tuple(row) for row in found.values()} | {(str(len(found)),)})
        connection.close()

    with replicating(first):
        pass
    observer = threading.Thread(target=observe)
    observer.start()
    try:
        wait_until(lambda: seen, "the observer sees the old rules")
        with replicating(second):
            wait_until(lambda: ("id", "title") in seen[-1], "the observer sees the new rules")
    finally:
        stop.set()
        observer.join()
    whole = [{("id",), ("2994",)}, {("id", "title"), ("2994",)}]
    assert seen[0] == whole[0]
    assert all(observation in whole for observation in seen), [o for o in seen if o not in whole][:3]


def test_a_restart_in_the_middle_goes_on():
    with replicating(FIRST):
        pass
    with held_up():
        for _ in range(2):
            running = RunningReplicator(RULES=SECOND)
            wait_until(is_filling, "the new rules are being filled")
            execute("UPDATE note SET title = title || '!'")
            eventually(lambda: len({row["title"][-2:] for row in rows("notes|0[]").values()}) > 0, True)
            running.stop()
        assert "others|0[]" in buckets()
    with replicating(SECOND):
        eventually(lambda: values("title", 'mine|0["ann"]'), {"1": "one!!", "3": "three!!"})
        assert values("title", "notes|0[]") == {"1": "one!!", "2": "two!!", "3": "three!!"}


def test_rules_change_twice_before_the_first_change_is_served():
    third = streams(mine=MINE, shouted="SELECT id, upper(title) AS title FROM note")
    with replicating(FIRST):
        pass
    with held_up():
        running = RunningReplicator(RULES=SECOND)
        wait_until(is_filling, "the new rules are being filled")
        running.stop()
        running = RunningReplicator(RULES=third)
        execute("UPDATE note SET title = 'uno' WHERE id = 1")
        eventually(lambda: values("title", "notes|0[]")["1"], "uno")
        assert {name.split("|")[0] for name in snapshot()} == {"notes", "others"}
        running.stop()
    with replicating(third):
        eventually(lambda: values("title", "shouted|0[]"), {"1": "UNO", "2": "TWO", "3": "THREE"})
        assert values("title", 'mine|0["ann"]') == {"1": "uno", "3": "three"}
        assert {name.split("|")[0] for name in snapshot()} == {"mine", "shouted"}


def test_rules_are_changed_back_before_the_change_is_served():
    with replicating(FIRST):
        before = buckets()
    with held_up():
        running = RunningReplicator(RULES=SECOND)
        wait_until(is_filling, "the new rules are being filled")
        running.stop()
        running = RunningReplicator(RULES=FIRST)
        execute("UPDATE other SET title = 'EINS' WHERE id = 1")
        eventually(lambda: values("title", "others|0[]"), {"1": "EINS", "2": "zwei"})
        wait_until(lambda: not is_filling(), "the given up rules are gone")
        running.stop()
    with replicating(FIRST) as replicator:
        execute("UPDATE note SET title = 'uno' WHERE id = 1")
        replicator.catch_up()
        assert buckets()["notes|0[]"][0] == before["notes|0[]"][0]
        assert {name.split("|")[0] for name in snapshot()} == {"notes", "others"}


def test_rules_are_changed_back_after_the_change_was_served():
    """What was dropped meanwhile comes back under a new name: no name has two histories."""
    with replicating(FIRST):
        before = buckets()
    with replicating(SECOND):
        eventually(lambda: "mine" in "".join(snapshot()), True)
    execute("DELETE FROM other WHERE id = 1")
    with replicating(FIRST) as replicator:
        eventually(lambda: values("title", "others|0[]"), {"2": "zwei"})
        replicator.catch_up()
        assert buckets()["others|0[]"][0] != before["others|0[]"][0]
        assert buckets()["notes|0[]"] == before["notes|0[]"]


def test_rows_change_between_two_rule_sets_that_share_a_definition():
    with replicating(FIRST):
        pass
    execute("UPDATE note SET title = 'ONE' WHERE id = 1", "DELETE FROM note WHERE id = 2")
    with replicating(SECOND):
        eventually(lambda: values("title", 'mine|0["ann"]'), {"1": "ONE", "3": "three"})
        assert values("title", "notes|0[]") == {"1": "ONE", "3": "three"}
        assert values("title", 'mine|0["bob"]') == {}


def test_a_column_is_added_while_the_rules_change():
    """What is read again for the column are a few rows; the new definition needs all of them."""
    with replicating(streams(everything="SELECT * FROM note")):
        pass
    execute("ALTER TABLE note ADD extra text; UPDATE note SET extra = 'more' WHERE id = 2")
    with replicating(streams(everything="SELECT * FROM note", copy="SELECT * FROM note WHERE id > 0")):
        eventually(lambda: values("extra", "copy|0[]"), {"1": None, "2": "more", "3": None})
        assert values("extra", "everything|0[]").get("2") == "more"


def test_a_parameter_index_is_filled_before_it_is_asked():
    execute("CREATE TABLE member (list_id int, user_id text); ALTER TABLE member REPLICA IDENTITY FULL")
    execute("INSERT INTO member VALUES (1, 'ann'), (1, 'ann'), (2, 'bob')")
    joined = "SELECT * FROM note WHERE id IN (SELECT list_id FROM member WHERE user_id = auth.user_id())"
    with replicating(FIRST):
        pass
    with replicating(streams(notes=NOTES, joined=joined)) as replicator:
        eventually(lambda: set(rows("joined|0[2]")), {"2"})
        execute("DELETE FROM member WHERE ctid = (SELECT ctid FROM member WHERE user_id = 'ann' LIMIT 1)")
        replicator.catch_up()
        assert sorted(set(lookups())) == [('["ann"]', "[1]"), ('["bob"]', "[2]")]
        execute("DELETE FROM member WHERE user_id = 'ann'")
        replicator.catch_up()
        assert lookups() == [('["bob"]', "[2]")]


def lookups() -> list[tuple[str, str]]:
    """The served parameter index: key and outputs."""
    return sorted(
        query("""
        SELECT key, outputs FROM localsync_parameter_lookup AS entry
          JOIN localsync_definition AS definition ON definition.id = entry.definition_id
         WHERE definition.state = 'served' AND pending <> 1
    """)
    )


def test_what_no_rule_names_any_more_is_deleted():
    with replicating(FIRST):
        pass
    with replicating(streams(others=OTHERS)):
        left = """
            SELECT (SELECT count(*) FROM localsync_bucket_operation), (SELECT count(*) FROM localsync_bucket),
                   (SELECT count(*) FROM localsync_definition), (SELECT count(*) FROM localsync_rule_set),
                   (SELECT count(*) FROM localsync_source_table)
        """
        eventually(lambda: query(left), [(2, 1, 1, 1, 1)])
        published = "SELECT tablename FROM pg_publication_tables WHERE tablename IN ('note', 'other')"
        eventually(lambda: query(published), [("other",)])
    assert query("SELECT count(*) FROM pg_replication_slots WHERE database = current_database()") == [(1,)]


def test_a_table_that_no_rule_names_can_be_dropped_or_changed():
    with replicating(FIRST):
        pass
    with replicating(streams(notes=NOTES)) as replicator:
        execute("DROP TABLE other")
        execute("UPDATE note SET title = 'uno' WHERE id = 1")
        replicator.catch_up()
        eventually(lambda: values("title", "notes|0[]")["1"], "uno")
