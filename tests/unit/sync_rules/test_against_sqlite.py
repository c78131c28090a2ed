"""The rows that a user reaches through buckets are those that the rule gives as SQL, run by SQLite for that user.

SQLite, because the values of the language are SQLite's. What differs by definition is left out of the grammar:
`!=` and NOT with NULL (1 instead of NULL), and NULL as a value of the request.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from django_localsync.exceptions import RulesError
from django_localsync.sync_rules import compile_rules
from django_localsync.sync_rules.plan import Plan, RequestParameters, Subscription
from tests.unit.sync_rules.rules import Index, evaluate

TABLES = ("docs", "teams", "members")
COLUMNS = ("id", "a", "b", "tags")
Row = Mapping[str, Any]

# Few values, so that they meet often.
small = st.integers(1, 2)
texts = st.sampled_from(["u1", "u2"])
values = st.sampled_from([1, 2, "u1", "u2", None])
arrays = st.sampled_from([None, "[]", '[1,"u1"]', '["u2"]', '["u1","u2"]', "[2,2]", "[null,1]"])


@st.composite
def tables(draw: st.DrawFn) -> dict[str, list[Row]]:
    return {
        table: [
            {"id": f"{table}{number}", "a": draw(values), "b": draw(values), "tags": draw(arrays)}
            for number in range(draw(st.integers(3, 6)))
        ]
        for table in TABLES
    }


REQUEST_VALUES = ("auth.user_id()", "auth.parameter('team')", "subscription.parameter('p')")


@st.composite
def conditions(draw: st.DrawFn, names: Sequence[str], depth: int = 2) -> str:
    """A condition over tables by these names."""
    if depth and draw(st.booleans()):
        operator = draw(st.sampled_from([" AND ", " OR "]))
        count = draw(st.integers(2, 3))
        return "(" + operator.join(draw(conditions(names, depth - 1)) for _ in range(count)) + ")"
    column = f"{draw(st.sampled_from(names))}.{draw(st.sampled_from(['a', 'b']))}"
    request = st.sampled_from(REQUEST_VALUES)
    kinds = ["request"] * 3 + ["column", "literal", "test", "array", "list"] + ["subquery"] * (4 if depth else 0)
    match draw(st.sampled_from(kinds)):
        case "request":
            return f"{column} = {draw(request)}"
        case "column":
            return f"{column} = {draw(st.sampled_from(names))}.{draw(st.sampled_from(['a', 'b']))}"
        case "literal":
            return f"{column} = {draw(literals)}"
        case "test":
            return column + draw(st.sampled_from([" IS NULL", " IS NOT NULL", " > 1", " BETWEEN 1 AND 2"]))
        case "array":
            return f"{draw(request)} IN {draw(st.sampled_from(names))}.tags"
        case "list":
            return f"{column} IN subscription.parameter('list')"
        case _:
            value = draw(st.one_of(st.just(column), request))
            return f"{value} IN ({draw(subqueries(depth - 1))})"


literals = st.one_of(small.map(str), texts.map(lambda text: f"'{text}'"))


@st.composite
def subqueries(draw: st.DrawFn, depth: int) -> str:
    table = draw(st.sampled_from(TABLES[1:]))
    where = f" WHERE {draw(conditions([table], depth))}" if draw(st.integers(0, 3)) else ""
    return f"SELECT {table}.{draw(st.sampled_from(['a', 'b']))} FROM {table}{where}"


@st.composite
def queries(draw: st.DrawFn) -> str:
    joined = draw(st.integers(0, 4))
    if joined == 0:
        table, on = draw(st.sampled_from(TABLES)), draw(conditions(["docs", "t"], 0))
        return f"SELECT docs.* FROM docs JOIN {table} AS t ON {on} WHERE {draw(conditions(['docs', 't'], 2))}"
    if joined == 2:
        derived = (
            f"SELECT members.a AS a, teams.b AS b FROM members, teams WHERE {draw(conditions(['members', 'teams'], 1))}"
        )
        return f"SELECT docs.* FROM docs, ({derived}) AS d WHERE docs.a = d.a AND {draw(conditions(['docs'], 1))}"
    if joined == 1:
        condition = draw(conditions(["docs"], 1))
        element = f"e.value = {draw(st.sampled_from(REQUEST_VALUES))}"
        operator = draw(st.sampled_from(["AND", "OR"]))
        return f"SELECT docs.* FROM docs, json_each(docs.tags) AS e WHERE {element} {operator} {condition}"
    return f"SELECT * FROM docs WHERE {draw(conditions(['docs'], 2))}"


def by_sqlite(sql: str, data: Mapping[str, Sequence[Row]], request: Mapping[str, Any]) -> set[str]:
    """The ids of the rows that the query gives, with the request's values put in."""
    connection = sqlite3.connect(":memory:")
    for table, rows in data.items():
        connection.execute(f"CREATE TABLE {table} (id, a, b, tags)")
        connection.executemany(f"INSERT INTO {table} VALUES (:id, :a, :b, :tags)", rows)
    for call, value in request.items():
        sql = sql.replace(call, f"'{value}'" if isinstance(value, str) else str(value))
    for array in ("docs.tags", "teams.tags", "members.tags", "t.tags", f"'{LIST}'"):
        sql = sql.replace(f"IN {array}", f"IN (SELECT value FROM json_each({array}))")
    return {row[0] for row in connection.execute(sql)}


