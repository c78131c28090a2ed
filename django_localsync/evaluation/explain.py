"""Why a user has a bucket or not, why a row is in one or not: as values, and as lines for people."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from itertools import islice

import orjson
from django.db import models

from ..exceptions import EvaluationError
from ..sync_rules.expressions import Element, Expr, Request, SqliteValue, walk
from ..sync_rules.json_values import json_each
from ..sync_rules.plan import DEFAULT, LookupKey, RequestParameters
from ..sync_rules.queries import CompiledDefinition, Operand, Querier, RowQuery
from ..sync_rules.request_values import RequestValues, request_function
from ..sync_rules.rows import SourceQuery, row_evaluator
from ..sync_rules.values import normalised
from .describe import describe, describe_condition
from .evaluator import BucketKey, Entry, Evaluator, LocatedRow, Resolved
from .paths import ByPosition, Known, Path, paths_to
from .reading import LiveTable, Values

MAX_ENTRIES = 10_000  # of one index that are followed to show some ways
MAX_PATHS = 3  # shown where somebody else's access explains why this user has none


class Explainer:
    """Explains what an evaluator finds."""

    def __init__(self, evaluator: Evaluator) -> None:
        self.evaluator, self.plan = evaluator, evaluator.plan

    def bucket_name(self, bucket: BucketKey) -> str:
        """A bucket's name as on the wire, without the incarnation and definition that begin it."""
        return f"{self.plan.buckets[bucket[0]].name}{bucket[1]}"

    def definitions_of(self, source: int) -> list[CompiledDefinition]:
        """The streams and definitions that give a bucket of this source."""
        return [
            definition
            for definition in self.plan.definitions
            if any(querier.bucket == source for querier in definition.queriers)
        ]

    # Why somebody has a bucket

    def paths(self, bucket: BucketKey, most: int) -> tuple[list[Path], bool]:
        """The first ways to a bucket, for whomever, from the live tables; and whether there are or may be others."""
        cut: list[int] = []
        found = [
            *islice(
                (
                    path
                    for definition in self.definitions_of(bucket[0])
                    for path in self._paths(definition, bucket, cut)
                ),
                most + 1,
            )
        ]
        return found[:most], len(found) > most or bool(cut)

    def _paths(
        self,
        definition: CompiledDefinition,
        bucket: BucketKey,
        cut: list[int] | None = None,
        given: Known | None = None,
    ) -> Iterator[Path]:
        """Ways to a bucket. With `cut` at most MAX_ENTRIES of an index are followed, and it is told which had more."""

        def find(source: int, key: ByPosition, outputs: ByPosition) -> list[Entry]:
            entries = self.evaluator.entries(source, key=key, outputs=outputs)
            if cut is None:
                return [*entries]
            found = [*islice(entries, MAX_ENTRIES + 1)]
            if len(found) > MAX_ENTRIES:
                cut.append(source)
            return found[:MAX_ENTRIES]

        return paths_to(definition, bucket, find, given)

    def ways_taken(self, resolved: Resolved, bucket: BucketKey) -> list[Path]:
        """The ways on which a request got a bucket."""
        return [
            path
            for definition in self._asked(resolved, bucket)
            for path in paths_to(definition, bucket, resolved.find)
            if any(fits(path, values) for values in _values(resolved.request, definition))
        ]

    def _asked(self, resolved: Resolved, bucket: BucketKey) -> list[CompiledDefinition]:
        """The definitions that gave a request a bucket."""
        names = set()
        for kind, index in resolved.buckets[bucket].reasons:
            streams, subscriptions = resolved.resolution.streams, resolved.request.subscriptions
            names.add(streams[index].name if kind == DEFAULT else subscriptions[index].stream)
        return [definition for definition in self.definitions_of(bucket[0]) if definition.name in names]

    def ways_to_ask(self, row: LocatedRow, request: RequestParameters) -> Iterator[tuple[Path, Resolved]]:
        """How a client could get a row with this token by subscriptions and parameters of its own choice."""
        pairs = [(bucket, definition) for bucket in _buckets_of(row) for definition in self.definitions_of(bucket[0])]
        for bucket, definition in pairs:
            for path in self._paths(definition, bucket, given=_said_by_token(definition, request)):
                asking = replace(
                    request,
                    connection={**request.connection, **path.parameters("connection")},
                    subscriptions=[*request.subscriptions, path.subscription],
                )
                if fits(path, RequestValues(asking, path.subscription.parameters)):
                    resolved = self.evaluator.resolve(asking)
                    if bucket in resolved.buckets:
                        yield path, resolved

    # Lines for people

    def lines_of_access(self, row: LocatedRow, resolved: Resolved) -> list[str]:
        """Through which buckets a request has a row."""
        lines = []
        for bucket in _buckets_of(row):
            if bucket in resolved.buckets:
                ways = [self.line_of_path(path) for path in self.ways_taken(resolved, bucket)]
                lines += [f"it is in bucket {self.bucket_name(bucket)}", *(f"  {way}" for way in ways[:MAX_PATHS])]
        return lines

    def lines_of_refusal(self, instance: models.Model, row: LocatedRow | None, resolved: Resolved) -> list[str]:
        """Why a request does not get a row."""
        if resolved.problem:
            return [f"the server refuses the request: {resolved.problem}"]
        if row is None or not row.buckets:
            return self.lines_of_absence(instance)
        lines = []
        for bucket in _buckets_of(row):
            lines.append(f"it is in bucket {self.bucket_name(bucket)}, which the user does not have")
            for definition in self.definitions_of(bucket[0]):
                lines += [f"  {line}" for line in self._lines_of_missing(definition, bucket, resolved)]
            paths, _ = self.paths(bucket, MAX_PATHS)
            lines += [f"  others get it by {self.line_of_path(path)}" for path in paths]
            if not paths:
                lines.append("  no row of the tables that are looked up leads to it, for anybody")
        return lines

    def lines_of_absence(self, instance: models.Model) -> list[str]:
        """Why a row is in no bucket."""
        table, values = self.evaluator.reader.find(instance)
        if table is None:
            return [f"no stream reads the table {instance._meta.db_table}"]
        if values is None:
            return ["there is no such row in the database"]
        reasons = [
            f"  {source.name}: {self._why_not(query, table, values)}"
            for source in self.plan.buckets
            for query in source.queries
            if query.table.matches(table.name)
        ]
        if not reasons:
            return [f"no stream syncs rows of {table.name}; it is only looked up"]
        return [f"no query selects {table.describe_row(values)}", *reasons]

    def _why_not(self, query: RowQuery, table: LiveTable, values: Values) -> str:
        errors: list[str] = []

        def passes(candidate: RowQuery) -> bool:
            def note(_: str, message: str) -> None:
                errors.append(message)

            queries = [SourceQuery(0, "", candidate)]
            return bool(row_evaluator(table.name, table.columns, queries, self.plan.options, note)(values)[0])

        for expr in query.filters:
            if not passes(replace(query, filters=(expr,), values=())):
                return errors[0] if errors else f"{describe(expr)} is not true"
        for expr in query.values:
            if not passes(replace(query, filters=query.filters, values=(expr,))):
                return errors[0] if errors else f"{describe(expr)} is NULL, or gives nothing"
        return errors[0] if errors else "it selects no combination of the elements of the row's arrays"

    def _lines_of_missing(self, definition: CompiledDefinition, bucket: BucketKey, resolved: Resolved) -> list[str]:
        """What a stream did for a request, when it did not give a bucket."""
        streams = {stream.name: stream for stream in resolved.resolution.streams}
        if definition.name not in streams:
            parameters = next((path.parameters("subscription") for path in self._paths(definition, bucket, [])), {})
            with_ = f" with {_json(parameters)}" if parameters else ""
            return [f"the stream {definition.name} is not subscribed to{with_}"]
        lines = [f"stream {definition.name}: {error.message}" for error in streams[definition.name].errors]
        for querier in definition.queriers:
            if querier.bucket == bucket[0]:
                lines += self._lines_of_lookups(definition, querier, resolved)
        return lines

    def _lines_of_lookups(self, definition: CompiledDefinition, querier: Querier, resolved: Resolved) -> list[str]:
        lines = []
        for step in querier.steps:
            for key, entries in resolved.entries.items():
                if key.source == step.source:
                    found = ", ".join(sorted({entry.outputs for entry in entries})[:5]) or "nothing"
                    name = self._index_name(key)
                    lines.append(f"stream {definition.name} looked up {name} for {key.key} and found {found}")
        if not lines:
            values = " AND ".join(_line_of_position(querier, index) for index in range(len(querier.parameters)))
            condition = describe_condition(querier.filters)
            wanted = " AND ".join(filter(None, [values and f"the bucket of {values}", condition]))
            lines.append(f"stream {definition.name} gives {wanted or 'its only bucket'}")
        return lines

    def _index_name(self, key: LookupKey) -> str:
        queries = self.plan.indexes[key.source].queries
        return " or ".join(dict.fromkeys(str(query.table.name) for query in queries))

    def line_of_path(self, path: Path) -> str:
        """A way to a bucket: `stream shared_lists: auth.user_id() = '2', through memberships id=5`."""
        conditions = [_line_of_condition(expr, value) for expr, value in path.conditions]
        conditions += [describe(expr) for expr in path.filters]
        text = " AND ".join(conditions) or "for every client"
        through = ", then ".join(entry.row for entry in path.entries)
        return f"stream {path.definition.name}: {text}" + (f", through {through}" if through else "")


