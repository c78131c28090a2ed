"""The row evaluator: one generated function for a table of a given layout.

It converts only the columns that rules use, and writes the JSON of each distinct select list once however many
buckets hold it. Measured: 3.2 µs for `SELECT *` of 8 columns in two definitions, of which 1 is for a timestamptz
(benchmarks/evaluate_rows.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import orjson

from ..exceptions import EvaluationError
from ..pgoutput.values import PgType, TypeKind, ValueOptions, converter
from .codegen import Code, ValueKind, Writer, build, may_be_blob
from .expressions import Call, Element, Expr, Literal, Metadata, walk
from .expressions import Column as ColumnExpr
from .json_values import json_each
from .parameters import outputs_text, parameters_text, text_parameters
from .plan import BucketRow, Column, LookupRow, OnError, RowEvaluator, TableName
from .queries import Every, RowQuery, Selection
from .values import to_text

_KINDS = {
    **dict.fromkeys(("bool", "int2", "int4", "int8", "oid"), ValueKind.INTEGER),
    **dict.fromkeys(("float4", "float8"), ValueKind.REAL),
    "bytea": ValueKind.BLOB,
}
# Types whose text is as Postgres prints it the JSON of the value, or needs no escapes in it.
_PRINTED_INTEGERS = {"int2", "int4", "int8", "oid"}
_INDENT = "    "
MAX_COMBINATIONS = 10_000
"""Most combinations of elements of one row's arrays that one query goes through."""


@dataclass(frozen=True, slots=True)
class SourceQuery:
    """A query of a bucket source or lookup source, with the source's number and name."""

    source: int
    name: str
    query: RowQuery


def row_evaluator(
    table: TableName,
    columns: Sequence[Column],
    queries: Sequence[SourceQuery],
    options: ValueOptions,
    on_error: OnError,
) -> RowEvaluator:
    """Generate the function for a table of this layout from the queries that read it.

    A query of which a filter or parameter names a column that the table lacks gives nothing, and is reported once
    here: access must not widen because a column is gone. In a select list such a column is NULL.
    """
    return _Evaluator(table, columns, options, on_error).build(queries)


def missing_columns(query: RowQuery, columns: Sequence[Column]) -> list[str]:
    """Columns that a query names but the table lacks."""
    present = {column.name for column in columns}
    return sorted(_named(query.expressions) - present)


def used_positions(query: RowQuery, columns: Sequence[Column]) -> set[int]:
    """Positions of the columns that a query reads."""
    if query.selection and any(isinstance(item, Every) for item in query.selection.items):
        return set(range(len(columns)))
    named = _named(query.expressions)
    return {position for position, column in enumerate(columns) if column.name in named}


def _named(expressions: Sequence[Expr]) -> set[str]:
    return {node.name for expr in expressions for node in walk(expr) if isinstance(node, ColumnExpr)}


def _base_type(pg_type: PgType, options: ValueOptions) -> PgType:
    while pg_type.kind is TypeKind.DOMAIN and options.custom_postgres_types and pg_type.element is not None:
        pg_type = pg_type.element
    return pg_type


