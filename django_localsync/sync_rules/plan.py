"""What compiled sync rules are: pure functions over rows and requests, and the values they exchange.

A plan is three functions (after PowerSync's sync config, docs/reference/wire-protocol.md):

* a replicated row → the buckets it is in, and the JSON each holds   (`RowEvaluator`)
* a replicated row → entries of the parameter index ("lookups")      (`RowEvaluator`)
* a client's request → the buckets it may have, in lookup stages     (`Plan.resolve`)

The first two run once per replicated row, as generated code; they work on plain tuples for that reason.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from ..pgoutput.values import PgType

MAX_PARAMETERS_LENGTH = 512
"""Longest text of bucket parameters or of a lookup key; a longer one is replaced by its hash, to fit an index."""


@dataclass(frozen=True, slots=True, order=True)
class TableName:
    """A table's schema and name, as Postgres has them."""

    schema: str
    name: str

    def __str__(self) -> str:
        return f"{self.schema}.{self.name}"


_SYSTEM_SCHEMAS = ("pg_", "information_schema")
_OWN_TABLES = "localsync_"


@dataclass(frozen=True, slots=True, order=True)
class TablePattern:
    """What rules name: a schema and a table, each of which may end in `%` and then stands for any ending.

    A wildcard never means a system schema, nor the tables of django_localsync itself.
    """

    schema: str
    name: str

    @property
    def is_exact(self) -> bool:
        """Whether it means one table."""
        return not (self.schema.endswith("%") or self.name.endswith("%"))

    def matches(self, table: TableName) -> bool:
        """Whether the table is meant."""
        if self.is_exact:
            return (self.schema, self.name) == (table.schema, table.name)
        if table.schema.startswith(_SYSTEM_SCHEMAS) or table.name.startswith(_OWN_TABLES):
            return False
        return _fits(self.schema, table.schema) and _fits(self.name, table.name)

    def suffix(self, table: TableName) -> str:
        """What the `%` of the table's name stands for."""
        return table.name[len(self.name) - 1 :] if self.name.endswith("%") else ""

    def __str__(self) -> str:
        return f"{self.schema}.{self.name}"


def _fits(pattern: str, name: str) -> bool:
    return name.startswith(pattern[:-1]) if pattern.endswith("%") else name == pattern


class Column(NamedTuple):
    """A column of a replicated table, in the order of its tuples."""

    name: str
    type: PgType


class BucketRow(NamedTuple):
    """A row's place in one bucket: which bucket source, its parameters as JSON text (`["u1"]`), and the row."""

    source: int  # index into Plan.bucket_sources
    parameters: str
    row_type: str
    row_id: str
    data: str


class LookupRow(NamedTuple):
    """One entry of the parameter index: its source, the key and the outputs, both as JSON array text."""

    source: int  # index into Plan.lookup_sources
    key: str
    outputs: str


class RowEvaluator(Protocol):
    """Generated once per plan and table layout.

    `values` are Postgres's texts in column order (None for NULL). Answers the row's buckets and lookups, each
    without duplicates: one entry for a bucket, row type and id, and one for a key and outputs. Errors of single
    queries go to `on_error(name of the source, message)`; the row is then left out of that query only.
    """

    def __call__(self, values: Sequence[str | None]) -> tuple[list[BucketRow], list[LookupRow]]: ...


@dataclass(frozen=True, slots=True)
class BucketSource:
    """A family of buckets that differ only in their parameters: `mine|0`, or an old-style definition.

    `identity` is a hash (hex) of everything that decides which rows with which JSON are in which bucket: equal
    identities mean equal content, so buckets survive a change of other rules.
    """

    name: str
    identity: str


@dataclass(frozen=True, slots=True)
class LookupSource:
    """One parameter index; `identity` as in BucketSource.

    With `gives_receipts` it is none that requests ask: the outputs of its entries are write checkpoints (user id,
    client id, number), made by the event write_checkpoints.
    """

    name: str
    identity: str
    gives_receipts: bool = False


class LookupKey(NamedTuple):
    """What a request asks of the parameter index."""

    source: int
    key: str


