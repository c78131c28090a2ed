"""Marks: what is to happen when the stream passes a place.

Whoever reads the source registers what was read under a fresh random id and writes a logical message that carries the
id. When the message arrives in the stream, everything that was committed before it has arrived too. A message whose
id nobody knows was written by an earlier life and means nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from secrets import token_hex
from threading import Lock

from ..buckets.announcement import MESSAGE_PREFIX
from ..pgoutput.snapshots import Snapshot
from ..storage.connections import Connection
from ..sync_rules.plan import TableName
from .changes import Chunk, ReplicatedTable, Row
from .tables import CatalogTable

PREFIX = "mark:"


@dataclass(frozen=True, slots=True)
class CatalogRead:
    """The tables that are used, as the catalogue has them; changes of `unpublished` ones may be missing.

    `published` are their marks, see `publication_marks`.
    """

    tables: Sequence[CatalogTable]
    unpublished: frozenset[TableName]
    published: Mapping[int, str]


@dataclass(frozen=True, slots=True)
class Activation:
    """A table's changes are to be applied from here on, because its reading begins."""

    backfill: int


@dataclass(frozen=True, slots=True)
class ChunkRead:
    """Rows of a table in the layout `table`, as `snapshot` shows them; `asked` are the keys that were looked for.

    They were evaluated for what is to be filled, as `part`. `next_block` is where reading goes on. `attempt` is that of
    the backfill when the chunk was read.
    """

    backfill: int
    attempt: int
    snapshot: Snapshot
    table: CatalogTable
    part: ReplicatedTable
    rows: Chunk
    next_block: int = 0
    blocks: int = 0
    asked: frozenset[str] | None = None


@dataclass(frozen=True, slots=True)
class CountBegun:
    """A table without a key is read whole in this snapshot; its rows follow, in parts."""

    backfill: int
    attempt: int
    snapshot: Snapshot
    table: CatalogTable


@dataclass(frozen=True, slots=True)
class RowsCounted:
    """Some rows of a table without a key, in the layout `table`."""

    backfill: int
    attempt: int
    table: CatalogTable
    rows: Sequence[Row]


@dataclass(frozen=True, slots=True)
class TableRead:
    """The last row of a table was read."""

    backfill: int
    attempt: int


Mark = CatalogRead | Activation | ChunkRead | CountBegun | RowsCounted | TableRead


class Marks:
    """Marks that were registered and have not come through yet. Safe to share between threads."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._waiting: dict[str, Mark] = {}

    def set(self, connection: Connection, mark: Mark) -> None:
        """Register a mark and write its message, in a transaction of its own."""
        name = token_hex(8)
        with self._lock:
            self._waiting[name] = mark
        emit(connection, PREFIX + name)

    def take(self, content: bytes) -> Mark | None:
        """The mark that a message of the stream stands for, once; None when it is not one of ours."""
        text = content.decode(errors="replace")
        with self._lock:
            return self._waiting.pop(text.removeprefix(PREFIX), None) if text.startswith(PREFIX) else None

    def find(self, content: bytes) -> Mark | None:
        """The same, without taking it."""
        text = content.decode(errors="replace")
        with self._lock:
            return self._waiting.get(text.removeprefix(PREFIX)) if text.startswith(PREFIX) else None

    def snapshots(self) -> list[Snapshot]:
        """Snapshots of all that is on its way."""
        with self._lock:
            return [mark.snapshot for mark in self._waiting.values() if isinstance(mark, ChunkRead | CountBegun)]


def emit(connection: Connection, content: str) -> None:
    """Write a transactional logical message, flushed at once; no standby is waited for."""
    with connection.transaction():
        connection.execute("SET LOCAL synchronous_commit = local")
        connection.execute("SELECT pg_logical_emit_message(true, %s, %s)", (MESSAGE_PREFIX, content))
