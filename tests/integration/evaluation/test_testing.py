"""The assertions of django_localsync.testing: what they accept, what they refuse, and what they say then."""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import psycopg
import pytest
from django.contrib.auth.models import User
from django.db import connection, connections
from django.test import TestCase
from psycopg import sql

from django_localsync.evaluation import Evaluator
from django_localsync.sync_rules import compile_rules
from django_localsync.sync_rules.compiled import CompiledPlan
from django_localsync.testing import assert_matches_queryset, assert_not_syncs, assert_syncs, synced_rows
from tests.databases import temporary_database
from tests.integration.evaluation.conftest import MINE, RULES
from tests.servers import database_alias
from tests.testapp.models import Counter, Tag, Todo, TodoList


def refusal(function: Any, *args: Any, **options: Any) -> str:
    """What an assertion says."""
    with pytest.raises(AssertionError) as caught:
        function(*args, **options)
    return str(caught.value)


def stream(name: str, query: str, **options: Any) -> dict[str, Any]:
    """Rules of one stream."""
    return {"config": {"edition": 3}, "streams": {name: {"query": query, **options}}}


def test_a_member_gets_the_rows_of_the_list_and_nobody_else(world):
    assert_syncs(world.alice, world.hers)
    assert_syncs(world.alice, world.milk)
    assert_not_syncs(world.bob, world.milk)
    assert_not_syncs(world.alice, world.beer)


def test_rows_of_the_open_transaction_count(world):
    assert_not_syncs(world.bob, world.milk)
    world.hers.members.add(world.bob)
    assert_syncs(world.bob, world.milk)
    world.hers.members.remove(world.bob)
    assert_not_syncs(world.bob, world.milk)


def test_a_refusal_names_the_bucket_the_lookup_and_who_has_it(world):
    text = refusal(assert_syncs, world.bob, world.milk)

    assert f"bob (sub '{world.bob.pk}') does not get testapp.Todo {world.milk.pk}" in text
    assert f'it is in bucket shared_lists|0["{world.hers.pk}"], which the user does not have' in text
    assert f'looked up lists_members for ["{world.bob.pk}"] and found ["{world.his.pk}"]' in text
    assert re.search(rf'others get it by stream shared_lists: .*"{world.alice.pk}", through lists_members id=\d+', text)


def test_a_stream_that_would_need_a_subscription_is_named_with_it(world):
    text = refusal(assert_syncs, world.alice, world.done)

    assert f'the stream one_list is not subscribed to with {{"list":"{world.hers.pk}"}}' in text


def test_a_filter_that_excludes_a_row_is_named(world, settings):
    settings.LOCALSYNC = {"RULES": {**RULES, "streams": {"s": RULES["streams"]["shared_lists"]}}}

    text = refusal(assert_syncs, world.alice, world.done)

    assert f"no query selects todos id={world.done.pk}" in text
    assert "s|0: NOT done is not true" in text


def test_a_table_that_no_stream_reads_is_named(world):
    assert "no stream reads the table auth_user" in refusal(assert_syncs, world.alice, world.alice)


def test_a_table_that_is_only_looked_up_is_named(world):
    membership = TodoList.members.through.objects.first()
    assert "lists_members; it is only looked up" in refusal(assert_syncs, world.alice, membership)


def test_a_row_that_is_gone_is_neither_synced_nor_a_leak(world):
    key = world.milk.pk
    world.milk.delete()
    world.milk.pk = key
    assert "no such row" in refusal(assert_syncs, world.alice, world.milk)
    assert_not_syncs(world.alice, world.milk)


def test_subscriptions_and_parameters_are_those_of_the_device(world):
    assert_syncs(world.alice, world.done, subscriptions={"one_list": {"list": str(world.hers.pk)}})
    assert "looked up" in refusal(
        assert_syncs, world.bob, world.done, subscriptions=[("one_list", {"list": str(world.hers.pk)})]
    )
    assert_syncs(world.bob, world.tag, subscriptions=["tags"], tags=["blue", "red"])
    with pytest.raises(ValueError, match="did you mean 'one_list'"):
        assert_syncs(world.alice, world.done, subscriptions=["one_lists"])


