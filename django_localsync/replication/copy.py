"""The first copy of a rule set: the slot's exported snapshot, table by table.

The snapshot shows exactly what lies before the slot's consistent point, so copy and stream meet without a seam. A
copy that is cut short is begun anew.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from time import monotonic

from psycopg import sql

from ..storage.connections import Connection
from ..storage.writer import StorageWriter
from .changes import Change, ChangeApplier, ReplicatedTable
from .tables import CatalogTable

logger = logging.getLogger(__name__)

CHUNK_ROWS = 5000
PROGRESS_INTERVAL_S = 2.0


class Progress:
    """Says how far a copy is; told after every chunk. The default one logs a line every two seconds."""

    def __init__(self, estimated_rows: int) -> None:
        self.estimated_rows, self.rows = estimated_rows, 0
        self._began = self._said = monotonic()

    def advance(self, table: str, rows: int) -> None:
        """A chunk of `rows` rows of `table` is stored."""
        self.rows += rows
        if monotonic() - self._said >= PROGRESS_INTERVAL_S:
            self._said = monotonic()
            logger.info("copying %s: %s", table, self.summary())

    def finish(self) -> None:
        """The copy has ended, complete or not."""

    def rate(self) -> float:
        """Rows a second since the copy began."""
        return self.rows / max(monotonic() - self._began, 0.001)

    def summary(self) -> str:
        """Rows so far, rate and estimated time left."""
        rate = self.rate()
        left = max(self.estimated_rows - self.rows, 0) / rate if rate else 0
        total = max(self.estimated_rows, self.rows)
        return f"{self.rows:,} of about {total:,} rows, {rate:,.0f} rows/s, {left:.0f} s left"


def copy_table(
    reader: Connection,
    writer: StorageWriter,
    applier: ChangeApplier,
    catalog: CatalogTable,
    table: ReplicatedTable,
    progress: Progress,
    check_stop: Callable[[], None],
) -> None:
    """Store every row of a table that the reader's snapshot shows; each chunk is a storage transaction.

    `check_stop` raises to end the copy. Nothing is published: no reader knows the buckets yet.
    """
    for rows in _chunks(reader, catalog):
        check_stop()
        with writer.transaction():
            applier.apply([Change(table, None, table.key_of(values), list(values)) for values in rows])
            writer.save_written()
        progress.advance(str(table.name), len(rows))


def _chunks(reader: Connection, catalog: CatalogTable) -> Iterator[Sequence[tuple[str | None, ...]]]:
    columns = sql.SQL(", ").join(sql.Identifier(column.name) for column in catalog.columns)
    query = sql.SQL("COPY (SELECT {} FROM ONLY {}) TO STDOUT").format(
        columns, sql.Identifier(catalog.name.schema, catalog.name.name)
    )
    rows: list[tuple[str | None, ...]] = []
    with reader.cursor().copy(query) as copy:
        for row in copy.rows():
            rows.append(row)
            if len(rows) >= CHUNK_ROWS:
                yield rows
                rows = []
    if rows:
        yield rows
