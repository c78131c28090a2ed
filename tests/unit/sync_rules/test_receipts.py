"""Rows that are write checkpoints: the event write_checkpoints."""

from __future__ import annotations

import json
from typing import Any

import pytest

from django_localsync.exceptions import RulesError
from django_localsync.pgoutput.values import PgType
from django_localsync.sync_rules.compiler import CompiledRules, compile_rules
from django_localsync.sync_rules.plan import Column, TableName

QUERY = "SELECT user_id, client_id, checkpoint FROM done"
TABLE = TableName("public", "done")


def receipts_by(*queries: str) -> CompiledRules:
    """Rules with these payloads beside a stream."""
    return compile_rules(
        {
            "config": {"edition": 3},
            "streams": {"notes": {"query": "SELECT id FROM note", "auto_subscribe": True}},
            "event_definitions": {"write_checkpoints": {"payloads": [*queries]}},
        }
    )


def evaluate(query: str, **row: tuple[str, str | None]) -> tuple[list[Any], list[str]]:
    """What a row (type and text by column) gives: outputs, and messages of what is wrong with it."""
    errors: list[str] = []
    columns = [Column(name, PgType.named(kind)) for name, (kind, _) in row.items()]
    evaluator = receipts_by(query).plan.row_evaluator(TABLE, columns, lambda _, message: errors.append(message))
    buckets, lookups = evaluator([text for _, text in row.values()])
    assert not buckets
    return [json.loads(lookup.outputs) for lookup in lookups], errors


def test_the_table_is_used_and_its_source_gives_receipts_and_the_event_is_no_longer_without_effect():
    rules = receipts_by(QUERY)

    (source,) = rules.plan.lookup_sources
    assert source.gives_receipts
    assert source.identity in rules.plan.sources_of(TABLE)
    assert rules.plan.uses(TABLE)
    assert rules.events == ()
    assert rules.plan.identity != receipts_by().plan.identity


def test_equal_queries_are_one_and_others_keep_their_identity():
    one, two = receipts_by(QUERY, QUERY), receipts_by("SELECT user_id, checkpoint FROM done", QUERY)

    assert len(one.plan.lookup_sources) == 1
    assert one.plan.lookup_sources[0].identity == two.plan.lookup_sources[1].identity


@pytest.mark.parametrize(
    ("row", "receipt"),
    [
        ({"user_id": ("text", "u1"), "client_id": ("uuid", "c1"), "checkpoint": ("int8", "7")}, ["u1", "c1", 7]),
        ({"user_id": ("int4", "12"), "client_id": ("text", None), "checkpoint": ("text", "007")}, ["12", "", 7]),
        (
            {"user_id": ("text", "u" * 600), "client_id": ("text", ""), "checkpoint": ("numeric", str((1 << 63) - 1))},
            ["u" * 600, "", (1 << 63) - 1],
        ),
    ],
)
def test_a_row_is_a_receipt(row: dict[str, tuple[str, str | None]], receipt: list[Any]):
    assert evaluate(QUERY, **row) == ([receipt], [])


def test_a_condition_leaves_rows_out_without_a_word_and_a_client_need_not_be_selected():
    query = "SELECT owner::text AS user_id, n AS checkpoint FROM done WHERE state = 'applied'"
    row = {"owner": ("int4", "1"), "n": ("int8", "5"), "state": ("text", "applied")}

    assert evaluate(query, **row) == ([["1", "", 5]], [])
    assert evaluate(query, **{**row, "state": ("text", "queued"), "n": ("int8", None)}) == ([], [])


@pytest.mark.parametrize("number", [None, "", "x", "-1", "0", "1.5", "NaN", "٣", str(1 << 63), "1" * 5000])
def test_a_row_whose_checkpoint_is_no_number_is_left_out_and_reported(number: str | None):
    row = {"user_id": ("text", "u1"), "client_id": ("text", "c"), "checkpoint": ("text", number)}
    found, errors = evaluate(QUERY, **row)

    assert found == []
    assert len(errors) == 1
    assert "must be a whole number from 1 to 9223372036854775807" in errors[0]


def test_a_row_without_a_user_is_left_out_and_reported():
    row = {"user_id": ("text", None), "client_id": ("text", "c"), "checkpoint": ("int8", "1")}
    assert evaluate(QUERY, **row) == ([], ["the write checkpoint has no user_id"])


def test_a_table_without_the_column_gives_nothing_and_is_reported():
    found, errors = evaluate(QUERY, user_id=("text", "u1"), checkpoint=("int8", "1"))
    assert found == []
    assert errors == ["public.done has no column client_id: its rows are left out"]


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("SELECT user_id FROM done", "a write checkpoint has user_id, client_id and checkpoint"),
        ("SELECT * FROM done", "a write checkpoint has user_id, client_id and checkpoint"),
        (f"{QUERY} AS d JOIN e ON d.id = e.id", "bucket definitions know no joins"),
        ("SELECT user_id, checkpoint, id FROM done", "a write checkpoint has user_id, client_id and checkpoint"),
        (f"{QUERY} WHERE user_id = request.user_id()", "an event knows no request"),
        ("SELECT 1 AS user_id, 2 AS checkpoint", "the query of an event reads a table"),
    ],
)
def test_other_queries_are_refused(query: str, message: str):
    with pytest.raises(RulesError, match=message):
        receipts_by(query)
