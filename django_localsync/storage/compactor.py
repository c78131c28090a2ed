"""Compacts bucket storage piece by piece, beside replication and open streams (I4).

One bucket at a time, one short transaction a piece, each holding that bucket's row only; what is superseded is
decided by `buckets/compaction.py`. The transaction that takes something away also raises the bucket's
`consistent_from`: a stream that is still at a checkpoint where the bucket ends before it finds its next page refused,
and reads a newer checkpoint. Two compactors, or a compactor that was killed, do no harm: every piece is valid alone.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from time import monotonic
from typing import NamedTuple

from ..buckets.compaction import Walk, is_cleared, is_mostly_dead
from ..buckets.operation import OpKind
from .connections import Connection

logger = logging.getLogger(__name__)

BATCH_OPERATIONS = 1000  # a piece: about 10 ms, for which replication may have to wait
MOST_NEW_OPERATIONS = 200_000  # of a walk: about 20 MB
SWEEP_BUCKETS = 2000  # looked at a piece

SWEEP_INTERVAL_S = 60.0
# A bucket that grew to twice its size is compacted before it must be; but not at every sweep.
EARLY_AFTER_S = 600.0
EARLY_OPERATIONS = 10_000


@dataclass(slots=True)
class Savings:
    """What compaction did: buckets looked at and rewritten, operations whose row was erased, operations deleted, and
    bytes of row data erased (uncompressed).
    """

    buckets: int = 0
    rewritten: int = 0
    erased: int = 0
    deleted: int = 0
    bytes: int = 0


class _Target(NamedTuple):
    id: int
    generation: int
    compacted_op_id: int
    last_op_id: int


class Compactor:
    """Compacts what is due whenever there is time.

    The text of a row that was replaced or deleted is taken out of storage within `erase_within_s` seconds.
    """

    def __init__(self, connection: Connection, erase_within_s: float) -> None:
        self._connection, self._erase_within_s = connection, erase_within_s
        self._interval_s = min(SWEEP_INTERVAL_S, erase_within_s / 4)
        self._pieces: Iterator[None] = iter(())
        self._next_sweep_at = monotonic() + self._interval_s

    def step(self) -> bool:
        """Do a piece of work, of some 10 ms, if any is due; answers whether there may be more."""
        if next(self._pieces, _END) is not _END:
            return True
        if monotonic() < self._next_sweep_at:
            return False
        self._next_sweep_at = monotonic() + self._interval_s
        self._pieces = self._sweep()
        return True

    def _sweep(self) -> Iterator[None]:
        savings = Savings()
        for due in _due_buckets(self._connection, self._erase_within_s / 2):
            yield
            for bucket_id in due:
                yield from compact_bucket(self._connection, bucket_id, savings)
        if savings.erased or savings.deleted:
            record_savings(self._connection, savings)
            logger.info(
                "compaction of %d buckets (%d rewritten): %d operations erased, %d deleted, %d bytes of row data",
                *(savings.buckets, savings.rewritten, savings.erased, savings.deleted, savings.bytes),
            )


_END = object()

# Primary key, so many at a time.
DUE = """
    SELECT bucket.id,
           last_op_id > compacted_op_id
           AND (compacted_at <= now() - make_interval(secs => %(age)s)
                OR (operations >= 2 * compacted_operations + %(early_operations)s
                    AND compacted_at <= now() - make_interval(secs => %(early_age)s)))
           AND definition_id NOT IN (SELECT id FROM localsync_definition WHERE state = 'retired')
      FROM localsync_bucket AS bucket
     WHERE bucket.id > %(after)s
     ORDER BY bucket.id
     LIMIT %(limit)s
