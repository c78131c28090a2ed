"""The rows that a user reaches through buckets are those that the rule gives as SQL, run by Postgres for that user.

Tables, rows, rules and requests are random. A plan is evaluated here, over rows in Postgres's text form, with the
parameter index in a dict; Postgres runs the same text, with these differences, which are those between the rules'
values (SQLite's, as PowerSync reads them) and Postgres's:

* Values of requests and of JSON have the type that they happen to have. In Postgres they are jsonb, in which numbers
  equal numbers (1 = 1.0), texts texts, and a number never a text ('1' = 1 is false).
* NOT NULL is true, and so are `a != b` and NOT IN with NULL: `… IS NOT TRUE` in Postgres.
* Booleans are 1 and 0, also in JSON; `IS TRUE` asks for 1.
* numeric, uuid and dates are texts; a timestamptz is text in ISO 8601, in UTC, with microseconds.
* Arrays are JSON arrays; `IN` and `&&` go through their elements. Objects and arrays in JSON are text.
* Text compares by code units: COLLATE "C".
* hex(NULL) is an empty text.

NaN (a real that equals nothing) and blobs (which cannot be compared) do not occur here, nor do expressions that fail
for a row: those leave it out, in Postgres they would end the query.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
from django.db import connection as django_connection

from django_localsync.exceptions import RulesError
from django_localsync.sync_rules import compile_rules
from django_localsync.sync_rules.plan import Plan
from tests.conftest import SOAK
from tests.integration.rules import reach
from tests.integration.rules.faults import FAULTS, fault
from tests.integration.rules.grammar import Both, DefinitionGrammar, Grammar
from tests.integration.rules.world import World, build, make_requests, make_tables

WORLDS = 500 if SOAK else 6
STREAMS = 24
TOO_LARGE = ("variants", "kinds of buckets", "operators in chains", "nested deeper", "arrays")


@dataclass(frozen=True)
class Case:
    """Rules with many streams over one world, and what each request should reach of them."""

    seed: int
    rules: Mapping[str, Any]
    plan: Plan
    queries: Mapping[str, Sequence[Both]]
    world: World
    expected: reach.Reached


def make_case(connection: Any, seed: int) -> Case:
    """Random rules over a random world."""
    rnd = random.Random(seed)
    tables = make_tables(rnd)
    expressions = {f"cte{number}": Grammar(tables, rnd, {}).column_query([], 1) for number in range(2)}
    grammar = Grammar(tables, rnd, expressions)
    queries = {
        f"s{number}": [grammar.query(position) for position in range(rnd.choice([1, 1, 1, 2]))]
        for number in range(STREAMS)
    }
    queries, rules, plan = accepted(queries, expressions)
    world = build(connection, tables, rnd, make_requests(rnd, [*queries]))
    return Case(seed, rules, plan, queries, world, reach.by_postgres(connection, queries))


def make_definitions(connection: Any, seed: int) -> Case:
    """Random bucket definitions over a random world."""
    rnd = random.Random(seed)
    tables = make_tables(rnd)
    grammar = DefinitionGrammar(tables, rnd, {})
    found = {f"s{number}": grammar.definition() for number in range(STREAMS)}
    definitions = {name: {"parameters": first.rule, "data": [second.rule]} for name, (first, second) in found.items()}
    rules = {"config": {"edition": 2}, "bucket_definitions": definitions}
    world = build(connection, tables, rnd, make_requests(rnd, [*found]))
    queries = {name: [data] for name, (_, data) in found.items()}
    expected = reach.by_postgres(connection, queries)
    return Case(seed, rules, compile_rules(rules).plan, queries, world, expected)


def accepted(
    queries: dict[str, list[Both]], expressions: Mapping[str, Both]
) -> tuple[dict[str, list[Both]], dict[str, Any], Plan]:
    """The streams that are within the language's limits, their rules and plan; any other refusal is a failure."""
    while True:
        rules = {
            "config": {"edition": 3},
            "with": {name: query.rule for name, query in expressions.items()},
            "streams": {
                name: {"queries": [query.rule for query in found], "priority": number % 4}
                for number, (name, found) in enumerate(queries.items())
            },
        }
        try:
            return queries, rules, compile_rules(rules).plan
        except RulesError as error:
            refused = {item.definition: item.message for item in error.all}
        for name, message in refused.items():
            assert any(part in message for part in TOO_LARGE), (message, queries.get(str(name)))
            del queries[str(name)]


def differences(case: Case, plan: Plan) -> list[str]:
    """What the plan grants otherwise than Postgres does."""
    found = reach.by_plan(plan, case.world)
    return [
        f"seed {case.seed}, request {key[1]} {case.world.requests[key[1]]}\n"
        + "\n".join(f"  rule:     {query.rule}\n  postgres: {query.pg}" for query in case.queries[key[0]])
        + f"\n  wrongly granted: {sorted(found.get(key, set()) - case.expected.get(key, set()))}"
        + f"\n  missing: {sorted(case.expected.get(key, set()) - found.get(key, set()))}"
        for key in sorted({*found, *case.expected})
        if found.get(key) != case.expected.get(key)
    ]


@pytest.fixture
def connection(db: None) -> Any:
    """A connection inside a transaction that is rolled back."""
    with django_connection.cursor() as cursor:
        cursor.execute("SELECT 1")  # psycopg begins the transaction; what libpq is given directly does not
    return django_connection.connection


@pytest.mark.parametrize("make", [make_case, make_definitions], ids=["streams", "bucket definitions"])
def test_buckets_hold_the_rows_that_postgres_selects(connection: Any, make: Callable[[Any, int], Case]) -> None:
    begin, checked = time.monotonic(), 0
    first = int(os.environ.get("LOCALSYNC_SEED") or random.SystemRandom().randrange(1 << 30))
    for seed in range(first, first + WORLDS):
        case = make(connection, seed)
        assert differences(case, case.plan) == []
        checked += len(case.queries)
    print(f"{checked} rules, {checked / (time.monotonic() - begin):.0f} a second")


_FAULT_CASES: dict[int, Case] = {}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_noticed(connection: Any, name: str) -> None:
    for seed in range(20):
        case = _FAULT_CASES.get(seed) or _FAULT_CASES.setdefault(seed, make_case(connection, seed))
        with fault(name):
            if differences(case, compile_rules(case.rules).plan):
                return
    pytest.fail(f"nobody noticed: {name}")
