"""Runs one querier for one request: elements, filters, lookups stage by stage, at last the parameters of buckets.

What is known so far is a list of relations without common variables; positions of keys and parameters join them.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping, Sequence
from typing import Any

import orjson

from .expressions import Element, Expr, SqliteValue, walk
from .json_values import json_each
from .parameters import parameters_text
from .plan import LookupKey, LookupResults
from .queries import Operand, Output, Position, Querier, Step
from .relations import TRUE, Relation, Row, Variable, join_all
from .request_values import RequestFunction, RequestValues, request_function
from .values import normalised

_PARTS = ("key", "value")

Asking = Generator[Sequence[LookupKey], LookupResults, list[str]]
"""Asks for keys, is sent their entries, returns the parameters of buckets (JSON texts)."""


class QuerierProgram:
    """A querier whose expressions are compiled. Immutable; `run` may be called from any thread."""

    def __init__(self, querier: Querier) -> None:
        self.querier = querier
        self._elements = _ordered_elements(querier.expressions)
        self._arrays = {element.number: request_function(element.argument) for element in self._elements}
        self._filters = tuple(request_function(expr, condition=True) for expr in querier.filters)
        self._operands = {expr: request_function(expr) for expr in _operands(querier)}

    def run(self, request: RequestValues) -> Asking:
        """Which parameters of the bucket source the request may have. Raises EvaluationError."""
        known = self._start(request)
        waiting = dict(enumerate(self.querier.steps))
        while waiting and all(relation.rows for relation in known):
            ready = {number: step for number, step in waiting.items() if not _needed_steps(step) & waiting.keys()}
            for number, step in ready.items():
                known = self._combine(known, step.key, number, request)
                del waiting[number]
            keys = {number: _keys(known, number, step) for number, step in ready.items()}
            asked = list(dict.fromkeys(key for found in keys.values() for key in found.values()))
            results = (yield asked) if asked else {}
            for number, step in ready.items():
                known = _joined(known, _entries(number, step, keys[number], results))
            needed = self._needed_variables(waiting.values())
            known = [relation.project(needed) for relation in known]
        if not all(relation.rows for relation in known):
            return []
        return self._parameters(self._combine(known, self.querier.parameters, "result", request))

    def _start(self, request: RequestValues) -> list[Relation]:
        """The elements of the request's arrays that pass the filters."""
        known: list[Relation] = [TRUE]
        for element in self._elements:
            array = self._arrays[element.number]
            known, relation = _gather(known, array)
            known.append(_iterate(relation, element.number, array, request))
        for condition in self._filters:
            known, relation = _gather(known, condition)
            rows = tuple(row for row in relation.rows if condition.run(request, _arguments(relation, condition, row)))
            known.append(Relation(relation.variables, rows))
        for function in self._operands.values():
            if len(function.elements) > 1:
                known, relation = _gather(known, function)
                known.append(relation)
        return known

    def _needed_variables(self, steps: Iterable[Step]) -> set[Variable]:
        """What the remaining steps and the parameters will read."""
        positions = (*self.querier.parameters, *(position for step in steps for position in step.key))
        needed: set[Variable] = set()
        for operand in (operand for position in positions for operand in position):
            if isinstance(operand, Output):
                needed.add(("output", operand.step, operand.index))
            else:
                needed.update((part, number) for number in self._operands[operand].elements for part in _PARTS)
        return needed

    def _combine(
        self, known: list[Relation], positions: Sequence[Position], label: object, request: RequestValues
    ) -> list[Relation]:
        """The relations, those that the positions speak of joined into one with a variable for each position."""
        touched: dict[int, Relation] = {}
        constants: list[Relation] = []
        for index, position in enumerate(positions):
            for operand in position:
                variable = (label, index)
                home = self._home(known, operand)
                if home is None:
                    constants.append(self._with_value(TRUE, variable, operand, request))
                else:
                    touched[home] = self._with_value(touched.get(home, known[home]), variable, operand, request)
        rest = [relation for index, relation in enumerate(known) if index not in touched]
        return [*rest, join_all([*constants, *touched.values()])]

    def _home(self, known: list[Relation], operand: Operand) -> int | None:
        """The relation that an operand reads; None for one that is the same for the whole request."""
        if isinstance(operand, Output):
            needed: Variable = ("output", operand.step, operand.index)
        elif self._operands[operand].elements:
            needed = ("value", self._operands[operand].elements[0])
        else:
            return None
        return next(index for index, relation in enumerate(known) if needed in relation.variables)

    def _with_value(self, relation: Relation, variable: Variable, operand: Operand, request: RequestValues) -> Relation:
        """The rows with the operand's value as a variable, or those that have it already; NULL equals nothing."""
        if isinstance(operand, Output):
            position = relation.variables.index(("output", operand.step, operand.index))
            values = [row[position] for row in relation.rows]
        else:
            function = self._operands[operand]
            values = [normalised(function.run(request, _arguments(relation, function, row))) for row in relation.rows]
        usable = [
            (row, value)
            for row, value in zip(relation.rows, values, strict=True)
            if not isinstance(value, bytes) and (value is not None or self.querier.nulls)
        ]
        if variable in relation.variables:
            present = relation.variables.index(variable)
            return Relation(relation.variables, tuple(row for row, value in usable if row[present] == value))
        return Relation((*relation.variables, variable), tuple((*row, value) for row, value in usable))

    def _parameters(self, known: list[Relation]) -> list[str]:
        relation = known[-1]
        positions = [relation.variables.index(("result", index)) for index in range(len(self.querier.parameters))]
        return list(dict.fromkeys(parameters_text([row[index] for index in positions]) for row in relation.rows))


