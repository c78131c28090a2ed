"""From a condition over several tables to variants: which rows, which lookups, which request values.

A variant is one term of the condition's disjunctive normal form. In it every term speaks of one table (a row
filter), of the request (a request filter), or says that two sides are equal. Tables are looked up in an order in
which each finds its keys in the request and the tables before it; the synced table comes last, and what the
equalities say of it are its bucket parameters.
"""

from __future__ import annotations

from dataclasses import dataclass

from .expressions import REQUEST, Call, Element, Expr, Literal, Present, parties, walk
from .queries import sort_key
from .syntax import SqlError
from .translate import Notes

MAX_VARIANTS = 100
MAX_TERMS = 2000  # of all variants together

Term = Expr
Edge = tuple[int, Expr, int, Expr]
"""An equality: party and expression of one side, party and expression of the other."""


@dataclass(frozen=True, slots=True)
class Variant:
    """One way to reach rows: filters by party, and equalities between parties."""

    tables: tuple[int, ...]
    filters: dict[int, tuple[Expr, ...]]
    edges: tuple[Edge, ...]


def variants(condition: Expr, notes: Notes) -> list[Variant]:
    """The variants of a condition, without repetition. Raises SqlError for terms that cannot be evaluated."""
    terms = {_variant_key(conjunct): conjunct for conjunct in _normal_form(_push_not(condition, False, notes), notes)}
    return [_classify(conjunct, notes) for conjunct in terms.values()]


def _variant_key(terms: tuple[Term, ...]) -> str:
    return "".join(sorted(sort_key(term) for term in terms))


def _push_not(expr: Expr, negated: bool, notes: Notes) -> Expr:
    """NOT moved inwards to terms of a single party, which evaluate it themselves."""
    if isinstance(expr, Call) and expr.name == "not":
        return _push_not(expr.arguments[0], not negated, notes)
    if _is_simple(expr):
        return Call("not", (expr,)) if negated else expr
    if isinstance(expr, Call) and expr.name in ("and", "or"):
        name = {"and": "or", "or": "and"}[expr.name] if negated else expr.name
        return Call(name, tuple(_push_not(argument, negated, notes) for argument in expr.arguments))
    if negated and len(parties(expr)) <= 1:
        return Call("not", (expr,))
    if negated:
        raise notes.error(
            "NOT cannot be applied to a comparison of a row with another table or with the request",
            expr,
            "state which rows are to be synced rather than which are not; NOT IN (SELECT …) is not supported",
        )
    return expr


def _is_simple(expr: Expr) -> bool:
    """Whether an expression is a plain condition on one party: it neither iterates nor joins."""
    return len(parties(expr)) <= 1 and not any(isinstance(node, Element | Present) for node in walk(expr))


def _normal_form(expr: Expr, notes: Notes) -> list[tuple[Term, ...]]:
    """The condition as OR of ANDs. Terms over the same single party stay together."""
    if not isinstance(expr, Call) or expr.name not in ("and", "or") or _is_simple(expr):
        return [(expr,)]
    parts = _merged(expr)
    if len(parts) == 1:
        return _normal_form(parts[0], notes) if parts[0] != expr else [(expr,)]
    if expr.name == "or":
        found = [term for part in parts for term in _normal_form(part, notes)]
        if len(found) > MAX_VARIANTS:
            raise _too_many(expr, notes)
        return found
    product: list[tuple[Term, ...]] = [()]
    for part in parts:
        options = _normal_form(part, notes)
        if len(product) * len(options) > MAX_VARIANTS:
            raise _too_many(expr, notes)
        product = [(*terms, *option) for terms in product for option in options]
        if sum(map(len, product)) > MAX_TERMS:
            raise _too_many(expr, notes)
    return product


def _merged(expr: Call) -> list[Expr]:
    """The parts of an AND or OR, those of the same single party joined into one part."""
    parts: dict[object, list[Expr]] = {}
    for number, argument in enumerate(_flat(expr)):
        key = tuple(parties(argument)) if _is_simple(argument) else ("part", number)
        parts.setdefault(key, []).append(argument)
    return [group[0] if len(group) == 1 else Call(expr.name, tuple(group)) for group in parts.values()]


def _flat(expr: Call) -> list[Expr]:
    found = []
    for argument in expr.arguments:
        nested = isinstance(argument, Call) and argument.name == expr.name
        found.extend(_flat(argument) if nested and isinstance(argument, Call) else [argument])
    return found


def _too_many(expr: Expr, notes: Notes) -> SqlError:
    return notes.error(
        f"the condition has more than {MAX_VARIANTS} variants when OR is multiplied out",
        expr,
        "split it into several queries or streams",
    )


def _classify(terms: tuple[Term, ...], notes: Notes) -> Variant:
    filters: dict[int, list[Expr]] = {}
    edges: list[Edge] = []
    tables: dict[int, None] = {}
    for term in terms:
        involved = parties(term)
        tables.update(dict.fromkeys(sorted(involved - {REQUEST})))
        if isinstance(term, Present) and isinstance(term.of, int):
            continue
        if len(involved) <= 1:
            party = next(iter(involved), REQUEST)
            filters.setdefault(party, []).append(term)
        else:
            edges.append(_edge(term, notes))
    sorted_filters = {party: _distinct(found) for party, found in filters.items()}
    return Variant(tuple(tables), sorted_filters, tuple(dict.fromkeys(edges)))


def _distinct(filters: list[Expr]) -> tuple[Expr, ...]:
    """Filters once each, in an order that does not depend on how they were written; always-true ones left out."""
    unique = {sort_key(expr): expr for expr in filters if expr != Literal(1)}
    return tuple(expr for _, expr in sorted(unique.items()))


def _edge(term: Term, notes: Notes) -> Edge:
    if isinstance(term, Call) and term.name == "=":
        left, right = term.arguments
        left_parties, right_parties = parties(left), parties(right)
        if len(left_parties) == 1 and len(right_parties) == 1:
            (a,), (b,) = left_parties, right_parties
            return (a, left, b, right)
        raise notes.error(
            "one side of = mixes columns of a row with another table or with the request",
            term,
            "compare them one by one",
        )
    raise notes.error(
        "a row can be compared with another table or with the request only by =, IN or &&",
        term,
        "compute the other condition into a column, or filter on the device",
    )


def lookup_order(variant: Variant, synced: int) -> list[int]:
    """The tables in the order in which they are looked up; each as early as something known leads to it."""
    known, order = {REQUEST}, []
    waiting = [table for table in variant.tables if table != synced]
    while waiting:
        reached = [
            table
            for table in waiting
            if any(table in (a, b) and (a if table == b else b) in known for a, _, b, _ in variant.edges)
        ]
        chosen = (reached or waiting)[0]
        waiting.remove(chosen)
        known.add(chosen)
        order.append(chosen)
    return order


def sides_of(variant: Variant, table: int, among: set[int]) -> dict[Expr, list[tuple[int, Expr]]]:
    """What the equalities say of a table: its expression → the other sides, of the given parties."""
    found: dict[Expr, list[tuple[int, Expr]]] = {}
    for a, left, b, right in variant.edges:
        if a == table and b in among:
            found.setdefault(left, []).append((b, right))
        if b == table and a in among:
            found.setdefault(right, []).append((a, left))
    return dict(sorted(found.items(), key=lambda item: sort_key(item[0])))