def fits(path: Path, values: RequestValues) -> bool:
    """Whether a request fulfils the conditions of a way."""
    try:
        return all(_holds(expr, wanted, values) for expr, wanted in path.conditions)
    except EvaluationError:
        return False


def _holds(expr: Expr, wanted: SqliteValue, values: RequestValues) -> bool:
    function = request_function(expr)
    if not function.elements:
        return normalised(function.run(values, ())) == wanted
    if isinstance(expr, Element) and not request_function(expr.argument).elements:
        array = request_function(expr.argument).run(values, ())
        return any(normalised(item[expr.part == "value"]) == wanted for item in json_each(array))
    return True  # an expression over elements: resolving the request decides


def _said_by_token(definition: CompiledDefinition, request: RequestParameters) -> Known:
    """Values that a client cannot choose: those of expressions over the token alone."""
    values = RequestValues(request, {})
    found: dict[Operand, SqliteValue] = {}
    for expr in (expr for querier in definition.queriers for expr in querier.expressions):
        nodes = [*walk(expr)]
        parts = {node.part for node in nodes if isinstance(node, Request)}
        if parts and parts <= {"auth", "token"} and not any(isinstance(node, Element) for node in nodes):
            with suppress(EvaluationError):
                found[expr] = normalised(request_function(expr).run(values, ()))
    return found


def _values(request: RequestParameters, definition: CompiledDefinition) -> Iterator[RequestValues]:
    """The request as each of its subscriptions to a stream sees it."""
    yield RequestValues(request, {})
    for asked in request.subscriptions:
        if asked.stream == definition.name:
            yield RequestValues(request, asked.parameters)


def _buckets_of(row: LocatedRow) -> list[BucketKey]:
    return [*dict.fromkeys((place.source, place.parameters) for place in row.buckets)]


def _line_of_condition(expr: Expr, value: SqliteValue) -> str:
    if isinstance(expr, Element):
        return f"{describe(expr.argument)} contains {_json(value)}"
    return f"{describe(expr)} = {_json(value)}"


def _line_of_position(querier: Querier, index: int) -> str:
    return " = ".join(describe(operand) for operand in querier.parameters[index])  # type: ignore[arg-type]


def _json(value: object) -> str:
    return orjson.dumps(value).decode()
