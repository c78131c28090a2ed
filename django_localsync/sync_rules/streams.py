"""Streams: each query becomes variants; each variant a query of rows, lookups, and what they ask of a request.

docs/reference/sync-rules.md, "Streams".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from .expressions import REQUEST, Expr, Present, conjunction, renumbered
from .joins import Variant, lookup_order, sides_of, variants
from .queries import Operand, Output, Position, RowQuery, Selection
from .sql import parse_select
from .stream_query import StreamQuery
from .syntax import Select
from .translate import Language, Notes


@dataclass(frozen=True, slots=True)
class VariantQuery:
    """One variant of a stream's query. Steps number the lookups of this variant."""

    row: RowQuery
    filters: tuple[Expr, ...]
    lookups: tuple[RowQuery, ...]
    keys: tuple[tuple[Position, ...], ...]
    parameters: tuple[Position, ...]


def compile_query(
    text: str, language: Language, expressions: Mapping[str, Select], default_schema: str, notes: Notes
) -> tuple[list[VariantQuery], set[str]]:
    """The variants of a stream's query, and the names of the common table expressions it uses. Raises SqlError."""
    select = parse_select(text)
    query = StreamQuery(language, notes, expressions, default_schema)
    scope, conditions = query.sources(select, None)
    table, selection = query.selection(select, scope)
    found = variants(conjunction((Present(table), *conditions)), notes)
    return [_variant_query(query, variant, table, selection) for variant in found], query.used


def _variant_query(query: StreamQuery, variant: Variant, table: int, selection: Selection) -> VariantQuery:
    order = lookup_order(variant, table)
    lookups, keys = [], []
    for number, looked_up in enumerate(order):
        known, later = {REQUEST, *order[:number]}, {*order[number + 1 :], table}
        key = sides_of(variant, looked_up, known)
        outputs = tuple(sides_of(variant, looked_up, later))
        lookups.append(_row_query(query, variant, looked_up, tuple(key), outputs))
        keys.append(_positions(variant, key, order, table))
    parameters = sides_of(variant, table, {REQUEST, *order})
    row = _row_query(query, variant, table, tuple(parameters), (), selection)
    return VariantQuery(
        row,
        variant.filters.get(REQUEST, ()),
        tuple(lookups),
        tuple(keys),
        _positions(variant, parameters, order, table),
    )


def _row_query(
    query: StreamQuery,
    variant: Variant,
    table: int,
    values: tuple[Expr, ...],
    outputs: tuple[Expr, ...],
    selection: Selection | None = None,
) -> RowQuery:
    filters = variant.filters.get(table, ())
    changed = renumbered((*filters, *values, *outputs))
    ends = len(filters), len(filters) + len(values)
    return RowQuery(
        query.patterns[table],
        changed[: ends[0]],
        changed[ends[0] : ends[1]],
        selection,
        changed[ends[1] :],
    )


def _positions(
    variant: Variant, values: dict[Expr, list[tuple[int, Expr]]], order: list[int], table: int
) -> tuple[Position, ...]:
    """Where each value comes from: the request, or an output of a lookup."""
    return tuple(
        tuple(dict.fromkeys(_operand(variant, party, expr, order, table) for party, expr in sides))
        for sides in values.values()
    )


def _operand(variant: Variant, party: int, expr: Expr, order: list[int], table: int) -> Operand:
    if party == REQUEST:
        return expr
    step = order.index(party)
    later = {*order[step + 1 :], table}
    return Output(step, list(sides_of(variant, party, later)).index(expr))
