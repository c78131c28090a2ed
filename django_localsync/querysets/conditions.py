"""Django's lookups and WHERE trees as conditions, with SQL's three-valued logic made explicit.

`holds` gives the condition that something is true, or (negated) that it is false: neither is met where it is unknown.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, cast

from django.db.models import Field, Transform, lookups
from django.db.models.expressions import Exists, NegatedExpression
from django.db.models.fields import related_lookups
from django.db.models.functions import ExtractYear
from django.db.models.lookups import Lookup
from django.db.models.sql import Query
from django.db.models.sql.where import NothingNode, WhereNode

from .comparisons import NEGATED, comparison, element_of, one_of
from .errors import NotExpressible
from .expressions import RequestExpression
from .joins import bind, some
from .kinds import Kind, Typed, constant
from .scopes import Scope
from .terms import (
    FALSE,
    TRUE,
    Condition,
    Constant,
    Operator,
    all_of,
    any_of,
    function,
    is_not_null,
    is_null,
    mentions,
)
from .values import HINTS, ValueTranslator

_OPERATORS: dict[type, Operator] = {
    lookups.Exact: "=",
    lookups.IntegerFieldExact: "=",
    related_lookups.RelatedExact: "=",
    lookups.GreaterThan: ">",
    lookups.IntegerGreaterThan: ">",
    related_lookups.RelatedGreaterThan: ">",
    lookups.GreaterThanOrEqual: ">=",
    lookups.IntegerGreaterThanOrEqual: ">=",
    related_lookups.RelatedGreaterThanOrEqual: ">=",
    lookups.LessThan: "<",
    lookups.IntegerLessThan: "<",
    related_lookups.RelatedLessThan: "<",
    lookups.LessThanOrEqual: "<=",
    lookups.IntegerLessThanOrEqual: "<=",
    related_lookups.RelatedLessThanOrEqual: "<=",
}
_NO_NEGATION = "state what is to be synced instead, or keep the outcome in a column"
_CASE_HINT = "keep a copy of the column in one case, and use exact, contains, startswith or endswith"
_HINTS = {
    **dict.fromkeys(("iexact", "icontains", "istartswith", "iendswith"), _CASE_HINT),
    **dict.fromkeys(("regex", "iregex"), "use contains, startswith or endswith, or keep the outcome in a column"),
    **dict.fromkeys(("date", "time", "month", "day"), "compare with gte and lt, or with __year"),
}


class QueryTranslator(ValueTranslator):
    """Translates one query, a stream's own or a subquery."""

    def condition(self, *further: Condition) -> Condition:
        """What is true of the rows that the query gives; it speaks of their table, and of those around."""
        found = all_of(self.holds(self.scope.query.where), *further)
        for joined in reversed(self.scope.joined()):
            with _named(joined.path):
                found = bind(found, joined)
        return found

    def exists(self, *further: Condition) -> Condition:
        """There is a row that the query gives."""
        return some(self.scope.base, self.scope.table, self.condition(*further))

    def holds(self, node: Any, negated: bool = False) -> Condition:
        """The condition that a boolean expression is true, or that it is false."""
        match node:
            case WhereNode():
                return self._tree(node, negated)
            case NothingNode():
                return TRUE if negated else FALSE
            case NegatedExpression():
                return self.holds(node.expression, not negated)
            case Exists():
                return self._found(self._inside(node.query).exists(), negated, "Exists(…)")
            case Lookup():
                with _named(self._describe(node, negated)):
                    return self._lookup(node, negated)
        if getattr(node, "conditional", False):
            return comparison("=", self.value(node), Typed(Constant(not negated), Kind.BOOLEAN))
        raise self.unknown(node)

    def _tree(self, node: WhereNode, negated: bool) -> Condition:
        if not node.children:
            return TRUE
        negated ^= node.negated
        if node.connector == "XOR":
            raise NotExpressible("XOR is not supported", "write it with &, | and ~", "Q(…) ^ Q(…)")
        parts = [self.holds(child, negated) for child in node.children]
        return all_of(*parts) if (node.connector == "AND") != negated else any_of(*parts)

    def _inside(self, query: Query) -> QueryTranslator:
        return QueryTranslator(Scope(query, self.scope.connection, self.scope))

    def _found(self, condition: Condition, negated: bool, lookup: str) -> Condition:
        """A condition on other tables, of which only the positive form is possible."""
        if not negated:
            return condition
        if condition in (TRUE, FALSE):
            return TRUE if condition == FALSE else FALSE
        raise NotExpressible("streams cannot tell that no row exists in another table", _NO_NEGATION, lookup)

    # Lookups

    def _lookup(self, node: Lookup[Any], negated: bool) -> Condition:
        if node.bilateral_transforms:
            raise self.unknown(node)
        operator = _OPERATORS.get(type(node))
        if operator is not None:
            return self._compare(node, operator, negated)
        translate = _LOOKUPS.get(type(node))
        if translate is None or (isinstance(node.lhs, Transform) and not isinstance(node, lookups.YearLookup)):
            raise self._unknown_lookup(node)
        return cast("Condition", translate(self, node, negated))

    def _compare(self, node: Lookup[Any], operator: Operator, negated: bool) -> Condition:
        if isinstance(node.rhs, Query):
            raise NotExpressible("a subquery gives no single value in a stream", "use __in")
        if operator == "=" and isinstance(node.rhs, bool) and _is_compound(node.lhs):
            return self.holds(node.lhs, negated ^ (not node.rhs))
        if isinstance(node.lhs, Transform):
            raise self._unknown_lookup(node)
        left = self.value(node.lhs)
        right = self._right(node, node.rhs, left)
        return comparison(NEGATED[operator] if negated else operator, left, right)

    def _right(self, node: Lookup[Any], value: Any, left: Typed) -> Typed:
        """The other side: an expression, or a Python value as the column's field prepares it."""
        if hasattr(value, "resolve_expression"):
            return self.value(value)
        field = getattr(node.lhs.output_field, "target_field", node.lhs.output_field)
        if value is not None and isinstance(field, Field):
            value = field.get_db_prep_value(value, self.scope.connection, prepared=True)
        return constant(value)

    def _in(self, node: lookups.In, negated: bool) -> Condition:
        value = self.value(node.lhs)
        if isinstance(node.rhs, Query):
            inner = self._inside(node.rhs)
            selected = next(iter([*node.rhs.select, *node.rhs.annotation_select.values()]))
            return self._found(
                inner.exists(comparison("=", value, inner.value(selected))), negated, self._describe(node)
            )
        if isinstance(node.rhs, RequestExpression):
            return element_of(value, self.value(node.rhs).value, negated)
        if hasattr(node.rhs, "resolve_expression"):
            raise self.unknown(node.rhs)
        items = [self._right(node, item, value) for item in node.rhs]
        if all(isinstance(item.value, Constant) for item in items):
            return one_of(value, items, negated)
        parts = [comparison("!=" if negated else "=", value, item) for item in items]
        return all_of(*parts) if negated else any_of(*parts)

    def _range(self, node: lookups.Range, negated: bool) -> Condition:
        value = self.value(node.lhs)
        low, high = (self._right(node, item, value) for item in node.rhs)
        return self._between(value, low, high, negated)

    def _between(self, value: Typed, low: Typed, high: Typed, negated: bool) -> Condition:
        if negated:
            return any_of(comparison("<", value, low), comparison(">", value, high))
        return all_of(comparison(">=", value, low), comparison("<=", value, high))

    def _is_null(self, node: lookups.IsNull, negated: bool) -> Condition:
        value = self.value(node.lhs).value
        if len(mentions(value)) > 1:
            raise NotExpressible("it mixes several tables", "test the columns one by one")
        return is_null(value) if bool(node.rhs) != negated else is_not_null(value)

    def _year(self, node: lookups.YearLookup, negated: bool) -> Condition:
        if type(node.lhs) is not ExtractYear or not isinstance(node.rhs, int):
            raise self._unknown_lookup(node)
        value = self.value(node.lhs.lhs)
        bounds = node.year_lookup_bounds(self.scope.connection, node.rhs)
        first, last = (constant(item) for item in bounds)
        if isinstance(node, lookups.YearExact):
            return self._between(value, first, last, negated)
        operator, bound = _YEARS[type(node)](first, last)
        return comparison(NEGATED[operator] if negated else operator, value, bound)

    def _pattern(self, node: Lookup[Any], negated: bool) -> Condition:
        value = self.value(node.lhs)
        if value.kind is not Kind.TEXT or not isinstance(node.rhs, str) or len(mentions(value.value)) > 1:
            raise NotExpressible("it looks for a constant text in a text column only", "compare with =")
        if not node.rhs:
            return FALSE if negated else is_not_null(value.value)
        part, units = Constant(node.rhs), len(node.rhs.encode("utf-16-le")) // 2
        match node:
            case lookups.Contains():
                found = Typed(function("instr", value.value, part), Kind.INTEGER)
                return comparison("=" if negated else ">", found, Typed(Constant(0), Kind.INTEGER))
            case lookups.StartsWith():
                piece = function("substring", value.value, Constant(1), Constant(units))
            case _:
                piece = function("substring", value.value, Constant(-units))
        return comparison("!=" if negated else "=", Typed(piece, Kind.TEXT), Typed(part, Kind.TEXT))

    # Errors

    def _unknown_lookup(self, node: Lookup[Any]) -> NotExpressible:
        if isinstance(node.lhs, Transform) and type(node.lhs) in HINTS:
            return self.unknown(node.lhs)
        name = getattr(node.lhs, "lookup_name", None) if isinstance(node.lhs, Transform) else node.lookup_name
        return NotExpressible(
            f"streams have no {name or type(node.lhs).__name__}", _HINTS.get(str(name), "keep the outcome in a column")
        )

    def _describe(self, node: Lookup[Any], negated: bool = False) -> str:
        """A lookup as it is written in filter()."""
        right = f"a query of {node.rhs.model}" if isinstance(node.rhs, Query) else self._describe_value(node.rhs)
        name = "" if node.lookup_name == "exact" else f"__{node.lookup_name}"
        text = f"{self._describe_value(node.lhs)}{name}={right}"
        return f"~Q({text})" if negated else text

    def _describe_value(self, value: Any) -> str:
        if isinstance(value, Transform):
            step = getattr(value, "key_name", None) or getattr(value, "lookup_name", None) or type(value).__name__
            return f"{self._describe_value(value.lhs)}__{step}"
        text = self.scope.describe(value) if hasattr(value, "target") else repr(value)
        return text if len(text) <= 60 else f"{text[:57]}…"


