"""Reads bucket storage for sync streams: a client's checkpoint, and pages of a bucket's operations.

A checkpoint is everything a client may have: it is read in one snapshot (I2, I5), in one round trip plus one for each
lookup stage of the rules, through an async pool of connections made from the Django alias's own parameters. Statements
that need no answer in between travel together as one text, their values escaped by libpq: psycopg's pipeline mode
costs five times as much.
"""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import orjson
from django.db import connections
from psycopg import AsyncClientCursor, AsyncConnection, OperationalError
from psycopg.errors import UndefinedColumn, UndefinedTable
from psycopg_pool import AsyncConnectionPool, PoolTimeout

from ..buckets.announcement import BucketTotals, bucket_digest, lookup_digest, write_checkpoint_digest
from ..buckets.operation import OpId
from ..exceptions import LimitExceeded, RequestError
from ..protocol.lines import StoredOperation, StreamInfo
from ..protocol.session import ServedBucket, ServedCheckpoint
from ..sync_rules.formats import unknown_format
from ..sync_rules.plan import LookupKey, LookupResults, Plan, RequestParameters, Resolution
from .notifications import Interests
from .planning import sized

POOL_TIMEOUT_S = 5.0
PAGE_OPERATIONS = 1000
PAGE_BYTES = 512 << 10  # of row data; a page ends with the operation that reaches it. Daphne sends no message of 1 MiB

Connection = AsyncConnection[tuple[Any, ...]]
PlanFor = Callable[[str, int], Plan]
"""Compiles the text of a rule set, whose operations have a format."""


@dataclass(frozen=True, slots=True)
class Client:
    """Whose checkpoint is read: the user and device a write checkpoint is for, and what the rules may ask."""

    user_key: str
    client_id: str
    parameters: RequestParameters


@dataclass(frozen=True, slots=True)
class ServedRules:
    """The active rule set: its compiled plan, and the ids its bucket and lookup sources have in storage.

    `names` are those that definitions were made with: a stream that is renamed keeps its buckets, and their names.
    """

    id: int
    plan: Plan
    bucket_definitions: tuple[int, ...]
    lookup_definitions: tuple[int, ...]
    names: Mapping[int, str]


@dataclass(frozen=True, slots=True)
class Reading:
    """A client's checkpoint, and what must change in storage for another one to be read."""

    checkpoint: ServedCheckpoint
    interests: Interests


class _Found(NamedTuple):
    """A bucket as storage has it; its id is None where it does not exist yet."""

    id: int | None
    generation: int
    totals: BucketTotals


NOT_FOUND = _Found(None, 0, BucketTotals(0, 0, 0))


