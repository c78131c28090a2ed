"""From rules (YAML, JSON, dict) to a plan: the one entry of this package besides the plan itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ..exceptions import RulesError
from . import formats
from .bucket_definitions import DefinitionCompiler, ParameterQuery
from .compiled import CompiledPlan, CompiledSource
from .danger import is_dangerous_parameter_query, is_dangerous_variant
from .definitions import (
    BucketDefinition,
    Findings,
    Options,
    RulesDocument,
    RulesWarning,
    StreamDefinition,
    read_definitions,
)
from .document import Scalar, Source, read_document
from .expressions import Element, Expr, rewrite
from .plan import TablePattern
from .queries import CompiledDefinition, Output, Position, Querier, RowQuery, Step, identity, sort_key
from .sql import parse_select
from .streams import VariantQuery, compile_query
from .syntax import Select, SqlError
from .translate import Language, Notes

MAX_SOURCES = 100
"""Most bucket sources of one stream."""

RECEIPTS = "write_checkpoints"
"""The event that has an effect: rows of its queries are write checkpoints."""


@dataclass(frozen=True, slots=True)
class NamedColumn:
    """A column that rules name, and where; `equals_user_id` if it is compared with the user's id."""

    definition: str
    table: TablePattern
    column: str
    equals_user_id: bool
    line: int | None
    column_number: int | None


@dataclass(frozen=True, slots=True)
class NamedTable:
    """A table that a definition reads."""

    definition: str
    table: TablePattern


@dataclass(frozen=True, slots=True)
class CompiledRules:
    """A plan, and what the checks want to know of the rules it came from.

    `events`: names of the events that have no effect.
    `accepting`: names of the definitions that set accept_potentially_dangerous_queries.
    """

    plan: CompiledPlan
    warnings: tuple[RulesWarning, ...]
    columns: tuple[NamedColumn, ...]
    tables: tuple[NamedTable, ...]
    events: tuple[str, ...]
    accepting: frozenset[str]


def compile_rules(source: Source, *, default_schema: str = "public", format: int | None = None) -> CompiledRules:
    """Compile rules given as YAML text, as JSON text of `canonical_json`, or as a dict.

    The plan makes operations of `format`, one of KNOWN_FORMATS; by default of the one that this release fills.

    Raises RulesError: the first error, with all of them in `all`.
    """
    findings = Findings(source if isinstance(source, str) else "")
    document = read_definitions(read_document(source), findings)
    compiled = None
    if document is not None:
        try:
            compiled = _Compiler(document, findings, default_schema, format or formats.FORMAT).compile()
        except RecursionError:
            findings.error("an expression is nested too deeply", None)
    if findings.errors:
        raise RulesError.of(findings.errors)
    assert compiled is not None
    return compiled