"""


def _due_buckets(connection: Connection, age_s: float) -> Iterator[list[int]]:
    values = {
        "age": age_s,
        "early_age": EARLY_AFTER_S,
        "early_operations": EARLY_OPERATIONS,
        "limit": SWEEP_BUCKETS,
        "after": -1,
    }
    while rows := connection.execute(DUE, values).fetchall():
        yield [bucket_id for bucket_id, is_due in rows if is_due]
        values["after"] = rows[-1][0]


def changed_buckets(connection: Connection) -> list[int]:
    """Every bucket that has operations which were not compacted yet."""
    return [bucket_id for due in _due_buckets(connection, 0) for bucket_id in due]


def storage_bytes(connection: Connection) -> int:
    """What all operations take on disk, with their index."""
    row = connection.execute("SELECT pg_total_relation_size('localsync_bucket_operation')").fetchone()
    return int(row[0]) if row else 0


def record_savings(connection: Connection, savings: Savings) -> None:
    """Add to what compaction has saved in all: a row of its own, which nobody else waits for."""
    values = (savings.rewritten, savings.erased, savings.deleted, savings.bytes)
    connection.execute(
        """
        INSERT INTO localsync_compaction AS total (id, rewritten, erased, deleted, bytes)
        VALUES (1, %s, %s, %s, %s)
            ON CONFLICT (id) DO UPDATE
           SET rewritten = total.rewritten + excluded.rewritten, erased = total.erased + excluded.erased,
               deleted = total.deleted + excluded.deleted, bytes = total.bytes + excluded.bytes
        """,
        values,
    )


def reclaim_space(connection: Connection) -> None:
    """Take what was erased out of the table's pages now, instead of when Postgres's autovacuum comes by."""
    connection.execute("VACUUM localsync_bucket_operation")


def compact_bucket(
    connection: Connection,
    bucket_id: int,
    savings: Savings,
    *,
    batch: int = BATCH_OPERATIONS,
    most_new: int = MOST_NEW_OPERATIONS,
) -> Iterator[None]:
    """Compact a bucket as far as it is shown now, a piece at a time; what is mostly dead is rewritten.

    `most_new` bounds what is remembered: the walk is repeated for each so many operations since the last compaction.
    """
    target = _find(connection, bucket_id)
    savings.buckets += target is not None
    while target is not None and target.compacted_op_id < target.last_op_id:
        through = _end_of_walk(connection, target, most_new)
        walk = Walk(target.compacted_op_id)
        for _ in _erase_superseded(connection, target, walk, through, savings, batch):
            yield
        for _ in _clear_head(connection, target, through, savings, batch):
            yield
        operations = _finish(connection, target, through)
        if through == target.last_op_id and operations is not None and is_mostly_dead(operations, walk.live):
            _rewrite(connection, target, through, savings)
        yield
        if operations is None:
            return
        target = target._replace(compacted_op_id=through)


def _find(connection: Connection, bucket_id: int) -> _Target | None:
    query = "SELECT id, generation, compacted_op_id, last_op_id FROM localsync_bucket WHERE id = %s"
    row = connection.execute(query, (bucket_id,)).fetchone()
    return _Target(*row) if row else None


# Primary key.
END_OF_WALK = """
    SELECT max(op_id)
      FROM (SELECT op_id FROM localsync_bucket_operation
             WHERE bucket_id = %s AND op_id > %s AND op_id <= %s ORDER BY op_id LIMIT %s) AS new
"""


def _end_of_walk(connection: Connection, target: _Target, most_new: int) -> int:
    """The last of the next operations that are not compacted, or the bucket's end."""
    values = (target.id, target.compacted_op_id, target.last_op_id, most_new)
    row = connection.execute(END_OF_WALK, values).fetchone()
    return target.last_op_id if row is None or row[0] is None else int(row[0])


# Primary key. The length of a value is known without reading it (TOAST).
STEPS = """
    SELECT op_id, kind, row_type, row_id, subkey, coalesce(octet_length(data), 0)
      FROM localsync_bucket_operation
     WHERE bucket_id = %s AND op_id < %s ORDER BY op_id DESC LIMIT %s
"""
ERASE = """
    UPDATE localsync_bucket_operation
       SET kind = %s, row_type = NULL, row_id = NULL, subkey = NULL, data = NULL
     WHERE bucket_id = %s AND op_id = ANY(%s) AND kind = ANY(%s)
"""


def _erase_superseded(
    connection: Connection, target: _Target, walk: Walk, through: int, savings: Savings, batch: int
) -> Iterator[None]:
    before = through + 1
    while rows := connection.execute(STEPS, (target.id, before, batch)).fetchall():
        superseded = walk.find_superseded(row[:5] for row in rows)
        if superseded:
            with connection.transaction():
                if not _claim(connection, target, through):
                    return
                erasable = [OpKind.PUT.value, OpKind.REMOVE.value]
                values = (OpKind.MOVE.value, target.id, superseded, erasable)
                savings.erased += connection.execute(ERASE, values).rowcount
            sizes = {row[0]: row[5] for row in rows}
            savings.bytes += sum(sizes[op_id] for op_id in superseded)
        before = rows[-1][0]
        yield


