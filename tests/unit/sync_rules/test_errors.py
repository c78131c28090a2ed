"""Errors of rules say which definition, where, what is wrong and the way out."""

from __future__ import annotations

import pytest

from django_localsync.exceptions import RulesError
from django_localsync.sync_rules import compile_rules


def errors(text: str) -> list[tuple[str | None, int | None, int | None, str]]:
    with pytest.raises(RulesError) as caught:
        compile_rules(text)
    return [(error.definition, error.line, error.column, error.message) for error in caught.value.all]


def error_of(query: str) -> tuple[int | None, str, str | None]:
    """Column within the query, message and hint of its one error."""
    head = "config: {edition: 3}\nstreams:\n  s:\n    query: "
    with pytest.raises(RulesError) as caught:
        compile_rules(f"{head}{query}\n")
    (error,) = caught.value.all
    assert (error.definition, error.line) == ("s", 4)
    return (error.column or 0) - len("    query: "), error.message, error.hint


@pytest.mark.parametrize(
    ("query", "column", "message", "hint"),
    [
        ("SELECT * FROM t LIMIT 5", 17, "LIMIT is not supported", "device"),
        ("SELECT * FROM a UNION SELECT * FROM b", 17, "UNION is not supported", "queries"),
        ("SELECT * FROM t WHERE name LIKE 'a%'", 28, "LIKE is not supported", "="),
        ("SELECT t.* FROM t LEFT JOIN u ON t.id = u.id", 19, "LEFT JOIN is not supported", "inner joins"),
        ("SELECT id, frobnicate(x) AS y FROM t", 12, "there is no function 'frobnicate'", None),
        ("SELECT id, uper(x) AS y FROM t", 12, "there is no function 'uper'", "did you mean upper?"),
        ("SELECT id, -x AS y FROM t", 12, "unary minus is not supported", "0 -"),
        ("SELECT id, auth.user_id() AS me FROM t", 12, "values of the request cannot be selected", "device knows"),
        ("SELECT * FROM t WHERE a > auth.parameter('x')", 25, "a row can be compared with", "column"),
        ("SELECT * FROM t WHERE b AND NOT (c OR a = auth.user_id())", 41, "NOT cannot be applied", "to be synced"),
        ("SELECT * FROM t WHERE b AND a || auth.user_id() = c", 49, "one side of = mixes", "one by one"),
        ("SELECT t.* FROM t JOIN u ON t.id = u.id WHERE own = 1", 47, "the column 'own' is ambiguous", "table.column"),
        ("SELECT t.*, u.name FROM t JOIN u ON t.id = u.id", 13, "the select list must be of exactly one", "one query"),
        ("SELEC * FROM t", 1, "a query begins with SELECT: found 'SELEC'", None),
        ("SELECT * FROM t WHERE", 21, "an expression is missing: the query ends", None),
        ("SELECT * FROM t WHERE a = $1", 27, "'$' is not supported", "auth.user_id()"),
        ("SELECT * FROM t WHERE x.a = 1", 23, "there is no table 'x' in FROM", None),
        ("SELECT * FROM t WHERE auth.userid() = a", 23, "there is no function 'auth.userid'", "auth.user_id()"),
        ("SELECT * FROM t WHERE a NOT IN (SELECT b FROM u)", 25, "NOT IN is only supported", "instead"),
        ("SELECT count(id) AS id FROM t", 8, "aggregates are not supported", "device"),
        ("SELECT * FROM other.tables.t", 28, "a table is written table or schema.table", None),
        ('SELECT * FROM "a%b"', 15, "the wildcard % must stand at the end", None),
        ('SELECT * FROM "mongo.public".t', 15, "there is no connection 'mongo'", "default"),
        ("SELECT * FROM t WHERE a > CURRENT_TIMESTAMP", 27, "CURRENT_TIMESTAMP is not supported", "on the device"),
        ("SELECT d.* FROM (SELECT * FROM t) AS d", 25, "* is only possible in the select list of a stream", "name the"),
    ],
)
def test_a_query_is_refused_where_the_fault_is(query, column, message, hint):
    at, text, way_out = error_of(query)
    assert text.startswith(message)
    assert at == column
    assert hint is None or hint in (way_out or "")


def test_all_errors_of_a_document_are_reported_together():
    found = errors(
        "config:\n  edition: 4\nstreams:\n  a:\n    queri: SELECT * FROM t\n"
        "  b:\n    priority: 9\n    query: SELECT * FROM t WHERE\n"
    )
    assert [item[:3] for item in found] == [
        (None, 2, 12),
        ("a", 5, 5),
        ("a", 5, 5),
        ("b", 7, 15),
        ("b", 8, 32),
    ]


def test_an_error_in_a_common_table_expression_is_placed_in_its_text():
    found = errors(
        "config: {edition: 3}\nwith:\n  mine: SELECT list_id FROM members WHERE\n    user_id = auth.uid()\n"
        "streams:\n  s:\n    query: SELECT * FROM lists WHERE id IN mine\n"
    )
    assert found == [("s", 4, 15, "there is no function 'auth.uid'")]


def test_a_query_of_several_lines_is_counted_in_the_document():
    found = errors(
        "config: {edition: 3}\nstreams:\n  s:\n    queries:\n      - |\n        SELECT *\n"
        "        FROM lists\n        ORDER BY id\n"
    )
    assert found == [("s", 8, 9, "ORDER BY is not supported")]


@pytest.mark.parametrize(
    ("text", "line", "column", "message"),
    [
        ("a: 1\na: 2\n", 2, 1, "the key 'a' stands twice"),
        ("streams: [", 2, 1, "the text is not YAML"),
        ("streams: !env X", 1, 10, "YAML tags are not supported"),
        ("streams: &s {}\nwith: *s\n", 2, 7, "only texts can be repeated by a YAML alias"),
        ("1: x", 1, 1, "a key must be a name"),
        ("a\n---\nb", 2, 1, "the text holds several YAML documents"),
    ],
)
def test_a_document_is_refused_where_the_fault_is(text, line, column, message):
    (found,) = errors(text)
    assert (found[1:3], found[3]) == ((line, column), message)


def test_yaml_is_read_as_version_1_2():
    rules = compile_rules(
        "config: {edition: 3}\nstreams:\n  on: {query: SELECT * FROM t}\n  no: {query: SELECT * FROM u}\n"
    )
    assert [definition.name for definition in rules.plan.definitions] == ["on", "no"]


def test_json_with_a_repeated_key_is_refused():
    assert errors('{"streams": {}, "streams": {}}')[0][3] == "the key 'streams' stands twice"


def test_the_text_of_rules_never_appears_raw_in_a_message():
    message = error_of("SELECT * FROM t WHERE x\u202e.a = 1")[1]
    assert message.isascii()