class _Compiler:
    def __init__(self, document: RulesDocument, findings: Findings, default_schema: str, format: int) -> None:
        self._document, self._findings, self._default_schema = document, findings, default_schema
        self._format = format
        self._columns: list[NamedColumn] = []
        self._selects: dict[str, Select] = {}  # common table expressions by their text
        self._tables: dict[NamedTable, None] = {}
        self._buckets = _Sources(document.options, format)
        self._indexes = _Sources(document.options, format)

    def compile(self) -> CompiledRules:
        definitions = [*self._bucket_definitions(), *self._streams()]
        events = self._events()
        document = self._document
        plan = CompiledPlan(
            tuple(definitions), self._buckets.all(), self._indexes.all(), document.options.values, self._format
        )
        documented: list[StreamDefinition | BucketDefinition] = [*document.streams, *document.buckets]
        accepting = frozenset(str(item.name.value) for item in documented if item.accepts_danger)
        return CompiledRules(
            plan, tuple(self._findings.warnings), tuple(self._columns), tuple(self._tables), events, accepting
        )

    def _language(self, *, streams: bool) -> Language:
        options = self._document.options
        return Language(options.edition, options.fixed_json_extract, streams)

    def _note(self, query: Scalar, texts: dict[str, Scalar], notes: Notes, definition: str) -> None:
        """What a query named, and its warnings, with places in the document."""
        for warning in dict.fromkeys(notes.warnings):
            text = texts.get(warning.origin or "", query)
            self._findings.warn("query", warning.message, text, warning.at, definition, warning.hint)
        for use in notes.columns:
            line, column = self._findings.position(texts.get(use.origin or "", query), use.at)
            self._columns.append(NamedColumn(definition, use.table, use.column, use.equals_user_id, line, column))

    def _read(self, definition: str, row_query: RowQuery) -> None:
        self._tables[NamedTable(definition, row_query.table)] = None

    # Streams

    def _streams(self) -> list[CompiledDefinition]:
        document = self._document
        if document.streams and document.options.edition < 3:
            name = document.streams[0].name
            hint = "set config: {edition: 3}"
            self._findings.warn("alpha", "streams before edition 3 are deprecated", name, 0, None, hint)
        used: set[str] = set()
        compiled = [self._stream(stream, used) for stream in document.streams]
        for name, _ in document.expressions:
            if name.value not in used:
                self._findings.warn("unused", f"the common table expression {name.value!r} is not used", name, 0, None)
        return compiled

    def _stream(self, stream: StreamDefinition, used: set[str]) -> CompiledDefinition:
        name = str(stream.name.value)
        local = {str(key.value): query for key, query in stream.expressions}
        texts = {str(key.value): query for key, query in self._document.expressions} | local
        expressions = self._parsed(texts, name)
        found: list[VariantQuery] = []
        used_here: set[str] = set()
        for query in stream.queries:
            found += self._query(name, query, texts, expressions, used_here, stream.accepts_danger)
        used.update(used_here - local.keys())
        for key, _ in stream.expressions:
            if key.value not in used_here:
                self._findings.warn("unused", f"the common table expression {key.value!r} is not used", key, 0, name)
        return CompiledDefinition(name, self._queriers(stream, name, found), stream.auto_subscribe)

    def _parsed(self, texts: dict[str, Scalar], definition: str) -> dict[str, Select]:
        parsed: dict[str, Select] = {}
        for name, query in texts.items():
            text = str(query.value)
            try:
                parsed[name] = self._selects.get(text) or self._selects.setdefault(text, parse_select(text))
            except SqlError as error:
                self._findings.sql_error(error, query, definition)
        return parsed

    def _query(
        self,
        definition: str,
        query: Scalar,
        texts: dict[str, Scalar],
        expressions: dict[str, Select],
        used: set[str],
        accepts_danger: bool,
    ) -> list[VariantQuery]:
        """The variants of one query; none if it has an error, which is noted."""
        notes = Notes()
        language = self._language(streams=True)
        try:
            found, names = compile_query(str(query.value), language, expressions, self._default_schema, notes)
        except SqlError as error:
            used.update(expressions)  # whether they are used is not known
            self._findings.sql_error(error, texts.get(error.origin or "", query), definition)
            return []
        used.update(names)
        self._note(query, texts, notes, definition)
        if not accepts_danger and any(is_dangerous_variant(variant) for variant in found):
            self._warn_danger(query, definition)
        return found

    def _warn_danger(self, query: Scalar, definition: str) -> None:
        self._findings.warn(
            "danger",
            "the client alone decides what it gets: no value of its token restricts the query",
            query,
            0,
            definition,
            "compare with auth.user_id() or auth.parameter(…), "
            "or set accept_potentially_dangerous_queries: true if anyone may see any of these rows",
        )

    def _queriers(self, stream: StreamDefinition, name: str, found: Sequence[VariantQuery]) -> tuple[Querier, ...]:
        """Variants that ask the same of a request share a bucket, whatever their tables."""
        groups: dict[str, list[int]] = {}
        numbered = [numbered_elements(variant) for variant in found]
        for number, variant in enumerate(numbered):
            key = sort_key((variant.filters, variant.lookups, variant.keys, variant.parameters))
            groups.setdefault(key, []).append(number)
        if len(groups) > MAX_SOURCES:
            hint = "split it into several streams"
            message = f"the stream has more than {MAX_SOURCES} kinds of buckets"
            self._findings.error(message, stream.name.place, name, hint)
        return tuple(
            self._querier(stream, f"{name}|{numbers[0]}", [numbered[number] for number in numbers])
            for numbers in groups.values()
        )

    def _querier(self, stream: StreamDefinition, name: str, group: Sequence[VariantQuery]) -> Querier:
        definition, variant = str(stream.name.value), group[0]
        for row_query in (*(item.row for item in group), *variant.lookups):
            self._read(definition, row_query)
        bucket = self._buckets.add(name, tuple(item.row for item in group))
        indexes = [self._indexes.add(f"{name}: {lookup.table}", (lookup,)) for lookup in variant.lookups]
        steps = tuple(Step(index, key) for index, key in zip(indexes, variant.keys, strict=True))
        return Querier(bucket, variant.filters, steps, variant.parameters, stream.priority)

    # Old-style definitions

    def _bucket_definitions(self) -> list[CompiledDefinition]:
        return [found for item in self._document.buckets if (found := self._bucket_definition(item)) is not None]

    def _bucket_definition(self, definition: BucketDefinition) -> CompiledDefinition | None:
        name = str(definition.name.value)
        reader = DefinitionCompiler(self._language(streams=False), self._default_schema)
        queries: list[tuple[Scalar, ParameterQuery]] = []
        rows: list[RowQuery] = []
        failed = False
        for query in definition.parameters:
            notes = Notes()
            try:
                queries.append((query, reader.parameter_query(str(query.value), notes, definition.priority)))
                self._note(query, {}, notes, name)
            except SqlError as error:
                self._findings.sql_error(error, query, name)
                failed = True
        if failed:
            return None
        names = queries[0][1].names if queries else ()
        for query, found in queries:
            if {*found.names} != {*names}:
                message = f"all parameter queries must have the same outputs ({', '.join(names) or 'none'})"
                self._findings.sql_error(SqlError(message, 0), query, name)
                return None
        for query in definition.data:
            notes = Notes()
            try:
                rows += reader.data_query(str(query.value), notes, names)
                self._note(query, {}, notes, name)
            except SqlError as error:
                self._findings.sql_error(error, query, name)
        for query, found in queries:
            if not definition.accepts_danger and is_dangerous_parameter_query(found):
                self._warn_danger(query, name)
        return self._definition(name, names, [found for _, found in queries], rows, definition.priority)

    def _definition(
        self, name: str, names: tuple[str, ...], queries: Sequence[ParameterQuery], rows: list[RowQuery], priority: int
    ) -> CompiledDefinition:
        for row_query in (*rows, *(row for query in queries for row in query.rows)):
            self._read(name, row_query)
        bucket = self._buckets.add(name, tuple(rows))
        if not queries:
            return CompiledDefinition(name, (Querier(bucket, (), (), (), priority, nulls=True),), False, always=True)
        queriers = []
        for number, query in enumerate(queries):
            steps: tuple[Step, ...] = ()
            if query.rows:
                steps = (Step(self._indexes.add(f"{name}: {number}", query.rows), query.key),)
            parameters = tuple((query.outputs[output],) for output in names)
            queriers.append(Querier(bucket, query.filters, steps, parameters, query.priority, nulls=True))
        return CompiledDefinition(name, tuple(queriers), False, always=True)

    def _events(self) -> tuple[str, ...]:
        """Names of the events that have no effect: their queries are checked, no more. Receipts have one."""
        reader = DefinitionCompiler(self._language(streams=False), self._default_schema)
        for event in self._document.events:
            name = str(event.name.value)
            for query in event.payloads:
                try:
                    if name == RECEIPTS:
                        self._receipts(reader, query)
                    else:
                        reader.event_query(str(query.value), Notes())
                except SqlError as error:
                    self._findings.sql_error(error, query, name)
        return tuple(str(event.name.value) for event in self._document.events if event.name.value != RECEIPTS)

    def _receipts(self, reader: DefinitionCompiler, query: Scalar) -> None:
        """Receipts are followed like a parameter index, so every row gives its own, whenever its table is read."""
        notes = Notes()
        rows = reader.receipt_query(str(query.value), notes)
        self._note(query, {}, notes, RECEIPTS)
        self._read(RECEIPTS, rows)
        self._indexes.add(RECEIPTS, (rows,), gives_receipts=True)


