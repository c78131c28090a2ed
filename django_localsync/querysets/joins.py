"""Joins become "there is a row": which rows a query selects, not how often.

A table that a query joins stands for some row of it. What is said of that row moves into one `Some`, as far inwards as
it can, so that a part of an OR that does not need the table does not ask for it. For a LEFT JOIN there is the other
case, that no row fits and all of its columns are NULL; it can be told only by a foreign key that is NULL, since the
language of streams knows no NOT EXISTS.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from .errors import NotExpressible
from .terms import (
    FALSE,
    NULL,
    REQUEST,
    TRUE,
    AllOf,
    AnyOf,
    Column,
    Compare,
    Condition,
    Some,
    Value,
    all_of,
    any_of,
    change_condition,
    columns,
    conjuncts,
    is_not_null,
    is_null,
    mentions,
)


@dataclass(frozen=True, slots=True)
class Joined:
    """A joined table: how its row is found (`key = outer`), and whether there may be none. `path` is for people."""

    alias: str
    table: str
    key: Column
    outer: Column
    optional: bool
    path: str


def bind(condition: Condition, joined: Joined) -> Condition:
    """The condition of the query without this join. Raises NotExpressible."""
    if joined.alias not in mentions(condition):
        return condition if joined.optional else all_of(condition, _together(TRUE, joined))
    match condition:
        case AnyOf(parts):
            # Parts that speak of this table alone are one look-up, with an OR inside.
            own = [part for part in parts if mentions(part) - {REQUEST} == {joined.alias}]
            others = [bind(part, joined) for part in parts if part not in own]
            return any_of(*others, *([_together(any_of(*own), joined)] if own else []))
        case AllOf(parts):
            about = [part for part in parts if joined.alias in mentions(part)]
            rest = [part for part in parts if part not in about]
            inner = bind(about[0], joined) if len(about) == 1 else _together(all_of(*about), joined)
            return all_of(*rest, inner)
        case _:
            return _together(condition, joined)


def _together(condition: Condition, joined: Joined) -> Condition:
    """The condition of some one row; of a LEFT JOIN also the case that there is none."""
    link = Compare("=", joined.key, joined.outer)
    matched = some(joined.alias, joined.table, all_of(link, _present(condition, joined.alias)))
    if not joined.optional:
        return matched
    absent = _with_nulls(condition, joined.alias)
    if absent == FALSE:
        return matched
    if absent != _without(condition, joined.alias):
        # A NULL would satisfy it, so "no row" must be told from "a row that does not".
        absent = all_of(_no_row(joined), absent)
    return any_of(matched, absent)


def some(alias: str, table: str, condition: Condition) -> Condition:
    """There is a row that meets the condition.

    A table that an enforced foreign key leads to, and of which nothing but that key is asked, is not looked up.
    """
    if condition == FALSE:
        return FALSE
    parts = conjuncts(condition)
    for link in parts:
        pair = _link(link, alias)
        if pair is None:
            continue
        key, outer = pair
        rest = all_of(*(part for part in parts if part is not link))
        asked = {column.name for column in columns(rest) if column.alias == alias}
        if isinstance(outer, Column) and outer.references == (table, key.name) and asked <= {key.name}:
            return _through(rest, alias, outer)
    return Some(alias, table, condition)


def _link(condition: Condition, alias: str) -> tuple[Column, Value] | None:
    """Column of the table and value outside of it, of an equality between them."""
    if isinstance(condition, Compare) and condition.operator == "=":
        for inner, outer in ((condition.left, condition.right), (condition.right, condition.left)):
            if isinstance(inner, Column) and inner.alias == alias and alias not in mentions(outer):
                return inner, outer
    return None


def _through(rest: Condition, alias: str, outer: Column) -> Condition:
    """What is said of a row that `outer` refers to, said of `outer`."""
    found = change_condition(rest, lambda column: outer if column.alias == alias else column)
    fails_for_null = change_condition(found, lambda column: NULL if column == outer else column) == FALSE
    return found if fails_for_null else all_of(is_not_null(outer), found)


def _present(condition: Condition, alias: str) -> Condition:
    """The condition where there is a row."""
    return change_condition(
        condition, lambda column: replace(column, optional=False) if column.alias == alias else column
    )


def _with_nulls(condition: Condition, alias: str) -> Condition:
    """The condition where there is no row."""
    return change_condition(condition, lambda column: NULL if column.alias == alias else column)


def _without(condition: Condition, alias: str) -> Condition:
    """The condition if nothing that is said of the table were met."""
    match condition:
        case AllOf(parts):
            return all_of(*(_without(part, alias) for part in parts))
        case AnyOf(parts):
            return any_of(*(_without(part, alias) for part in parts))
        case _:
            return FALSE if alias in mentions(condition) else condition


def _no_row(joined: Joined) -> Condition:
    if joined.outer.references == (joined.table, joined.key.name):
        return is_null(joined.outer)
    raise NotExpressible(
        f"it holds for rows that have no {joined.path}, and streams cannot tell that there is none",
        f"say {joined.path}__isnull=False as well, or keep what it asks in a column of the row",
    )