class StorageReader:
    """Reads the bucket storage of one Django alias, in one event loop.

    Every method raises psycopg's OperationalError while the database cannot be reached.
    """

    def __init__(self, alias: str, *, plan_for: PlanFor, pool_size: int, max_buckets: int) -> None:
        self._plan_for, self._max_buckets = plan_for, max_buckets
        self._pool = AsyncConnectionPool[Connection](
            kwargs=_pool_parameters(alias),
            min_size=1,
            max_size=max(1, pool_size),
            timeout=POOL_TIMEOUT_S,
            open=False,
        )
        self._turns = asyncio.Semaphore(max(1, pool_size))  # waiting for a turn is no outage, however long
        self._rules: ServedRules | None = None
        self._loading = asyncio.Lock()
        self._readings: set[asyncio.Task[Reading]] = set()

    async def open(self) -> None:
        """Begin to make connections."""
        await self._pool.open()

    async def close(self) -> None:
        """Close all connections."""
        await self._pool.close()

    async def read_checkpoint(self, client: Client) -> Reading:
        """What the client may have at the newest checkpoint.

        Raises LimitExceeded (500 PSYNC_S2305) for too many buckets or parameter results and RequestError
        (PSYNC_S2302) when no rules are active (500), or they are of a format that this release does not know (503).

        A caller that is cancelled leaves the read to end by itself: to break it off would cost another connection.
        """
        await self._turns.acquire()
        reading = asyncio.create_task(self._read_again(client))
        self._readings.add(reading)
        reading.add_done_callback(self._end_turn)
        return await asyncio.shield(reading)

    def _end_turn(self, reading: asyncio.Task[Reading]) -> None:
        self._turns.release()
        self._readings.discard(reading)
        if not reading.cancelled():
            reading.exception()  # seen: whoever asked may have gone away

    async def _read_again(self, client: Client) -> Reading:
        """Read, a second time where the server was restarted meanwhile."""
        try:
            return await self._read_checkpoint(client)
        except OperationalError:
            await self._pool.check()  # the server may have been restarted since; see whether it is back
            return await self._read_checkpoint(client)

    async def _read_checkpoint(self, client: Client) -> Reading:
        while True:
            rules = self._rules or await self._load_rules()
            reading = await self._read(rules, client)
            if reading is not None:
                return reading
            if self._rules is rules:
                self._rules = None  # another rule set has become active

    BEGIN = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"
    # Primary keys throughout. I7: every source has passed the position that the receipt stands for.
    HEAD = """
        SELECT checkpoint.op_id, checkpoint.incarnation, receipt.number
          FROM localsync_checkpoint AS checkpoint
          JOIN localsync_rule_set AS rule_set ON rule_set.id = %s AND rule_set.state = 'active'
          LEFT JOIN localsync_write_checkpoint AS receipt
            ON receipt.user_key = %s AND receipt.client_id = %s
           AND NOT EXISTS (SELECT FROM jsonb_each_text(receipt.positions) AS position (alias, lsn)
                             JOIN localsync_source AS source ON source.alias = position.alias
                            WHERE source.lsn < position.lsn::bigint)
    """
    # Index (definition_id, key, …).
    LOOK_UP = """
        SELECT wanted.n, lookup.outputs
          FROM (SELECT * FROM json_to_recordset(%s::json) AS wanted (n integer, d bigint, k text) LIMIT ALL) AS wanted
          JOIN localsync_parameter_lookup AS lookup
            ON lookup.definition_id = wanted.d AND lookup.key = wanted.k AND lookup.pending <> 1
         LIMIT %s
    """
    # Unique index (definition_id, parameters).
    TOTALS = """
        SELECT wanted.n, bucket.id, bucket.generation, bucket.operations, bucket.checksum, bucket.last_op_id
          FROM (SELECT * FROM json_to_recordset(%s::json) AS wanted (n integer, d bigint, p text) LIMIT ALL) AS wanted
          JOIN localsync_bucket AS bucket ON bucket.definition_id = wanted.d AND bucket.parameters = wanted.p
    """

    async def _read(self, rules: ServedRules, client: Client) -> Reading | None:
        """One snapshot; None when these rules are not the active ones (any more)."""
        async with self._pool.connection() as connection:
            batch = _Batch(connection)
            batch.add(self.BEGIN)
            batch.add(self.HEAD, rules.id, client.user_key, client.client_id)
            resolution = await self._resolve(batch, rules, client.parameters)
            batch.add(sized(self.TOTALS, len(resolution.buckets)), _ask_for_totals(rules, resolution))
            batch.add("COMMIT")
            _, head, *_, found, _ = await batch.run()
        if not head:
            return None
        ((op_id, incarnation, write_checkpoint),) = head
        totals = {number: _Found(id_, generation, BucketTotals(*counts)) for number, id_, generation, *counts in found}
        buckets = _name_buckets(rules, incarnation, resolution, totals)
        checkpoint = ServedCheckpoint(rules.id, OpId(op_id), buckets, _describe_streams(resolution), write_checkpoint)
        return Reading(checkpoint, _find_interests(rules, client, resolution, totals))

    async def _resolve(self, batch: _Batch, rules: ServedRules, request: RequestParameters) -> Resolution:
        """The client's buckets, asked of the parameter index stage by stage. Raises LimitExceeded."""
        resolving = rules.plan.resolve(request)
        results = Counter[str]()
        try:
            keys = next(resolving)
            while True:
                found = await self._look_up(batch, rules, keys)
                for key, entries in found.items():
                    results[rules.plan.lookup_sources[key.source].name] += len(entries)
                if results.total() > self._max_buckets:
                    raise _too_many("results of parameter queries", results, self._max_buckets)
                keys = resolving.send(found)
        except StopIteration as done:
            resolution = cast(Resolution, done.value)
        if len(resolution.buckets) > self._max_buckets:
            names = Counter(rules.plan.bucket_sources[bucket.source].name for bucket in resolution.buckets)
            raise _too_many("buckets", names, self._max_buckets)
        return resolution

    async def _look_up(self, batch: _Batch, rules: ServedRules, keys: Sequence[LookupKey]) -> LookupResults:
        found: dict[LookupKey, list[str]] = {}
        if not keys:
            return found
        wanted = [{"n": n, "d": rules.lookup_definitions[source], "k": key} for n, (source, key) in enumerate(keys)]
        batch.add(sized(self.LOOK_UP, len(wanted)), _json(wanted), self._max_buckets + 1)
        for number, outputs in (await batch.run())[-1]:
            found.setdefault(keys[number], []).append(outputs)
        return found

    # One statement: rule sets are swapped in one transaction.
    RULES = """
        SELECT id, rules, format, (SELECT json_agg(json_build_array(kind, identity, id, name))
                             FROM localsync_definition WHERE state = 'served')
          FROM localsync_rule_set WHERE state = 'active'
    """

    async def check_rules(self) -> None:
        """Find out whether anything can be served now.

        Raises RequestError as `read_checkpoint` does where no rules are active, or not of a known format.
        """
        async with self._turns:
            try:
                await self._check_rules()
            except PoolTimeout:
                raise  # nobody has answered for long enough
            except OperationalError:
                await self._pool.check()  # as in _read_again
                await self._check_rules()

    async def _check_rules(self) -> None:
        if (rules := self._rules) is not None:
            async with self._pool.connection() as connection:
                active = await (await connection.execute(self.ACTIVE, (rules.id,))).fetchone()
            if active is None and self._rules is rules:
                self._rules = None
        await self._load_rules()

    ACTIVE = "SELECT FROM localsync_rule_set WHERE id = %s AND state = 'active'"

    async def _load_rules(self) -> ServedRules:
        async with self._loading:
            if self._rules is None:
                self._rules = await self._read_rules()
            return self._rules

    async def _read_rules(self) -> ServedRules:
        try:
            async with self._pool.connection() as connection:
                active = await (await connection.execute(self.RULES)).fetchone()
        except (UndefinedTable, UndefinedColumn):
            raise _not_served("bucket storage is not migrated; run `manage.py migrate`") from None
        if active is None:
            raise _not_served("no sync rules are active yet; run `manage.py run_replicator`")
        rule_set, text, format_, definitions = active
        if problem := unknown_format(format_):
            raise RequestError(problem, status=503, code="PSYNC_S2302")  # another process may know it
        plan = await asyncio.to_thread(self._plan_for, text, format_)
        ids = {(kind, identity): id_ for kind, identity, id_, _ in definitions or ()}
        try:
            buckets = tuple(ids["bucket", source.identity] for source in plan.bucket_sources)
            lookups = tuple(ids["lookup", source.identity] for source in plan.lookup_sources)
        except KeyError:
            raise _not_served("the active rules mean something else to this version; run one version") from None
        return ServedRules(rule_set, plan, buckets, lookups, {id_: name for _, _, id_, name in definitions or ()})

    # Where Postgres has no statistics of a bucket yet, it expects a few rows, and would read and sort the whole bucket
    # for each of its pages. Several statements in one text are a transaction, so this holds for the page alone.
    IN_ORDER = "SET LOCAL enable_bitmapscan = off"
    # Primary keys. The length of a value is known without reading it (TOAST). One statement is one snapshot, so the
    # page is as it was before a compaction, or that compaction shows in its bucket (I4).
    PAGE = """
        SELECT page.op_id, page.kind, page.checksum, page.row_type, page.row_id, page.subkey, page.data
          FROM localsync_bucket AS bucket
          LEFT JOIN (SELECT op_id, kind, checksum, row_type, row_id, subkey, data,
                       sum(octet_length(data)) OVER (ORDER BY op_id ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING)
                       AS bytes_before
                  FROM localsync_bucket_operation
                 WHERE bucket_id = %s AND op_id > %s AND op_id <= %s
                 ORDER BY op_id
                 LIMIT %s) AS page ON coalesce(page.bytes_before, 0) < %s
         WHERE bucket.id = %s AND bucket.generation = %s AND bucket.consistent_from <= %s
         ORDER BY page.op_id
    """

    async def read_page(
        self, bucket_id: int, generation: int, after: OpId, through: OpId
    ) -> Sequence[StoredOperation] | None:
        """A bucket's operations with after < op id ≤ through in ascending order, at most a page of them.

        `through` is where the bucket ends at the checkpoint that is served. None means that this checkpoint cannot
        be read any more: the bucket was compacted beyond it, rewritten or deleted.
        """
        async with self._turns, self._pool.connection() as connection:
            batch = _Batch(connection)
            batch.add(self.IN_ORDER)
            batch.add(self.PAGE, bucket_id, after, through, PAGE_OPERATIONS, PAGE_BYTES, bucket_id, generation, through)
            _, rows = await batch.run()
        if not rows:
            return None
        return cast("list[StoredOperation]", rows if rows[0][0] is not None else [])