@contextlib.contextmanager
def _named(lookup: str) -> Iterator[None]:
    """Errors inside name this lookup, unless they know better."""
    try:
        yield
    except NotExpressible as error:
        error.lookup = error.lookup or lookup
        raise


def _is_compound(expression: Any) -> bool:
    """Whether it is a condition rather than a boolean column or parameter."""
    return isinstance(expression, WhereNode | Lookup | Exists | NegatedExpression)


_YEARS: dict[type, Callable[[Typed, Typed], tuple[Operator, Typed]]] = {
    lookups.YearGt: lambda first, last: (">", last),
    lookups.YearGte: lambda first, last: (">=", first),
    lookups.YearLt: lambda first, last: ("<", first),
    lookups.YearLte: lambda first, last: ("<=", last),
}
_LOOKUPS: dict[type, Any] = {
    lookups.In: QueryTranslator._in,
    related_lookups.RelatedIn: QueryTranslator._in,
    lookups.Range: QueryTranslator._range,
    lookups.IsNull: QueryTranslator._is_null,
    related_lookups.RelatedIsNull: QueryTranslator._is_null,
    lookups.Contains: QueryTranslator._pattern,
    lookups.StartsWith: QueryTranslator._pattern,
    lookups.EndsWith: QueryTranslator._pattern,
    **dict.fromkeys((lookups.YearExact, *_YEARS), QueryTranslator._year),
}
