"""Whatever the rules are, compiling them gives a plan or a RulesError, and soon."""

from __future__ import annotations

import json
import random
import time
from typing import Any

from hypothesis import example, given
from hypothesis import strategies as st

from django_localsync.exceptions import RulesError
from django_localsync.pgoutput.values import PgType
from django_localsync.sync_rules import CompiledRules, canonical_json, compile_rules
from django_localsync.sync_rules.plan import Column, TableName
from tests.conftest import SOAK
from tests.vectors import vectors

CONFIGS = sorted(
    {str(vector.values[0]["config"]) for group in ("configs", "config_validity") for vector in vectors(group)}
)
FRAGMENTS = [
    "SELECT", "FROM", "WHERE", "IN (SELECT a FROM t)", "NOT", "(", ")", "'", '"', "*", "json_each(x)", "auth.user_id()",
    "OR a = auth.user_id()", "AND", ",", ".", "->>", "&&", "bucket.x", "\n", "  ", ":", "- ", "{", "[", "&a", "*a",
    "!!x", "|", "%", "\x00", "\ud800", "é", "1e999", "99999999999999999999", "0x", "--", "/*", "CASE WHEN a THEN b",
    "BETWEEN", "CAST(a AS text)", "::int", "with", "streams", "edition: 1", "priority: 9", "AS", "JOIN u ON", ";", "$1",
]  # fmt: skip
LONGEST_S = 1.0
MUTATIONS = 100_000 if SOAK else 400


@st.composite
def mutated(draw: st.DrawFn) -> str:
    """A configuration of the vectors with some places replaced, repeated or cut out."""
    text = draw(st.sampled_from(CONFIGS))
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(text)))
        end = min(len(text), start + draw(st.sampled_from([0, 0, 1, 3, 10, 40])))
        fragment = draw(st.one_of(st.sampled_from(FRAGMENTS), st.text(max_size=3), st.just(text[start:end] * 2)))
        text = text[:start] + fragment * draw(st.sampled_from([1, 1, 1, 2, 50])) + text[end:]
    return text


def compile_or_refuse(source: Any) -> None:
    began = time.process_time()
    rules, refusal = compiled(source)
    assert time.process_time() - began < LONGEST_S
    if rules is None:
        assert refusal.isprintable()
    else:
        assert compile_rules(canonical_json(source)).plan.identity == rules.plan.identity
        evaluate_something(rules.plan)


def compiled(source: Any) -> tuple[CompiledRules | None, str]:
    try:
        return compile_rules(source), ""
    except RulesError as error:
        errors = error.all
    unplaced = [item for item in errors if not (item.line and item.column)]
    assert unplaced == [] or not isinstance(source, str) or is_json(source)
    return None, "; ".join(f"{item} ({item.hint})" for item in errors)


def is_json(text: str) -> bool:
    """Rules from a dict, stored as JSON: nobody wrote their lines."""
    try:
        return isinstance(json.loads(text), dict)
    except ValueError:
        return False


def evaluate_something(plan: Any) -> None:
    """Generated code must at least be code."""
    columns = [Column(name, PgType.named(kind)) for name, kind in (("id", "int4"), ("a", "text"), ("x", "jsonb"))]
    for pattern in plan.tables:
        table = TableName(pattern.schema.replace("%", "s"), pattern.name.replace("%", "x"))
        plan.row_evaluator(table, columns, lambda name, message: None)(["1", "u1", "[1]"])


@given(mutated())
@example("streams: " + "[" * 5000)
@example("config: {edition: 3}\nstreams: {s: {query: '" + "SELECT (" * 300 + "'}}")
@example("config: {edition: 3}\nstreams: {s: {query: SELECT * FROM t WHERE " + "NOT " * 3000 + "a}}")
@example("config: {edition: 3}\nstreams: {s: {query: SELECT * FROM t WHERE a" + " + a" * 3000 + "}}")
@example("config: {edition: 3}\nstreams: {s: {query: SELECT * FROM t WHERE a" + " OR a = auth.user_id()" * 800 + "}}")
@example("config: {edition: 3}\nstreams: {s: {query: SELECT * FROM t WHERE " + "upper(" * 31 + "a" + ")" * 31 + "}}")
def test_mutated_configurations_are_compiled_or_refused(text: str) -> None:
    compile_or_refuse(text)


def mutation(rnd: random.Random) -> str:
    """As `mutated`, a hundred times as fast."""
    text = rnd.choice(CONFIGS)
    for _ in range(rnd.randint(1, 4)):
        start = rnd.randint(0, len(text))
        end = min(len(text), start + rnd.choice([0, 0, 1, 3, 10, 40]))
        fragment = rnd.choice([rnd.choice(FRAGMENTS), chr(rnd.randrange(1, 0x3000)), text[start:end] * 2, ""])
        text = text[:start] + fragment * rnd.choice([1, 1, 1, 2, 50]) + text[end:]
    return text


def test_many_mutated_configurations_are_compiled_or_refused() -> None:
    rnd, longest = random.Random(), 0.0
    for _ in range(MUTATIONS):
        text, began = mutation(rnd), time.process_time()
        try:
            rules, refusal = compiled(text)
            if rules is not None:
                evaluate_something(rules.plan)
        except Exception as error:
            raise AssertionError(text) from error
        longest = max(longest, time.process_time() - began)
        assert longest < LONGEST_S, text
        assert refusal.isprintable(), text
    print(f"{MUTATIONS} configurations, the longest took {longest:.3f} s")


json_like = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=20), st.sampled_from(CONFIGS)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)),
    max_leaves=8,
)
KEYS = (
    "config",
    "streams",
    "bucket_definitions",
    "with",
    "event_definitions",
    "s",
    "query",
    "queries",
    "data",
    "edition",
)


@given(
    st.dictionaries(st.sampled_from(KEYS), st.dictionaries(st.sampled_from(KEYS), json_like, max_size=3), max_size=4)
)
def test_any_structure_is_compiled_or_refused(structure: dict[str, Any]) -> None:
    compile_or_refuse(structure)
