"""The syntax tree of the SQL that rules are written in. `at` is an offset into the query's text."""

from __future__ import annotations

from dataclasses import dataclass


class SqlError(Exception):
    """A query cannot be compiled: what is wrong, where in its text (an offset), and the way out.

    `origin` is the name of the common table expression in whose text the offset is; None: the query's own.
    """

    def __init__(self, message: str, at: int, hint: str | None = None, origin: str | None = None) -> None:
        self.message, self.at, self.hint, self.origin = message, at, hint, origin
        super().__init__(message)


@dataclass(frozen=True, slots=True)
class Identifier:
    """A name; unquoted ones are folded to lower case, `folded` tells that this changed it."""

    name: str
    at: int
    folded: bool = False


@dataclass(frozen=True, slots=True)
class Constant:
    """A literal: number, text, boolean (as 1 or 0) or NULL."""

    value: int | float | str | None
    at: int


@dataclass(frozen=True, slots=True)
class Name:
    """`column`, or `qualifier.column`."""

    qualifier: Identifier | None
    name: Identifier
    at: int


@dataclass(frozen=True, slots=True)
class Star:
    """`*`, or `qualifier.*`."""

    qualifier: Identifier | None
    at: int


@dataclass(frozen=True, slots=True)
class FunctionCall:
    """`name(…)`, or `qualifier.name(…)`."""

    qualifier: Identifier | None
    name: Identifier
    arguments: tuple[Node, ...]
    at: int


@dataclass(frozen=True, slots=True)
class Operation:
    """An operator by its name in capitals or its sign, e.g. `AND`, `=`, `IS NULL`, `BETWEEN`, `CAST`."""

    operator: str
    operands: tuple[Node, ...]
    at: int


@dataclass(frozen=True, slots=True)
class Case:
    """Both forms of CASE; `operand` is None in the searched form."""

    operand: Node | None
    branches: tuple[tuple[Node, Node], ...]
    default: Node | None
    at: int


@dataclass(frozen=True, slots=True)
class Cast:
    """CAST(operand AS type), `operand::type`."""

    operand: Node
    type: Identifier
    at: int


@dataclass(frozen=True, slots=True)
class Items:
    """ARRAY[…], ROW(…), or the list of `IN (…, …)`."""

    items: tuple[Node, ...]
    at: int


@dataclass(frozen=True, slots=True)
class Subquery:
    """A SELECT in parentheses."""

    select: Select
    at: int


Node = Constant | Name | Star | FunctionCall | Operation | Case | Cast | Items | Subquery


@dataclass(frozen=True, slots=True)
class Output:
    """One item of a select list; `text` is its expression as it was written."""

    expression: Node
    alias: Identifier | None
    text: str

    @property
    def name(self) -> str | None:
        """The name that the query gives it; None for an expression without alias."""
        if self.alias is not None:
            return self.alias.name
        return self.expression.name.name if isinstance(self.expression, Name) else None


@dataclass(frozen=True, slots=True)
class Source:
    """One item of FROM: a table or CTE by its (qualified) name, a function, or a subquery."""

    relation: tuple[Identifier, ...] | FunctionCall | Subquery
    alias: Identifier | None
    columns: tuple[Identifier, ...]
    condition: Node | None
    at: int


@dataclass(frozen=True, slots=True)
class Select:
    """A query."""

    outputs: tuple[Output, ...]
    sources: tuple[Source, ...]
    where: Node | None
    at: int