def _operands(querier: Querier) -> list[Expr]:
    positions = (*querier.parameters, *(position for step in querier.steps for position in step.key))
    found = (operand for position in positions for operand in position if not isinstance(operand, Output))
    return list(dict.fromkeys(found))


def _ordered_elements(exprs: Sequence[Expr]) -> list[Element]:
    """The iterations over the request, those first that others iterate over."""
    found: dict[int, Element] = {}

    def visit(expr: Expr) -> None:
        for node in walk(expr):
            if isinstance(node, Element) and node.number not in found:
                visit(node.argument)
                found[node.number] = node

    for expr in exprs:
        visit(expr)
    return list(found.values())


def _needed_steps(step: Step) -> set[int]:
    return {operand.step for position in step.key for operand in position if isinstance(operand, Output)}


def _gather(known: list[Relation], function: RequestFunction) -> tuple[list[Relation], Relation]:
    """The relations that hold the function's elements, joined; and the others."""
    touched, rest = _split(known, {("value", number) for number in function.elements})
    return rest, join_all(touched)


def _split(known: list[Relation], variables: set[Variable]) -> tuple[list[Relation], list[Relation]]:
    """The relations that have any of the variables, and those that have none."""
    touched = [relation for relation in known if not variables.isdisjoint(relation.variables)]
    return touched, [relation for relation in known if variables.isdisjoint(relation.variables)]


def _arguments(relation: Relation, function: RequestFunction, row: Row) -> Row:
    """Key and value of each element that a function needs."""
    return tuple(row[relation.variables.index((part, number))] for number in function.elements for part in _PARTS)


def _iterate(relation: Relation, number: int, array: RequestFunction, request: RequestValues) -> Relation:
    rows = [
        (*row, key, value)
        for row in relation.rows
        for key, value in json_each(array.run(request, _arguments(relation, array, row)))
    ]
    return Relation((*relation.variables, ("key", number), ("value", number)), tuple(rows)).bounded()


def _keys(known: Sequence[Relation], number: int, step: Step) -> Mapping[Row, LookupKey]:
    """The distinct keys of a step, by their values."""
    variables = [(number, index) for index in range(len(step.key))]
    if not variables:
        return {(): LookupKey(step.source, "[]")}
    relation = next(relation for relation in known if variables[0] in relation.variables)
    positions = [relation.variables.index(variable) for variable in variables]
    keys = dict.fromkeys(tuple(row[index] for index in positions) for row in relation.rows)
    return {key: LookupKey(step.source, parameters_text(key)) for key in keys}


def _entries(number: int, step: Step, keys: Mapping[Row, LookupKey], results: LookupResults) -> Relation:
    """What the index answered, as a relation over the key and the outputs."""
    rows: dict[Row, None] = {}
    width = 0
    for values, key in keys.items():
        for text in results.get(key, ()):
            outputs: list[SqliteValue] = orjson.loads(text)
            width = len(outputs)
            rows[(*values, *outputs)] = None
    variables: list[Any] = [(number, index) for index in range(len(step.key))]
    variables += [("output", number, index) for index in range(width)]
    return Relation(tuple(variables), tuple(rows))


def _joined(known: list[Relation], entries: Relation) -> list[Relation]:
    """The relations with the entries joined to the one that has their key."""
    touched, rest = _split(known, {*entries.variables})
    return [*rest, join_all([*touched, entries])]
