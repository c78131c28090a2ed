"""Comparisons of two values, so that they are true in a stream exactly where they are in Postgres.

Kinds that never meet are refused, and so is what a bucket cannot be found by: all but `=` between different tables, or
between a row and the request.
"""

from __future__ import annotations

from django.db import models

from .errors import NotExpressible
from .expressions import user_model
from .kinds import Kind, Typed, final_target, looks_like_a_number
from .terms import (
    REQUEST,
    Among,
    Choice,
    Column,
    Condition,
    Constant,
    Function,
    Operator,
    RequestValue,
    Value,
    Within,
    all_of,
    among,
    any_of,
    compare,
    function,
    mentions,
)

_USER = RequestValue("auth", None)
NEGATED: dict[Operator, Operator] = {"=": "!=", "!=": "=", "<": ">=", ">=": "<", ">": "<=", "<=": ">"}
_ONLY_EQUAL = "what it compares must be equal, since a bucket is found by equal values"


def comparison(operator: Operator, left: Typed, right: Typed) -> Condition:
    """`left <operator> right`. Raises NotExpressible."""
    if Constant(None) in (left.value, right.value):
        return compare(operator, left.value, right.value)
    _check_parties(operator, left.value, right.value)
    if _is_request(left) or _is_request(right):
        return _with_request(operator, left, right)
    _check_kinds(operator, left, right)
    return compare(operator, _number(left), _number(right))


def one_of(value: Typed, constants: list[Typed], negated: bool) -> Condition:
    """`value [NOT] IN (constants)`. Raises NotExpressible."""
    if _is_request(value):
        parts = [comparison("!=" if negated else "=", value, item) for item in constants]
        return all_of(*parts) if negated else any_of(*parts)
    known = [item for item in constants if item.value != Constant(None)]
    for item in known:
        _check_kinds("=", value, item)
    return among(_number(value), [item.value for item in known if isinstance(item.value, Constant)], negated=negated)


def element_of(value: Typed, array: Value, negated: bool) -> Condition:
    """`value IN` a list that the request gives. Raises NotExpressible."""
    if negated:
        raise NotExpressible(f"it excludes values of the request; {_ONLY_EQUAL}", "state what is to be synced instead")
    _check_one_table(value.value)
    if value.kind is Kind.OTHER:
        raise NotExpressible(value.why_not or "it cannot be compared", "compare another column")
    if value.kind is Kind.INTEGER:
        return Within(_as_text(value), array, as_text=True)
    return Within(_number(value), array)


def _is_request(side: Typed) -> bool:
    return any(isinstance(node, RequestValue) for node in _leaves(side.value))


def _leaves(value: Value) -> list[Value]:
    match value:
        case Function(_, arguments):
            return [leaf for argument in arguments for leaf in _leaves(argument)]
        case Choice(branches, default):
            return [*(leaf for _, item in branches for leaf in _leaves(item)), *_leaves(default)]
        case _:
            return [value]


# What a bucket can be found by


def _check_parties(operator: Operator, left: Value, right: Value) -> None:
    of_left, of_right = mentions(left), mentions(right)
    if len(of_left | of_right) <= 1:
        return
    if len(of_left) > 1 or len(of_right) > 1:
        raise NotExpressible(
            "one side of it mixes several tables, or a row with the request", "compare them one by one"
        )
    if operator != "=":
        what = "a row with the request" if REQUEST in of_left | of_right else "rows of two tables"
        excludes = "excludes by comparing" if operator == "!=" else "compares"
        raise NotExpressible(
            f"it {excludes} {what}; {_ONLY_EQUAL}",
            "state with = or __in what is to be synced, or keep the outcome in a column",
        )


def _check_one_table(value: Value) -> None:
    if len(mentions(value)) > 1:
        raise NotExpressible("it mixes several tables, or a row with the request", "compare a column of one table")


# Kinds


