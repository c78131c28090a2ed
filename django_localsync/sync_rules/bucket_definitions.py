"""Old-style bucket definitions (editions 1 and 2): parameter queries and data queries.

A WHERE becomes a list of ways to make it true: each gives every input (a bucket parameter, or a value of the
request) a value from the row, under filters on the row. AND combines the ways of its sides, OR adds them up.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from .expressions import (
    REQUEST,
    Call,
    Column,
    Element,
    Expr,
    Literal,
    Metadata,
    Parameter,
    Request,
    parties,
    renumbered,
    walk,
)
from .plan import TablePattern
from .queries import Every, Item, Operand, Output, Position, RowQuery, Selection
from .sql import parse_select
from .syntax import FunctionCall, Name, SqlError, Star
from .syntax import Output as SelectOutput
from .tables import table_pattern
from .translate import Language, Notes, Translator, suggestion

MAX_WAYS = 100
MAX_ARRAYS = 20
_PRIORITY = "_priority"
_RECEIPT = ("user_id", "client_id", "checkpoint")
_REQUEST_OBJECTS = {"token_parameters": Request("token"), "user_parameters": Request("connection")}


@dataclass(frozen=True, slots=True)
class ParameterQuery:
    """A compiled parameter query. `outputs` are its outputs by name: of the request, or of the index `rows` fill."""

    outputs: Mapping[str, Operand]
    filters: tuple[Expr, ...]
    priority: int
    rows: tuple[RowQuery, ...] = ()
    key: tuple[Position, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the bucket parameters, in order."""
        return tuple(self.outputs)

    @property
    def expressions(self) -> list[Expr]:
        """All expressions over the request."""
        operands = [*self.outputs.values(), *(operand for position in self.key for operand in position)]
        return [*self.filters, *(operand for operand in operands if not isinstance(operand, Output))]


@dataclass(frozen=True, slots=True)
class _Way:
    """One way to make a condition true: filters on the row, and the values that inputs must have."""

    filters: tuple[Expr, ...] = ()
    inputs: tuple[tuple[Expr, Expr], ...] = ()

    def __and__(self, other: _Way) -> _Way:
        """Both; an input that has two values must have equal ones."""
        values = dict(self.inputs)
        filters = [*self.filters, *other.filters]
        for key, value in other.inputs:
            if key in values:
                filters.append(Call("=", (values[key], value)))
            else:
                values[key] = value
        return _Way(tuple(filters), tuple(values.items()))


class _Scope:
    """One table, or the elements of one array, or nothing."""

    def __init__(self, relation: TablePattern | Element | None, name: str, parameters: tuple[str, ...], notes: Notes):
        self._relation, self._name, self._parameters, self._notes = relation, name, parameters, notes

    def column(self, name: Name) -> Expr:
        qualifier, column = name.qualifier.name if name.qualifier else None, name.name.name
        if qualifier in _REQUEST_OBJECTS and qualifier != self._name:
            return Call("->>", (_REQUEST_OBJECTS[qualifier], Literal(column)))
        if qualifier == "bucket" and self._name != "bucket":
            if column not in self._parameters:
                hint = suggestion(column, list(self._parameters)) or "name it in the parameter query"
                raise SqlError(f"there is no bucket parameter {column!a}", name.at, hint)
            return Parameter(column)
        if qualifier is not None and qualifier != self._name:
            known = [self._name, "bucket", *_REQUEST_OBJECTS]
            raise SqlError(f"there is no table {qualifier!a}", name.at, suggestion(qualifier, known))
        return self._own_column(column, name.at)

    def _own_column(self, column: str, at: int) -> Expr:
        match self._relation:
            case None:
                raise SqlError(f"there is no FROM that has the column {column!a}", at)
            case Element() as element:
                if column == "value" or column == "key":
                    return replace(element, part="value" if column == "value" else "key")
                raise SqlError("json_each has the columns key and value", at)
            case pattern:
                if column == "_table_suffix" and not pattern.is_exact:
                    return Metadata(0, "suffix")
                self._notes.column(pattern, column, at)
                return Column(0, column)

    def row_function(self, call: FunctionCall) -> Expr | None:
        return None


