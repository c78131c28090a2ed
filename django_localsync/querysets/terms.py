"""What a QuerySet says of a row, between Django's expressions and SQL: values, and conditions in two-valued logic.

A condition is either met or not. SQL's third value is gone before: what is unknown is not met, and NOT was moved
inwards until it became another comparison. `compare` and its like also fold what is decided by a NULL.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

Operator = Literal["=", "!=", "<", ">", "<=", ">="]
RequestPart = Literal["auth", "connection", "subscription"]
REQUEST = ""
"""What `mentions` gives for a value of the request, beside the names of tables."""


@dataclass(frozen=True, slots=True)
class Column:
    """A column of the table with this alias.

    `references`: table and column that an enforced foreign key points to. `optional`: there may be no row of the
    table (a LEFT JOIN), and the column then is NULL.
    """

    alias: str
    name: str
    nullable: bool
    references: tuple[str, str] | None = None
    optional: bool = False


@dataclass(frozen=True, slots=True)
class Constant:
    """A constant."""

    value: int | float | str | bool | None


@dataclass(frozen=True, slots=True)
class RequestValue:
    """A parameter of the request; without a name the user's id."""

    part: RequestPart
    name: str | None


@dataclass(frozen=True, slots=True)
class Function:
    """An operator or function, as the language of streams knows it; all but `ifnull` and `base64` pass NULL on."""

    name: str
    arguments: tuple[Value, ...]


@dataclass(frozen=True, slots=True)
class Choice:
    """CASE: the value of the first condition that is met."""

    branches: tuple[tuple[Condition, Value], ...]
    default: Value


Value = Column | Constant | RequestValue | Function | Choice
NULL = Constant(None)


@dataclass(frozen=True, slots=True)
class Compare:
    """A comparison; not met if a side is NULL. Of `!=` both sides are known not to be NULL."""

    operator: Operator
    left: Value
    right: Value


@dataclass(frozen=True, slots=True)
class IsNull:
    """`value IS NULL`."""

    value: Value


@dataclass(frozen=True, slots=True)
class IsNotNull:
    """`value IS NOT NULL`."""

    value: Value


@dataclass(frozen=True, slots=True)
class Among:
    """`value IN (constants)`, or NOT IN for a value that is known not to be NULL."""

    value: Value
    constants: tuple[Constant, ...]
    negated: bool = False


@dataclass(frozen=True, slots=True)
class Within:
    """The value is an element of a JSON array; `as_text` compares text forms."""

    value: Value
    array: Value
    as_text: bool = False


@dataclass(frozen=True, slots=True)
class Some:
    """There is a row in the table, named `alias` in the condition, that meets it."""

    alias: str
    table: str
    condition: Condition


@dataclass(frozen=True, slots=True)
class AllOf:
    """AND; without parts always met."""

    parts: tuple[Condition, ...]


@dataclass(frozen=True, slots=True)
class AnyOf:
    """OR; without parts never met."""

    parts: tuple[Condition, ...]


Condition = Compare | IsNull | IsNotNull | Among | Within | Some | AllOf | AnyOf
TRUE, FALSE = AllOf(()), AnyOf(())


# Making them


def function(name: str, *arguments: Value) -> Value:
    """A function's value; NULL where an argument makes it so."""
    if name == "ifnull":
        first, second = arguments
        return second if first == NULL else Function(name, arguments) if may_be_null(first) else first
    return NULL if NULL in arguments and name != "base64" else Function(name, arguments)


def choice(branches: Iterable[tuple[Condition, Value]], default: Value) -> Value:
    """CASE without branches that are never taken."""
    kept: list[tuple[Condition, Value]] = []
    for condition, value in branches:
        if condition == TRUE:
            default = value
            break
        if condition != FALSE:
            kept.append((condition, value))
    return Choice(tuple(kept), default) if kept else default


def compare(operator: Operator, left: Value, right: Value) -> Condition:
    """A comparison that is met if it is true; `!=` with tests for NULL where a side may be NULL."""
    if NULL in (left, right):
        return FALSE
    if operator == "!=" and isinstance(right, Constant) and isinstance(right.value, bool):
        return Compare("=", left, Constant(not right.value))
    if operator == "!=":
        return all_of(is_not_null(left), is_not_null(right), Compare(operator, left, right))
    return Compare(operator, left, right)


def is_null(value: Value) -> Condition:
    """`value IS NULL`."""
    return TRUE if value == NULL else IsNull(value) if may_be_null(value) else FALSE


def is_not_null(value: Value) -> Condition:
    """`value IS NOT NULL`."""
    return FALSE if value == NULL else IsNotNull(value) if may_be_null(value) else TRUE