def _check_kinds(operator: Operator, left: Typed, right: Typed) -> None:
    for side in (left, right):
        if side.kind is Kind.OTHER:
            raise NotExpressible(side.why_not or "it cannot be compared", "use isnull, or compare another column")
    if left.kind is not right.kind and not (left.kind.is_number and right.kind.is_number):
        raise NotExpressible(
            f"{left.kind.value} never equals {right.kind.value} in a stream", "compare values of the same type"
        )
    if operator in ("<", ">", "<=", ">=") and not left.kind.is_ordered:
        what = "the order of texts depends on the collation" if left.kind is Kind.TEXT else "booleans have no order"
        raise NotExpressible(what, "compare with =, __in or __startswith")


def _number(side: Typed) -> Value:
    """Numbers of type `numeric` are text in a stream."""
    if side.kind is Kind.DECIMAL and isinstance(side.value, Column):
        return function("cast as numeric", side.value)
    return side.value


def _as_text(side: Typed) -> Value:
    if side.kind in (Kind.TEXT, Kind.UUID):
        return side.value
    match side.value:
        case Constant(bool() as known):
            return Constant(str(int(known)))
        case Constant(int() as known):
            return Constant(str(known))
        case RequestValue(_, None) as user_id:
            return user_id
        case value:
            return function("cast as text", value)


# The request


def _with_request(operator: Operator, left: Typed, right: Typed) -> Condition:
    if operator in ("<", ">", "<=", ">="):
        return _ordered_request(operator, left, right)
    sides = (left, right)
    for side, other in (sides, sides[::-1]):
        if side.value == _USER:
            _check_user_key(other)
        elif side.kind is Kind.OTHER:
            raise NotExpressible(side.why_not or "it cannot be compared", "compare another column")
    # In JSON a number may be 7 or "7".
    as_text = any(side.value == _USER or side.kind is Kind.INTEGER or _may_be_a_number(side) for side in sides)
    convert = _as_text if as_text else _number
    return compare(operator, convert(left), convert(right))


def _may_be_a_number(side: Typed) -> bool:
    return isinstance(side.value, Constant) and looks_like_a_number(side.value.value)


def _ordered_request(operator: Operator, left: Typed, right: Typed) -> Condition:
    """A text would be greater than any number, so numbers are asked for."""
    if not all(side.kind in (Kind.INTEGER, Kind.REAL) for side in (left, right)):
        hint = "give the parameter an output_field: IntegerField() or FloatField()"
        raise NotExpressible("only numbers of the request have an order", hint)
    numbers = (Constant("integer"), Constant("real"))
    tests = (
        Among(function("typeof", side.value), numbers) for side in (left, right) if not isinstance(side.value, Constant)
    )
    return all_of(*tests, compare(operator, left.value, right.value))


def _check_user_key(other: Typed) -> None:
    """The other side can be the key of a user. Raises NotExpressible."""
    model = user_model()
    if isinstance(other.value, RequestValue | Constant):
        return
    key = final_target(model._meta.pk)
    field = other.field
    if field is None or not isinstance(other.value, Column):
        raise NotExpressible("auth.user() is compared with something that is no column", "compare a column with it")
    final = final_target(field)
    related = field.is_relation or field.primary_key
    if related and (final.model._meta.db_table, final.column) != (key.model._meta.db_table, key.column):
        raise NotExpressible(
            f"{field.model.__name__}.{field.name} holds {final.model.__name__}.{final.name}, "
            f"not the primary key of {model.__name__}",
            _path_to_key(field, model),
        )
    if not _same_type(final, key):
        raise NotExpressible(
            f"{field.model.__name__}.{field.name} is of another type than the primary key of {model.__name__}",
            "compare a foreign key to the user model with auth.user()",
        )


def _path_to_key(field: models.Field, model: type[models.Model]) -> str:  # type: ignore[type-arg]
    if field.is_relation and field.related_model is model:
        return f"write {field.name}__pk=auth.user()"
    return f"follow the relations to {model.__name__}"


def _same_type(left: models.Field, right: models.Field) -> bool:  # type: ignore[type-arg]
    integers = (models.IntegerField, models.AutoField)
    if isinstance(left, integers) and isinstance(right, integers):
        return True
    texts = (models.CharField, models.TextField)
    if isinstance(left, texts) and isinstance(right, texts):
        return True
    return isinstance(left, models.UUIDField) and isinstance(right, models.UUIDField)
