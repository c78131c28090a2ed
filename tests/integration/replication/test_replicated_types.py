"""Types through the whole replicator: rows of any type, types that change meanwhile, types of extensions."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest
from django.db import connection

from django_localsync.storage.connections import connect
from tests.random_values import SCHEMA, TABLE, Absent, TypeFactory, Value, create_table, exact, identifier, insert
from tests.replication import replicating
from tests.source import eventually, execute, query, rows, streams, values

from .test_types import HOSTILE_SETTINGS, PLAIN, in_row, spoil

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("source", "own_schemas")]

ALL = streams(all="SELECT * FROM thing")
# Storage is in this database, too, and is found as Django finds its own tables.
HOSTILE = {name: value for name, value in HOSTILE_SETTINGS.items() if name not in ("search_path", "statement_timeout")}
STREAMED = 1000  # what is added to the id of a row for its streamed twin


@pytest.fixture
def own_schemas() -> Iterator[None]:
    """Schemas for types, gone with them afterwards; so are settings of the database."""
    execute(f"CREATE SCHEMA {identifier(SCHEMA)}", "CREATE SCHEMA own")
    yield
    execute(f"DROP SCHEMA {identifier(SCHEMA)} CASCADE", "DROP SCHEMA own CASCADE")
    execute(f"ALTER DATABASE {identifier(str(connection.settings_dict['NAME']))} RESET ALL")


def differences(drawn: list[list[Value]], found: dict[str, Any]) -> list[str]:
    """Where a client's rows are not as they ought to be."""
    expected = {str(number + more): row for number, row in enumerate(drawn) for more in (0, STREAMED)}
    assert found.keys() == expected.keys()
    return [
        f"{key}: {value.expression} is {found[key].get(f'c{column}')!r}, not {value.expected!r}"
        for key, row in expected.items()
        for column, value in enumerate(row)
        if not is_in(found[key], f"c{column}", value)
    ]


def is_in(row: dict[str, Any], column: str, value: Value) -> bool:
    """Whether a client's row has the value."""
    if isinstance(value.expected, Absent):
        return column not in row
    return column in row and in_row(row[column], value) == exact(value.expected, nested=False)


def test_rows_of_every_type_reach_clients_alike_by_copy_and_stream():
    seed = random.SystemRandom().randrange(2**32)
    with closing(connect("default", options=PLAIN)) as user:
        factory = TypeFactory(random.Random(seed), user)
        types = factory.types(15)
        for statement in create_table(TABLE, types):
            user.execute(statement.encode())
        drawn = [factory.row(types) for _ in range(10)]  # values may name the table
        for number, row in enumerate(drawn):
            user.execute(insert(TABLE, number, row).encode())
        spoil(user, HOSTILE)
        with replicating(streams(all=f"SELECT * FROM {TABLE}")) as replicator:
            for number, row in enumerate(drawn):
                user.execute(insert(TABLE, number + STREAMED, row).encode())
            user.execute(f"UPDATE {TABLE} SET note = 'changed'".encode())  # leaves large values out
            replicator.catch_up()

            assert differences(drawn, rows())[:3] == [], f"seed {seed}"
            assert set(values("note").values()) == {"changed"}


def operations() -> int:
    """How many operations are stored."""
    return int(query("SELECT count(*) FROM localsync_bucket_operation")[0][0])


@pytest.fixture
def moods() -> None:
    """A table with an enum, and with arrays of it."""
    execute(
        "CREATE TYPE own.mood AS ENUM ('sad', 'ok')",
        "CREATE TABLE thing (id int PRIMARY KEY, mood own.mood, moods own.mood[])",
        "INSERT INTO thing VALUES (1, 'ok', '{sad,ok}'), (2, 'sad', '{}')",
    )


def test_a_label_is_renamed(moods):
    with replicating(ALL) as replicator:
        execute("ALTER TYPE own.mood RENAME VALUE 'ok' TO 'fine'")
        eventually(lambda: values("mood"), {"1": "fine", "2": "sad"})
        assert values("moods") == {"1": '["sad","fine"]', "2": "[]"}
        replicator.catch_up()


def test_a_label_is_renamed_while_no_replicator_runs(moods):
    with replicating(ALL):
        pass
    execute("ALTER TYPE own.mood RENAME VALUE 'ok' TO 'fine'")
    with replicating(ALL):
        eventually(lambda: values("mood"), {"1": "fine", "2": "sad"})


def test_a_new_label_is_streamed_and_nothing_is_read_again(moods):
    with replicating(ALL) as replicator:
        before = operations()
        execute("ALTER TYPE own.mood ADD VALUE 'so so' BEFORE 'ok'")
        execute("INSERT INTO thing VALUES (3, 'so so', '{so so}')")
        replicator.catch_up()
        assert values("mood") == {"1": "ok", "2": "sad", "3": "so so"}
    execute("INSERT INTO thing VALUES (4, 'so so')")
    with replicating(ALL):
        assert operations() == before + 2


@pytest.fixture
def pairs() -> None:
    """A table with a composite type, large values of it, and arrays of it."""
    execute(
        "CREATE TYPE own.pair AS (a int, b text)",
        "CREATE TABLE thing (id int PRIMARY KEY, note text, pair own.pair, pairs own.pair[])",
        "ALTER TABLE thing ALTER pair SET STORAGE EXTERNAL",
        "INSERT INTO thing VALUES (1, 'x', (1, 'one'), ARRAY[(1, 'one')]::own.pair[]),"
        " (2, 'x', (2, repeat('two', 3000)), '{}')",
    )