class _Evaluator(Writer):
    def __init__(self, table: TableName, columns: Sequence[Column], options: ValueOptions, on_error: OnError) -> None:
        super().__init__()
        self._table, self._columns, self._options, self._on_error = table, columns, options, on_error
        self._position = {column.name: position for position, column in enumerate(columns)}
        self._converted: dict[int, ValueKind] = {}
        self._query: RowQuery
        self._selections: dict[Selection, int] = {}
        self._data: dict[int, str] = {}  # source of the JSON of a selection

    def build(self, queries: Sequence[SourceQuery]) -> RowEvaluator:
        usable = [item for item in queries if self._is_usable(item)]
        body = [line for item in usable for line in self._guarded(item)]
        lines = ["def evaluate(values):", *self._conversions()]
        lines += [f"{_INDENT}buckets = []; lookups = []"]
        lines += [f"{_INDENT}data{number} = None" for number in self._selections.values()]
        lines += body
        if _may_repeat([item for item in usable if item.query.selection]):
            lines.append(f"{_INDENT}buckets = list({{row[:4]: row for row in buckets}}.values())")
        if _may_repeat([item for item in usable if not item.query.selection]):
            lines.append(f"{_INDENT}lookups = list(dict.fromkeys(lookups))")
        lines.append(f"{_INDENT}return buckets, lookups")
        names = {
            "BucketRow": BucketRow,
            "LookupRow": LookupRow,
            "new": tuple.__new__,
            "dumps": orjson.dumps,
            "parameters_text": parameters_text,
            "text_parameters": text_parameters,
            "outputs_text": outputs_text,
            "json_each": json_each,
            "to_text": to_text,
            "report": self._report,
            "too_many": _too_many,
        }
        return build(lines, "evaluate", self.names | names)

    def _report(self, name: str, error: Exception) -> None:
        message = str(error) if isinstance(error, EvaluationError) else f"{type(error).__name__} while evaluating"
        self._on_error(name, message)

    def _is_usable(self, item: SourceQuery) -> bool:
        query = item.query
        missing = _named((*query.filters, *query.values, *query.outputs)) - self._position.keys()
        if missing:
            listed = ", ".join(sorted(missing))
            self._on_error(item.name, f"{self._table} has no column {listed}: its rows are left out")
        return not missing

    # Columns

    def column(self, column: ColumnExpr) -> Code:
        position = self._position.get(column.name)
        if position is None:
            return Code("None", ValueKind.NOT_BLOB, simple=True)
        return Code(f"c{position}", self._kind_of(position), simple=True)

    def _kind_of(self, position: int) -> ValueKind:
        if position not in self._converted:
            base = _base_type(self._columns[position].type, self._options)
            kind = _KINDS.get(base.name) if base.kind is TypeKind.BASE and base.is_built_in else None
            self._converted[position] = kind or ValueKind.TEXT
        return self._converted[position]

    def _conversions(self) -> list[str]:
        """Each used column once, as `c<n>`."""
        lines = []
        for position in sorted(self._converted):
            name, value = f"c{position}", f"values[{position}]"
            convert = converter(self._columns[position].type, self._options)
            if convert is None:
                lines.append(f"{_INDENT}{name} = {value}")
            else:
                base = _base_type(self._columns[position].type, self._options)
                call = f"1 if {name} == 't' else 0" if base.name == "bool" else f"{self.bind(convert, 'v')}({name})"
                lines.append(f"{_INDENT}{name} = {value}")
                lines.append(f"{_INDENT}if {name} is not None: {name} = {call}")
        return lines

    def metadata(self, metadata: Metadata) -> Code:
        value = {
            "schema": self._table.schema,
            "table": self._table.name,
            "suffix": self._query.table.suffix(self._table),
        }[metadata.kind]
        return Code(repr(value), ValueKind.TEXT, simple=True)

    def element(self, element: Element) -> Code:
        return Code(f"{element.part}{element.number}", ValueKind.NOT_BLOB, simple=True)

    def special(self, call: Call) -> Code | None:
        """CAST(integer AS TEXT) is what Postgres printed."""
        if call.name == "cast as text" and isinstance(column := call.arguments[0], ColumnExpr):
            printed = self._printed_integer(column)
            return Code(printed, ValueKind.TEXT, simple=True) if printed else None
        return None

    def _printed_integer(self, column: ColumnExpr) -> str | None:
        position = self._position.get(column.name)
        if position is None or _base_type(self._columns[position].type, self._options).name not in _PRINTED_INTEGERS:
            return None
        self._kind_of(position)
        return f"values[{position}]"

    # Queries

    def _guarded(self, item: SourceQuery) -> list[str]:
        """One query; its failure leaves the row out of it alone."""
        self._query = item.query
        into = "buckets" if item.query.selection else "lookups"
        iterates = bool(_ordered_elements(item.query.expressions))
        target = "found" if iterates else into
        lines = self._row_lines(item, target) if item.query.selection else self._lookup_lines(item, target)
        lines = self._loops(item.query, lines)
        if iterates:  # all or nothing: an element may fail after others
            lines = ["found = []", *lines, f"{into} += found"]
        return [
            f"{_INDENT}try:",
            *(f"{_INDENT * 2}{line}" for line in lines),
            f"{_INDENT}except Exception as error:",
            f"{_INDENT * 2}report({item.name!r}, error)",
        ]

    def _loops(self, query: RowQuery, lines: list[str]) -> list[str]:
        """Filters around the lines, loops over elements around those that need them."""
        tests = [(self.condition(expr), _numbers(expr)) for expr in query.filters]
        outer = [test for test, numbers in tests if not numbers and test != "True"]
        inner = [test for test, numbers in tests if numbers and test != "True"]
        iterations = _ordered_elements(query.expressions)
        if inner:
            lines = [f"if {' and '.join(inner)}:", *_indented(lines)]
        if len(iterations) > 1:
            lines = ["left -= 1", "if left < 0: raise too_many()", *lines]
        for element in reversed(iterations):
            array = self.value(element.argument).source
            number = element.number
            lines = [f"for key{number}, value{number} in json_each({array}):", *_indented(lines)]
        if len(iterations) > 1:
            lines = [f"left = {MAX_COMBINATIONS}", *lines]
        if outer:
            lines = [f"if {' and '.join(outer)}:", *_indented(lines)]
        return lines

    def _row_lines(self, item: SourceQuery, target: str) -> list[str]:
        selection = item.query.selection
        assert selection is not None
        columns = self._selected(selection)
        number = self._selections.setdefault(selection, len(self._selections))
        data = self._data.get(number) or self._data.setdefault(number, self._json(columns))
        names, lines = self._assigned("p", item.query.values)
        row_type = selection.row_type or self._table.name
        inner = [
            f"if data{number} is None: data{number} = {data}",
            f"{target}.append(new(BucketRow, ({item.source}, {self._parameters(item.query.values, names)}, "
            f"{row_type!r}, {self._row_id(columns)}, data{number})))",
        ]
        return lines + self._unless_null(item.query.values, names, inner)

    def _lookup_lines(self, item: SourceQuery, target: str) -> list[str]:
        query = item.query
        keys, lines = self._assigned("p", query.values)
        outputs, more = self._assigned("o", query.outputs)
        outputs_source = f"outputs_text(({_listed(outputs)}))" if outputs else "'[]'"
        key = self._parameters(query.values, keys)
        add = f"{target}.append(new(LookupRow, ({item.source}, {key}, {outputs_source})))"
        tested = (query.values, keys) if query.null_outputs else ((*query.values, *query.outputs), [*keys, *outputs])
        blobs = [name for name, expr in zip(outputs, query.outputs, strict=True) if may_be_blob(self.value(expr))]
        if query.null_outputs and blobs:
            add = f"if not any(isinstance(output, bytes) for output in ({_listed(blobs)})): {add}"
        return lines + more + self._unless_null(*tested, [add])

    def _assigned(self, prefix: str, exprs: Sequence[Expr]) -> tuple[list[str], list[str]]:
        """Names for values, and the lines that assign those that are no names already."""
        names, lines = [], []
        for number, expr in enumerate(exprs):
            code = self.value(expr)
            if code.simple:
                names.append(code.source)
            else:
                names.append(f"{prefix}{number}")
                lines.append(f"{prefix}{number} = {code.source}")
        return names, lines

    def _unless_null(self, exprs: Sequence[Expr], names: list[str], lines: list[str]) -> list[str]:
        tests = [f"{name} is not None" for name in dict.fromkeys(names)]
        for name, expr in dict(zip(names, exprs, strict=True)).items():
            code = self.value(expr)
            if may_be_blob(code):
                tests.append(f"not isinstance({name}, bytes)")
            if code.kind is ValueKind.REAL or code.kind in (ValueKind.NOT_BLOB, ValueKind.ANY):
                tests.append(f"{name} == {name}")  # NaN is NULL
        return [f"if {' and '.join(tests)}:", *_indented(lines)] if tests else lines

    def _parameters(self, exprs: Sequence[Expr], names: list[str]) -> str:
        """Source of the JSON text of parameters."""
        if not names:
            return "'[]'"
        if len(names) > 1:
            return f"parameters_text(({_listed(names)}))"
        (expr,), (name,) = exprs, names
        code = self.value(expr)
        if isinstance(expr, ColumnExpr):
            if printed := self._printed_integer(expr):
                return f"'[' + {printed} + ']'"
            if _base_type(self._columns[self._position[expr.name]].type, self._options).name == "uuid":
                return f"'[\"' + {name} + '\"]'"
        return f"text_parameters({name})" if code.kind is ValueKind.TEXT else f"parameters_text(({name},))"

    # Select lists

    def _selected(self, selection: Selection) -> dict[str, Expr]:
        """The columns of a row as it is synced, in order."""
        selected: dict[str, Expr] = {}
        for item in selection.items:
            pairs = (
                [(column.name, ColumnExpr(0, column.name)) for column in self._columns]
                if isinstance(item, Every)
                else [(item.name, item.value)]
            )
            for name, value in pairs:
                if not (isinstance(item, Every) and selection.named_first and name in selected):
                    selected[name] = value
        return selected

    def _json(self, columns: dict[str, Expr]) -> str:
        codes = {name: self.value(expr) for name, expr in columns.items()}
        members = ", ".join(f"{name!r}: {code.source}" for name, code in codes.items())
        if any(may_be_blob(code) for code in codes.values()):
            pairs = f"{{{members}}}.items()"
            return f"dumps({{n: v for n, v in {pairs} if not isinstance(v, bytes)}}).decode()"
        return f"dumps({{{members}}}).decode()"

    def _row_id(self, columns: dict[str, Expr]) -> str:
        expr = columns.get("id", Literal(None))
        if expr == Literal(None):
            return "''"
        code = self.value(expr)
        if isinstance(expr, ColumnExpr) and (printed := self._printed_integer(expr)):
            return f"{printed} or ''"
        if code.kind is ValueKind.TEXT:
            return f"{code.source} or ''"
        return f"to_text({code.source}) or ''"


def _too_many() -> EvaluationError:
    return EvaluationError(f"the arrays of a row have more than {MAX_COMBINATIONS} combinations")


def _numbers(expr: Expr) -> set[int]:
    return {node.number for node in walk(expr) if isinstance(node, Element)}


def _ordered_elements(exprs: Sequence[Expr]) -> list[Element]:
    """The iterations of a query, those first that others iterate over."""
    found: dict[int, Element] = {}

    def visit(expr: Expr) -> None:
        for node in walk(expr):
            if isinstance(node, Element) and node.number not in found:
                visit(node.argument)
                found[node.number] = Element(node.argument, node.number, "value")

    for expr in exprs:
        visit(expr)
    return list(found.values())


def _may_repeat(queries: Sequence[SourceQuery]) -> bool:
    """Whether two entries of one source may come from one row."""
    return len({item.source for item in queries}) < len(queries) or any(
        _ordered_elements(item.query.expressions) for item in queries
    )


def _indented(lines: list[str]) -> list[str]:
    return [f"{_INDENT}{line}" for line in lines]


def _listed(names: list[str]) -> str:
    return ", ".join(names) + ","