def test_a_row_that_a_device_could_subscribe_to_is_a_leak(world):
    text = refusal(assert_not_syncs, world.alice, world.done)
    assert f'has to subscribe to one_list with {{"list":"{world.hers.pk}"}}' in text
    text = refusal(assert_not_syncs, world.alice, world.tag)
    assert 'has to subscribe to tags and connect with {"tags":["red"]}' in text
    assert_not_syncs(world.bob, world.done)


def test_a_leak_is_found_on_ways_over_several_lookups_and_parameters(world, settings):
    friends = "SELECT name FROM lists WHERE id IN (SELECT list_id FROM tags WHERE code = subscription.parameter('via'))"
    admins = "SELECT CAST(id AS TEXT) FROM auth_user WHERE is_staff"
    query = (
        f"SELECT id, title FROM todos WHERE title IN ({friends}) AND auth.user_id() IN ({admins})"
        " AND note = connection.parameter('note') AND subscription.parameter('mode') = 'all'"
    )
    settings.LOCALSYNC = {"RULES": stream("s", query)}
    Tag.objects.create(code="way", list=world.hers)
    secret = Todo.objects.create(list=world.his, title="hers", note="n")

    assert_not_syncs(world.bob, secret)
    User.objects.filter(pk=world.bob.pk).update(is_staff=True)
    text = refusal(assert_not_syncs, world.bob, secret)
    assert_not_syncs(world.alice, secret)

    assert 'to s with {"via":"way","mode":"all"} and connect with {"note":"n"}' in text
    assert_syncs(world.bob, secret, subscriptions={"s": {"via": "way", "mode": "all"}}, note="n")


def test_claims_come_from_the_hook_of_the_token_view(world, settings):
    counter = Counter.objects.create(value=1)
    assert_not_syncs(world.alice, counter)

    settings.LOCALSYNC = {"RULES": RULES, "TOKEN_CLAIMS": f"{__name__}.roles_of"}
    assert_syncs(world.alice, counter, subscriptions=["counters"])
    assert_not_syncs(world.bob, counter)
    assert_not_syncs(world.alice, Counter.objects.create(value=2))
    assert_syncs(world.bob, counter, subscriptions=["counters"], claims={"roles": ["counter"]})


def roles_of(user: Any) -> dict[str, Any]:
    return {"roles": ["counter"] if user.username == "alice" else []}


def test_synced_rows_are_what_the_device_holds(world):
    rows = synced_rows(world.alice)

    assert rows["todos"] == {
        str(world.milk.pk): {
            "id": str(world.milk.pk),
            "list_id": str(world.hers.pk),
            "title": "milk",
            "priority": 3,
        }
    }
    assert set(rows) == {"todos", "lists"}
    assert set(synced_rows(world.bob, subscriptions=["tags"], tags=["red"])["tags"]) == {"red"}


def test_a_stream_matches_the_queryset_of_a_view(world):
    for user in (world.alice, world.bob):
        assert_matches_queryset(user, TodoList.objects.filter(members=user))
        assert_matches_queryset(user, Todo.objects.filter(list__members=user, done=False))
    assert_matches_queryset(world.alice, Tag.objects.none())


def test_a_stream_that_grants_more_or_less_than_a_queryset_is_told(world):
    less = refusal(assert_matches_queryset, world.alice, Todo.objects.filter(list__members=world.alice))
    assert "1 rows that the device lacks, and is in the queryset" in less
    assert str(world.done.pk) in less

    more = refusal(assert_matches_queryset, world.alice, Todo.objects.filter(title="none of them"))
    assert "1 rows that the device gets, and is not in the queryset" in more
    assert f'it is in bucket shared_lists|0["{world.hers.pk}"]' in more
    assert "through lists_members id=" in more


def test_a_user_whom_the_server_refuses_gets_nothing(world, settings):
    settings.LOCALSYNC = {"RULES": RULES, "MAX_BUCKETS": 1}
    world.his.members.add(world.alice)

    assert "MAX_BUCKETS is 1" in refusal(assert_syncs, world.alice, world.milk)
    assert "MAX_BUCKETS is 1" in refusal(synced_rows, world.alice)


class TheyWorkInDjangosTestCase(TestCase):
    """Without pytest's fixtures."""

    def test_permissions(self) -> None:
        user, tag = User.objects.create_user("carol"), Tag.objects.create(code="blue")
        with self.settings(LOCALSYNC={"RULES": RULES}):
            assert_syncs(user, tag, subscriptions=["tags"], tags=["blue"])
            assert synced_rows(user) == {}


