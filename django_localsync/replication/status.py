"""How replication fares: of storage, of each source and its slot, of each table. For people and for monitoring.

Everything is read afresh, from storage and from the sources themselves, so that it is true also when no replicator
runs, and says so.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import closing
from dataclasses import asdict, dataclass, field
from datetime import datetime
from enum import IntEnum
from time import monotonic, sleep
from typing import Any

import psycopg
from django.db import Error, connections
from django.utils import timezone

from ..buckets.announcement import MESSAGE_PREFIX
from ..conf import Settings
from ..exceptions import ConfigurationError
from ..models import Backfill, Checkpoint, Definition, RuleSet, Source, SourceTable
from ..pgoutput.lsn import Lsn
from ..storage.connections import Connection, connect
from ..storage.leadership import LEADER_LOCK
from .diagnosis import MIGRATE, diagnose
from .heartbeat import HEARTBEAT
from .publication import publication_problems
from .slot import SlotHealth, check_server, read_slot_health
from .tables import read_tables

PROBE_INTERVAL_S = 0.005


class Level(IntEnum):
    """How bad it is; the numbers are exit codes."""

    OK = 0
    WARNING = 1
    PROBLEM = 2


@dataclass(slots=True)
class BackfillStatus:
    """Rows that are being read. `seconds_left` is None until something was read."""

    definitions: list[str]
    phase: str
    rows: int
    estimated_rows: int
    share: float  # 0 to 1, by the table's blocks
    rows_per_second: float
    seconds_left: float | None


@dataclass(slots=True)
class TableStatus:
    """A table that the rules use."""

    name: str
    identity: str
    followed: bool
    backfills: list[BackfillStatus] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


@dataclass(slots=True)
class SourceStatus:
    """A replicated database. Bytes and seconds are None where they cannot be known.

    `lag_s` is how long ago the newest commit in storage was made, at most: 0 where storage holds the end of the WAL.
    `probe_s` is how long an empty commit took to arrive, where one was sent.
    """

    alias: str
    slot: str | None = None
    active: bool | None = None
    wal_status: str | None = None
    published_lsn: str | None = None
    written_lsn: str | None = None
    confirmed_lsn: str | None = None
    lag_bytes: int | None = None
    lag_s: float | None = None
    probe_s: float | None = None
    retained_bytes: int | None = None
    safe_bytes: int | None = None
    budget_bytes: int | None = None
    last_commit_at: datetime | None = None
    tables: list[TableStatus] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Status:
    """Everything. `serving`: whether clients get a rule set; `withheld`: whether it stands still for a while."""

    serving: bool = False
    filling: bool = False
    withheld: bool = False
    leading: bool = False
    checkpoint: int | None = None
    sources: list[SourceStatus] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @property
    def level(self) -> Level:
        """The worst of all that is told."""
        tables = (table for source in self.sources for table in source.tables)
        parts: list[Status | SourceStatus | TableStatus] = [self, *self.sources, *tables]
        if any(part.problems for part in parts):
            return Level.PROBLEM
        return Level.WARNING if any(part.warnings for part in parts) else Level.OK

    def to_json(self) -> dict[str, Any]:
        """As plain values; times are datetimes."""
        return {"level": self.level.name.lower(), **asdict(self)}


def read_status(settings: Settings, *, probe_s: float = 0.0) -> Status:
    """Ask storage and every source. With `probe_s`, send each source an empty commit and wait that long for it."""
    status = Status()
    try:
        _read_storage(status, settings)
        names = dict(Definition.objects.using(settings.storage).values_list("id", "name"))
        stored = {source.alias: source for source in Source.objects.using(settings.storage)}
    except Error as error:
        status.problems.append(f"storage: {diagnose(error.__cause__ or error)}")
        return status
    for alias in settings.sources:
        status.sources.append(_read_source(alias, stored.get(alias), names, settings))
        if probe_s and alias in stored:
            _probe(status.sources[-1], settings, probe_s)
    return status


def _read_storage(status: Status, settings: Settings) -> None:
    with connections[settings.storage].cursor() as cursor:
        cursor.execute("SELECT to_regclass('localsync_checkpoint') IS NOT NULL")
        if cursor.fetchone() != (True,):
            status.problems.append(f"the tables of django_localsync do not exist; {MIGRATE}")
        cursor.execute(HELD_LOCK, {"high": LEADER_LOCK >> 32, "low": LEADER_LOCK & 0xFFFFFFFF})
        status.leading = cursor.fetchone() is not None
    if status.problems:
        return
    states = set(RuleSet.objects.using(settings.storage).values_list("state", flat=True))
    status.serving, status.filling = RuleSet.State.ACTIVE in states, RuleSet.State.PROCESSING in states
    checkpoint = Checkpoint.objects.using(settings.storage).first()
    if checkpoint:
        status.checkpoint, status.withheld = checkpoint.op_id, checkpoint.withheld
    if not status.leading:
        status.problems.append("no replicator runs; start: manage.py run_replicator")
    if not status.serving:
        status.problems.append("nothing is served yet: the first copy has not ended")
    elif status.withheld:
        status.warnings.append("clients get no changes until tables that must be read again are complete")


# An advisory lock of 64 bits, as pg_locks shows it.
HELD_LOCK = """
    SELECT FROM pg_locks
     WHERE locktype = 'advisory' AND granted AND objsubid = 1 AND classid = %(high)s AND objid = %(low)s
       AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
