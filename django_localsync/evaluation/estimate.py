"""Estimates before deploying: buckets for each user, rows for each bucket, from the live tables.

Every row of the tables that rules use is read once and counted in a temporary SQLite database, which goes to disk
where it does not fit its cache: memory stays bounded however many rows and buckets there are, and the figures are
exact.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any, cast

from django.db import connections

from ..sync_rules.plan import LookupKey, RequestParameters, Resolution
from .conditions import plain_column
from .evaluator import Evaluator
from .reading import LiveTable

BATCH = 100_000  # buckets that are counted in memory before they are added to the database: some 30 MB
CACHE_KIB = 64 * 1024

OnUsers = Callable[[int], None]
"""Told how many users were counted so far."""


@dataclass(frozen=True, slots=True)
class Spread:
    """How a quantity is spread over `count` users or buckets."""

    count: int
    total: int
    median: int
    p99: int
    max: int
    greatest: str | None
    """Which user or bucket has the maximum."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a deployment of the rules would hold. `beyond_limit`: users whom the server would refuse."""

    buckets_per_user: Spread
    rows_per_user: Spread
    lookups_per_user: Spread
    rows_per_bucket: Mapping[str, Spread]
    bytes_total: int
    beyond_limit: int
    max_buckets: int


def estimate(
    evaluator: Evaluator,
    requests: Callable[[], Iterable[RequestParameters]],
    on_users: OnUsers | None = None,
    *,
    rows: bool = True,
) -> Estimate:
    """Count all buckets, and what each request would get. `requests` is called after the tables were read.

    Without `rows` only the tables are read that are looked up.
    """
    with closing(_Store()) as store:
        _read_tables(evaluator, store, rows)
        beyond, users = 0, 0
        for users, request in enumerate(requests(), 1):
            buckets, results, held = store.resolve(evaluator, request)
            beyond += max(buckets, results) > evaluator.max_buckets
            store.add_user(str(request.claims["sub"]), buckets, results, held)
            if on_users and users % 100 == 0:
                on_users(users)
        if on_users:
            on_users(users)
        names = [source.name for source in evaluator.plan.buckets]
        return Estimate(
            store.spread("SELECT buckets AS n, name FROM users"),
            store.spread("SELECT rows AS n, name FROM users"),
            store.spread("SELECT results AS n, name FROM users"),
            {name: store.spread_of_buckets(number, name) for number, name in enumerate(names)},
            store.total_bytes(),
            beyond,
            evaluator.max_buckets,
        )


@dataclass(frozen=True, slots=True)
class CommonKey:
    """The most common key of a lookup by Postgres's statistics: about so many rows of a table have one value."""

    definition: str
    table: LiveTable
    column: str
    rows: int


_MOST_COMMON = """
    SELECT most_common_freqs[1] FROM pg_stats
     WHERE schemaname = %s AND tablename = %s AND attname = %s AND NOT inherited
"""


def most_common_keys(evaluator: Evaluator) -> Iterator[CommonKey]:
    """How many rows the most common key of each lookup has, where that is a column of an analysed table."""
    for definition in evaluator.plan.definitions:
        for number in dict.fromkeys(step.source for querier in definition.queriers for step in querier.steps):
            index = evaluator.plan.indexes[number]
            for query, table in ((query, table) for query in index.queries for table in evaluator.tables_of(index)):
                columns = {column.name for value in query.values if (column := plain_column(value)[0])}
                if query.filters or len(query.values) != 1 or not columns or not query.table.matches(table.name):
                    continue
                (column_name,) = columns
                with connections[table.alias].cursor() as cursor:
                    cursor.execute(_MOST_COMMON, [table.name.schema, table.name.name, column_name])
                    row = cursor.fetchone()
                if row and row[0]:
                    yield CommonKey(definition.name, table, column_name, round(row[0] * table.estimated_rows))


def _read_tables(evaluator: Evaluator, store: _Store, rows: bool) -> None:
    for number, _ in enumerate(evaluator.plan.buckets if rows else ()):
        found = ((row.parameters, len(row.data.encode())) for _, _, row in evaluator.bucket_rows(number))
        store.add_rows(number, found)
    for number, _ in enumerate(evaluator.plan.indexes):
        store.add_entries((number, entry.key, entry.outputs) for entry in evaluator.entries(number))
    store.index()