# Faults of an evaluator, each of which must make an assertion fail that is right to hold.


def ignore_lookups(patch: pytest.MonkeyPatch) -> None:
    """Every entry of an index answers every key."""

    def look_up(self: Evaluator, keys: Any, found: Any) -> None:
        for key in keys:
            found[key] = [*self.entries(key.source)]

    patch.setattr(Evaluator, "_look_up", look_up)


def find_no_lookups(patch: pytest.MonkeyPatch) -> None:
    """No entry of an index answers any key."""
    patch.setattr(Evaluator, "_look_up", lambda self, keys, found: found.update((key, []) for key in keys))


def ignore_parameters(patch: pytest.MonkeyPatch) -> None:
    """A row is in all buckets of its source, whatever their parameters."""
    located = Evaluator.locate

    def locate(self: Evaluator, instance: Any) -> Any:
        row, lists = located(self, instance), TodoList.objects.values_list("pk", flat=True)
        every = [place._replace(parameters=f'["{key}"]') for place in row.buckets for key in lists]
        return row._replace(buckets=tuple(every))

    patch.setattr(Evaluator, "locate", locate)


def ignore_filters(patch: pytest.MonkeyPatch) -> None:
    """The filters of a query on its rows hold for every row."""
    made = CompiledPlan.row_evaluator

    def row_evaluator(self: CompiledPlan, *arguments: Any, only: Any = None) -> Any:
        buckets = [
            replace(source, queries=tuple(replace(query, filters=()) for query in source.queries))
            for source in self.buckets
        ]
        return made(replace(self, buckets=tuple(buckets)), *arguments, only=only)

    patch.setattr(CompiledPlan, "row_evaluator", row_evaluator)


def ignore_the_token(patch: pytest.MonkeyPatch) -> None:
    """Everybody is the first user."""
    first = User.objects.order_by("pk").first()
    patch.setattr("django_localsync.testing.user_claims", lambda user: {"sub": str(first.pk)})


def narrow_too_much(patch: pytest.MonkeyPatch) -> None:
    """The condition that leaves out rows leaves out all of them."""
    patch.setattr("django_localsync.evaluation.evaluator.condition", lambda wanted, columns: sql.SQL("false"))


@pytest.mark.parametrize(
    "fault", [ignore_lookups, find_no_lookups, ignore_parameters, ignore_filters, ignore_the_token, narrow_too_much]
)
def test_a_faulty_evaluator_is_caught(world, monkeypatch, fault):
    def assert_everything() -> None:
        assert_syncs(world.alice, world.milk)
        assert_not_syncs(world.bob, world.milk)
        assert_matches_queryset(world.alice, Todo.objects.filter(list__members=world.alice, done=False))

    assert_everything()
    fault(monkeypatch)
    with pytest.raises(AssertionError):
        assert_everything()


# The connection


def test_the_connection_keeps_its_settings(world):
    with connection.cursor() as cursor:
        cursor.execute("SET DateStyle TO 'SQL, DMY'; SET search_path TO public, pg_temp")
        assert_syncs(world.alice, world.milk)
        cursor.execute("SELECT current_setting('DateStyle'), current_setting('search_path')")
        assert cursor.fetchone() == ("SQL, DMY", "public, pg_temp")


def test_values_are_those_of_replication_whatever_the_connection_prints(world, settings):
    settings.LOCALSYNC = {"RULES": stream("s", f"SELECT * FROM todos WHERE list_id IN {MINE}")}
    Todo.objects.filter(pk=world.milk.pk).update(due=datetime(2024, 2, 3, 4, 5, 6, tzinfo=UTC), sizes=[1, 2])
    before = synced_rows(world.alice, subscriptions=["s"])["todos"][str(world.milk.pk)]
    with connection.cursor() as cursor:
        cursor.execute("SET DateStyle TO 'German'; SET TimeZone TO 'Asia/Tokyo'")
    after = synced_rows(world.alice, subscriptions=["s"])["todos"][str(world.milk.pk)]

    assert before == after
    assert before["due"] == "2024-02-03T04:05:06.000000Z"
    assert (before["sizes"], before["done"]) == ("[1,2]", 0)