class _Query(Translator):
    """Translates one query over at most one table."""

    def __init__(self, language: Language, notes: Notes, default_schema: str, text: str) -> None:
        super().__init__(language, notes)
        self.select = parse_select(text)
        self._default_schema, self._iterations = default_schema, 0
        self._request_arrays: dict[Expr, Element] = {}
        self.table: TablePattern | None = None
        self.alias: str | None = None

    def scope(self, parameters: tuple[str, ...]) -> _Scope:
        if not self.select.sources:
            return _Scope(None, "", parameters, self.notes)
        if len(self.select.sources) > 1:
            raise SqlError(
                "bucket definitions know no joins", self.select.sources[1].at, "use a stream (edition 3), or a column"
            )
        source = self.select.sources[0]
        self.alias = source.alias.name if source.alias else None
        if isinstance(source.relation, FunctionCall):
            return _Scope(self._each(source.relation, parameters), self.alias or "json_each", parameters, self.notes)
        if not isinstance(source.relation, tuple):
            raise SqlError("bucket definitions know no subqueries", source.at, "use a stream (edition 3)")
        for name in source.relation:
            self._warn_folded(name)
        self.table = table_pattern(source.relation, self._default_schema)
        return _Scope(self.table, self.alias or source.relation[-1].name, parameters, self.notes)

    def _each(self, call: FunctionCall, parameters: tuple[str, ...]) -> Element:
        if call.name.name != "json_each" or call.qualifier is not None or len(call.arguments) != 1:
            raise SqlError(f"{call.name.name!a} is not possible in FROM", call.at, "json_each(…) is")
        array = self.expression(call.arguments[0], _Scope(None, "", parameters, self.notes))
        self._iterations = 1
        return Element(array, 0, "value")

    def iterate(self, array: Expr) -> Element:
        self._iterations += 1
        if self._iterations > MAX_ARRAYS:
            raise SqlError(f"the query goes through more than {MAX_ARRAYS} arrays", self.select.at, "split it")
        return Element(array, self._iterations, "value")

    def note_user_id(self, column: Column, at: int) -> None:
        if self.table is not None:
            self.notes.column(self.table, column.name, at, equals_user_id=True)

    # Conditions

    def ways(self, expr: Expr) -> list[_Way]:
        """All ways to make a condition true. Raises SqlError where inputs are used otherwise than by = and IN."""
        if not _has_input(expr):
            return [_Way(filters=(expr,))]
        if isinstance(expr, Call):
            match expr.name, expr.arguments:
                case "and", arguments:
                    return self._all(arguments)
                case "or", arguments:
                    return self._any(arguments)
                case "=", (left, right):
                    if _is_input(left) and not _has_input(right):
                        return [_Way(inputs=((left, right),))]
                    if _is_input(right) and not _has_input(left):
                        return [_Way(inputs=((right, left),))]
                case "in", (value, array):
                    if _is_input(value) and not _has_input(array):
                        return [_Way(inputs=((value, self.iterate(Call("as array", (array,)))),))]
                    if _is_request(array) and not _has_input(value):
                        if array not in self._request_arrays:
                            self._request_arrays[array] = self.iterate(Call("as array or null", (array,)))
                        return [_Way(inputs=((self._request_arrays[array], value),))]
        if _is_request(expr):
            return [_Way(inputs=((Call("not", (Call("not", (expr,)),)), Literal(1)),))]
        raise SqlError(
            "bucket parameters and values of the request can only be compared with the row by = and IN",
            self.select.where.at if self.select.where else self.select.at,
            "compute it in the parameter query, or use a stream (edition 3)",
        )

    def _all(self, arguments: tuple[Expr, ...]) -> list[_Way]:
        found = [_Way()]
        for argument in arguments:
            ways = self.ways(argument)
            if _arrays(found) & _arrays(ways):
                raise SqlError("an array of the request can be used once", self.select.at, "use a stream (edition 3)")
            found = self._bounded([way & more for way in found for more in ways])
        return found

    def _any(self, arguments: tuple[Expr, ...]) -> list[_Way]:
        found = self._bounded([way for argument in arguments for way in self.ways(argument)])
        if len({frozenset(dict(way.inputs)) for way in found}) > 1:
            raise SqlError(
                "both sides of OR must use the same parameters",
                self.select.where.at if self.select.where else self.select.at,
                "write one query for each side",
            )
        return found

    def _bounded(self, ways: list[_Way]) -> list[_Way]:
        if len(ways) > MAX_WAYS:
            raise SqlError(f"the condition has more than {MAX_WAYS} variants", self.select.at, "split the query")
        return ways


