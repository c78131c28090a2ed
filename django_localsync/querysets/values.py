"""Django's expressions as values."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, cast

from django.db.models import Case, ExpressionWrapper, Value
from django.db.models import functions as django_functions
from django.db.models.expressions import Col, CombinedExpression, Exists, Ref, Subquery
from django.db.models.functions.text import ConcatPair
from django.db.models.lookups import Lookup
from django.db.models.sql.where import WhereNode

from .comparisons import comparison
from .errors import NotExpressible
from .expressions import RequestExpression
from .kinds import Kind, Typed, constant, kind_of
from .scopes import Scope
from .terms import (
    NULL,
    REQUEST,
    Column,
    Condition,
    Constant,
    RequestValue,
    Some,
    children,
    choice,
    function,
    mentions,
)
from .terms import Value as Term

_ARITHMETIC = ("+", "-", "*", "/")
_CASE = "upper and lower case depend on the database's locale"
HINTS: dict[type, tuple[str, str]] = {
    django_functions.Now: ("time passes without a change of the row", "let the device compare with its clock"),
    django_functions.Lower: (_CASE, "keep a column in lower case, and compare that"),
    django_functions.Upper: (_CASE, "keep a column in upper case, and compare that"),
    Subquery: ("a subquery gives a value only to __in", "use __in with its QuerySet, or Exists(…)"),
}


class ValueTranslator:
    """Translates expressions of one query. Raises NotExpressible."""

    def __init__(self, scope: Scope) -> None:
        self.scope = scope

    @abstractmethod
    def holds(self, node: Any, negated: bool = False) -> Condition:
        """The condition that a boolean expression is true, or that it is false."""

    def value(self, expression: Any) -> Typed:
        """An expression's value."""
        match expression:
            case Col():
                return self.scope.column(expression)
            case RequestExpression():
                return self._request(expression)
            case Value():
                return constant(expression.value)
            case Ref():
                return self.value(expression.get_source_expressions()[0])
            case WhereNode() | Lookup() | Exists():
                return self._boolean(expression)
        translate = _TRANSLATIONS.get(type(expression))
        if translate is not None:
            return cast("Typed", translate(self, expression))
        raise self.unknown(expression)

    def unknown(self, expression: Any) -> NotExpressible:
        """The error for an expression that streams do not have."""
        for kind, (reason, hint) in HINTS.items():
            if isinstance(expression, kind):
                return NotExpressible(reason, hint, _name(expression))
        return NotExpressible("it is not known to streams", "keep its outcome in a column", _name(expression))

    def _request(self, expression: RequestExpression) -> Typed:
        if expression.name is None:
            return Typed(RequestValue("auth", None), Kind.PARAMETER)
        kind = Kind.PARAMETER
        if expression.is_typed:
            kind, _ = kind_of(expression.output_field, self.scope.connection)
        return Typed(RequestValue(expression.part, expression.name), kind)

    def _boolean(self, expression: Any) -> Typed:
        met, unmet = self.holds(expression), self.holds(expression, negated=True)
        value = choice(((met, Constant(True)), (unmet, Constant(False))), NULL)
        self._refuse_lookups(value, expression)
        return Typed(value, Kind.BOOLEAN)

    def _refuse_lookups(self, value: Term, expression: Any) -> None:
        if _contains_some(value):
            hint = "use it as a condition in filter(), not as a value"
            raise NotExpressible("a value cannot come from another table", hint, _name(expression))
        if len(mentions(value)) > 1:
            what = "a row with the request" if REQUEST in mentions(value) else "several tables"
            raise NotExpressible(f"a value mixes {what}", "use it as a condition in filter()", _name(expression))

    # Expressions by their type

    def _wrapped(self, expression: Any) -> Typed:
        return self.value(expression.expression)

    def _combined(self, expression: CombinedExpression) -> Typed:
        left, right = self.value(expression.lhs), self.value(expression.rhs)
        if expression.connector not in _ARITHMETIC:
            raise self.unknown(expression)
        for side in (left, right):
            if side.kind not in (Kind.INTEGER, Kind.REAL):
                hint = "keep the outcome in a column"
                raise NotExpressible(f"arithmetic with {side.kind.value} is not exact", hint, _name(expression))
        kinds = {left.kind, right.kind}
        if len(kinds) == 2 and any(
            isinstance(side.value, Constant) and side.kind is Kind.REAL for side in (left, right)
        ):
            hint = "multiply by whole numbers instead"
            raise NotExpressible("Postgres computes it as a decimal number", hint, _name(expression))
        kind = Kind.REAL if Kind.REAL in kinds else Kind.INTEGER
        return Typed(function(expression.connector, left.value, right.value), kind)

    def _coalesce(self, expression: django_functions.Coalesce) -> Typed:
        values = [self.value(item) for item in expression.get_source_expressions()]
        kind = _common_kind(values, expression)
        found = _plain(values[-1])
        for item in reversed(values[:-1]):
            found = function("ifnull", _plain(item), found)
        return Typed(found, kind)

    def _case(self, expression: Case) -> Typed:
        branches = [(self.holds(when.condition), self.value(when.result)) for when in expression.cases]
        default = self.value(expression.default)
        kind = _common_kind([*(item for _, item in branches), default], expression)
        value = choice(((test, _plain(item)) for test, item in branches), _plain(default))
        self._refuse_lookups(value, expression)
        return Typed(value, kind)

    def _concat(self, expression: ConcatPair) -> Typed:
        parts = []
        for item in expression.get_source_expressions():
            part = self.value(item)
            if part.kind not in (Kind.TEXT, Kind.INTEGER, Kind.UUID):
                hint = "concatenate texts, integers and UUIDs"
                raise NotExpressible(f"{part.kind.value} has another text in Postgres", hint, _name(expression))
            parts.append(function("ifnull", part.value, Constant("")))
        return Typed(function("||", *parts), Kind.TEXT)

    def _concat_all(self, expression: django_functions.Concat) -> Typed:
        return self.value(expression.get_source_expressions()[0])

    def _cast(self, expression: django_functions.Cast) -> Typed:
        value = self.value(expression.get_source_expressions()[0])
        kind, _ = kind_of(expression.output_field, self.scope.connection)
        unlimited = getattr(expression.output_field, "max_length", None) is None
        if kind is Kind.TEXT and unlimited and value.kind in (Kind.TEXT, Kind.UUID, Kind.INTEGER):
            return Typed(function("cast as text", value.value), Kind.TEXT)
        raise NotExpressible(
            f"a cast of {value.kind.value} is not the same in Postgres",
            "cast integers or UUIDs to TextField()",
            _name(expression),
        )

    def _null_if(self, expression: django_functions.NullIf) -> Typed:
        left, right = (self.value(item) for item in expression.get_source_expressions())
        return Typed(choice(((comparison("=", left, right), NULL),), _plain(left)), left.kind)


