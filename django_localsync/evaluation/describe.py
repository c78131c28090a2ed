"""Compiled expressions as people write them: `CAST(user_id AS TEXT) = auth.user_id()`."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence

from ..sync_rules.expressions import (
    USER_ID,
    Call,
    Column,
    Element,
    Expr,
    Literal,
    Metadata,
    Parameter,
    Present,
    Request,
    SqliteValue,
)
from ..sync_rules.queries import Every, Operand, Output, RowQuery

_INFIX = {"=", "!=", "<", ">", "<=", ">=", "&&", "||", "+", "-", "*", "/", "->", "->>"}
_NESTED = _INFIX | {"and", "or", "not", "in", "among", "is null", "is true", "is false"}
_METADATA = {"schema": "schema()", "table": "table_name()", "suffix": "table_suffix()"}


def describe(expr: Expr) -> str:
    """An expression over a row or a request."""
    match expr:
        case Literal(value):
            return _literal(value)
        case Column(_, name):
            return name
        case Metadata(_, kind):
            return _METADATA[kind]
        case Request("token"):
            return "token_parameters"
        case Request(part):
            return f"{part}.parameters()"
        case Parameter(name):
            return f"bucket.{name}"
        case Present():
            return "true"
        case Element(argument, _, part):
            return f"each {part} of {describe(argument)}"
        case Call():
            return _call(expr)


def describe_operand(operand: Operand, outputs: Callable[[Output], str]) -> str:
    """A value of a key or of bucket parameters; `outputs` names what a lookup answered."""
    return outputs(operand) if isinstance(operand, Output) else describe(operand)


def describe_condition(filters: Sequence[Expr]) -> str:
    """Filters that must all hold; empty if there are none."""
    return " AND ".join(_term(expr) for expr in filters) if len(filters) > 1 else "".join(map(describe, filters))


def describe_selection(query: RowQuery) -> str:
    """What of a row is synced, as a select list."""
    items = query.selection.items if query.selection else ()
    return ", ".join("*" if isinstance(item, Every) else _item(item.name, item.value) for item in items)


def _item(name: str, value: Expr) -> str:
    return name if value == Column(0, name) else f"{describe(value)} AS {name}"


def _literal(value: SqliteValue) -> str:
    if value is None:
        return "NULL"
    if isinstance(value, str):
        return "'" + value.replace("'", "''") + "'"
    return "x'" + value.hex() + "'" if isinstance(value, bytes) else json.dumps(value)


def _call(call: Call) -> str:
    name, arguments = call.name.removesuffix(" of edition 1"), call.arguments
    if call == USER_ID:
        return "auth.user_id()"
    match name, arguments:
        case "->>", (Request(part), Literal(str(key))):
            return f"token_parameters.{key}" if part == "token" else f"{part}.parameter({_literal(key)})"
        case "not", (Call("=", (left, right)),):
            return f"{_operand(left)} != {_operand(right)}"
        case "not", (Call("is null", (value,)),):
            return f"{_operand(value)} IS NOT NULL"
        case "not", (value,):
            return f"NOT {_operand(value)}"
        case (("is null" | "is true" | "is false"), (value,)):
            return f"{_operand(value)} {name.upper()}"
        case (("and" | "or"), _):
            return f" {name.upper()} ".join(_term(argument) for argument in arguments)
        case "in", (value, array):
            return f"{_operand(value)} IN {_operand(array)}"
        case "among", (value, *items):
            return f"{_operand(value)} IN ({', '.join(describe(item) for item in items)})"
        case _, (left, right) if name in _INFIX:
            return f"{_operand(left)} {name} {_operand(right)}"
        case _, (value,) if name.startswith("cast as "):
            return f"CAST({describe(value)} AS {name.removeprefix('cast as ').upper()})"
        case "case", (*branches, default):
            pairs = zip(branches[::2], branches[1::2], strict=True)
            told = " ".join(f"WHEN {describe(test)} THEN {describe(value)}" for test, value in pairs)
            return f"CASE {told} ELSE {describe(default)} END"
    return f"{name}({', '.join(describe(argument) for argument in arguments)})"


def _term(expr: Expr) -> str:
    """A part of AND or OR."""
    return f"({describe(expr)})" if isinstance(expr, Call) and expr.name in ("and", "or") else describe(expr)


def _operand(expr: Expr) -> str:
    """An expression inside another one: with parentheses where it needs them."""
    text = describe(expr)
    return f"({text})" if isinstance(expr, Call) and expr.name in _NESTED and not _is_member(expr) else text


def _is_member(call: Call) -> bool:
    return call.name == "->>" and isinstance(call.arguments[0], Request)
