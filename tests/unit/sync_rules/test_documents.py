"""Which documents are accepted, with which warnings: sentence by sentence of docs/reference/sync-rules.md."""

from __future__ import annotations

from typing import Any

import pytest

from django_localsync.exceptions import RulesError
from django_localsync.sync_rules import CompiledRules, compile_rules

GLOBAL = {"a": {"data": ["SELECT * FROM t"]}}
PARAMETERS = "SELECT request.user_id() AS u"


def stream(*queries: str, **keys: Any) -> CompiledRules:
    top = {key: keys.pop(key) for key in ("with", "event_definitions") if key in keys}
    options = {"edition": 3, **keys.pop("config", {})}
    return compile_rules({"config": options, **top, "streams": {"s": {"queries": list(queries), **keys}}})


def definition(data: str, parameters: Any = PARAMETERS, **keys: Any) -> CompiledRules:
    return compile_rules({"bucket_definitions": {"a": {"parameters": parameters, "data": [data], **keys}}})


def kinds(rules: CompiledRules) -> list[str]:
    return [warning.kind for warning in rules.warnings]


def refusal(make: Any, *arguments: Any, **keys: Any) -> str:
    with pytest.raises(RulesError) as caught:
        make(*arguments, **keys)
    return caught.value.message


@pytest.mark.parametrize(
    "query",
    [
        "SELECT * FROM t WHERE a IN (SELECT upper(b) FROM u WHERE c = auth.user_id())",
        "SELECT * FROM t WHERE a IN (SELECT auth.user_id())",
        "SELECT * FROM t WHERE a IN (SELECT b FROM u WHERE u.c = t.c)",
        "SELECT * FROM t WHERE a IN (SELECT b FROM u WHERE c = t.c AND d = auth.user_id())",
        "SELECT * FROM t WHERE NOT (a OR auth.parameter('x'))",
        "SELECT * FROM t WHERE a = auth.user_id() AND a = auth.parameter('x')",
        "SELECT * FROM t WHERE auth.parameter('role') NOT IN '[\"guest\"]'",
        "SELECT * FROM t WHERE a::text = 'x' AND CAST(a AS double precision) = 1.5",
        "SELECT t.* FROM t JOIN u ON true WHERE t.a = u.a",
        "SELECT t.* FROM t, (SELECT a FROM u) AS d (z) WHERE t.a = d.z",
        "SELECT t.* FROM t, json_each(t.a) WHERE json_each.value = auth.user_id()",
        "SELECT d.a FROM (SELECT a FROM t) AS d",
        "SELECT d.* FROM (SELECT a AS id FROM t WHERE b = auth.user_id()) AS d",
        "SELECT * FROM c",
        "SELECT x.* FROM t AS x, t AS y WHERE x.a = y.b AND y.c = auth.user_id()",
        'SELECT * FROM "default.public".t',
        'SELECT * FROM "s%"."t%"',
        "SELECT t.*, t.table_name() AS n, t.schema() AS s, t.table_suffix() AS x FROM \"log_%\" AS t",
        "SELECT 1 AS one, 'x' AS id FROM t;",
        "/* all /* of */ them */ SELECT * FROM t -- end",
    ],
)  # fmt: skip
def test_a_query_is_accepted(query):
    rules = stream(query, **{"with": {"c": "SELECT id FROM t"}})
    assert rules.plan.bucket_sources


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("SELECT * FROM t, u WHERE t.a = u.a", "* is of several tables"),
        ("SELECT t.* FROM t JOIN t ON t.a = t.b", "the name 't' stands twice in FROM"),
        ("SELECT t.a FROM t JOIN u ON t.a > u.a", "a row can be compared with another table"),
        ("SELECT t.a FROM t JOIN u ON t.a + u.a = 1", "one side of = mixes"),
        ("SELECT e.value AS v FROM t, json_each(t.a) AS e", "elements of json_each cannot be selected"),
        ("SELECT t.* FROM t, (SELECT a FROM u) WHERE t.a = 1", "a subquery in FROM needs a name"),
        ("SELECT * FROM t WHERE a IN (SELECT b, c FROM u)", "a subquery after IN must have exactly one column"),
        ("SELECT * FROM t WHERE a = (SELECT b FROM u)", "a subquery is only possible after IN"),
        ("SELECT * FROM t WHERE auth.user_id() NOT IN t.b", "NOT IN is only supported"),
        ("SELECT * FROM t WHERE NOT (t.a && auth.parameter('x'))", "NOT && is only supported"),
        ("SELECT t.* FROM t JOIN u USING (a)", "USING is not supported"),
        ("SELECT DISTINCT id FROM t", "DISTINCT is not supported"),
        ("SELECT id, row_number() OVER () AS n FROM t", "window functions"),
        ("SELECT * FROM t HAVING a", "HAVING is not supported"),
        ("SELECT * FROM t FOR UPDATE", "FOR is not supported"),
        ("SELECT * FROM t; SELECT * FROM u", "the query should end here"),
        ("SELECT * FROM t WHERE CAST(a AS date) = 1", "a cast to date is not supported"),
        ("SELECT * FROM t WHERE substring(a) = 'x'", "substring takes 2 to 3 arguments, not 1"),
        ("SELECT * FROM t WHERE json_valid(a)", "there is no function 'json_valid'"),
        ("SELECT * FROM t WHERE request.user_id() = a", "there is no function 'request.user_id'"),
        ("SELECT * FROM t WHERE token_parameters.user_id = a", "there is no table 'token_parameters'"),
        ("SELECT * FROM t WHERE bucket.u = a", "there is no table 'bucket'"),
        ("SELECT t.* FROM t, json_each(u.a) AS e, u WHERE t.a = e.value", "there is no table 'u' in FROM"),
    ],
)
def test_a_query_is_refused(query, message):
    assert refusal(stream, query).startswith(message)


