"""What queries compile to: functions of rows (`RowQuery`) and of requests (`Querier`), as data.

Streams and old-style definitions both end here; `rows.py` makes the first into code, `requests.py` runs the second.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any

from .expressions import Expr, canonical
from .plan import TablePattern

EVALUATION = 1
"""Raised when the same rules come to mean other rows or other JSON, so that identities change with it."""


@dataclass(frozen=True, slots=True)
class Every:
    """`*` in a select list: all columns of the row."""


@dataclass(frozen=True, slots=True)
class Item:
    """A named expression of a select list."""

    name: str
    value: Expr


@dataclass(frozen=True, slots=True)
class Selection:
    """What of a row is synced. `row_type` None stands for the table's own name.

    Of two items of one name the last counts, where the first stood; with `named_first` (editions 1 and 2) the columns
    of `*` count only where nothing before has their name.
    """

    items: tuple[Every | Item, ...]
    row_type: str | None
    named_first: bool


@dataclass(frozen=True, slots=True)
class RowQuery:
    """A function of a table's rows: if all filters hold, the row has these values, which are never NULL.

    With a `selection` the values are bucket parameters; else they are the key of a parameter index, with `outputs`.
    Expressions know the table as number 0. Over each combination of elements of `json_each` it applies once.
    """

    table: TablePattern
    filters: tuple[Expr, ...]
    values: tuple[Expr, ...]
    selection: Selection | None = None
    outputs: tuple[Expr, ...] = ()
    null_outputs: bool = False

    @property
    def expressions(self) -> tuple[Expr, ...]:
        """All expressions."""
        items = self.selection.items if self.selection else ()
        selected = tuple(item.value for item in items if isinstance(item, Item))
        return (*self.filters, *self.values, *self.outputs, *selected)


@dataclass(frozen=True, slots=True)
class Output:
    """A value that a lookup found: output `index` of lookup step `step`."""

    step: int
    index: int


Operand = Expr | Output
Position = tuple[Operand, ...]
"""One value of a key or of bucket parameters: all operands must be equal, and are that value."""


@dataclass(frozen=True, slots=True)
class Step:
    """Asks the parameter index `source` for the entries of a key."""

    source: int
    key: tuple[Position, ...]


@dataclass(frozen=True, slots=True)
class Querier:
    """A function of requests: which parameters of a bucket source a request may have.

    Elements of `json_each` are iterated, each combination for which all filters hold is looked up step by step, and
    every way to satisfy all steps gives the parameters. `nulls`: parameters may be NULL (old-style definitions).
    """

    bucket: int
    filters: tuple[Expr, ...]
    steps: tuple[Step, ...]
    parameters: tuple[Position, ...]
    priority: int
    nulls: bool = False

    @property
    def expressions(self) -> tuple[Expr, ...]:
        """All expressions over the request."""
        positions = (*self.parameters, *(position for step in self.steps for position in step.key))
        operands = tuple(operand for position in positions for operand in position if not isinstance(operand, Output))
        return (*self.filters, *operands)


@dataclass(frozen=True, slots=True)
class CompiledDefinition:
    """A stream or an old-style definition. `auto_subscribe`: every client has it that does not opt out;
    `always`: nobody can opt out (old-style definitions)."""

    name: str
    queriers: tuple[Querier, ...]
    auto_subscribe: bool
    always: bool = False


def identity(*parts: object) -> str:
    """A hash (64 hex digits) that is equal for equal parts."""
    text = json.dumps(_canonical([EVALUATION, *parts]), separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def sort_key(expr: object) -> str:
    """An order of expressions that does not depend on how the query was written."""
    return json.dumps(_canonical(expr), ensure_ascii=True)


def _canonical(value: object) -> Any:
    return canonical(value)