def _pool_parameters(alias: str) -> dict[str, Any]:
    parameters = dict(connections[alias].get_connection_params())
    for synchronous in ("cursor_factory", "context"):
        parameters.pop(synchronous, None)
    return {"application_name": "django_localsync", **parameters, "autocommit": True}


class _Batch:
    """Statements that are sent together when their rows are needed; in autocommit mode, so it may hold a BEGIN."""

    def __init__(self, connection: Connection) -> None:
        self._cursor = AsyncClientCursor(connection)
        self._statements: list[str] = []
        self._values: list[Any] = []
        self._rows: list[list[tuple[Any, ...]]] = []

    def add(self, statement: str, *values: Any) -> None:
        """Add one statement with its values."""
        self._statements.append(statement)
        self._values.extend(values)

    async def run(self) -> list[list[tuple[Any, ...]]]:
        """Send what was added since the last time; the rows of every statement since the first."""
        await self._cursor.execute(";".join(self._statements).encode(), self._values)
        self._statements, self._values = [], []
        more: bool | None = True
        while more:
            result = self._cursor.pgresult
            # Whether there are columns; psycopg's description of them would be made for that alone.
            self._rows.append(await self._cursor.fetchall() if result is not None and result.nfields else [])
            more = self._cursor.nextset()
        return self._rows