@pytest.mark.parametrize(
    ("condition", "dangerous"),
    [
        ("a = subscription.parameter('x')", True),
        ("a = connection.parameter('x') AND b = 'k'", True),
        ("subscription.parameter('x')", True),
        ("a IN (SELECT b FROM u WHERE c = subscription.parameter('x'))", True),
        ("a = subscription.parameter('x') OR b = auth.user_id()", True),
        # Who may ask says nothing of what for.
        ("auth.parameter('role') = 'staff' AND a = subscription.parameter('x')", True),
        ("auth.user_id() IN (SELECT id FROM admins) AND a = subscription.parameter('x')", True),
        ("a = subscription.parameter('x') AND b = auth.user_id()", False),
        ("a = subscription.parameter('x') AND a IN (SELECT b FROM u WHERE c = auth.user_id())", False),
        ("a IN (SELECT b FROM u WHERE c = auth.user_id() AND d = subscription.parameter('x'))", False),
        ("a IN (SELECT b FROM u WHERE c IN (SELECT d FROM v WHERE e = auth.user_id()))", False),
        ("auth.parameter('role') = 'staff' AND subscription.parameter('x')", False),
        ("a = auth.user_id() || subscription.parameter('x')", False),
    ],
)
def test_a_stream_that_the_client_alone_decides_is_dangerous(condition, dangerous):
    query = f"SELECT * FROM t WHERE {condition}"
    assert kinds(stream(query)) == ["danger"] * dangerous
    assert kinds(stream(query, accept_potentially_dangerous_queries=True)) == []


@pytest.mark.parametrize(
    ("parameters", "dangerous"),
    [
        ("SELECT request.parameters() ->> 'x' AS u", True),
        ("SELECT user_parameters.x AS u", True),
        ("SELECT request.parameters() ->> 'x' AS u WHERE request.jwt() ->> 'role' = 'staff'", True),
        ("SELECT value AS u FROM json_each(request.parameters() -> 'x')", True),
        ("SELECT id AS u FROM x WHERE a = request.parameters() ->> 'x'", True),
        ("SELECT id AS u FROM x WHERE a = request.parameters() ->> 'x' AND b = request.user_id()", False),
        ("SELECT request.user_id() AS u WHERE request.parameters() ->> 'x' = 'y'", False),
        ("SELECT token_parameters.x AS u", False),
    ],
)
def test_a_parameter_query_that_the_client_alone_decides_is_dangerous(parameters, dangerous):
    assert kinds(definition("SELECT * FROM t WHERE o = bucket.u", parameters)) == ["danger"] * dangerous


