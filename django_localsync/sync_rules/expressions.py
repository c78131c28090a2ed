"""The intermediate form of expressions: what parser and compilers agree on, and code is generated from.

Everything that depends on the edition is decided before: `a != b` is `not(eq(a, b))` in edition 3 and `ne(a, b)`
before, `->>` of edition 1 is another function than that of later ones. Values are SQLite values.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, is_dataclass
from typing import Any
from typing import Literal as OneOf

SqliteValue = int | float | str | bytes | None
REQUEST = -1
"""The party of everything that comes from a request; tables are parties 0, 1, …"""

RequestPart = OneOf["auth", "connection", "subscription", "token"]
ElementPart = OneOf["key", "value"]
MetadataKind = OneOf["schema", "table", "suffix"]


@dataclass(frozen=True, slots=True)
class Literal:
    """A constant."""

    value: SqliteValue


@dataclass(frozen=True, slots=True)
class Column:
    """A column of the row of a source table; `source` numbers the tables of one query."""

    source: int
    name: str


@dataclass(frozen=True, slots=True)
class Metadata:
    """Schema, name, or the part of the name that a wildcard matched, of the table of a row."""

    source: int
    kind: MetadataKind


@dataclass(frozen=True, slots=True)
class Element:
    """One element of `json_each(argument)`; `number` tells apart two uses of the same array."""

    argument: Expr
    number: int
    part: ElementPart


@dataclass(frozen=True, slots=True)
class Request:
    """A JSON object of the request: claims of the token, connection or subscription parameters.

    `token` is what old rules call token parameters: the claim `parameters`, and `user_id`.
    """

    part: RequestPart


@dataclass(frozen=True, slots=True)
class Parameter:
    """A bucket parameter, in the data queries of old-style definitions."""

    name: str


@dataclass(frozen=True, slots=True)
class Present:
    """Always true; keeps a table or an iteration in the join although no other term may speak of it."""

    of: int | Element


@dataclass(frozen=True, slots=True)
class Call:
    """A function or operator by its name in `functions.FUNCTIONS`, or one of `and`, `or`, `not`, `case`."""

    name: str
    arguments: tuple[Expr, ...]


Expr = Literal | Column | Metadata | Element | Request | Parameter | Present | Call

TRUE = Literal(1)
USER_ID = Call("->>", (Request("auth"), Literal("sub")))


def walk(expr: Expr, *, into_elements: bool = True) -> Iterator[Expr]:
    """The expression and everything in it, by default with the arrays of its elements."""
    pending = [expr]
    while pending:
        node = pending.pop()
        yield node
        if isinstance(node, Call):
            pending.extend(reversed(node.arguments))
        elif isinstance(node, Element) and into_elements:
            pending.append(node.argument)
        elif isinstance(node, Present) and isinstance(node.of, Element):
            pending.append(node.of)


def rewrite(expr: Expr, change: Callable[[Expr], Expr | None]) -> Expr:
    """The expression with each node replaced for which `change` answers another one, from the top."""
    changed = change(expr)
    if changed is not None:
        return changed
    if isinstance(expr, Call):
        return Call(expr.name, tuple(rewrite(argument, change) for argument in expr.arguments))
    if isinstance(expr, Element):
        return Element(rewrite(expr.argument, change), expr.number, expr.part)
    if isinstance(expr, Present) and isinstance(expr.of, Element):
        changed = rewrite(expr.of, change)
        return Present(changed) if isinstance(changed, Element) else changed
    return expr


def parties(expr: Expr) -> frozenset[int]:
    """Tables (by number) and REQUEST on which the expression depends.

    An element of a constant array belongs to the request, which iterates it.
    """
    found = set()
    for node in walk(expr):
        if isinstance(node, Column | Metadata):
            found.add(node.source)
        elif isinstance(node, Present) and isinstance(node.of, int):
            found.add(node.of)
        elif isinstance(node, Request) or (isinstance(node, Element) and not parties(node.argument)):
            found.add(REQUEST)
    return frozenset(found)


def elements(exprs: tuple[Expr, ...]) -> tuple[Element, ...]:
    """The distinct iterations in the expressions, in order of appearance, as their `value`."""
    found = {(node.number, node.argument): None for expr in exprs for node in walk(expr) if isinstance(node, Element)}
    return tuple(Element(argument, number, "value") for number, argument in found)


def renumbered(exprs: tuple[Expr, ...]) -> tuple[Expr, ...]:
    """The expressions of one party with its table as number 0 and its elements numbered from 0.

    Equal rules then have equal form, wherever in a query they stood.
    """
    numbers = {element.number: position for position, element in enumerate(elements(exprs))}

    def change(node: Expr) -> Expr | None:
        if isinstance(node, Column):
            return Column(0, node.name)
        if isinstance(node, Metadata):
            return Metadata(0, node.kind)
        if isinstance(node, Element):
            return Element(rewrite(node.argument, change), numbers[node.number], node.part)
        return None

    return tuple(rewrite(expr, change) for expr in exprs)


def conjunction(terms: tuple[Expr, ...]) -> Expr:
    """All of the terms."""
    return terms[0] if len(terms) == 1 else Call("and", terms) if terms else TRUE


def canonical(node: object) -> Any:
    """A JSON-like structure that is equal for equal nodes; identities are hashes of it."""
    if is_dataclass(node) and not isinstance(node, type):
        return [type(node).__name__, *(canonical(getattr(node, item.name)) for item in fields(node))]
    if isinstance(node, tuple | list):
        return [canonical(item) for item in node]
    if isinstance(node, bytes):
        return ["bytes", node.hex()]
    if isinstance(node, float):
        return ["real", repr(node)]
    return node