def _ask_for_totals(rules: ServedRules, resolution: Resolution) -> str:
    return _json(
        [
            {"n": number, "d": rules.bucket_definitions[bucket.source], "p": bucket.parameters}
            for number, bucket in enumerate(resolution.buckets)
        ]
    )


def _name_buckets(
    rules: ServedRules, incarnation: str, resolution: Resolution, totals: Mapping[int, _Found]
) -> dict[str, ServedBucket]:
    buckets = {}
    for number, bucket in enumerate(resolution.buckets):
        definition = rules.bucket_definitions[bucket.source]
        id_, generation, known = totals.get(number, NOT_FOUND)
        prefix = f"{incarnation}.{definition}.{generation}" if generation else f"{incarnation}.{definition}"
        name = f"{prefix}#{rules.names[definition]}{bucket.parameters}"
        buckets[name] = ServedBucket(id_, known, bucket.priority, bucket.reasons, generation)
    return buckets


def _describe_streams(resolution: Resolution) -> tuple[StreamInfo, ...]:
    return tuple(
        StreamInfo(
            stream.name, stream.is_default, tuple((error.subscription, error.message) for error in stream.errors)
        )
        for stream in resolution.streams
    )


def _find_interests(
    rules: ServedRules, client: Client, resolution: Resolution, totals: Mapping[int, _Found]
) -> Interests:
    return Interests(
        buckets=frozenset(found.id for found in totals.values() if found.id is not None),
        created=frozenset(
            bucket_digest(rules.bucket_definitions[bucket.source], bucket.parameters)
            for number, bucket in enumerate(resolution.buckets)
            if number not in totals
        ),
        lookups=frozenset(
            lookup_digest(rules.lookup_definitions[lookup.source], lookup.key) for lookup in resolution.lookups
        ),
        write_checkpoint=write_checkpoint_digest(client.user_key, client.client_id),
    )


def _json(value: object) -> str:
    return orjson.dumps(value).decode()


def _too_many(what: str, found: Counter[str], most: int) -> LimitExceeded:
    """The error for a client that has more than it may, counted by source; names the stream that has most."""
    streams = Counter[str]()
    for source, number in found.items():
        streams[re.split(r"[|:]", source)[0]] += number
    ((stream, number),) = streams.most_common(1)
    return LimitExceeded(
        f"too many {what}: {found.total()} (at most {most}), {number} of them by stream {stream!r}; narrow its rules, "
        "subscribe to less of it, or raise MAX_BUCKETS",
        status=500,
    )


def _not_served(description: str) -> RequestError:
    return RequestError(description, status=500, code="PSYNC_S2302")