@pytest.mark.parametrize(
    ("data", "parameters", "message"),
    [
        ("SELECT * FROM t", PARAMETERS, "the bucket parameter 'u' is not used"),
        ("SELECT * FROM t WHERE o = bucket.w", PARAMETERS, "there is no bucket parameter 'w'"),
        ("SELECT * FROM t WHERE o != bucket.u", PARAMETERS, "bucket parameters and values of the request can only"),
        ("SELECT * FROM t WHERE o = bucket.u OR p = 1", PARAMETERS, "both sides of OR must use the same parameters"),
        ("SELECT *, bucket.u AS x FROM t WHERE o = bucket.u", PARAMETERS, "bucket parameters and values of the"),
        ("SELECT * FROM t WHERE o = request.user_id() AND o = bucket.u", PARAMETERS, "a data query cannot use"),
        ("SELECT name FROM t WHERE o = bucket.u", PARAMETERS, "the query has no column id"),
        ("SELECT * FROM t WHERE o = bucket.u AND a BETWEEN 1 AND 2", PARAMETERS, "BETWEEN is not supported"),
        ("SELECT * FROM t WHERE o = bucket.u", "SELECT * FROM x", "* is not possible in a parameter query"),
        ("SELECT * FROM t WHERE o = bucket.u", "SELECT id AS u FROM x, y", "bucket definitions know no joins"),
        ("SELECT * FROM t WHERE o = bucket.u", "SELECT request.user_id()", "an expression needs a name"),
        ("SELECT * FROM t WHERE o = bucket.u", "SELECT request.user_id() || id AS u FROM x", "an output cannot mix"),
        ("SELECT * FROM t", "SELECT 5 AS _priority", "_priority must be a number from 0 to 3"),
        ("SELECT * FROM t WHERE o = bucket.u", None, "parameters are empty"),
        ("SELECT * FROM t WHERE o = bucket.u", [], "parameters must be a list of queries"),
    ],
)
def test_a_bucket_definition_is_refused(data, parameters, message):
    assert refusal(definition, data, parameters).startswith(message)


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({"config": {"edition": 3, "storage_version": 1}, "streams": {}}, "storage_version must be a number"),
        ({"config": {"edition": 2}, "bucket_definitions": GLOBAL, "with": {"c": "SELECT a FROM t"}}, "with is only"),
        ({"config": {"unstable_sqlite_expression_engine": True}, "bucket_definitions": GLOBAL}, "unstable_sqlite_exp"),
        ({"config": {"edition": 3, "timestamp_max_precision": "hours"}, "streams": {}}, "timestamp_max_precision is"),
        ({"bucket_definitions": GLOBAL, "event_definitions": {"e": {}}}, "payloads must be a list of queries"),
        ({"config": {"edition": 3}, "streams": {"s": {"query": "SELECT 1 AS a FROM t", "querys": []}}}, "the key 'qu"),
    ],
)
def test_a_document_is_refused(document, message):
    assert refusal(compile_rules, document).startswith(message)


def test_options_that_change_nothing_are_accepted():
    for name in ("versioned_bucket_ids", "unstable_sqlite_expression_engine"):
        assert kinds(stream("SELECT * FROM t", config={name: True})) == []
    off = {"unstable_sqlite_expression_engine": False}
    assert kinds(compile_rules({"config": off, "bucket_definitions": GLOBAL})) == []


def test_an_unnamed_column_is_named_by_its_text():
    rules = stream("SELECT id, upper(a) FROM t")
    assert [warning.message for warning in rules.warnings] == ["the column is named 'upper(a)'"]


def test_inside_of_itself_a_common_table_expression_means_a_table():
    rules = stream("SELECT * FROM t WHERE a IN u", **{"with": {"u": "SELECT id FROM u WHERE b = auth.user_id()"}})
    assert {pattern.name for pattern in rules.plan.tables} == {"t", "u"}


def test_common_table_expressions_may_use_each_other():
    rules = stream(
        "SELECT * FROM t WHERE a IN c", **{"with": {"c": "SELECT a FROM d", "d": "SELECT a FROM u WHERE b = 1"}}
    )
    assert {pattern.name for pattern in rules.plan.tables} == {"t", "u"}


def test_other_events_than_write_checkpoints_are_checked_and_change_nothing():
    payloads = ["SELECT user_id FROM checkpoints WHERE kind = 'done'"]
    rules = stream("SELECT * FROM t", event_definitions={"saved": {"payloads": payloads}})
    plain = stream("SELECT * FROM t")
    assert rules.events == ("saved",)
    assert (rules.plan.identity, rules.plan.tables) == (plain.plan.identity, plain.plan.tables)
    broken = {"e": {"payloads": ["SELECT a FROM x WHERE b = request.user_id()"]}}
    assert refusal(stream, "SELECT * FROM t", event_definitions=broken) == "an event knows no request"