class _Store:
    """The temporary database."""

    def __init__(self) -> None:
        self._database = sqlite3.connect("", isolation_level=None)  # private, on disk, gone when it is closed
        self._database.executescript(f"""
            PRAGMA journal_mode = OFF;
            PRAGMA synchronous = OFF;
            PRAGMA cache_size = -{CACHE_KIB};
            CREATE TABLE buckets (source, parameters, rows, bytes, PRIMARY KEY (source, parameters)) WITHOUT ROWID;
            CREATE TABLE entries (source, key, outputs);
            CREATE TABLE users (name, buckets, results, rows);
        """)

    def close(self) -> None:
        """Delete it."""
        self._database.close()

    def add_rows(self, source: int, rows: Iterable[tuple[str, int]]) -> None:
        """Count rows of the buckets of a source: parameters and bytes of each."""
        counted: dict[str, list[int]] = {}
        for parameters, size in rows:
            count = counted.get(parameters)
            if count is None:
                if len(counted) >= BATCH:
                    self._save(source, counted)
                counted[parameters] = [1, size]
            else:
                count[0] += 1
                count[1] += size
        self._save(source, counted)

    def _save(self, source: int, counted: dict[str, list[int]]) -> None:
        self._database.executemany(
            "INSERT INTO buckets VALUES (?, ?, ?, ?) ON CONFLICT DO UPDATE"
            " SET rows = rows + excluded.rows, bytes = bytes + excluded.bytes",
            sorted((source, parameters, *count) for parameters, count in counted.items()),
        )
        counted.clear()

    def add_entries(self, entries: Iterable[tuple[int, str, str]]) -> None:
        """Remember entries of the parameter index."""
        self._database.executemany("INSERT INTO entries VALUES (?, ?, ?)", entries)

    def index(self) -> None:
        """Everything was read."""
        self._database.execute("CREATE INDEX entries_by_key ON entries (source, key)")

    def resolve(self, evaluator: Evaluator, request: RequestParameters) -> tuple[int, int, int]:
        """Buckets, results of lookups, and rows of a request."""
        resolving = evaluator.plan.resolve(request)
        results = 0
        try:
            keys = next(resolving)
            while True:
                found = {key: self._entries(key) for key in keys}
                results += sum(map(len, found.values()))
                keys = resolving.send(found)
        except StopIteration as done:
            resolution = cast(Resolution, done.value)
        rows = sum(self._rows(bucket.source, bucket.parameters) for bucket in resolution.buckets)
        return len(resolution.buckets), results, rows

    def _entries(self, key: LookupKey) -> list[str]:
        found = self._database.execute("SELECT outputs FROM entries WHERE source = ? AND key = ?", key)
        return [outputs for (outputs,) in found]

    def _rows(self, source: int, parameters: str) -> int:
        query = "SELECT rows FROM buckets WHERE source = ? AND parameters = ?"
        row = self._database.execute(query, (source, parameters)).fetchone()
        return row[0] if row else 0

    def add_user(self, name: str, buckets: int, results: int, rows: int) -> None:
        """Remember what a user would get."""
        self._database.execute("INSERT INTO users VALUES (?, ?, ?, ?)", (name, buckets, results, rows))

    def spread_of_buckets(self, source: int, name: str) -> Spread:
        """How rows are spread over the buckets of a source."""
        return self.spread("SELECT rows AS n, ? || parameters FROM buckets WHERE source = ?", (name, source))

    def spread(self, query: str, values: Sequence[Any] = ()) -> Spread:
        """How the numbers `n` are spread that a query gives, each with a name."""
        count, total = self._one(f"SELECT count(*), coalesce(sum(n), 0) FROM ({query})", values)
        if not count:
            return Spread(0, 0, 0, 0, 0, None)
        at = [self._at(query, values, position) for position in ((count - 1) // 2, -(-count * 99 // 100) - 1)]
        greatest, name = self._at_end(query, values)
        return Spread(count, total, at[0], at[1], greatest, name)

    def _at(self, query: str, values: Sequence[Any], position: int) -> int:
        found = self._one(f"{query} ORDER BY 1 LIMIT 1 OFFSET {position}", values)
        return int(found[0])

    def _at_end(self, query: str, values: Sequence[Any]) -> tuple[int, str]:
        found = self._one(f"{query} ORDER BY 1 DESC LIMIT 1", values)
        return int(found[0]), str(found[1])

    def total_bytes(self) -> int:
        """Bytes of all rows in all buckets."""
        return int(self._one("SELECT coalesce(sum(bytes), 0) FROM buckets", ())[0])

    def _one(self, query: str, values: Sequence[Any]) -> tuple[Any, ...]:
        row: tuple[Any, ...] = self._database.execute(query, values).fetchone()
        return row
