"""From a row to buckets and lookups."""

from __future__ import annotations

import json
from typing import Any

import pytest

from django_localsync.pgoutput.values import PgType
from django_localsync.sync_rules import compile_rules
from django_localsync.sync_rules.compiled import CompiledPlan
from django_localsync.sync_rules.plan import MAX_PARAMETERS_LENGTH, Column, RequestParameters, TableName, TablePattern
from tests.unit.sync_rules.rules import Index

TYPES = {"i": "int4", "t": "text", "u": "uuid", "r": "float8", "b": "bool", "x": "bytea", "j": "jsonb"}


def plan_of(*queries: str, **options: Any) -> CompiledPlan:
    stream = {"queries": list(queries), "accept_potentially_dangerous_queries": True} | options
    return compile_rules({"config": {"edition": 3}, "streams": {"s": stream}}).plan


def columns(layout: str) -> list[Column]:
    """Columns written `name:type`, the types by their first letters."""
    pairs = (item.split(":") for item in layout.split())
    return [Column(name, PgType.named(TYPES[kind])) for name, kind in pairs]


def rows(plan: CompiledPlan, table: str, layout: str, *values: str | None) -> tuple[list[Any], list[Any], list[Any]]:
    errors: list[Any] = []
    evaluate = plan.row_evaluator(
        TableName("public", table), columns(layout), lambda name, message: errors.append((name, message))
    )
    buckets, lookups = evaluate(values)
    return buckets, lookups, errors


def test_the_tables_of_pgbench_can_be_synced():
    plan = plan_of(
        "SELECT *, aid AS id FROM pgbench_accounts",
        "SELECT tid || '-' || bid || '-' || aid || '-' || mtime AS id, * FROM pgbench_history",
    )

    ((_, parameters, row_type, row_id, data),), _, _ = rows(plan, "pgbench_accounts", "aid:i abalance:i", "7", "-12")
    ((*_, history_id, _),), _, _ = rows(
        plan, "pgbench_history", "tid:i bid:i aid:i delta:i mtime:t", "1", "2", "3", "-4", "2024-01-01 00:00:00"
    )

    assert (parameters, row_type, row_id) == ("[]", "pgbench_accounts", "7")
    assert json.loads(data) == {"aid": 7, "abalance": -12, "id": 7}
    assert history_id == "1-2-3-2024-01-01 00:00:00"


def test_a_row_is_in_a_bucket_once_however_many_ways_lead_there():
    plan = plan_of("SELECT * FROM trades WHERE buyer = auth.user_id() OR seller = auth.user_id()")
    buckets, _, _ = rows(plan, "trades", "id:i buyer:t seller:t", "1", "a", "a")
    assert [bucket.parameters for bucket in buckets] == ['["a"]']


def test_a_row_without_id_has_an_empty_object_id():
    ((*_, row_id, data),), _, _ = rows(plan_of("SELECT name FROM t"), "t", "name:t", "x")
    assert (row_id, data) == ("", '{"name":"x"}')


def test_values_that_json_cannot_hold_are_left_out_or_null():
    ((*_, data),), _, _ = rows(plan_of("SELECT * FROM t"), "t", "id:i blob:x real:r", "1", "\\x01", "NaN")
    assert data == '{"id":1,"real":null}'


def test_an_error_leaves_the_row_out_of_its_query_alone():
    plan = plan_of("SELECT *, json_keys(doc) AS k FROM t WHERE a = auth.user_id()", "SELECT * FROM t")
    buckets, _, errors = rows(plan, "t", "id:i a:t doc:t", "1", "u", "no json")
    assert [bucket.parameters for bucket in buckets] == ["[]"]
    assert errors == [("s|0", "a value is not JSON")]


@pytest.mark.parametrize(
    "query",
    [
        "SELECT * FROM t WHERE NOT hidden",
        "SELECT * FROM t WHERE hidden IS NULL",
        "SELECT * FROM t WHERE hidden = auth.user_id()",
    ],
)
def test_a_missing_column_does_not_widen_access(query):
    plan = plan_of(query)
    buckets, _, errors = rows(plan, "t", "id:i", "1")
    assert buckets == []
    assert errors == [("s|0", "public.t has no column hidden: its rows are left out")]
    assert plan.missing_columns(TableName("public", "t"), columns("id:i")) == {"s|0": ["hidden"]}


def test_a_missing_column_of_a_select_list_is_null():
    ((*_, data),), _, errors = rows(plan_of("SELECT id, gone FROM t"), "t", "id:i", "1")
    assert (data, errors) == ('{"id":1,"gone":null}', [])


def test_long_parameters_are_hashed_alike_for_rows_and_requests():
    plan = plan_of("SELECT * FROM t WHERE a = auth.user_id()", auto_subscribe=True)
    long = "é" * MAX_PARAMETERS_LENGTH

    (bucket,), _, _ = rows(plan, "t", "id:i a:t", "1", long)
    (resolved,) = Index(plan).resolve(RequestParameters({"sub": long})).buckets

    assert bucket.parameters == resolved.parameters
    assert bucket.parameters.startswith('[{"sha256":"')
    assert len(bucket.parameters) < MAX_PARAMETERS_LENGTH