# Primary key.
HEAD = """
    SELECT op_id, kind FROM localsync_bucket_operation
     WHERE bucket_id = %s AND op_id <= %s ORDER BY op_id LIMIT %s
"""
DELETE_HEAD = """
    WITH gone AS (
        DELETE FROM localsync_bucket_operation WHERE bucket_id = %s AND op_id < %s RETURNING checksum
    )
    SELECT count(*), coalesce(sum(checksum), 0)::bigint FROM gone
"""
CLEAR_HEAD = """
    UPDATE localsync_bucket_operation
       SET kind = %s, checksum = (checksum + %s) & 4294967295,
           row_type = NULL, row_id = NULL, subkey = NULL, data = NULL
     WHERE bucket_id = %s AND op_id = %s
"""


def _clear_head(connection: Connection, target: _Target, through: int, savings: Savings, batch: int) -> Iterator[None]:
    """Make one CLEAR of what precedes the first PUT, when all superseded ones are erased."""
    while True:
        rows = connection.execute(HEAD, (target.id, through, batch)).fetchall()
        length = next((n for n, (_, kind) in enumerate(rows) if kind == OpKind.PUT.value), len(rows))
        if not is_cleared(kind for _, kind in rows[:length]):
            return
        end = rows[length - 1][0]
        with connection.transaction():
            if not _claim(connection, target, through):
                return
            gone = connection.execute(DELETE_HEAD, (target.id, end)).fetchone()
            assert gone is not None, "an aggregate has a row"
            connection.execute(CLEAR_HEAD, (OpKind.CLEAR.value, gone[1], target.id, end))
            _take_from_totals(connection, target, gone[0], checksum=0)
        savings.deleted += gone[0]
        yield
        if length < batch:
            return


def _claim(connection: Connection, target: _Target, through: int) -> bool:
    """Lock the bucket until the transaction ends, and refuse its pages to checkpoints where it ends before `through`.

    Answers False when it was rewritten or deleted meanwhile.
    """
    query = """
        UPDATE localsync_bucket SET consistent_from = greatest(consistent_from, %s) WHERE id = %s AND generation = %s
    """
    return connection.execute(query, (through, target.id, target.generation)).rowcount == 1


def _take_from_totals(connection: Connection, target: _Target, operations: int, checksum: int) -> None:
    """Totals are changed by differences only, here and by the writer, so neither needs the other's lock on op ids."""
    connection.execute(
        "UPDATE localsync_bucket SET operations = operations - %s, checksum = (checksum - %s) & 4294967295"
        " WHERE id = %s",
        (operations, checksum, target.id),
    )


def _finish(connection: Connection, target: _Target, through: int) -> int | None:
    """Note how far the bucket is compacted; its number of operations, or None if it is another one now."""
    row = connection.execute(
        """
        UPDATE localsync_bucket
           SET compacted_op_id = greatest(compacted_op_id, %s), compacted_operations = operations,
               compacted_at = CASE WHEN %s THEN now() ELSE compacted_at END
         WHERE id = %s AND generation = %s
        RETURNING operations
        """,
        (through, through == target.last_op_id, target.id, target.generation),
    ).fetchone()
    return int(row[0]) if row else None


DELETE_DEAD = """
    WITH gone AS (
        DELETE FROM localsync_bucket_operation WHERE bucket_id = %s AND op_id <= %s AND kind <> %s RETURNING checksum
    )
    SELECT count(*), coalesce(sum(checksum), 0)::bigint FROM gone
"""


def _rewrite(connection: Connection, target: _Target, through: int, savings: Savings) -> None:
    """Leave a compacted bucket's PUTs alone, as the history of a bucket of another name: its next generation.

    Every client that has it finds it gone and the new one in its place, in one checkpoint. A stream that still knows
    it by the old name finds its next page refused.
    """
    with connection.transaction():
        if not _claim(connection, target, through):
            return
        gone = connection.execute(DELETE_DEAD, (target.id, through, OpKind.PUT.value)).fetchone()
        assert gone is not None, "an aggregate has a row"
        _take_from_totals(connection, target, *gone)
        connection.execute(
            "UPDATE localsync_bucket SET generation = generation + 1, compacted_operations = operations WHERE id = %s",
            (target.id,),
        )
    savings.rewritten += 1
    savings.deleted += gone[0]
