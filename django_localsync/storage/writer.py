"""Writes bucket storage: operations by COPY, row bookkeeping, totals; then publishes them as a checkpoint.

One writer at a time holds the state row's lock and gives out op ids (I1). *Write* makes operations durable without
showing them; *publish* moves totals, checkpoint and source position at once and announces them (I2, I7). Here one
transaction holds both; they are two functions because a distributed storage needs a COMMIT between them.

Hot path, so batches of plain tuples: COPY with `write_row` stores 330-440 thousand operations a second where
executemany reaches 110 and text arrays 35 (2 cores, Postgres 15). Row lists travel as one JSON parameter for the
same reason.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime
from secrets import token_hex
from typing import LiteralString, NamedTuple

import orjson

from ..buckets.announcement import (
    CHANNEL,
    Announcement,
    BucketTotals,
    bucket_digest,
    encode_announcement,
    lookup_digest,
)
from ..buckets.checksum import MODULUS
from ..buckets.membership import INCOMPLETE, Draft, RowState, decode_state
from ..buckets.operation import OpKind
from ..exceptions import LeadershipLost
from .connections import Connection
from .planning import sized
from .receipts import raise_receipts

BucketKey = tuple[int, str]
"""Definition id, parameters as JSON text."""

MAX_CACHED_BUCKETS = 500_000  # about 100 MB


class LookupEntry(NamedTuple):
    """A row of the parameter index."""

    definition: int
    key: str
    table: int
    row_key: str
    outputs: str


@dataclass(slots=True)
class WriteSet:
    """What one batch of changes does to storage. Row states are texts made by `encode_state`."""

    drafts: list[Draft] = field(default_factory=list)
    inserted_rows: list[tuple[int, str, str]] = field(default_factory=list)
    updated_rows: list[tuple[int, str, str]] = field(default_factory=list)
    deleted_rows: dict[int, list[str]] = field(default_factory=dict)  # keys by table
    added_lookups: set[LookupEntry] = field(default_factory=set)
    removed_lookups: set[LookupEntry] = field(default_factory=set)
    passing_lookups: set[LookupEntry] = field(default_factory=set)  # came and went within the batch

    def replace_lookups(self, before: set[LookupEntry], after: set[LookupEntry]) -> None:
        """A row's entries change from `before` to `after`. What comes and goes is only passing."""
        for gone in before - after:
            if gone in self.added_lookups:
                self.added_lookups.discard(gone)
                self.passing_lookups.add(gone)
            else:
                self.removed_lookups.add(gone)
        for new in after - before:
            if new in self.removed_lookups:
                self.removed_lookups.discard(new)
            else:
                self.added_lookups.add(new)


class Announcer:
    """Numbers the announcements of one replicator, whichever of its sources they come from.

    Writers take numbers while they hold the checkpoint row's lock, so the order of numbers is that of commits.
    """

    def __init__(self) -> None:
        self.run = token_hex(6)
        self._sequence = 0

    def next_number(self) -> int:
        """The number of the next announcement. One that is lost with its transaction leaves a gap, which is safe."""
        self._sequence += 1
        return self._sequence