def pair_values() -> dict[str, Any]:
    """The composites that a client has."""
    return {key: json.loads(text) for key, text in values("pair").items()}


def test_an_attribute_is_dropped_before_others(pairs):
    with replicating(ALL) as replicator:
        execute("ALTER TYPE own.pair DROP ATTRIBUTE a", "UPDATE thing SET note = 'y'")
        eventually(pair_values, {"1": {"b": "one"}, "2": {"b": "two" * 3000}})
        assert json.loads(rows()["1"]["pairs"]) == [{"b": "one"}]
        execute("UPDATE thing SET note = 'z'")  # the large value is left out again
        replicator.catch_up()
        assert pair_values() == {"1": {"b": "one"}, "2": {"b": "two" * 3000}}


def test_an_attribute_is_renamed(pairs):
    with replicating(ALL) as replicator:
        execute("ALTER TYPE own.pair RENAME ATTRIBUTE b TO c")
        eventually(pair_values, {"1": {"a": 1, "c": "one"}, "2": {"a": 2, "c": "two" * 3000}})
        replicator.catch_up()


def test_an_attribute_is_added_and_used_at_once(pairs):
    with replicating(ALL) as replicator:
        execute(
            "ALTER TYPE own.pair ADD ATTRIBUTE c bool;"
            "INSERT INTO thing VALUES (3, 'x', (3, 'three', true)); UPDATE thing SET note = 'y'"
        )
        three = {"a": 3, "b": "three", "c": 1}
        eventually(lambda: pair_values().get("3"), three)
        eventually(lambda: pair_values()["2"], {"a": 2, "b": "two" * 3000, "c": None})
        replicator.catch_up()


def test_attributes_change_places_while_no_replicator_runs(pairs):
    with replicating(ALL):
        pass
    execute(
        "UPDATE thing SET note = 'before'",
        "ALTER TYPE own.pair DROP ATTRIBUTE a",
        "UPDATE thing SET note = 'between'",
        "ALTER TYPE own.pair ADD ATTRIBUTE a int",
        "UPDATE thing SET note = 'after', pair.a = 7 WHERE id = 1",
    )
    with replicating(ALL) as replicator:
        eventually(pair_values, {"1": {"b": "one", "a": 7}, "2": {"b": "two" * 3000, "a": None}})
        replicator.catch_up()


def test_a_type_is_renamed_and_moved(pairs):
    with replicating(ALL) as replicator:
        execute("ALTER TYPE own.pair RENAME TO couple", f"ALTER TYPE own.couple SET SCHEMA {identifier(SCHEMA)}")
        execute("INSERT INTO thing VALUES (3, 'x', (3, 'three'))")
        replicator.catch_up()
        eventually(lambda: pair_values()["3"], {"a": 3, "b": "three"})
        assert pair_values()["1"] == {"a": 1, "b": "one"}


def extension(name: str) -> None:
    """Install it, or skip the test where the server does not have it."""
    if not query(f"SELECT 1 FROM pg_available_extensions WHERE name = '{name}'"):
        pytest.skip(f"this server has no {name}; LOCALSYNC_TEST_DATABASE_URL may name one that has")
    execute(f"CREATE EXTENSION {name} SCHEMA own")


def copied_and_streamed(rules: dict[str, Any], insert: str) -> list[Any]:
    """A row that was copied and the same one streamed; `insert` is told the id."""
    execute(insert.format(1))
    with replicating(rules) as replicator:
        execute(insert.format(2))
        replicator.catch_up()
        found = rows()
    return [{name: value for name, value in found[key].items() if name != "id"} for key in ("1", "2")]


def test_hstore_and_citext():
    extension("hstore")
    extension("citext")
    execute("CREATE TABLE thing (id int PRIMARY KEY, h own.hstore, hs own.hstore[], c own.citext, cs own.citext[])")

    found = copied_and_streamed(
        ALL,
        "INSERT INTO thing VALUES ({}, own.hstore(ARRAY['a', '1', 'b \"c', NULL]),"
        " ARRAY[own.hstore('k', '=>'), NULL], 'Ab ', '{{Ab,\"c,D\",NULL}}')",
    )

    row = {
        "h": r'"a"=>"1", "b \"c"=>NULL',
        "hs": r'["\"k\"=>\"=>\"",null]',
        "c": "Ab ",
        "cs": '["Ab","c,D",null]',
    }
    assert found == [row, row]


def test_postgis():
    extension("postgis")
    execute(
        "CREATE TYPE own.spot AS (name text, at own.geometry)",
        "CREATE TABLE thing (id int PRIMARY KEY, g own.geometry(Point, 4326), gs own.geometry[], w own.geography,"
        " s own.spot)",
    )
    point = "0101000020E6100000000000000000F03F0000000000000040"
    rules = streams(all="SELECT id, g, gs, w, s, st_x(g) AS x, st_y(w) AS y, st_astext(g) AS t FROM thing")

    found = copied_and_streamed(
        rules,
        f"INSERT INTO thing VALUES ({{}}, '{point}', ARRAY['{point}', NULL, '{point}']::own.geometry[], '{point}',"
        f" ('a:b', '{point}'))",
    )

    row = {
        "g": point,
        "gs": json.dumps([point, None, point], separators=(",", ":")),
        "w": point,
        "s": f'{{"name":"a:b","at":"{point}"}}',
        "x": 1.0,
        "y": 2.0,
        "t": "POINT(1 2)",
    }
    assert found == [row, row]
