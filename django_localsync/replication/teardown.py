"""Taking away what replication leaves in the servers: slots and publications, and what storage holds."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from time import monotonic, sleep

from psycopg import sql

from ..conf import Settings
from ..exceptions import ConfigurationError
from ..models import (
    Backfill,
    Bucket,
    BucketOperation,
    Checkpoint,
    Compaction,
    CurrentRow,
    Definition,
    ParameterLookup,
    RuleSet,
    Source,
    SourceTable,
    WriteCheckpoint,
)
from ..storage.connections import Connection, connect
from ..storage.leadership import try_lead
from .publication import drop_publications, publication_names
from .slot import drop_slot, slot_prefix

SLOT_RELEASE_S = 10.0  # a walsender notices within this that its replicator is gone
STORAGE = (
    BucketOperation, CurrentRow, ParameterLookup, Bucket, Backfill, SourceTable, Source, Definition, RuleSet,
    WriteCheckpoint, Checkpoint, Compaction,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Trace:
    """Something of ours in a database: a slot, a publication, or the contents of bucket storage."""

    alias: str
    kind: str
    name: str

    def __str__(self) -> str:
        return f"{self.kind} {self.name} of database {self.alias!r}"


@contextmanager
def replicator_stopped(settings: Settings) -> Iterator[Connection]:
    """A session of the storage during which no replicator leads. Raises ConfigurationError while one does."""
    with closing(connect(settings.storage)) as storage:
        if not try_lead(storage):
            raise ConfigurationError("a replicator is running; stop it first")
        yield storage


def find_traces(storage: Connection, settings: Settings, *, data: bool) -> list[Trace]:
    """Everything of ours in storage and sources; the contents of storage only with `data`."""
    stored = _stored_slots(storage)
    traces: list[Trace] = []
    for alias in dict.fromkeys((*settings.sources, *stored)):
        with closing(connect(alias)) as source:
            traces += [Trace(alias, "slot", slot) for slot in _slots(source, stored.get(alias), settings)]
            traces += [Trace(alias, "publication", name) for name in _publications(source, settings)]
    if data and _has_tables(storage):
        traces.append(Trace(settings.storage, "bucket storage", "(all rows)"))
    return traces


def remove_trace(storage: Connection, settings: Settings, trace: Trace) -> None:
    """Take one away. Raises ConfigurationError when somebody still reads a slot."""
    if trace.kind == "bucket storage":
        tables = sql.SQL(", ").join(sql.Identifier(model._meta.db_table) for model in STORAGE)
        storage.execute(sql.SQL("TRUNCATE {}").format(tables))
        return
    with closing(connect(trace.alias)) as source:
        if trace.kind == "publication":
            drop_publications(source, settings.publication_name)
        else:
            _drop_slot(source, trace.name)


def _drop_slot(source: Connection, slot: str) -> None:
    deadline = monotonic() + SLOT_RELEASE_S
    while not drop_slot(source, slot):
        if monotonic() > deadline:
            raise ConfigurationError(f"slot {slot!r} is being read; end its reader, see pg_stat_replication")
        sleep(0.1)


def _has_tables(storage: Connection) -> bool:
    return storage.execute("SELECT to_regclass('localsync_source') IS NOT NULL").fetchone() == (True,)


def _stored_slots(storage: Connection) -> dict[str, str]:
    if not _has_tables(storage):
        return {}
    return dict(storage.execute("SELECT alias, slot FROM localsync_source").fetchall())


def _slots(source: Connection, stored: str | None, settings: Settings) -> list[str]:
    """The slot that storage knows, and whatever else of this database bears our name."""
    (database,) = source.execute("SELECT current_database()").fetchone() or ("",)
    prefix = slot_prefix(settings.slot_name, database)
    rows = source.execute(
        "SELECT slot_name FROM pg_replication_slots WHERE database = current_database() AND plugin = 'pgoutput'"
        " AND (slot_name = %s OR slot_name ~ ('^' || %s || '(_[0-9]+)?$')) ORDER BY 1",
        (stored or "", prefix),
    )
    return [row[0] for row in rows]


def _publications(source: Connection, settings: Settings) -> list[str]:
    names = list(publication_names(settings.publication_name))
    rows = source.execute("SELECT pubname FROM pg_publication WHERE pubname = ANY(%s) ORDER BY 1", (names,))
    return [row[0] for row in rows]