@dataclass(frozen=True, slots=True)
class Subscription:
    """A client's explicit subscription to a stream; its index in the request is its identity."""

    stream: str
    parameters: Mapping[str, Any]
    override_priority: int | None = None


@dataclass(frozen=True, slots=True)
class RequestParameters:
    """Everything the rules may ask of a request: claims of the token, and what the client says of itself."""

    claims: Mapping[str, Any]
    connection: Mapping[str, Any] = field(default_factory=dict)
    subscriptions: Sequence[Subscription] = ()
    include_defaults: bool = True


DEFAULT = "default"
Reason = tuple[str, int]
"""Why a client has a bucket: ("default", index into Resolution.streams) or ("sub", index of the subscription)."""


@dataclass(frozen=True, slots=True)
class ResolvedBucket:
    """A bucket the request may have; `priority` is 0 … 3, the smallest of all reasons."""

    source: int
    parameters: str
    priority: int
    reasons: tuple[Reason, ...]


@dataclass(frozen=True, slots=True)
class StreamError:
    """A subscription that could not be evaluated; `subscription` is its index, or "default"."""

    subscription: int | str
    message: str


@dataclass(frozen=True, slots=True)
class ResolvedStream:
    """A stream (or old-style definition) the client is subscribed to."""

    name: str
    is_default: bool
    errors: tuple[StreamError, ...] = ()


@dataclass(frozen=True, slots=True)
class Resolution:
    """What a request may have at one checkpoint. `lookups` are all keys it depends on (I5)."""

    buckets: tuple[ResolvedBucket, ...]
    streams: tuple[ResolvedStream, ...]
    lookups: frozenset[LookupKey]


LookupResults = Mapping[LookupKey, Sequence[str]]
"""For each asked key the outputs (JSON array texts) of every entry; a key without entries may be absent."""

Resolving = Generator[Sequence[LookupKey], LookupResults, Resolution]
"""Yields the keys of one lookup stage, is sent their entries, returns the resolution."""

OnError = Callable[[str, str], None]


class Plan(Protocol):
    """Compiled sync rules. Immutable, safe to share between threads."""

    @property
    def bucket_sources(self) -> Sequence[BucketSource]:
        """Every family of buckets; rows name them by index."""

    @property
    def lookup_sources(self) -> Sequence[LookupSource]:
        """Every parameter index; lookups name them by index."""

    @property
    def identity(self) -> str:
        """Hash (hex) of the whole plan, requests included."""

    @property
    def format(self) -> int:
        """The format of the operations that it makes; see formats.py."""

    @property
    def tables(self) -> frozenset[TablePattern]:
        """All tables and wildcards that the rules read."""

    def uses(self, table: TableName) -> bool:
        """Whether any rule reads this table."""

    def row_evaluator(
        self,
        table: TableName,
        columns: Sequence[Column],
        on_error: OnError,
        *,
        only: Collection[str] | None = None,
        numbers: Mapping[str, int] | None = None,
    ) -> RowEvaluator:
        """Generate the function for a table of this layout.

        With `only`, it answers for the bucket sources and lookup sources of these identities alone; the others give
        nothing, cost nothing and report nothing. `numbers` says by identity what sources are called in the answer;
        without it they are called by their index.

        A query of which a condition or parameter names a column that the table lacks gives nothing, and is reported
        to `on_error` at once: access must not widen because a column is gone. In a select list it reads as NULL.
        """

    def sources_of(self, table: TableName) -> frozenset[str]:
        """Identities of the bucket and lookup sources that read this table."""

    def used_columns(
        self, table: TableName, columns: Sequence[Column], *, only: Collection[str] | None = None
    ) -> frozenset[int]:
        """Positions of the columns that any rule reads; with `only`, any source of these identities."""

    def missing_columns(self, table: TableName, columns: Sequence[Column]) -> Mapping[str, Sequence[str]]:
        """Columns that rules name but the table lacks, by the name of the bucket or lookup source."""

    def resolve(self, request: RequestParameters) -> Resolving:
        """The buckets of a request, asked stage by stage. Never raises for a bad parameter of a client."""