LIST = '[1,"u1"]'


def as_vector(value: Any) -> dict[str, Any]:
    if value is None:
        return {"null": True}
    return {"int": str(value)} if isinstance(value, int) else {"text": value}


class TooManyVariants(Exception):
    """The condition is larger than the language allows."""


def compiled(query: str) -> Plan:
    try:
        return compile_rules({"config": {"edition": 3}, "streams": {"s": {"query": query}}}).plan
    except RulesError as error:
        if "variants" in error.message or "kinds of buckets" in error.message:
            raise TooManyVariants from error
        raise


def by_buckets(plan: Plan, data: Mapping[str, Sequence[Row]], request: RequestParameters) -> set[str]:
    """The ids of the rows in the buckets that the request may have."""
    index = Index(plan)
    held: dict[tuple[int, str], set[str]] = {}
    for table, rows in data.items():
        for row in rows:
            record = {name: as_vector(value) for name, value in row.items()}
            index.add(table, record)
            buckets, _, errors = evaluate(plan, table, record)
            assert errors == []
            for bucket in buckets:
                held.setdefault((bucket.source, bucket.parameters), set()).add(bucket.row_id)
    resolution = index.resolve(request)
    assert [stream.errors for stream in resolution.streams] == [()]
    return {row for bucket in resolution.buckets for row in held.get((bucket.source, bucket.parameters), ())}


request_values = st.one_of(small, texts)


@given(queries(), tables(), texts, request_values, request_values)
def test_streams_hold_what_the_query_selects(
    query: str, data: dict[str, list[Row]], user: str, team: int | str, parameter: int | str
) -> None:
    parameters = {"p": parameter, "list": json.loads(LIST)}
    request = RequestParameters({"sub": user, "team": team}, {}, [Subscription("s", parameters)])
    values = {
        "auth.user_id()": user,
        "auth.parameter('team')": team,
        "subscription.parameter('p')": parameter,
        "subscription.parameter('list')": LIST,
    }
    with suppress(TooManyVariants):
        assert by_buckets(compiled(query), data, request) == by_sqlite(query, data, values)


@st.composite
def ways(draw: st.DrawFn, table: str, inputs: Sequence[str], alone: Sequence[str] = ()) -> str:
    """A condition of an old-style definition: on each side of OR every input is compared with the row."""
    columns = st.sampled_from([f"{table}.a", f"{table}.b"])
    filters = st.sampled_from([f"{table}.a > 1", f"{table}.b IS NOT NULL", f"{table}.a = 'u1'"])
    sides = []
    for _ in range(draw(st.integers(1, 2))):
        forms = [[f"{draw(columns)} = {given}", f"{given} IN {table}.tags"] for given in inputs]
        tests = [draw(st.sampled_from(form)) for form in forms]
        sides.append(" AND ".join(tests + draw(st.lists(filters, max_size=1))))
    also = draw(st.lists(st.sampled_from(alone), max_size=1)) if alone else []
    return " AND ".join([f"({' OR '.join(sides)})", *also])


@given(st.data(), tables(), texts, request_values)
def test_bucket_definitions_hold_what_their_queries_select_together(
    draw: st.DataObject, data: dict[str, list[Row]], user: str, team: int | str
) -> None:
    inputs = draw.draw(
        st.sampled_from([["request.user_id()"]] * 2 + [["request.user_id()", "request.jwt() ->> 'team'"]])
    )
    alone = ["request.user_id() = 'u1'", "members.b IN request.jwt() ->> 'list'"]
    names = draw.draw(st.sampled_from([["p"], ["p"], ["p", "q"]]))
    outputs = ", ".join(f"members.{column} AS {name}" for column, name in zip("ab", names, strict=False))
    parameters = f"SELECT {outputs} FROM members WHERE {draw.draw(ways('members', inputs, alone))}"
    rows = f"SELECT * FROM docs WHERE {draw.draw(ways('docs', [f'bucket.{name}' for name in names]))}"
    plan = compile_rules({"bucket_definitions": {"s": {"parameters": parameters, "data": [rows]}}}).plan
    request = RequestParameters({"sub": user, "team": team, "list": json.loads(LIST)})
    values = {"request.user_id()": user, "request.jwt() ->> 'team'": team, "request.jwt() ->> 'list'": LIST}

    joined = rows.replace("SELECT * FROM docs", f"SELECT docs.* FROM docs, ({parameters}) AS bucket")

    assert by_buckets(plan, data, request) == by_sqlite(joined, data, values)
