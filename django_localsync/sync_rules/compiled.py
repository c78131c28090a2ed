"""A compiled plan: the queries of all definitions, by table for rows and by definition for requests."""

from __future__ import annotations

from collections.abc import Collection, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType

from ..exceptions import EvaluationError
from ..pgoutput.values import ValueOptions
from .plan import (
    DEFAULT,
    BucketSource,
    Column,
    LookupKey,
    LookupResults,
    LookupSource,
    OnError,
    Reason,
    RequestParameters,
    Resolution,
    ResolvedBucket,
    ResolvedStream,
    Resolving,
    RowEvaluator,
    StreamError,
    TableName,
    TablePattern,
)
from .queriers import QuerierProgram
from .queries import CompiledDefinition, RowQuery, identity
from .request_values import RequestValues
from .rows import SourceQuery, missing_columns, row_evaluator, used_positions

_PRIORITIES = (0, 1, 2, 3)
_EVALUATION_FAILED = "the subscription could not be evaluated"


@dataclass(frozen=True, slots=True)
class CompiledSource:
    """A bucket source or lookup source with its queries."""

    name: str
    identity: str
    queries: tuple[RowQuery, ...]
    gives_receipts: bool = False


@dataclass(frozen=True)
class CompiledPlan:
    """Implements `plan.Plan`."""

    definitions: tuple[CompiledDefinition, ...]
    buckets: tuple[CompiledSource, ...]
    indexes: tuple[CompiledSource, ...]
    options: ValueOptions = field(default_factory=ValueOptions)
    format: int = 1

    @cached_property
    def bucket_sources(self) -> Sequence[BucketSource]:
        """The families of buckets."""
        return tuple(BucketSource(source.name, source.identity) for source in self.buckets)

    @cached_property
    def lookup_sources(self) -> Sequence[LookupSource]:
        """The parameter indexes."""
        return tuple(LookupSource(source.name, source.identity, source.gives_receipts) for source in self.indexes)

    @cached_property
    def identity(self) -> str:
        """Hash (hex) of the whole plan, requests included."""
        sources = [source.identity for source in (*self.buckets, *self.indexes)]
        return identity(sources, self.definitions)

    @cached_property
    def tables(self) -> frozenset[TablePattern]:
        """All tables and wildcards that the rules read."""
        return frozenset(query.table for source in (*self.buckets, *self.indexes) for query in source.queries)

    def uses(self, table: TableName) -> bool:
        """Whether any rule reads this table."""
        return any(pattern.matches(table) for pattern in self.tables)

    def row_evaluator(
        self,
        table: TableName,
        columns: Sequence[Column],
        on_error: OnError,
        *,
        only: Collection[str] | None = None,
        numbers: Mapping[str, int] | None = None,
    ) -> RowEvaluator:
        """Generate the function for a table of this layout; see `rows.row_evaluator`."""
        return row_evaluator(table, columns, self._queries(table, only, numbers or {}), self.options, on_error)

    def sources_of(self, table: TableName) -> frozenset[str]:
        """Identities of the bucket and lookup sources that read this table."""
        return frozenset(
            source.identity
            for source in (*self.buckets, *self.indexes)
            if any(query.table.matches(table) for query in source.queries)
        )

    def used_columns(
        self, table: TableName, columns: Sequence[Column], *, only: Collection[str] | None = None
    ) -> frozenset[int]:
        """Positions of the columns that any rule reads; with `only`, any source of these identities."""
        return frozenset().union(*(used_positions(item.query, columns) for item in self._queries(table, only)))

    def missing_columns(self, table: TableName, columns: Sequence[Column]) -> Mapping[str, Sequence[str]]:
        """Columns that rules name but the table lacks, by the name of the bucket or lookup source."""
        found = {item.name: missing_columns(item.query, columns) for item in self._queries(table)}
        return {name: missing for name, missing in found.items() if missing}

    def _queries(
        self, table: TableName, only: Collection[str] | None = None, numbers: Mapping[str, int] = MappingProxyType({})
    ) -> list[SourceQuery]:
        return [
            SourceQuery(numbers.get(source.identity, number), source.name, query)
            for sources in (self.buckets, self.indexes)
            for number, source in enumerate(sources)
            if only is None or source.identity in only
            for query in source.queries
            if query.table.matches(table)
        ]

    @cached_property
    def _programs(self) -> Mapping[str, Sequence[QuerierProgram]]:
        return {
            definition.name: tuple(QuerierProgram(querier) for querier in definition.queriers)
            for definition in self.definitions
        }

    def resolve(self, request: RequestParameters) -> Resolving:
        """The buckets of a request, asked stage by stage. Never raises for a bad parameter of a client."""
        tasks: list[_Task] = []
        streams: list[tuple[str, bool]] = []
        for definition in self.definitions:
            is_default = definition.always or (definition.auto_subscribe and request.include_defaults)
            explicit = [index for index, asked in enumerate(request.subscriptions) if asked.stream == definition.name]
            if not is_default and not explicit:
                continue
            number, programs = len(streams), self._programs[definition.name]
            streams.append((definition.name, is_default))
            if is_default:
                values = RequestValues(request, {})
                tasks += [_Task(number, (DEFAULT, number), program, values, None) for program in programs]
            for index in explicit:
                asked = request.subscriptions[index]
                values, priority = RequestValues(request, asked.parameters), asked.override_priority
                tasks += [_Task(number, ("sub", index), program, values, priority) for program in programs]
        lookups = yield from _run(tasks)
        return Resolution(_buckets(tasks), _streams(streams, tasks), lookups)


