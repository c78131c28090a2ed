"""The evaluator: which buckets a request may have, what they hold, and where a row is, from the live tables.

It runs the same compiled plan as replicator and streams. Tables are read as far as the question needs: by an index
where a key is plainly a column, else row by row; what is kept in memory is the answer, never a table.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from types import MappingProxyType
from typing import Any, NamedTuple

import orjson
from django.db import models

from ..conf import get_settings, read_rules
from ..sync_rules import CompiledRules, compile_rules
from ..sync_rules.compiled import CompiledPlan, CompiledSource
from ..sync_rules.expressions import SqliteValue
from ..sync_rules.plan import (
    BucketRow,
    LookupKey,
    LookupRow,
    RequestParameters,
    Resolution,
    ResolvedBucket,
    RowEvaluator,
)
from ..sync_rules.queries import RowQuery
from .conditions import Wanted, condition
from .reading import LiveTable, Reader, Values

BucketKey = tuple[int, str]
"""Number of the bucket source and parameters (JSON text)."""

OnRows = Callable[[LiveTable, int], None]
"""Told that so many more rows of a table were read."""

REPORT_ROWS = 2000


class Entry(NamedTuple):
    """An entry of the parameter index, and the row that makes it (`memberships id=7`)."""

    source: int
    key: str
    outputs: str
    row: str


class LocatedRow(NamedTuple):
    """A source row: how people name it, the buckets it is in and the entries it makes."""

    name: str
    buckets: tuple[BucketRow, ...]
    entries: tuple[Entry, ...]


@dataclass(frozen=True)
class Resolved:
    """What a request may have, with the entries of every key that was asked; `problem`: why it is refused as whole."""

    request: RequestParameters
    resolution: Resolution
    entries: Mapping[LookupKey, Sequence[Entry]]
    problem: str | None

    @cached_property
    def buckets(self) -> dict[BucketKey, ResolvedBucket]:
        """The buckets by source and parameters."""
        return {(bucket.source, bucket.parameters): bucket for bucket in self.resolution.buckets}

    def find(self, source: int, _: Mapping[int, SqliteValue], outputs: Mapping[int, SqliteValue]) -> Iterator[Entry]:
        """Those of the entries that belong to an index, and have these outputs by position."""
        positions = tuple(sorted(outputs))
        if (source, positions) not in self._by_outputs:
            found = self._by_outputs.setdefault((source, positions), defaultdict(list))
            for entry in (entry for key, entries in self.entries.items() if key.source == source for entry in entries):
                values = orjson.loads(entry.outputs)
                found[tuple(values[position] for position in positions)].append(entry)
        yield from self._by_outputs[source, positions].get(tuple(outputs[position] for position in positions), ())

    @cached_property
    def _by_outputs(self) -> dict[tuple[int, tuple[int, ...]], dict[tuple[SqliteValue, ...], list[Entry]]]:
        return {}


@dataclass
class Contents:
    """What a bucket holds: number of rows, and bytes of their JSON."""

    rows: int = 0
    bytes: int = 0


@dataclass
class Evaluator:
    """Answers questions about a plan from the tables of the sources, in the layout they have when it is made."""

    plan: CompiledPlan
    aliases: Sequence[str]
    max_buckets: int
    on_rows: OnRows | None = None
    errors: dict[tuple[str, str], int] = field(default_factory=lambda: defaultdict(int))
    """How often a query (by its source's name) left out a row, by message."""

    def __post_init__(self) -> None:
        self.reader = Reader(self.aliases, self.plan)

    @classmethod
    def of_project(cls, *, on_rows: OnRows | None = None) -> Evaluator:
        """For the project's rules and sources. Raises ConfigurationError."""
        settings = get_settings()
        return cls(compile_project_rules().plan, settings.sources, settings.max_buckets, on_rows)

    # Requests

    def resolve(self, request: RequestParameters) -> Resolved:
        """The buckets that a request may have, within the limits of the server."""
        resolving = self.plan.resolve(request)
        found: dict[LookupKey, list[Entry]] = {}
        try:
            keys = next(resolving)
            while True:
                self._look_up(keys, found)
                keys = resolving.send({key: [entry.outputs for entry in found[key]] for key in keys})
        except StopIteration as done:
            resolution: Resolution = done.value
        return Resolved(request, resolution, found, self._problem(resolution, found))

    def _look_up(self, keys: Collection[LookupKey], found: dict[LookupKey, list[Entry]]) -> None:
        """Add the entries of keys."""
        new = [key for key in keys if key not in found]
        found.update((key, []) for key in new)
        for number in dict.fromkeys(key.source for key in new):
            texts = {key.key for key in new if key.source == number}
            for entry in self.entries(number, keys=texts):
                found[LookupKey(number, entry.key)].append(entry)

    def _problem(self, resolution: Resolution, found: Mapping[LookupKey, Sequence[Entry]]) -> str | None:
        results = sum(len(found[key]) for key in resolution.lookups)
        for what, number in (("results of parameter queries", results), ("buckets", len(resolution.buckets))):
            if number > self.max_buckets:
                return f"too many {what}: {number} (MAX_BUCKETS is {self.max_buckets})"
        return None

    # Rows

    def entries(
        self,
        source: int,
        *,
        keys: Collection[str] | None = None,
        key: Mapping[int, SqliteValue] = MappingProxyType({}),
        outputs: Mapping[int, SqliteValue] = MappingProxyType({}),
    ) -> Iterator[Entry]:
        """Entries of a parameter index: with one of the keys; with these values in key and outputs, by position."""
        index = self.plan.indexes[source]

        def wanted(query: RowQuery) -> Wanted:
            return {
                **({} if keys is None else _positions(query.values, keys)),
                **{query.values[position]: [value] for position, value in key.items()},
                **{query.outputs[position]: [value] for position, value in outputs.items()},
            }

        for table, row, _, lookups in self._evaluated(index, wanted):
            for found in lookups:
                if (keys is None or found.key in keys) and _has(found.key, key) and _has(found.outputs, outputs):
                    yield Entry(*found, table.describe_row(row))

    def bucket_rows(
        self, source: int, parameters: Collection[str] | None = None, tables: Collection[LiveTable] | None = None
    ) -> Iterator[tuple[LiveTable, Values, BucketRow]]:
        """Every place of a row in the buckets of a source: in those with the parameters, or in all of them."""

        def wanted(query: RowQuery) -> Wanted:
            return {} if parameters is None else _positions(query.values, parameters)

        for table, row, buckets, _ in self._evaluated(self.plan.buckets[source], wanted, tables):
            for found in buckets:
                if parameters is None or found.parameters in parameters:
                    yield table, row, found

    def rows_of(
        self, buckets: Collection[BucketKey], tables: Collection[LiveTable] | None = None
    ) -> Iterator[tuple[LiveTable, Values, BucketRow]]:
        """Every row (of these tables) that a client with these buckets gets, once for each of its buckets."""
        for source, parameters in by_source(buckets).items():
            yield from self.bucket_rows(source, parameters, tables)

    def contents(self, buckets: Collection[BucketKey]) -> dict[BucketKey, Contents]:
        """How much each of these buckets holds."""
        found = {bucket: Contents() for bucket in buckets}
        for source, parameters in by_source(buckets).items():
            for _, _, row in self.bucket_rows(source, parameters):
                content = found[row.source, row.parameters]
                content.rows += 1
                content.bytes += len(row.data.encode())
        return found

    def locate(self, instance: models.Model) -> LocatedRow | None:
        """Where a model's row is; None if there is no such row, or if no rule reads its table."""
        table, values = self.reader.find(instance)
        if table is None or values is None:
            return None
        buckets, lookups = self._function(table, None)(values)
        name = table.describe_row(values)
        return LocatedRow(name, tuple(buckets), tuple(Entry(*lookup, name) for lookup in lookups))

    def tables_of(self, source: CompiledSource) -> list[LiveTable]:
        """The tables that a source reads."""
        return [
            table for table in self.reader.tables if any(query.table.matches(table.name) for query in source.queries)
        ]

    def _evaluated(
        self,
        source: CompiledSource,
        wanted: Callable[[RowQuery], Wanted],
        tables: Collection[LiveTable] | None = None,
    ) -> Iterator[tuple[LiveTable, Values, list[BucketRow], list[LookupRow]]]:
        """Rows that may matter to a source, with what the plan makes of them for it."""
        for table in self.tables_of(source):
            if tables is not None and table not in tables:
                continue
            evaluate = self._function(table, source)
            queries = [query for query in source.queries if query.table.matches(table.name)]
            # Several queries of one table (as variants make them) are read together, since a row may be in both.
            where = condition(wanted(queries[0]), table.columns) if len(queries) == 1 else None
            read = 0
            for read, values in enumerate(self.reader.rows(table, where), 1):
                yield table, values, *evaluate(values)
                if self.on_rows and read % REPORT_ROWS == 0:
                    self.on_rows(table, REPORT_ROWS)
            if self.on_rows:
                self.on_rows(table, read % REPORT_ROWS)

    def _function(self, table: LiveTable, source: CompiledSource | None) -> RowEvaluator:
        only = None if source is None else [source.identity]
        return self.plan.row_evaluator(table.name, table.columns, self._on_error, only=only)

    def _on_error(self, name: str, message: str) -> None:
        self.errors[name, message] += 1


def compile_project_rules() -> CompiledRules:
    """The rules that are served. Raises ConfigurationError, of which RulesError is one."""
    return compile_cached(read_rules(get_settings()))


def compile_cached(rules: str | Mapping[str, Any]) -> CompiledRules:
    """Compile rules, the same ones only once. Raises RulesError."""
    return _compile_text(rules) if isinstance(rules, str) else compile_rules(rules)


@lru_cache(maxsize=4)
def _compile_text(rules: str) -> CompiledRules:
    return compile_rules(rules)


def by_source(buckets: Collection[BucketKey]) -> dict[int, set[str]]:
    """Parameters of buckets by the number of their source."""
    found: dict[int, set[str]] = defaultdict(set)
    for source, parameters in buckets:
        found[source].add(parameters)
    return found


def _positions(values: Sequence[Any], texts: Collection[str]) -> Wanted:
    """The values that a query's expressions must have, from JSON texts; none where one of these is a hash."""
    rows = [orjson.loads(text) for text in texts]
    if any(isinstance(value, dict) for row in rows for value in row):
        return {}
    return {expr: [row[position] for row in rows] for position, expr in enumerate(values)}


def _has(text: str, wanted: Mapping[int, SqliteValue]) -> bool:
    if not wanted:
        return True
    values = orjson.loads(text)
    if any(isinstance(value, dict) for value in values):
        return True  # the hash of a key that is too long: it may be the one
    return all(values[position] == value for position, value in wanted.items())