def test_partitions_are_found(world, settings):
    with connection.cursor() as cursor:
        cursor.execute(
            "ALTER TABLE counters RENAME TO counters_before;"
            "CREATE TABLE counters (id bigint GENERATED BY DEFAULT AS IDENTITY, value int NOT NULL)"
            " PARTITION BY LIST (value);"
            "CREATE TABLE counters_1 PARTITION OF counters FOR VALUES IN (1);"
            "CREATE TABLE counters_2 PARTITION OF counters FOR VALUES IN (2)"
        )
    query = 'SELECT * FROM "counters_%" AS counters WHERE auth.user_id() IS NOT NULL'
    settings.LOCALSYNC = {"RULES": stream("s", query, auto_subscribe=True)}
    for value in (1, 2):
        assert_syncs(world.alice, Counter.objects.create(value=value))
    assert_matches_queryset(world.alice, Counter.objects.all())
    assert "gets, and is not" in refusal(assert_matches_queryset, world.alice, Counter.objects.filter(value=1))


def test_rows_and_lookups_of_all_sources_count(world, settings, server_url):
    with temporary_database(server_url) as url, psycopg.connect(url, autocommit=True) as session:
        session.execute("CREATE TABLE counters (id bigint PRIMARY KEY, value integer NOT NULL)")
        session.execute("INSERT INTO counters VALUES (5, 1), (6, 2)")
        session.execute("CREATE TABLE permits (id bigint PRIMARY KEY, username text, value integer)")
        session.execute("INSERT INTO permits VALUES (1, 'alice', 1)")
        with database_alias("second", url):
            connections["second"].connect()  # Django's test case refuses aliases that it did not know before
            permits = "SELECT value FROM permits WHERE username = auth.parameter('name')"
            query = f"SELECT * FROM counters WHERE value IN ({permits})"
            settings.LOCALSYNC = {"RULES": stream("s", query), "SOURCES": ["default", "second"]}
            asked = {"subscriptions": ["s"], "claims": {"name": "alice"}}
            here, there = Counter.objects.create(value=1), Counter.objects.using("second").get(pk=5)

            assert_syncs(world.alice, here, **asked)
            assert_syncs(world.alice, there, **asked)
            assert_not_syncs(world.alice, Counter(pk=6), **asked)
            assert set(synced_rows(world.alice, **asked)["counters"]) == {str(here.pk), "5"}


@pytest.mark.parametrize(
    ("column", "values"),
    [
        ("int4", ["0", "-7", "2147483647", "NULL"]),
        ("int8", ["9223372036854775807", "0"]),
        ("int4 AS TEXT", ["0", "-7", "12"]),
        ("text", ["''", "'a'", "'-7'", "'A''b'", r"'\\'"]),
        ("varchar(9)", ["'a '", "'a'"]),
        ("char(3)", ["'a'", "''"]),
        ("uuid", ["'7c8a0a0e-9a5f-4b0a-8d6a-0d6f3a2b1c00'"]),
        ("uuid AS TEXT", ["'7C8A0A0E-9A5F-4B0A-8D6A-0D6F3A2B1C00'"]),
        ("bool", ["true", "false"]),
        ("numeric", ["1.50", "0"]),
        ("float8", ["1.5", "2", "'NaN'"]),
        ("timestamptz", ["'2024-02-03 04:05:06+00'"]),
        ("int4[]", ["'{1,2}'", "'{}'"]),
        ("even", ["2", "4"]),
    ],
)
def test_reading_only_what_may_matter_finds_the_same(db, column, values):
    kind, _, cast = column.partition(" AS ")
    with connection.cursor() as cursor:
        cursor.execute("CREATE DOMAIN even AS int CHECK (value % 2 = 0)")
        cursor.execute(f"CREATE TABLE things (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, k {kind})")
        cursor.execute(f"INSERT INTO things (k) VALUES {', '.join(f'({value})' for value in values)}")
    expression = f"CAST(k AS {cast})" if cast else "k"
    plan = compile_rules(stream("s", f"SELECT id, k FROM things WHERE {expression} = auth.user_id()")).plan
    evaluator = Evaluator(plan, ["default"], 1000)
    everything = [row for _, _, row in evaluator.bucket_rows(0)]
    assert len(everything) == sum(value not in ("NULL", "'NaN'") for value in values)

    found = [row for key in {row.parameters for row in everything} for _, _, row in evaluator.bucket_rows(0, [key])]

    assert sorted(found) == sorted(everything)
    assert [*evaluator.bucket_rows(0, ['["absent\\u0000"]', "[99.5]", '["7C8A"]', "[123456789012345678901]"])] == []