class StorageWriter:
    """A source's side of bucket storage, over one direct connection in autocommit mode.

    `leader` is the number that `leadership.take_number` gave; `living` are the definitions that are fed: what is
    remembered of others is left out, since they are being deleted. Entries of `receipts` are no part of the parameter
    index: they become write checkpoints.
    """

    def __init__(
        self,
        connection: Connection,
        *,
        leader: int = 0,
        living: frozenset[int] | None = None,
        receipts: frozenset[int] = frozenset(),
        announcer: Announcer | None = None,
    ) -> None:
        self._connection, self._leader, self._living, self._receipts = connection, leader, living, receipts
        self._announcer = announcer or Announcer()
        self._buckets: dict[BucketKey, int] = {}
        self.in_transaction = False
        self.withheld = False
        self._op_id = 0
        self._totals: dict[int, tuple[int, int, int]] = {}
        self._created: set[int] = set()
        self._changed_lookups: set[int] = set()
        self._raised: set[int] = set()  # digests of the clients whose write checkpoints rose

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """One storage transaction that holds the lock on op ids; nothing of it stays if the block raises."""
        if len(self._buckets) > MAX_CACHED_BUCKETS:
            self._buckets = {}
        try:
            with self._connection.transaction():
                self.in_transaction = True
                self._lock()
                yield
        except BaseException:
            self._buckets = {}  # ids made in the lost transaction do not exist
            raise
        finally:
            self._forget_transaction()

    # Primary key.
    LOCK = "SELECT written_op_id, leader, withheld FROM localsync_checkpoint WHERE id = 1 FOR UPDATE"

    def _lock(self) -> None:
        """Take the right to give out op ids until the transaction ends (I1). Raises LeadershipLost."""
        row = self._connection.execute(self.LOCK).fetchone()
        assert row is not None, "prepare_storage makes the checkpoint row"
        self._op_id, leader, self.withheld = row
        if leader != self._leader:
            raise LeadershipLost("another replicator has taken over")

    def withhold(self) -> None:
        """Show nothing from here on. Must come first in its transaction, before anything is written."""
        self._connection.execute("UPDATE localsync_checkpoint SET withheld = true")
        self.withheld = True

    # Unique index (definition_id, parameters).
    FIND_BUCKETS = """
        SELECT bucket.definition_id, bucket.parameters, bucket.id
          FROM (SELECT * FROM json_to_recordset(%s::json) AS wanted (d bigint, p text) LIMIT ALL) AS wanted
          JOIN localsync_bucket AS bucket ON bucket.definition_id = wanted.d AND bucket.parameters = wanted.p
    """
    # A bucket's id begins with its definition's, so that a definition is one range of the primary key.
    CREATE_BUCKETS = """
        INSERT INTO localsync_bucket (id, definition_id, parameters, operations, checksum, last_op_id,
                                      pending_operations, pending_checksum, pending_last_op_id)
        SELECT coalesce((SELECT max(id) FROM localsync_bucket WHERE id >= d << 32 AND id < (d + 1) << 32), d << 32)
               + row_number() OVER (PARTITION BY d), d, p, 0, 0, 0, 0, 0, 0
          FROM json_to_recordset(%s::json) AS wanted (d bigint, p text)
        RETURNING definition_id, parameters, id
    """

    def find_buckets(self, keys: Iterable[BucketKey]) -> set[BucketKey]:
        """Look up the ids of buckets; answers those that do not exist. Needs no transaction."""
        missing = {key for key in keys if key not in self._buckets}
        if missing:
            self._remember_buckets(sized(self.FIND_BUCKETS, len(missing)), missing)
            missing = {key for key in missing if key not in self._buckets}
        return missing

    def bucket_ids(self, keys: Collection[BucketKey]) -> dict[BucketKey, int]:
        """Ids of buckets by what they are, made where they did not exist."""
        missing = self.find_buckets(keys)
        if missing:
            self._remember_buckets(self.CREATE_BUCKETS, missing)
            self._created.update(bucket_digest(*key) for key in missing)
        return {key: self._buckets[key] for key in keys}

    # Primary key (table_id, key).
    ROW_STATES = """
        SELECT key, state FROM localsync_current_row
         WHERE table_id = %s AND key = ANY(ARRAY(SELECT json_array_elements_text(%s::json)))
    """

    def row_states(self, table: int, keys: Iterable[str]) -> dict[str, str]:
        """What is remembered of these rows, as texts for `read_state`; an unknown row is absent."""
        return dict(self._connection.execute(self.ROW_STATES, (table, _json(list(keys)))))

    NEXT_ROWS = """
        SELECT key, state FROM localsync_current_row WHERE table_id = %s AND key >= %s ORDER BY key LIMIT %s
    """

    def rows_from(self, table: int, key: str, limit: int) -> list[tuple[str, RowState]]:
        """The next rows of a table in key order, `key` included, for work that deletes all of them."""
        rows = self._connection.execute(self.NEXT_ROWS, (table, key, limit))
        return [(row_key, self.read_state(state)) for row_key, state in rows]

    INCOMPLETE_ROWS = """
        SELECT key FROM localsync_current_row WHERE table_id = %s AND state LIKE %s ORDER BY key LIMIT %s
    """

    def incomplete_rows(self, table: int, limit: int) -> list[str]:
        """Keys of rows that must be read again, at most so many. Reads all that is remembered of the table."""
        pattern = f"%,{INCOMPLETE}]"  # how encode_state ends
        rows = self._connection.execute(self.INCOMPLETE_ROWS, (table, pattern, limit))
        return [key for (key,) in rows]

    def read_state(self, text: str) -> RowState:
        """A remembered state, as far as definitions are fed."""
        return decode_state(text, self._living)

    def write(self, changes: WriteSet) -> None:
        """Make a batch durable with the transaction, unseen: op ids above every checkpoint."""
        self._copy_operations(changes.drafts)
        self._store_rows(changes)
        if self._receipts:
            changes = self._store_receipts(changes)
        self._store_lookups(changes)

    # Primary key; fillfactor 50 and no index on totals, so that every update stays on its page.
    ADD_TOTALS = """
        UPDATE localsync_bucket AS bucket
           SET operations = bucket.operations + v.n,
               checksum = (bucket.checksum + v.c) & 4294967295,
               last_op_id = v.o
          FROM (SELECT * FROM json_to_recordset(%s::json) AS v (b bigint, n bigint, c bigint, o bigint) LIMIT ALL) AS v
         WHERE bucket.id = v.b
        RETURNING bucket.id, bucket.operations, bucket.checksum, bucket.last_op_id
    """
    ADD_PENDING_TOTALS = """
        UPDATE localsync_bucket AS bucket
           SET pending_operations = bucket.pending_operations + v.n,
               pending_checksum = (bucket.pending_checksum + v.c) & 4294967295,
               pending_last_op_id = v.o
          FROM (SELECT * FROM json_to_recordset(%s::json) AS v (b bigint, n bigint, c bigint, o bigint) LIMIT ALL) AS v
         WHERE bucket.id = v.b
    """
    SHOW_PENDING = (
        """
        UPDATE localsync_bucket
           SET operations = operations + pending_operations,
               checksum = (checksum + pending_checksum) & 4294967295,
               last_op_id = pending_last_op_id,
               pending_operations = 0, pending_checksum = 0, pending_last_op_id = 0
         WHERE pending_operations > 0
        """,
        "DELETE FROM localsync_parameter_lookup WHERE pending = 2",
        "UPDATE localsync_parameter_lookup SET pending = 0 WHERE pending = 1",
        "UPDATE localsync_source SET lsn = written_lsn",
    )
    SAVE_CHECKPOINT = """
        UPDATE localsync_checkpoint
           SET written_op_id = %s, withheld = %s, op_id = CASE WHEN %s THEN op_id ELSE %s END
         WHERE id = 1
    """
    SAVE_POSITION = """
        UPDATE localsync_source
           SET written_lsn = %s, lsn = CASE WHEN %s THEN lsn ELSE %s END, committed_at = coalesce(%s, committed_at)
         WHERE id = %s
    """

    def publish(
        self,
        source: int,
        lsn: int,
        *,
        committed_at: datetime | None = None,
        write_checkpoints: Iterable[int] = (),
        show: bool = False,
        rules_replaced: bool = False,
    ) -> None:
        """Make what was written in this transaction, at `lsn` of the source, a checkpoint, and announce it.

        While something is withheld, it is only recorded; `show` ends that and shows all that was withheld.
        """
        was_withheld, self.withheld = self.withheld, self.withheld and not show
        position = (lsn, self.withheld, lsn, committed_at, source)
        checkpoint = (self._op_id, self.withheld, self.withheld, self._op_id)
        deltas = [{"b": bucket, "n": n, "c": c, "o": o} for bucket, (n, c, o) in self._totals.items()]
        self._totals = {}
        with self._connection.pipeline():  # one round trip: it is part of every commit's way to the devices
            self._connection.execute(self.SAVE_POSITION, position)
            self._connection.execute(self.SAVE_CHECKPOINT, checkpoint)
            add_totals = sized(self.ADD_PENDING_TOTALS if was_withheld else self.ADD_TOTALS, len(deltas))
            rows = self._connection.execute(add_totals, (_json(deltas),)) if deltas else None
        if not was_withheld:
            totals = {row[0]: BucketTotals(*row[1:]) for row in rows or ()}
            self._announce(totals, write_checkpoints, everything=False, rules=rules_replaced)
        elif show:
            for statement in self.SHOW_PENDING:
                self._connection.execute(statement)
            self._announce({}, (), everything=True, rules=rules_replaced)

    def _announce(
        self, totals: dict[int, BucketTotals], write_checkpoints: Iterable[int], *, everything: bool, rules: bool
    ) -> None:
        announcement = Announcement(
            run=self._announcer.run,
            sequence=0,
            op_id=self._op_id,
            buckets=totals,
            created=frozenset(self._created),
            lookups=frozenset(self._changed_lookups),
            write_checkpoints=frozenset(self._raised.union(write_checkpoints)),
            everything=everything,
            rules=rules,
        )
        if announcement.is_news():
            numbered = replace(announcement, sequence=self._announcer.next_number())
            self._connection.execute("SELECT pg_notify(%s, %s)", (CHANNEL, encode_announcement(numbered)))

    COPY_OPERATIONS = """
        COPY localsync_bucket_operation (bucket_id, op_id, kind, checksum, row_type, row_id, subkey, data)
        FROM STDIN (FORMAT BINARY)
    """

    def _copy_operations(self, drafts: Sequence[Draft]) -> None:
        if not drafts:
            return
        op_id, totals = self._op_id, self._totals
        with self._connection.cursor().copy(self.COPY_OPERATIONS) as copy:
            copy.set_types(["int8", "int8", "int2", "int8", "text", "text", "text", "text"])
            write_row = copy.write_row
            for bucket, kind, checksum, row_type, row_id, subkey, data in drafts:
                op_id += 1
                write_row((bucket, op_id, kind, checksum, row_type, row_id, subkey, data))
                count, total, _ = totals.get(bucket, (0, 0, 0))
                totals[bucket] = (count + 1, (total + checksum) % MODULUS, op_id)
        self._op_id = op_id

    COPY_ROWS = "COPY localsync_current_row (table_id, key, state) FROM STDIN (FORMAT BINARY)"
    UPDATE_ROWS = """
        UPDATE localsync_current_row AS row SET state = v.s
          FROM (SELECT * FROM json_to_recordset(%s::json) AS v (t bigint, k text, s text) LIMIT ALL) AS v
         WHERE row.table_id = v.t AND row.key = v.k
    """
    DELETE_ROWS = """
        DELETE FROM localsync_current_row
         WHERE table_id = %s AND key = ANY(ARRAY(SELECT json_array_elements_text(%s::json)))
    """

    def _store_rows(self, changes: WriteSet) -> None:
        for table, keys in changes.deleted_rows.items():
            self._connection.execute(self.DELETE_ROWS, (table, _json(keys)))
        if changes.updated_rows:
            rows = [{"t": t, "k": k, "s": s} for t, k, s in changes.updated_rows]
            self._connection.execute(sized(self.UPDATE_ROWS, len(rows)), (_json(rows),))
        if changes.inserted_rows:
            with self._connection.cursor().copy(self.COPY_ROWS) as copy:
                copy.set_types(["int8", "text", "text"])
                for row in changes.inserted_rows:
                    copy.write_row(row)

    def _store_receipts(self, changes: WriteSet) -> WriteSet:
        """Raise write checkpoints to the entries that came; what is left is the parameter index's."""
        receipts, came = self._receipts, (*changes.added_lookups, *changes.passing_lookups)
        found = [(entry.outputs, entry.table) for entry in came if entry.definition in receipts]
        self._raised |= raise_receipts(self._connection, found)
        return replace(
            changes,
            added_lookups={entry for entry in changes.added_lookups if entry.definition not in receipts},
            removed_lookups={entry for entry in changes.removed_lookups if entry.definition not in receipts},
        )

    COPY_LOOKUPS = """
        COPY localsync_parameter_lookup (definition_id, key, table_id, row_key, outputs, pending)
        FROM STDIN (FORMAT BINARY)
    """
    # Index (definition_id, key, table_id, row_key).
    _SAME_LOOKUP = """
           (SELECT * FROM json_to_recordset(%s::json) AS v (d bigint, k text, t bigint, r text, o text) LIMIT ALL) AS v
         WHERE entry.definition_id = v.d AND entry.key = v.k AND entry.table_id = v.t AND entry.row_key = v.r
           AND entry.outputs = v.o
    """
    DELETE_LOOKUPS = f"DELETE FROM localsync_parameter_lookup AS entry USING {_SAME_LOOKUP}"
    # What no reader has seen yet goes at once, the rest when the transaction that takes it back is shown.
    DELETE_PENDING_LOOKUPS = f"{DELETE_LOOKUPS} AND entry.pending = 1"
    WITHDRAW_LOOKUPS = (
        f"UPDATE localsync_parameter_lookup AS entry SET pending = 2 FROM {_SAME_LOOKUP} AND entry.pending = 0"
    )

    def _store_lookups(self, changes: WriteSet) -> None:
        if changes.removed_lookups:
            gone = [
                {"d": e.definition, "k": e.key, "t": e.table, "r": e.row_key, "o": e.outputs}
                for e in changes.removed_lookups
            ]
            for statement in (
                (self.DELETE_PENDING_LOOKUPS, self.WITHDRAW_LOOKUPS) if self.withheld else (self.DELETE_LOOKUPS,)
            ):
                self._connection.execute(sized(statement, len(gone)), (_json(gone),))
        if changes.added_lookups:
            pending = 1 if self.withheld else 0
            with self._connection.cursor().copy(self.COPY_LOOKUPS) as copy:
                copy.set_types(["int8", "text", "int8", "text", "text", "int2"])
                for entry in changes.added_lookups:
                    copy.write_row((*entry, pending))
        for entry in (*changes.removed_lookups, *changes.added_lookups):
            self._changed_lookups.add(lookup_digest(entry.definition, entry.key))

    # Every bucket of the rule set is read: rows of a table without identity are known by their operations only.
    LIVE_PUTS = """
        SELECT bucket_id, row_type, row_id, subkey
          FROM (SELECT DISTINCT ON (operation.bucket_id, row_type, row_id, subkey) operation.bucket_id, row_type,
                       row_id, subkey, operation.kind
                  FROM localsync_bucket_operation AS operation
                 WHERE operation.bucket_id IN (SELECT id FROM localsync_bucket WHERE definition_id = ANY(%s))
                   AND operation.subkey LIKE %s
                 ORDER BY operation.bucket_id, row_type, row_id, subkey, operation.op_id DESC) AS newest
         WHERE kind = %s
    """

    def live_rows(self, definitions: Sequence[int], subkey_prefix: str) -> list[tuple[int, str, str, str]]:
        """Every live row whose subkey begins so: bucket id, row type, row id, subkey. Slow; for TRUNCATE only."""
        pattern = subkey_prefix.replace("\\", r"\\").replace("%", r"\%").replace("_", r"\_") + "%"
        return self._connection.execute(self.LIVE_PUTS, (list(definitions), pattern, OpKind.PUT.value)).fetchall()

    def lookups_of(self, table: int) -> set[LookupEntry]:
        """Every entry that a table contributes to the parameter index. Slow; for TRUNCATE only."""
        query = (
            "SELECT definition_id, key, table_id, row_key, outputs FROM localsync_parameter_lookup"
            " WHERE table_id = %s AND pending <> 2"
        )
        return {LookupEntry(*row) for row in self._connection.execute(query, (table,))}

    def _remember_buckets(self, statement: LiteralString, keys: Iterable[BucketKey]) -> None:
        wanted = _json([{"d": definition, "p": parameters} for definition, parameters in keys])
        for definition, parameters, bucket in self._connection.execute(statement, (wanted,)):
            self._buckets[definition, parameters] = bucket

    def _forget_transaction(self) -> None:
        self.in_transaction = False
        self._totals, self._created, self._changed_lookups, self._raised = {}, set(), set(), set()


def _json(value: object) -> str:
    return orjson.dumps(value).decode()