def _contains_some(node: Any) -> bool:
    return isinstance(node, Some) or any(_contains_some(child) for child in children(node))


def _common_kind(values: list[Typed], expression: Any) -> Kind:
    kinds = {item.kind for item in values if item.value != NULL}
    if len(kinds) > 1 or Kind.OTHER in kinds:
        listed = " and ".join(sorted(kind.value for kind in kinds))
        raise NotExpressible(f"it mixes {listed}", "give all of it the same type", _name(expression))
    return kinds.pop() if kinds else Kind.OTHER


def _plain(item: Typed) -> Term:
    """The value as it is computed with: numbers of type `numeric` are text."""
    if item.kind is Kind.DECIMAL and isinstance(item.value, Column):
        return function("cast as numeric", item.value)
    return item.value


def _name(expression: Any) -> str:
    text = repr(expression)
    return text if len(text) <= 80 else f"{text[:77]}…"


_TRANSLATIONS: dict[type, Any] = {
    ExpressionWrapper: ValueTranslator._wrapped,
    CombinedExpression: ValueTranslator._combined,
    django_functions.Coalesce: ValueTranslator._coalesce,
    Case: ValueTranslator._case,
    ConcatPair: ValueTranslator._concat,
    django_functions.Concat: ValueTranslator._concat_all,
    django_functions.Cast: ValueTranslator._cast,
    django_functions.NullIf: ValueTranslator._null_if,
}