@pytest.mark.parametrize(
    ("kind", "value", "expected"),
    [("i", "7", "[7]"), ("r", "7", "[7]"), ("r", "7.5", "[7.5]"), ("t", 'a"\n', '["a\\"\\n"]'), ("b", "t", "[1]")],
)
def test_parameters_are_written_by_value(kind, value, expected):
    buckets, _, _ = rows(plan_of("SELECT * FROM t WHERE a = auth.user_id()"), "t", f"id:i a:{kind}", "1", value)
    assert [bucket.parameters for bucket in buckets] == [expected]


@pytest.mark.parametrize(("kind", "value"), [("t", None), ("x", "\\x01"), ("r", "NaN")])
def test_null_blob_and_nan_are_in_no_bucket(kind, value):
    buckets, _, errors = rows(plan_of("SELECT * FROM t WHERE a = auth.user_id()"), "t", f"id:i a:{kind}", "1", value)
    assert (buckets, errors) == ([], [])


def test_casting_an_integer_to_text_meets_the_users_id():
    plan = plan_of("SELECT * FROM t WHERE CAST(a AS TEXT) = auth.user_id()")
    buckets, _, _ = rows(plan, "t", "id:i a:i", "1", "7")
    assert [bucket.parameters for bucket in buckets] == ['["7"]']


def test_only_columns_that_rules_read_are_used():
    plan = plan_of("SELECT id, upper(b) AS b FROM t WHERE c IN (SELECT d FROM u WHERE e = auth.user_id())")
    layout = columns("id:i a:t b:t c:t")
    assert plan.used_columns(TableName("public", "t"), layout) == {0, 2, 3}
    assert plan.used_columns(TableName("public", "u"), columns("id:i d:t e:t f:t")) == {1, 2}
    assert plan.used_columns(TableName("public", "v"), layout) == frozenset()


def test_wildcards_never_mean_system_tables_or_our_own():
    plan = plan_of('SELECT * FROM "%"."%"')
    assert plan.tables == {TablePattern("%", "%")}
    assert plan.uses(TableName("app", "notes"))
    assert not plan.uses(TableName("pg_catalog", "pg_class"))
    assert not plan.uses(TableName("information_schema", "tables"))
    assert not plan.uses(TableName("public", "localsync_bucket"))


def test_identities_depend_on_meaning_alone():
    first = plan_of("SELECT * FROM t WHERE a = auth.user_id() AND b = auth.parameter('x') AND c")
    same = compile_rules(
        {
            "config": {"edition": 3},
            "streams": {
                "other": {"query": "SELECT * FROM u"},
                "renamed": {
                    "query": "select  * from t WHERE c AND b = auth.parameter('x') AND (auth.user_id() = a) -- note"
                },
            },
        }
    ).plan
    different = plan_of("SELECT * FROM t WHERE a = auth.user_id() AND b = auth.parameter('x') AND NOT c")

    assert first.bucket_sources[0].identity == same.bucket_sources[1].identity
    assert first.bucket_sources[0].identity != different.bucket_sources[0].identity
    assert first.identity != same.identity


def test_arrays_with_too_many_combinations_are_an_error():
    plan = plan_of("SELECT * FROM t WHERE auth.parameter('x') IN a AND auth.parameter('y') IN b")
    many = json.dumps(list(range(200)))
    buckets, _, errors = rows(plan, "t", "id:i a:j b:j", "1", many, many)
    assert (buckets, errors) == ([], [("s|0", "the arrays of a row have more than 10000 combinations")])


def test_an_evaluator_for_some_sources_gives_reports_and_converts_nothing_of_the_others():
    plan = plan_of(
        "SELECT * FROM t WHERE gone = auth.parameter('x')",
        "SELECT id FROM t WHERE a = auth.user_id()",
        "SELECT * FROM u WHERE a IN (SELECT a FROM t WHERE b = auth.user_id())",
    )
    missing, wanted, _ = plan.bucket_sources
    (lookup,) = plan.lookup_sources

    def answers(*only: str) -> tuple[list[int], list[int], int]:
        errors: list[Any] = []
        evaluate = plan.row_evaluator(
            TableName("public", "t"), columns("id:i a:t b:t"), lambda *error: errors.append(error), only=only
        )
        buckets, lookups = evaluate(["1", "x", "y"])
        return [row.source for row in buckets], [row.source for row in lookups], len(errors)

    assert answers() == ([], [], 0)
    assert answers(wanted.identity) == ([1], [], 0)
    assert answers(lookup.identity) == ([], [0], 0)
    assert answers(missing.identity) == ([], [], 1)
    assert answers(wanted.identity, lookup.identity) == ([1], [0], 0)
