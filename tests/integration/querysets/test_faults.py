"""The comparison with Postgres finds deliberate faults of the translation, each by itself."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable
from random import Random
from typing import Any

import pytest
from django.db import transaction
from django.db.models import QuerySet

from django_localsync.exceptions import RulesError
from django_localsync.querysets import Stream, comparisons, conditions, joins, kinds, printing, scopes, terms
from django_localsync.querysets.conditions import QueryTranslator
from django_localsync.querysets.terms import TRUE, AllOf, Compare, Some, any_of, is_null
from django_localsync.sync_rules.plan import RequestParameters

from .random_querysets import QuerySets, fill, requests
from .reached import Tables, read_tables
from .test_against_postgres import CASES_A_DATASET, Mismatch, check

pytestmark = pytest.mark.django_db

Patch = pytest.MonkeyPatch
Fault = Callable[[Patch], None]
FAULTS: dict[str, Fault] = {}


def fault(make: Fault) -> Fault:
    """List a fault under its name."""
    FAULTS[make.__name__] = make
    return make


@fault
def the_condition_of_a_join_is_dropped(patch: Patch) -> None:
    def some(alias: str, table: str, condition: Any) -> Any:
        parts = [part for part in terms.conjuncts(condition) if joins._link(part, alias) is None]
        return Some(alias, table, terms.all_of(*parts))

    patch.setattr(joins, "some", some)


@fault
def negation_is_lost(patch: Patch) -> None:
    right = QueryTranslator._tree
    patch.setattr(QueryTranslator, "_tree", lambda self, node, negated: right(self, _positive(node), negated))


def _positive(node: Any) -> Any:
    return node if not node.negated else type(node)(node.children, node.connector)


@fault
def negation_keeps_and(patch: Patch) -> None:
    def tree(self: Any, node: Any, negated: bool) -> Any:
        negated ^= node.negated
        parts = [self.holds(child, negated) for child in node.children]
        return terms.all_of(*parts) if node.connector == "AND" else terms.any_of(*parts)

    patch.setattr(QueryTranslator, "_tree", tree)


@fault
def not_equal_holds_for_null(patch: Patch) -> None:
    def compare(operator: Any, left: Any, right: Any) -> Any:
        return Compare(operator, left, right) if operator == "!=" else terms.compare(operator, left, right)

    patch.setattr(comparisons, "compare", compare)


@fault
def not_less_holds_for_null(patch: Patch) -> None:
    right = conditions.comparison

    def comparison(operator: Any, left: Any, other: Any) -> Any:
        found = right(operator, left, other)
        return any_of(found, is_null(left.value)) if operator == ">=" else found

    patch.setattr(conditions, "comparison", comparison)


@fault
def not_in_holds_for_null(patch: Patch) -> None:
    patch.setattr(
        comparisons,
        "among",
        lambda value, known, *, negated=False: terms.Among(value, tuple(known) or (terms.NULL,), negated),
    )


@fault
def a_left_join_asks_for_a_row(patch: Patch) -> None:
    right = joins.bind

    def bind(condition: Any, joined: Any) -> Any:
        return right(condition, dataclasses.replace(joined, optional=False))

    patch.setattr(conditions, "bind", bind)


@fault
def a_missing_row_is_not_told_from_one_that_fails(patch: Patch) -> None:
    patch.setattr(joins, "_no_row", lambda joined: TRUE)


@fault
def what_is_said_of_one_row_is_said_of_several(patch: Patch) -> None:
    right = joins.bind

    def bind(condition: Any, joined: Any) -> Any:
        if isinstance(condition, AllOf) and joined.alias in terms.mentions(condition):
            return terms.all_of(*(right(part, joined) for part in condition.parts))
        return right(condition, joined)

    patch.setattr(conditions, "bind", bind)


@fault
def a_key_that_is_null_leads_somewhere(patch: Patch) -> None:
    patch.setattr(joins, "is_not_null", lambda value: TRUE)


@fault
def every_foreign_key_is_believed(patch: Patch) -> None:
    def reference(field: Any) -> Any:
        target = getattr(field, "target_field", None)
        return (target.model._meta.db_table, target.column) if target is not None else None

    patch.setattr(scopes, "enforced_reference", reference)


@fault
def keys_are_not_compared_as_text(patch: Patch) -> None:
    patch.setattr(comparisons, "_as_text", lambda side: side.value)


@fault
def decimals_are_compared_as_text(patch: Patch) -> None:
    patch.setattr(comparisons, "_number", lambda side: side.value)


@fault
def moments_are_written_in_local_time(patch: Patch) -> None:
    patch.setattr(
        kinds, "_timestamp", lambda value: f"{value.replace(tzinfo=None).isoformat(timespec='microseconds')}Z"
    )


@fault
def subqueries_lose_their_conditions(patch: Patch) -> None:
    patch.setattr(
        QueryTranslator,
        "exists",
        lambda self, *further: joins.some(self.scope.base, self.scope.table, terms.all_of(*further)),
    )


@fault
def columns_are_called_as_their_fields(patch: Patch) -> None:
    right = scopes.Scope._column
    patch.setattr(
        scopes.Scope,
        "_column",
        lambda self, alias, field: dataclasses.replace(right(self, alias, field), name=field.name),
    )


@fault
def a_table_is_taken_for_another_of_its_name(patch: Patch) -> None:
    right = printing.Printer._inside

    def inside(self: Any, some: Any, condition: Any) -> Any:
        found = right(self, some, condition)
        found._names = dict.fromkeys(found._names, found._names[some.alias])
        return found

    patch.setattr(printing.Printer, "_inside", inside)


@fault
def or_needs_no_parentheses(patch: Patch) -> None:
    right = printing.Printer.condition

    def condition(self: Any, node: Any) -> str:
        return " AND ".join(map(self.condition, node.parts)) if isinstance(node, AllOf) else right(self, node)

    patch.setattr(printing.Printer, "condition", condition)


@fault
def the_order_of_operators_is_turned(patch: Patch) -> None:
    patch.setitem(conditions._OPERATORS, conditions.lookups.IntegerGreaterThan, "<")


@fault
def ranges_leave_out_their_end(patch: Patch) -> None:
    right = conditions.comparison
    patch.setattr(
        conditions,
        "comparison",
        lambda operator, left, other: right("<" if operator == "<=" else operator, left, other),
    )


@fault
def coalesce_takes_the_last(patch: Patch) -> None:
    from django_localsync.querysets import values

    right = values.function
    patch.setattr(values, "function", lambda name, *given: given[-1] if name == "ifnull" else right(name, *given))


@fault
def prefixes_are_suffixes(patch: Patch) -> None:
    patch.setitem(conditions._LOOKUPS, conditions.lookups.StartsWith, _suffix)


def _suffix(self: Any, node: Any, negated: bool) -> Any:
    return self._pattern(conditions.lookups.EndsWith(node.lhs, node.rhs), negated)


MAX_CASES = 5000


def test_every_fault_is_found(request: Any):
    random, left = Random(request.config.option.hypothesis_seed), dict(FAULTS)
    for _ in range(MAX_CASES // CASES_A_DATASET):
        with transaction.atomic():
            fill(random)
            tables, asking, querysets = read_tables(), requests(random), QuerySets(random)
            for _ in range(CASES_A_DATASET):
                for name in found_by(querysets.queryset(), left, tables, asking):
                    del left[name]
            transaction.set_rollback(True)
        if not left:
            return
    assert sorted(left) == []


def found_by(
    queryset: QuerySet[Any], faults: dict[str, Fault], tables: Tables, asking: list[RequestParameters]
) -> list[str]:
    """The faults with which this QuerySet gets other rows; they are looked at where its SQL becomes another one."""
    stream = Stream(queryset, name="tested")
    right, found = _sql(stream), []
    for name, make in faults.items():
        with pytest.MonkeyPatch.context() as patch:
            make(patch)
            if right is None or _sql(stream) in (None, right):
                continue
            try:
                check(queryset, tables, asking, Counter())
            except Mismatch:
                found.append(name)
    return found


def _sql(stream: Stream) -> list[str] | None:
    try:
        return stream.sql()
    except RulesError:
        return None
