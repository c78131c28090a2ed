"""Reads bucket storage for sync streams: a client's checkpoint, and pages of a bucket's operations.

A checkpoint is everything a client may have: it is read in one snapshot (I2, I5), in one round trip plus one for each
lookup stage of the rules, through an async pool of connections made from the Django alias's own parameters. Clients
that come while others are read share the next snapshot and its round trips. Statements that need no answer in between
travel together as one text, their values escaped by libpq: psycopg's pipeline mode costs five times as much.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

import orjson
from django.db import connections
from psycopg import AsyncClientCursor, AsyncConnection, OperationalError
from psycopg.errors import UndefinedColumn, UndefinedTable
from psycopg_pool import AsyncConnectionPool, PoolTimeout

from ..buckets.announcement import BucketTotals
from ..buckets.operation import OpId
from ..exceptions import RequestError
from ..protocol.lines import StoredOperation
from ..sync_rules.formats import unknown_format
from ..sync_rules.plan import LookupKey, Plan, RequestParameters, Resolution
from .gathering import Gathering
from .planning import sized
from .resolving import NOT_FOUND, Client, FoundBucket, Reading, Resolving, ServedRules, make_reading, wanted_totals

POOL_TIMEOUT_S = 5.0
PAGE_OPERATIONS = 1000
PAGE_BYTES = 512 << 10  # of row data; a page ends with the operation that reaches it. Daphne sends no message of 1 MiB
GROUP_CLIENTS, GROUP_PAGES = 32, 4  # that are read together, at most
LOOP_S = 0.002  # how long the buckets of one client after another are worked out before others get a turn

Connection = AsyncConnection[tuple[Any, ...]]
PlanFor = Callable[[str, int], Plan]
"""Compiles the text of a rule set, whose operations have a format."""


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
        groups = max(1, pool_size // 2)
        self._clients = Gathering(self._read_clients, groups=groups, group_size=GROUP_CLIENTS)
        self._pages = Gathering(self._read_pages, groups=groups, group_size=GROUP_PAGES)

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
        return await self._clients.ask(client)

    async def _read_clients(self, clients: Sequence[Client]) -> Sequence[Reading | Exception]:
        async with self._turns:
            try:
                return await self._read_active(clients)
            except PoolTimeout:
                raise  # nobody has answered for long enough
            except OperationalError:
                await self._pool.check()  # the server may have been restarted since; see whether it is back
                return await self._read_active(clients)
            except RequestError:
                raise  # nothing is served to anybody
            except Exception:
                return [await self._read_alone(client) for client in clients]

    async def _read_alone(self, client: Client) -> Reading | Exception:
        """One of several that could not be read together: what is wrong with one is no other's business."""
        try:
            return (await self._read_active([client]))[0]
        except Exception as error:
            return error

    async def _read_active(self, clients: Sequence[Client]) -> Sequence[Reading | Exception]:
        while True:
            rules = self._rules or await self._load_rules()
            readings = await self._read(rules, clients)
            if readings is not None:
                return readings
            if self._rules is rules:
                self._rules = None  # another rule set has become active

    BEGIN = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"
    # Primary keys throughout. I7: every source has passed the position that the receipt stands for.
    HEAD = """
        SELECT wanted.n, checkpoint.op_id, checkpoint.incarnation, receipt.number
          FROM localsync_checkpoint AS checkpoint
          JOIN localsync_rule_set AS rule_set ON rule_set.id = %s AND rule_set.state = 'active'
          JOIN (SELECT * FROM json_to_recordset(%s::json) AS wanted (n integer, u text, c text) LIMIT ALL) AS wanted
            ON true
          LEFT JOIN localsync_write_checkpoint AS receipt
            ON receipt.user_key = wanted.u AND receipt.client_id = wanted.c
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

    async def _read(self, rules: ServedRules, clients: Sequence[Client]) -> Sequence[Reading | Exception] | None:
        """One snapshot for all; None when these rules are not the active ones (any more)."""
        async with self._pool.connection() as connection:
            batch = _Batch(connection)
            batch.add(self.BEGIN)
            asking = [{"n": n, "u": client.user_key, "c": client.client_id} for n, client in enumerate(clients)]
            batch.add(sized(self.HEAD, len(asking)), rules.id, _json(asking))
            outcomes = await self._resolve(batch, rules, [client.parameters for client in clients])
            wanted = [item for outcome in outcomes for item in wanted_totals(rules, outcome)]
            batch.add(sized(self.TOTALS, len(wanted)), _json([{"n": n, **item} for n, item in enumerate(wanted)]))
            batch.add("COMMIT")
            _, heads, *_, found, _ = await batch.run()
        if not heads:
            return None
        totals = {
            number: FoundBucket(id_, generation, BucketTotals(*counts)) for number, id_, generation, *counts in found
        }
        turns, number = _Turns(), 0
        readings: list[Reading | Exception] = []
        for client, outcome, (_, *head) in zip(clients, outcomes, sorted(heads), strict=True):
            if isinstance(outcome, Exception):
                readings.append(outcome)
                continue
            own = [totals.get(n, NOT_FOUND) for n in range(number, number + len(outcome.buckets))]
            readings.append(make_reading(rules, client, head, outcome, own))
            number += len(own)
            await turns.give()
        return readings

    async def _resolve(
        self, batch: _Batch, rules: ServedRules, requests: Sequence[RequestParameters]
    ) -> list[Resolution | Exception]:
        """Each client's buckets, or what is wrong with it, asked of the parameter index stage by stage."""
        turns = _Turns()
        clients = []
        for request in requests:
            clients.append(Resolving(rules.plan, request, self._max_buckets))
            await turns.give()
        while asking := [client for client in clients if client.outcome is None]:
            keys = [key for client in asking for key in client.keys]
            found = iter(await self._look_up(batch, rules, keys, (self._max_buckets + 1) * len(asking)))
            for client in asking:
                client.go_on({key: next(found) for key in client.keys})
                await turns.give()
        return [client.outcome for client in clients if client.outcome is not None]

    async def _look_up(
        self, batch: _Batch, rules: ServedRules, keys: Sequence[LookupKey], limit: int
    ) -> Sequence[Sequence[str]]:
        """The entries of each key. Raises _TooMuchTogether where there are as many as `limit`, so not all."""
        found: list[list[str]] = [[] for _ in keys]
        if not keys:
            return found
        wanted = [{"n": n, "d": rules.lookup_definitions[source], "k": key} for n, (source, key) in enumerate(keys)]
        batch.add(sized(self.LOOK_UP, len(wanted)), _json(wanted), limit)
        entries = (await batch.run())[-1]
        if len(entries) >= limit > self._max_buckets + 1:
            raise _TooMuchTogether
        for number, outputs in entries:
            found[number].append(outputs)
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
        be read any more: the bucket was compacted beyond it, rewritten or deleted. The caller must not be cancelled.
        """
        return await self._pages.ask_to_the_end(_Page(bucket_id, generation, after, through))

    async def _read_pages(self, pages: Sequence[_Page]) -> Sequence[Sequence[StoredOperation] | None]:
        async with self._turns, self._pool.connection() as connection:
            batch = _Batch(connection)
            batch.add(self.IN_ORDER)
            for bucket, generation, after, through in pages:
                batch.add(self.PAGE, bucket, after, through, PAGE_OPERATIONS, PAGE_BYTES, bucket, generation, through)
            _, *found = await batch.run()
        return [_operations(rows) for rows in found]


class _Page(NamedTuple):
    bucket_id: int
    generation: int
    after: OpId
    through: OpId


class _TooMuchTogether(Exception):
    """Several clients have more entries in the parameter index than are read at a time."""


class _Turns:
    """Lets others go on now and again."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._since = self._loop.time()

    async def give(self) -> None:
        """Wait for a turn of the loop, where this one was long."""
        if self._loop.time() - self._since > LOOP_S:
            await asyncio.sleep(0)
            self._since = self._loop.time()


def _operations(rows: Sequence[tuple[Any, ...]]) -> Sequence[StoredOperation] | None:
    if not rows:
        return None
    return cast("Sequence[StoredOperation]", rows if rows[0][0] is not None else [])


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


def _json(value: object) -> str:
    return orjson.dumps(value).decode()


def _not_served(description: str) -> RequestError:
    return RequestError(description, status=500, code="PSYNC_S2302")