class _Task:
    """One querier of one subscription, on its way."""

    def __init__(
        self, stream: int, reason: Reason, program: QuerierProgram, values: RequestValues, priority: int | None
    ) -> None:
        self.stream, self.reason = stream, reason
        self.bucket = program.querier.bucket
        self.priority = priority if priority in _PRIORITIES else program.querier.priority
        self.parameters: list[str] = []
        self.error: str | None = None
        self._running = program.run(values)

    def advance(self, results: LookupResults | None) -> Sequence[LookupKey]:
        """Go on with the entries of the keys asked last; the keys asked next, none when it has ended."""
        try:
            return next(self._running) if results is None else self._running.send(results)
        except StopIteration as stop:
            self.parameters = stop.value
        except EvaluationError as error:
            self.error = str(error)
        except Exception:
            # What a client sends must not end its stream, nor may it read what went wrong in here.
            self.error = _EVALUATION_FAILED
        return ()


def _run(tasks: Sequence[_Task]) -> Generator[Sequence[LookupKey], LookupResults, frozenset[LookupKey]]:
    """Advance all tasks together, stage by stage; all keys they asked."""
    lookups: set[LookupKey] = set()
    waiting = [(task, keys) for task in tasks if (keys := task.advance(None))]
    while waiting:
        asked = list(dict.fromkeys(key for _, keys in waiting for key in keys))
        lookups.update(asked)
        results = yield asked
        waiting = [(task, keys) for task, _ in waiting if (keys := task.advance(results))]
    return frozenset(lookups)


def _buckets(tasks: Sequence[_Task]) -> tuple[ResolvedBucket, ...]:
    found: dict[tuple[int, str], ResolvedBucket] = {}
    for task in tasks:
        for parameters in task.parameters:
            key = (task.bucket, parameters)
            known = found.get(key)
            if known is None:
                found[key] = ResolvedBucket(task.bucket, parameters, task.priority, (task.reason,))
            else:
                reasons = known.reasons if task.reason in known.reasons else (*known.reasons, task.reason)
                found[key] = ResolvedBucket(*key, min(known.priority, task.priority), reasons)
    return tuple(found.values())


def _streams(streams: Sequence[tuple[str, bool]], tasks: Sequence[_Task]) -> tuple[ResolvedStream, ...]:
    errors: dict[int, dict[StreamError, None]] = {}
    for task in tasks:
        if task.error is not None:
            kind, index = task.reason
            subscription = DEFAULT if kind == DEFAULT else index
            errors.setdefault(task.stream, {})[StreamError(subscription, task.error)] = None
    return tuple(
        ResolvedStream(name, is_default, tuple(errors.get(number, ())))
        for number, (name, is_default) in enumerate(streams)
    )