"""


def _read_source(alias: str, stored: Source | None, names: dict[int, str], settings: Settings) -> SourceStatus:
    source = SourceStatus(alias)
    if stored is None:
        source.problems.append("nothing was replicated from it yet")
    else:
        _read_stored(source, stored, names)
    try:
        with closing(connect(alias)) as connection:
            _check_server(source, connection)
            if stored is not None:
                _read_slot(source, stored, read_slot_health(connection, stored.slot), connection)
                _check_tables(source, stored, connection, settings)
    except (psycopg.Error, OSError) as error:
        source.problems.append(str(diagnose(error)))
    return source


def _check_server(source: SourceStatus, connection: Connection) -> None:
    try:
        check_server(connection)
    except ConfigurationError as error:
        source.problems.append(str(error))


def _read_stored(source: SourceStatus, stored: Source, names: dict[int, str]) -> None:
    source.slot, source.last_commit_at = stored.slot, stored.committed_at
    source.published_lsn, source.written_lsn = str(Lsn(stored.lsn)), str(Lsn(stored.written_lsn))
    if stored.error:
        since = f" (since {stored.error_at:%Y-%m-%d %H:%M:%S %Z})" if stored.error_at else ""
        source.problems.append(stored.error + since)
    for table in stored.tables.filter(retired=False).order_by("schema", "name").prefetch_related("backfills"):
        source.tables.append(_table_status(table, names))


def _table_status(table: SourceTable, names: dict[int, str]) -> TableStatus:
    identity = {"key": ", ".join(table.key_columns), "row": "whole row", "none": "none"}[table.identity]
    status = TableStatus(f"{table.schema}.{table.name}", identity, table.followed)
    status.backfills = [_backfill_status(backfill, names) for backfill in table.backfills.all()]
    if table.identity == "none":
        status.warnings.append(
            "no replica identity: updates and deletes are not synced; give it a primary key, or run: "
            f"ALTER TABLE {table.schema}.{table.name} REPLICA IDENTITY FULL"
        )
    elif table.problem:
        status.problems.append(table.problem)
    return status


def _backfill_status(backfill: Backfill, names: dict[int, str]) -> BackfillStatus:
    elapsed = max((timezone.now() - backfill.began_at).total_seconds(), 0.001)
    share = min(backfill.block / backfill.blocks, 1.0) if backfill.blocks else 0.0
    return BackfillStatus(
        definitions=sorted({names[definition] for definition in backfill.definitions if definition in names}),
        phase=backfill.get_phase_display(),
        rows=backfill.rows,
        estimated_rows=max(backfill.estimated_rows, backfill.rows),
        share=share,
        rows_per_second=backfill.rows / elapsed,
        seconds_left=elapsed * (1 - share) / share if share else None,
    )


def _read_slot(source: SourceStatus, stored: Source, slot: SlotHealth | None, connection: Connection) -> None:
    if slot is None:
        source.problems.append(f"slot {stored.slot!r} does not exist; the replicator makes another")
        return
    source.active, source.wal_status, source.confirmed_lsn = slot.active, slot.wal_status, str(slot.confirmed)
    source.retained_bytes, source.safe_bytes, source.budget_bytes = (
        slot.retained_bytes,
        slot.safe_bytes,
        slot.budget_bytes,
    )
    if slot.problem:
        source.problems.append(f"slot {slot.slot!r}: {slot.problem}; the replicator makes another")
    if slot.warning:
        source.warnings.append(slot.warning)
    row = connection.execute(LAG, {"written": stored.written_lsn, "committed_at": stored.committed_at}).fetchone()
    source.lag_bytes, source.lag_s = row or (None, None)


# By the source's own clock, which also made the time of the commit. A clock that was set back gives no negative lag.
LAG = """
    WITH behind AS (
        SELECT greatest((CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_lsn() END
                         - '0/0'::pg_lsn) - %(written)s, 0)::bigint AS bytes)
    SELECT bytes,
           CASE WHEN bytes = 0 THEN 0.0
                ELSE greatest(extract(epoch FROM clock_timestamp() - %(committed_at)s::timestamptz), 0)::float END
      FROM behind
