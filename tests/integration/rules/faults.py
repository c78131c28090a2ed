"""Deliberate faults of compiler and evaluator: a property that notices none of them proves nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest

from django_localsync.sync_rules import (
    codegen,
    compiler,
    functions,
    joins,
    parameters,
    queriers,
    relations,
    rows,
    streams,
    values,
)
from django_localsync.sync_rules.expressions import REQUEST, Call, Element, rewrite
from django_localsync.sync_rules.queries import Output

Patch = Callable[[pytest.MonkeyPatch], None]


def _wrapped(module: Any, name: str, change: Callable[..., Any]) -> Patch:
    """Replace a function by `change(original, *arguments)`."""

    def patch(patcher: pytest.MonkeyPatch) -> None:
        original = getattr(module, name)
        patcher.setattr(module, name, lambda *arguments, **named: change(original, *arguments, **named))

    return patch


def _implemented(name: str, implementation: Callable[..., Any]) -> Patch:
    """Another meaning of a function or operator."""

    def patch(patcher: pytest.MonkeyPatch) -> None:
        patcher.setitem(functions.IMPLEMENTATIONS, name, implementation)
        if name in functions.FUNCTIONS:
            patcher.setitem(
                functions.FUNCTIONS, name, replace(functions.FUNCTIONS[name], implementation=implementation)
            )

    return patch


def _without_one_equality(original: Any, terms: Any, notes: Any) -> Any:
    variant = original(terms, notes)
    return replace(variant, edges=variant.edges[1:]) if len(variant.edges) > 1 else variant


def _without_row_filters(original: Any, query: Any, variant: Any, table: int, *rest: Any) -> Any:
    return original(query, replace(variant, filters={**variant.filters, table: ()}), table, *rest)


def _without_request_filters(original: Any, query: Any, variant: Any, *rest: Any) -> Any:
    return original(query, replace(variant, filters={**variant.filters, REQUEST: ()}), *rest)


def _without_existence(original: Any, program: Any, querier: Any) -> None:
    """Look-ups that give no parameters, which only ask whether there is something, are skipped."""
    needed = any(isinstance(operand, Output) for position in querier.parameters for operand in position)
    original(program, querier if needed else replace(querier, steps=()))


def _unchecked_joins(left: Any, right: Any) -> Any:
    """Pairs need not agree in what they share."""
    added = [index for index, variable in enumerate(right.variables) if variable not in left.variables]
    rows_found = dict.fromkeys((*a, *(b[index] for index in added)) for a in left.rows for b in right.rows)
    return relations.Relation((*left.variables, *(right.variables[index] for index in added)), tuple(rows_found))


def _loosely_equal(left: Any, right: Any) -> int | None:
    return None if left is None or right is None else int(str(left) == str(right))


def _null_as_zero(original: Any, left: Any, right: Any) -> Any:
    return original(left or 0, right or 0)


def _equal_to_null(left: Any, right: Any) -> int | None:
    return 1 if left is None and right is None else values.equal(left, right)


def _never_negated(original: Any, expr: Any, negated: bool, notes: Any) -> Any:
    return original(expr, False, notes)


def _not_swapped(original: Any, expr: Any, negated: bool, notes: Any) -> Any:
    """NOT (a AND b) taken for NOT a AND NOT b."""
    if negated and isinstance(expr, Call) and expr.name in ("and", "or"):
        return Call(expr.name, tuple(original(argument, True, notes) for argument in expr.arguments))
    return original(expr, negated, notes)


def _null_is_unknown(original: Any, writer: Any, expr: Any) -> str:
    """NOT NULL is false, as in SQL."""
    if isinstance(expr, Call) and expr.name == "not":
        inner = writer.value(expr.arguments[0])
        return f"({inner.source} is not None and not {original(writer, expr.arguments[0])})"
    return str(original(writer, expr))


def _or_as_and(original: Any, writer: Any, expr: Any) -> str:
    if isinstance(expr, Call) and expr.name == "or":
        return str(original(writer, Call("and", expr.arguments)))
    return str(original(writer, expr))


def _exclusive_between(original: Any, writer: Any, expr: Any) -> str:
    if isinstance(expr, Call) and expr.name == "between":
        value, low, high = expr.arguments
        return str(original(writer, Call("and", (Call(">", (value, low)), Call("<", (value, high))))))
    return str(original(writer, expr))


def _first_element(original: Any, value: Any) -> Any:
    return iter(list(original(value))[:1])


def _texts_of_numbers(original: Any, value: Any) -> Any:
    """Keys in which 1 and '1' are the same."""
    return str(original(value)) if isinstance(original(value), int) else original(value)


def _shared_elements(patcher: pytest.MonkeyPatch) -> None:
    """Two uses of arrays are one iteration."""
    original = compiler.numbered_elements
    patcher.setattr(compiler, "numbered_elements", lambda variant: _merged_numbers(original(variant)))


def _merged_numbers(variant: Any) -> Any:
    def change(expr: Any) -> Any:
        return Element(rewrite(expr.argument, change), 0, expr.part) if isinstance(expr, Element) else None

    row = variant.row
    return replace(
        variant,
        row=replace(
            row,
            filters=tuple(rewrite(expr, change) for expr in row.filters),
            values=tuple(rewrite(expr, change) for expr in row.values),
        ),
    )


def _true_literal(original: Any, terms: Any, notes: Any) -> Any:
    """The last term of a variant is forgotten."""
    return original(terms[:-1] if len(terms) > 2 else terms, notes)


FAULTS: Mapping[str, Patch] = {
    "an equality is forgotten": _wrapped(joins, "_classify", _without_one_equality),
    "conditions on the row are forgotten": _wrapped(streams, "_row_query", _without_row_filters),
    "conditions on the request are forgotten": _wrapped(streams, "_variant_query", _without_request_filters),
    "a variant is dropped": _wrapped(
        streams, "variants", lambda original, *a: original(*a)[: max(1, len(original(*a)) - 1)]
    ),
    "a term of a variant is dropped": _wrapped(joins, "_classify", _true_literal),
    "look-ups that only ask for existence are skipped": _wrapped(
        queriers.QuerierProgram, "__init__", _without_existence
    ),
    "look-ups are joined without what they share": lambda patcher: patcher.setattr(relations, "join", _unchecked_joins),
    "keys do not tell a number from a text": _wrapped(parameters, "normalised", _texts_of_numbers),
    "'1' = 1": _implemented("=", _loosely_equal),
    "NULL = NULL": _implemented("=", _equal_to_null),
    "NULL counts as 0": _implemented("<=", lambda left, right: _null_as_zero(values.less_or_equal, left, right)),
    "NOT is dropped": _wrapped(joins, "_push_not", _never_negated),
    "NOT is not moved inwards rightly": _wrapped(joins, "_push_not", _not_swapped),
    "NOT NULL is NULL": _wrapped(codegen.Writer, "condition", _null_is_unknown),
    "OR means AND": _wrapped(codegen.Writer, "condition", _or_as_and),
    "BETWEEN leaves out its ends": _wrapped(codegen.Writer, "condition", _exclusive_between),
    "only the first element of an array counts": _wrapped(rows, "json_each", _first_element),
    "only the first element of the request's array counts": _wrapped(queriers, "json_each", _first_element),
    "two arrays are gone through as one": _shared_elements,
    "IN a list compares texts": _implemented(
        "among", lambda value, *items: None if value is None else int(str(value) in map(str, items))
    ),
    "a member of JSON is its text": _implemented(
        "->>", lambda value, key: _text_or_none(functions.OPERATORS["->>"](value, key))
    ),
    "positions count from 0": _implemented(
        "substring", lambda text, start, *rest: functions.substring(text, start + 1, *rest)
    ),
}


def _text_or_none(value: Any) -> Any:
    return None if value is None else str(value)


@contextmanager
def fault(name: str) -> Iterator[None]:
    """The fault, for a while."""
    with pytest.MonkeyPatch.context() as patcher:
        FAULTS[name](patcher)
        yield