def among(value: Value, constants: Iterable[Constant], *, negated: bool = False) -> Condition:
    """`value [NOT] IN (constants)`."""
    known = tuple(dict.fromkeys(constant for constant in constants if constant != NULL))
    if not known:
        return TRUE if negated else FALSE
    if value == NULL:
        return FALSE
    if len(known) == 1:
        return compare("!=" if negated else "=", value, known[0])
    return all_of(is_not_null(value), Among(value, known, True)) if negated else Among(value, known)


def all_of(*parts: Condition) -> Condition:
    """AND."""
    flat = _flat(AllOf, parts)
    return FALSE if FALSE in flat else flat[0] if len(flat) == 1 else AllOf(flat)


def any_of(*parts: Condition) -> Condition:
    """OR."""
    flat = _flat(AnyOf, parts)
    return TRUE if TRUE in flat else flat[0] if len(flat) == 1 else AnyOf(flat)


def _flat(kind: type[AllOf | AnyOf], parts: Iterable[Condition]) -> tuple[Condition, ...]:
    found: dict[Condition, None] = {}
    for part in parts:
        found.update(dict.fromkeys(part.parts if isinstance(part, kind) else (part,)))
    return tuple(found)


def conjuncts(condition: Condition) -> tuple[Condition, ...]:
    """The parts of an AND, or the condition alone."""
    return condition.parts if isinstance(condition, AllOf) else (condition,)


# Looking at them


def may_be_null(value: Value) -> bool:
    """Whether a value can be NULL."""
    match value:
        case Column():
            return value.nullable or value.optional
        case Constant():
            return value.value is None
        case RequestValue():
            return True
        case Function("ifnull", (_, default)):
            return may_be_null(default)
        case Function("base64" | "typeof", _):
            return False
        case Function(name, arguments):
            return name == "/" or any(may_be_null(argument) for argument in arguments)
        case Choice(branches, default):
            return any(may_be_null(item) for _, item in branches) or may_be_null(default)


def children(node: Value | Condition) -> Iterator[Value | Condition]:
    """What a value or condition is directly made of."""
    match node:
        case Column() | Constant() | RequestValue():
            pass
        case Function(_, parts) | AllOf(parts) | AnyOf(parts):
            yield from parts
        case Choice(branches, default):
            for branch in branches:
                yield from branch
            yield default
        case Compare(_, left, right):
            yield from (left, right)
        case IsNull(value) | IsNotNull(value) | Among(value):
            yield value
        case Within(value, array):
            yield from (value, array)
        case Some(_, _, condition):
            yield condition


def columns(node: Value | Condition) -> Iterator[Column]:
    """All columns in a value or condition, those of tables inside it too."""
    if isinstance(node, Column):
        yield node
    for child in children(node):
        yield from columns(child)


def mentions(node: Value | Condition) -> frozenset[str]:
    """Aliases of the tables outside of it that it speaks of, and REQUEST."""
    if isinstance(node, Column):
        return frozenset((node.alias,))
    if isinstance(node, RequestValue):
        return frozenset((REQUEST,))
    found = frozenset[str]().union(*(mentions(child) for child in children(node)))
    return found - {node.alias} if isinstance(node, Some) else found


# Changing them

Change = Callable[[Column], Value]


def change_value(value: Value, change: Change) -> Value:
    """The value with its columns changed, folded anew."""
    match value:
        case Column():
            return change(value)
        case Constant() | RequestValue():
            return value
        case Function(name, arguments):
            return function(name, *(change_value(argument, change) for argument in arguments))
        case Choice(branches, default):
            changed = ((change_condition(test, change), change_value(item, change)) for test, item in branches)
            return choice(changed, change_value(default, change))


def change_condition(condition: Condition, change: Change) -> Condition:
    """The condition with its columns changed, folded anew."""
    match condition:
        case Compare(operator, left, right):
            return compare(operator, change_value(left, change), change_value(right, change))
        case IsNull(value):
            return is_null(change_value(value, change))
        case IsNotNull(value):
            return is_not_null(change_value(value, change))
        case Among(value, constants, negated):
            return among(change_value(value, change), constants, negated=negated)
        case Within(value, array, as_text):
            changed = change_value(value, change)
            return FALSE if changed == NULL else Within(changed, change_value(array, change), as_text)
        case Some(alias, table, inner):
            changed_inner = change_condition(inner, change)
            return FALSE if changed_inner == FALSE else Some(alias, table, changed_inner)
        case AllOf(parts):
            return all_of(*(change_condition(part, change) for part in parts))
        case AnyOf(parts):
            return any_of(*(change_condition(part, change) for part in parts))