def _arrays(ways: list[_Way]) -> set[Expr]:
    """The arrays of the request that are iterated."""
    return {key for way in ways for key, _ in way.inputs if isinstance(key, Element)}


def _has_input(expr: Expr) -> bool:
    return any(isinstance(node, Parameter | Request) for node in walk(expr))


def _is_request(expr: Expr) -> bool:
    """Whether an expression depends on the request alone."""
    return parties(expr) == {REQUEST} and not any(isinstance(node, Parameter) for node in walk(expr))


def _is_input(expr: Expr) -> bool:
    return isinstance(expr, Parameter) or _is_request(expr)


class DefinitionCompiler:
    """Compiles the queries of one bucket definition."""

    def __init__(self, language: Language, default_schema: str) -> None:
        self._language, self._default_schema = language, default_schema

    def parameter_query(self, text: str, notes: Notes, priority: int) -> ParameterQuery:
        """Compile a parameter query. Raises SqlError."""
        query = _Query(self._language, notes, self._default_schema, text)
        scope = query.scope(())
        outputs = dict(self._output(query, output, scope) for output in query.select.outputs)
        literal = outputs.pop(_PRIORITY, None)
        if literal is not None:
            priority = self._priority(literal, query.select.at)
        where = Literal(1) if query.select.where is None else query.expression(query.select.where, scope)
        if query.table is None:
            return ParameterQuery(outputs, _conjuncts(where), priority)
        return self._indexed(query, query.table, outputs, where, priority)

    def _output(self, query: _Query, output: SelectOutput, scope: _Scope) -> tuple[str, Expr]:
        if isinstance(output.expression, Star):
            raise SqlError("* is not possible in a parameter query", output.expression.at, "name the outputs")
        expression = query.expression(output.expression, scope)
        if len(parties(expression)) > 1:
            raise SqlError("an output cannot mix the row with the request", output.expression.at)
        return _output_name(output), expression

    def _priority(self, expr: Expr, at: int) -> int:
        if isinstance(expr, Literal) and expr.value in (0, 1, 2, 3):
            return int(expr.value)
        raise SqlError("_priority must be a number from 0 to 3", at)

    def _indexed(
        self, query: _Query, table: TablePattern, outputs: dict[str, Expr], where: Expr, priority: int
    ) -> ParameterQuery:
        """A query over a table: the parameter index it fills, and the key under which a request asks it."""
        conjuncts = _conjuncts(where)
        filters = tuple(expr for expr in conjuncts if _is_request(expr))
        rest = tuple(expr for expr in conjuncts if not _is_request(expr))
        ways = query.ways(Call("and", rest)) if rest else [_Way()]
        inputs = tuple(key for key, _ in ways[0].inputs)
        if sum(isinstance(node, Element) for key in inputs for node in walk(key)) > 1:
            raise SqlError("at most one array of the request can be used with IN", query.select.at)
        stored = {name: expr for name, expr in outputs.items() if parties(expr) != {REQUEST}}
        rows = []
        for way in ways:
            values = dict(way.inputs)
            ordered = tuple(values[key] for key in inputs)
            rows.append(_row_query(table, way.filters, ordered, outputs=tuple(stored.values())))
        positions = {name: index for index, name in enumerate(stored)}
        found: dict[str, Operand] = {
            name: Output(0, positions[name]) if name in positions else expr for name, expr in outputs.items()
        }
        return ParameterQuery(found, filters, priority, tuple(rows), tuple((key,) for key in inputs))

    def data_query(self, text: str, notes: Notes, parameters: tuple[str, ...]) -> list[RowQuery]:
        """Compile a data query. Raises SqlError."""
        query = _Query(self._language, notes, self._default_schema, text)
        scope = query.scope(parameters)
        if query.table is None:
            raise SqlError("a data query reads a table", query.select.at, "SELECT … FROM table")
        selection = self._selection(query, scope)
        where = Literal(1) if query.select.where is None else query.expression(query.select.where, scope)
        if any(isinstance(node, Request) for node in walk(where)):
            raise SqlError(
                "a data query cannot use values of the request",
                query.select.where.at if query.select.where else query.select.at,
                "make them bucket parameters in the parameter query",
            )
        rows = []
        for way in query.ways(where):
            values = dict(way.inputs)
            for name in parameters:
                if Parameter(name) not in values:
                    hint = f"add … = bucket.{name}"
                    raise SqlError(f"the bucket parameter {name!a} is not used", query.select.at, hint)
            ordered = tuple(values[Parameter(name)] for name in parameters)
            rows.append(_row_query(query.table, way.filters, ordered, selection=selection))
        return rows

    def receipt_query(self, text: str, notes: Notes) -> RowQuery:
        """The query of the event write_checkpoints: its rows as entries of one key. Raises SqlError."""
        query, items, where = self._event(text, notes)
        named = {item.name: item.value for item in items if isinstance(item, Item)}
        missing = [name for name in ("user_id", "checkpoint") if name not in named]
        if missing or len(named) < len(items) or not named.keys() <= {*_RECEIPT}:
            hint = "SELECT user_id, client_id, checkpoint FROM table; client_id may be left out"
            raise SqlError("a write checkpoint has user_id, client_id and checkpoint", query.select.at, hint)
        outputs = tuple(Call(f"receipt {name}", (named.get(name, Literal(None)),)) for name in _RECEIPT)
        assert query.table is not None
        return _row_query(query.table, _conjuncts(where), (), outputs=outputs)

    def event_query(self, text: str, notes: Notes) -> None:
        """Check the query of an event. Raises SqlError."""
        self._event(text, notes)

    def _event(self, text: str, notes: Notes) -> tuple[_Query, list[Every | Item], Expr]:
        query = _Query(self._language, notes, self._default_schema, text)
        scope = query.scope(())
        if query.table is None:
            raise SqlError("the query of an event reads a table", query.select.at, "SELECT … FROM table")
        items = [self._item(query, output, scope) for output in query.select.outputs]
        where = Literal(1) if query.select.where is None else query.expression(query.select.where, scope)
        if _has_input(where):
            raise SqlError("an event knows no request", query.select.where.at if query.select.where else 0)
        return query, items, where

    def _selection(self, query: _Query, scope: _Scope) -> Selection:
        items = tuple(self._item(query, output, scope) for output in query.select.outputs)
        if not any(isinstance(item, Every) or item.name == "id" for item in items):
            raise SqlError("the query has no column id", query.select.at, "select it, or write … AS id")
        return Selection(items, query.alias, named_first=True)

    def _item(self, query: _Query, output: SelectOutput, scope: _Scope) -> Every | Item:
        if isinstance(output.expression, Star):
            return Every()
        expression = query.expression(output.expression, scope)
        if _has_input(expression):
            raise SqlError("bucket parameters and values of the request cannot be selected", output.expression.at)
        return Item(_output_name(output), expression)


def _row_query(
    table: TablePattern,
    filters: tuple[Expr, ...],
    values: tuple[Expr, ...],
    *,
    selection: Selection | None = None,
    outputs: tuple[Expr, ...] = (),
) -> RowQuery:
    kept = tuple(expr for expr in filters if expr != Literal(1))
    changed = renumbered((*kept, *values))
    return RowQuery(
        table, changed[: len(kept)], changed[len(kept) :], selection, outputs, null_outputs=selection is None
    )


def _conjuncts(expr: Expr) -> tuple[Expr, ...]:
    if isinstance(expr, Call) and expr.name == "and":
        return tuple(part for argument in expr.arguments for part in _conjuncts(argument))
    return () if expr == Literal(1) else (expr,)


def _output_name(output: SelectOutput) -> str:
    if output.name is None:
        raise SqlError("an expression needs a name", output.expression.at, "write … AS name")
    return output.name