"""


def _check_tables(source: SourceStatus, stored: Source, connection: Connection, settings: Settings) -> None:
    by_name = {table.name: table for table in source.tables}
    oids = {row.relation_oid: f"{row.schema}.{row.name}" for row in stored.tables.filter(retired=False)}
    for oid, problem in access_problems(connection, oids):
        by_name[oids[oid]].problems.append(problem)
    catalog = read_tables(connection, lambda name: str(name) in by_name)
    for table in set(by_name) - {str(found.name) for found in catalog}:
        by_name[table].problems.append("it was dropped or renamed")
    for found in publication_problems(connection, settings.publication_name, catalog):
        target = by_name[str(found.table)].problems if found.table else source.problems
        target.append(str(found))


ACCESS = """
    SELECT oid::bigint, format('%%I.%%I', relnamespace::regnamespace, relname), quote_ident(current_user),
           has_schema_privilege(relnamespace, 'USAGE'), has_table_privilege(oid, 'SELECT'), row_security_active(oid)
      FROM pg_class WHERE oid = ANY(%s)
"""


def access_problems(connection: Connection, oids: Iterable[int]) -> list[tuple[int, str]]:
    """Tables that the role of this connection cannot read wholly: oid, and what to do about it."""
    problems: list[tuple[int, str]] = []
    for oid, table, role, may_enter, may_read, is_filtered in connection.execute(ACCESS, (list(oids),)):
        if not may_enter:
            schema = table.partition(".")[0]
            problems.append((oid, f"no right to use the schema; run: GRANT USAGE ON SCHEMA {schema} TO {role}"))
        if not may_read:
            problems.append((oid, f"no right to read it; run: GRANT SELECT ON {table} TO {role}"))
        if is_filtered:
            problems.append((oid, f"row level security hides rows; run: ALTER ROLE {role} BYPASSRLS"))
    return problems


def _probe(source: SourceStatus, settings: Settings, timeout_s: float) -> None:
    """Send an empty commit and see when storage holds it."""
    try:
        with closing(connect(source.alias)) as connection, connection.transaction():
            connection.execute("SET LOCAL synchronous_commit = local")
            connection.execute("SELECT pg_logical_emit_message(true, %s, %s)", (MESSAGE_PREFIX, HEARTBEAT))
            row = connection.execute("SELECT (pg_current_wal_insert_lsn() - '0/0'::pg_lsn)::bigint").fetchone()
    except psycopg.Error:
        return  # told already
    position, began = (row[0] if row else 0), monotonic()
    while (elapsed := monotonic() - began) < timeout_s:
        if Source.objects.using(settings.storage).filter(alias=source.alias, written_lsn__gte=position).exists():
            source.probe_s = elapsed
            return
        sleep(PROBE_INTERVAL_S)
    source.problems.append(f"an empty commit did not arrive within {timeout_s:g} s")
