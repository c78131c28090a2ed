"""Backwards from a bucket to those who may have it: which entries lead there, and what a request must be like.

The plan runs from requests over lookups to buckets. Here the same steps are taken in reverse order: the bucket's
parameters are known, so the values that they came from are, until only conditions on the request are left.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from ..sync_rules.expressions import USER_ID, Call, Element, Expr, Literal, Request, SqliteValue, walk
from ..sync_rules.plan import Subscription
from ..sync_rules.queries import CompiledDefinition, Operand, Output, Position, Querier
from .evaluator import BucketKey, Entry

ByPosition = Mapping[int, SqliteValue]
FindEntries = Callable[[int, ByPosition, ByPosition], Iterable[Entry]]
"""Entries of an index that have these values in their key, and these outputs."""

Known = Mapping[Operand, SqliteValue]


@dataclass(frozen=True, slots=True)
class Path:
    """One way to a bucket: a definition, the entries on the way, and what the request must be like.

    `conditions` are expressions over the request with the value each must have; `filters` must hold as well.
    """

    definition: CompiledDefinition
    querier: Querier
    entries: tuple[Entry, ...]
    conditions: tuple[tuple[Expr, SqliteValue], ...]

    @property
    def filters(self) -> tuple[Expr, ...]:
        """What else the request must fulfil."""
        return self.querier.filters

    @property
    def user_id(self) -> SqliteValue:
        """The `sub` that the request must have; None if the path does not say."""
        return dict(self.conditions).get(USER_ID)

    @property
    def is_for_everybody(self) -> bool:
        """Whether nothing of the token matters."""
        exprs = (*self.filters, *(expr for expr, _ in self.conditions))
        return not any(
            isinstance(node, Request) and node.part in ("auth", "token") for expr in exprs for node in walk(expr)
        )

    def parameters(self, part: str) -> dict[str, Any]:
        """Subscription or connection parameters that fulfil the conditions, as far as these name them plainly."""
        found: dict[str, Any] = {}
        demands = [demand for condition in self.filters for demand in _demands(condition)]
        for expr, value in (*self.conditions, *demands):
            wanted: Any = [value] if isinstance(expr, Element) else value
            match expr.argument if isinstance(expr, Element) else expr:
                case Call("->>", (Request(named), Literal(str(key)))) if named == part:
                    _put(found, key[2:].split(".") if key.startswith("$.") else [key], wanted)
        return found

    @property
    def subscription(self) -> Subscription:
        """An explicit subscription that takes this path, if its filters ask no more of the parameters."""
        return Subscription(self.definition.name, self.parameters("subscription"))


def paths_to(
    definition: CompiledDefinition, bucket: BucketKey, find: FindEntries, given: Known | None = None
) -> Iterator[Path]:
    """Every way on which a definition leads to a bucket; with `given`, those for which the request has these values."""
    source, parameters = bucket
    for querier in definition.queriers:
        if querier.bucket == source:
            known = _assigned(given or {}, querier.parameters, orjson.loads(parameters))
            if known is not None:
                yield from _walk(definition, querier, len(querier.steps) - 1, known, (), find)


def _walk(
    definition: CompiledDefinition,
    querier: Querier,
    step: int,
    known: Known,
    entries: tuple[Entry, ...],
    find: FindEntries,
) -> Iterator[Path]:
    """The ways from here to the request; `step` is the last one that is still to be taken back."""
    if step < 0:
        conditions = tuple((operand, value) for operand, value in known.items() if not isinstance(operand, Output))
        yield Path(definition, querier, entries, conditions)
        return
    outputs = {
        operand.index: value for operand, value in known.items() if isinstance(operand, Output) and operand.step == step
    }
    taken = querier.steps[step]
    key = {
        index: known[operand] for index, position in enumerate(taken.key) for operand in position if operand in known
    }
    for entry in [*find(taken.source, key, outputs)]:
        before = _assigned(known, taken.key, orjson.loads(entry.key))
        if before is not None:
            yield from _walk(definition, querier, step - 1, before, (entry, *entries), find)


def _assigned(known: Known, positions: tuple[Position, ...], values: list[Any]) -> Known | None:
    """What is known when the operands of positions have these values; None if they contradict each other."""
    if any(isinstance(value, dict) for value in values):
        return known  # the hash of values that are too long: they are not known
    found = dict(known)
    for position, value in zip(positions, values, strict=True):
        for operand in position:
            if isinstance(operand, Literal) and operand.value != value:
                return None
            if found.setdefault(operand, value) != value:
                return None
    return {operand: value for operand, value in found.items() if not isinstance(operand, Literal)}


def _demands(condition: Expr) -> Iterator[tuple[Expr, SqliteValue]]:
    """Values that make a filter true, where it says them plainly."""
    match condition:
        case Call("and", parts):
            for part in parts:
                yield from _demands(part)
        case Call("=", (Literal(value), expr)) | Call("=", (expr, Literal(value))):
            yield expr, value
        case Call("->>", (Request(), Literal())):
            yield condition, 1


def _put(document: dict[str, Any], steps: list[str], value: Any) -> None:
    for step in steps[:-1]:
        document = document.setdefault(step, {})
    document[steps[-1]] = value
