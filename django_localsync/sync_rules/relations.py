"""Small relations, joined in memory: what the lookups of one request found so far.

A row is a tuple of values, one for each variable of its relation. NULL joins with nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass

from ..exceptions import EvaluationError
from .expressions import SqliteValue

MAX_ROWS = 50_000
"""Most combinations that one subscription may lead to."""

Variable = Hashable
Row = tuple[SqliteValue, ...]


@dataclass(frozen=True, slots=True)
class Relation:
    """Distinct rows over variables; no variables and one row is "true", no rows "nothing"."""

    variables: tuple[Variable, ...]
    rows: tuple[Row, ...]

    def project(self, variables: Iterable[Variable]) -> Relation:
        """Only these of its variables."""
        wanted = {*variables}
        positions = [index for index, variable in enumerate(self.variables) if variable in wanted]
        if len(positions) == len(self.variables):
            return self
        rows = dict.fromkeys(tuple(row[index] for index in positions) for row in self.rows)
        return Relation(tuple(self.variables[index] for index in positions), tuple(rows))

    def bounded(self) -> Relation:
        """Itself. Raises EvaluationError beyond MAX_ROWS."""
        if len(self.rows) > MAX_ROWS:
            raise EvaluationError(f"more than {MAX_ROWS} combinations of parameters")
        return self


TRUE = Relation((), ((),))


def join(left: Relation, right: Relation) -> Relation:
    """All pairs of rows that agree in the variables both have. Raises EvaluationError beyond MAX_ROWS."""
    shared = [variable for variable in left.variables if variable in right.variables]
    left_key, right_key = _picker(left, shared), _picker(right, shared)
    added = [index for index, variable in enumerate(right.variables) if variable not in shared]
    by_key: dict[Row, list[Row]] = {}
    for row in right.rows:
        by_key.setdefault(right_key(row), []).append(tuple(row[index] for index in added))
    found: list[Row] = []
    for row in left.rows:
        found.extend((*row, *rest) for rest in by_key.get(left_key(row), ()))
        if len(found) > MAX_ROWS:
            raise EvaluationError(f"more than {MAX_ROWS} combinations of parameters")
    variables = (*left.variables, *(right.variables[index] for index in added))
    return Relation(variables, tuple(found))


def join_all(relations: Sequence[Relation]) -> Relation:
    """The join of all, smaller and connected ones first."""
    waiting = sorted(relations, key=lambda relation: len(relation.rows))
    joined = TRUE
    while waiting:
        connected = [relation for relation in waiting if {*relation.variables} & {*joined.variables}]
        chosen = (connected or waiting)[0]
        waiting.remove(chosen)
        joined = join(joined, chosen)
    return joined


def _picker(relation: Relation, variables: Sequence[Variable]) -> Callable[[Row], Row]:
    positions = [relation.variables.index(variable) for variable in variables]
    return lambda row: tuple(row[index] for index in positions)
