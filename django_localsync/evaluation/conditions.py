"""SQL conditions that leave out rows which cannot matter, so that an index finds the others.

A condition may keep too many rows, never too few: the row evaluator decides. Where a value of the rules is not
plainly a column there is no condition, and the whole table is read.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence

from psycopg import sql

from ..pgoutput.types import PgType, TypeKind
from ..sync_rules.expressions import Call, Expr, SqliteValue
from ..sync_rules.expressions import Column as ColumnExpr
from ..sync_rules.plan import Column

MAX_VALUES = 10_000  # a longer list is not worth asking an index for

_INTEGERS = {"int2", "int4", "int8"}
_TEXTS = {"text", "varchar"}
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.ASCII)
_INTEGER = re.compile(r"0|-?[1-9][0-9]{0,18}", re.ASCII)

Wanted = Mapping[Expr, Collection[SqliteValue]]
"""Expressions over a row, each with the values that it must have one of."""


def condition(wanted: Wanted, columns: Sequence[Column]) -> sql.Composable | None:
    """The rows for which every expression may have one of its values; None for all rows."""
    types = {column.name: column.type for column in columns}
    found = [part for expr, values in wanted.items() if (part := _any_of(expr, values, types)) is not None]
    return sql.SQL(" AND ").join(found) if found else None


def _any_of(expr: Expr, values: Collection[SqliteValue], types: Mapping[str, PgType]) -> sql.Composable | None:
    column, as_text = plain_column(expr)
    kind = types.get(column.name) if column else None
    if column is None or kind is None or kind.kind is not TypeKind.BASE or not kind.is_built_in:
        return None
    if len(values) > MAX_VALUES or None in values:
        return None
    if kind.name in _INTEGERS:
        usable = _integers(values, as_text=as_text)
        return _equals(column, usable, "int8")
    if kind.name in _TEXTS:
        return _equals(column, [value for value in values if isinstance(value, str) and "\0" not in value], "text")
    if kind.name == "uuid":
        return _equals(column, [value for value in values if isinstance(value, str) and _UUID.fullmatch(value)], "uuid")
    return None


def plain_column(expr: Expr) -> tuple[ColumnExpr | None, bool]:
    """The column that an expression is, and whether it is read as text."""
    match expr:
        case ColumnExpr():
            return expr, False
        case Call("cast as text", (ColumnExpr() as column,)):
            return column, True
    return None, False


def _integers(values: Collection[SqliteValue], *, as_text: bool) -> list[int]:
    if as_text:
        found = [int(value) for value in values if isinstance(value, str) and _INTEGER.fullmatch(value)]
    else:
        whole = [value for value in values if isinstance(value, int) or (isinstance(value, float) and value % 1 == 0)]
        found = [int(value) for value in whole]
    return [value for value in found if -(1 << 63) <= value < 1 << 63]


def _equals(column: ColumnExpr, values: Sequence[int | str], type_name: str) -> sql.Composable:
    listed = sql.SQL(", ").join(sql.Literal(str(value)) for value in values)
    return sql.SQL("{} = ANY (ARRAY[{}]::pg_catalog.{}[])").format(
        sql.Identifier(column.name),
        listed,
        sql.SQL(type_name),
    )