class _Sources:
    """Bucket sources or lookup sources; equal ones are one, under the name of the first."""

    def __init__(self, options: Options, format: int) -> None:
        self._options, self._format = options, format
        self._numbers: dict[str, int] = {}
        self._sources: list[CompiledSource] = []

    def add(self, name: str, queries: tuple[RowQuery, ...], *, gives_receipts: bool = False) -> int:
        """The number of the source with these queries."""
        ordered = tuple({sort_key(query): query for query in queries}.values())
        key = identity(sorted(sort_key(query) for query in ordered), self._options.values, self._format)
        if key not in self._numbers:
            self._numbers[key] = len(self._sources)
            self._sources.append(CompiledSource(name, key, ordered, gives_receipts))
        return self._numbers[key]

    def all(self) -> tuple[CompiledSource, ...]:
        """The sources by their numbers."""
        return tuple(self._sources)


def numbered_elements(variant: VariantQuery) -> VariantQuery:
    """The variant with the elements of the request numbered from 0, so that equal variants are equal."""
    numbers: dict[int, int] = {}

    def change(expr: Expr) -> Expr | None:
        if isinstance(expr, Element):
            number = numbers.setdefault(expr.number, len(numbers))
            return Element(rewrite(expr.argument, change), number, expr.part)
        return None

    def position(operands: Position) -> Position:
        return tuple(item if isinstance(item, Output) else rewrite(item, change) for item in operands)

    return replace(
        variant,
        filters=tuple(rewrite(expr, change) for expr in variant.filters),
        keys=tuple(tuple(position(item) for item in key) for key in variant.keys),
        parameters=tuple(position(item) for item in variant.parameters),
    )
