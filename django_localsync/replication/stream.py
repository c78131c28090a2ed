"""Follows the replication stream: messages to row changes, whole transactions to checkpoints.

The batch grows by itself with the load and needs no timer: what has arrived is published once the socket is empty, or
BATCH_ROWS or BATCH_BYTES are waiting. A transaction larger than that is written in parts inside one open storage
transaction, so memory stays bounded and nothing of it shows before its commit (I2). While there is a backlog, a batch
is stored as the next one is read, see storing.py.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from time import monotonic
from typing import assert_never

from ..buckets.announcement import MESSAGE_PREFIX
from ..pgoutput.frames import MESSAGE_START, XLOG_DATA, PrimaryKeepalive, decode_frame
from ..pgoutput.lsn import Lsn
from ..pgoutput.messages import (
    UNCHANGED,
    Begin,
    Commit,
    Delete,
    Insert,
    LogicalMessage,
    Message,
    Origin,
    Relation,
    Truncate,
    Type,
    Update,
    decode_message,
)
from ..pgoutput.snapshots import Delivered
from ..storage.writer import StorageWriter
from .changes import Change, ReplicatedTable, Step, change_of, deletion_of
from .connection import ReplicationConnection
from .filling import Filling
from .followed_tables import FollowedTables
from .storing import Checkpoint, Storing

logger = logging.getLogger(__name__)

BATCH_ROWS = 5000
BATCH_BYTES = 8 << 20  # of messages; a few batches are in memory at a time, each several times over

# An idle walsender of Postgres 16 to 18 misses about one commit in two thousand: it looks whether there is more WAL
# before it asks to be woken. Each status update makes it look again, and this is how late such a commit may be.
STATUS_INTERVAL_S = 0.25

# Where nothing is committed that we follow, the position moves on by keepalives. Only what storage holds may be
# confirmed, and storing it writes WAL itself, so not more often than this.
IDLE_POSITION_INTERVAL_S = 10.0

_EPOCH = datetime(2000, 1, 1, tzinfo=UTC)


class Stream:
    """One streaming connection, from START_REPLICATION until it breaks or is told to stop."""

    def __init__(
        self,
        connection: ReplicationConnection,
        writer: StorageWriter,
        source: int,
        lsn: int,
        tables: FollowedTables,
        filling: Filling,
        *,
        when_idle: Callable[[], bool] = lambda: False,
        when_committed: Callable[[], None] = lambda: None,
    ) -> None:
        """`when_idle` does a piece of work that can wait, and answers whether there is more of it."""
        self._connection, self._tables, self._filling = connection, tables, filling
        self._when_idle, self._when_committed = when_idle, when_committed
        self._storing = Storing(writer, filling, source, lsn)
        self._idle_lsn, self._idle_since = lsn, monotonic()
        self._confirmed, self._confirmed_at = lsn, monotonic()
        self._changes: list[Change] = []
        self._changes_bytes = 0
        self._write_checkpoints: set[int] = set()
        self._end_lsn: int | None = None  # end of the last whole transaction that is not published yet
        self._committed_at: datetime | None = None
        self._in_transaction = self._skipping = False
        self._is_written = False  # a part of the transaction at hand, so its commit must publish
        self._delivered: Delivered | None = None  # what the transaction at hand does to tables that are being read
        self._marks: list[bytes] = []

    @property
    def position(self) -> int:
        """End of the last commit that storage holds."""
        return self._storing.position

    def run(self, check: Callable[[], None], wake_fd: int) -> None:
        """Follow the stream until `check`, which is asked several times a second, raises.

        Raises psycopg.Error, IdentityChanged, NeedsReading or Resume, too. Whatever was not published then leaves
        nothing behind and is sent again by Postgres.
        """
        try:
            work_is_waiting = True
            while True:
                check()
                is_waiting = work_is_waiting or self._storing.is_busy()
                payloads = self._connection.read(0 if is_waiting else STATUS_INTERVAL_S, wake_fd)
                for payload in payloads:
                    self._receive(payload)
                if self._end_lsn is not None and not self._in_transaction and not self._connection.has_buffered():
                    self._publish()
                if not payloads:
                    self._storing.finish()
                self._confirm_when_due()
                if not payloads and self._is_idle():
                    work_is_waiting = self._when_idle()
        finally:
            self._storing.close(sys.exc_info()[1])

    def _receive(self, payload: bytes) -> None:
        if payload[:1] == XLOG_DATA:  # nothing else of the frame is of use, and there is one a row
            self._changes_bytes += len(payload)
            self._handle(decode_message(payload[MESSAGE_START:]))
            return
        frame = decode_frame(payload)
        assert isinstance(frame, PrimaryKeepalive)
        if self._is_idle():
            # A server that is shutting down asks for a reply, and waits until all of its WAL is confirmed.
            self._note_idle_position(frame.wal_end.value, at_once=frame.reply_requested)
        if frame.reply_requested:
            self._confirm()

    def _handle(self, message: Message) -> None:
        match message:
            case Insert() | Update() | Delete():
                if not self._skipping:
                    self._row_changed(message)
            case Begin():
                # Only commit LSNs are ordered; a transaction whose commit lies before our position is stored (I3).
                self._in_transaction, self._skipping = True, message.final_lsn.value < self.position
                self._delivered = Delivered(message.xid) if self._filling.is_reading() else None
            case Commit():
                self._in_transaction = False
                if not self._skipping:
                    self._commit(message)
            case Relation():
                self._storing.finish()
                self._tables.note_relation(message)
            case Truncate():
                if not self._skipping:
                    self._truncate(message)
            case LogicalMessage():
                if message.prefix == MESSAGE_PREFIX and message.transactional and not self._skipping:
                    self._receive_message(message.content)
            case Origin() | Type():
                pass
            case _:
                assert_never(message)

    def _commit(self, message: Commit) -> None:
        self._end_lsn = message.end_lsn.value
        self._committed_at = _EPOCH + timedelta(microseconds=message.commit_time)
        if self._delivered is not None:
            self._filling.deliver(self._delivered)
        self._when_committed()
        if self._marks:
            self._pass_marks()
        elif self._is_written or self._is_full(1):
            self._publish()

    def _row_changed(self, message: Insert | Update | Delete) -> None:
        table = self._tables.layout(message.relation)
        if table is None:
            return
        try:
            change = _change(table, message)
        except TypeError:  # the stream is still at a moment when the table had another identity
            if table.is_followed:
                raise
            if self._delivered is not None:
                self._delivered.touch_unknown(table.id)
            return
        if self._delivered is not None:
            self._filling.note_change(self._delivered, change)
        if not table.is_followed:
            return
        self._changes.append(change)
        if self._is_full(2):  # a transaction's end is worth some waiting
            self._is_written = True
            self._storing.store_later(self._take_changes(), None)

    def _truncate(self, message: Truncate) -> None:
        self._is_written = True
        self._write_now()
        for oid in message.relations:
            table = self._tables.layout(oid)
            if table is None:
                continue
            if self._delivered is not None:
                self._filling.note_truncate(self._delivered, table.id)
            if table.is_followed:
                self._filling.applier.truncate(table.id, table.identity, table.definitions)

    def _receive_message(self, content: bytes) -> None:
        if content.isdigit():
            self._write_checkpoints.add(int(content))
        elif self._filling.is_mark(content):
            if self._end_lsn is not None:  # what the mark brings may not share a storage transaction with it
                self._publish()
            self._marks.append(content)

    def _pass_marks(self) -> None:
        """In a storage transaction of its own, whole transactions before it being published."""
        marks, self._marks = self._marks, []
        chunk = self._filling.take_chunk(marks[0]) if len(marks) == 1 else None
        if chunk is not None:
            step, save = chunk
            self._storing.store_later(step, self._take_checkpoint(), save)
            return
        self._write_now()
        for content in marks:
            self._filling.pass_mark(content)
        self._publish()

    def _write_now(self) -> None:
        """Have a storage transaction open that holds everything so far."""
        self._storing.store(self._take_changes(), None)

    def _publish(self) -> None:
        """Make a checkpoint of the whole transactions so far."""
        # Without a backlog, the way through another thread would only add to the delay.
        has_backlog = self._is_full(1) or self._storing.is_busy()
        store = self._storing.store_later if has_backlog else self._storing.store
        store(self._take_changes(), self._take_checkpoint())
        if not self._storing.is_busy():
            self._confirm()

    def _take_checkpoint(self) -> Checkpoint:
        assert self._end_lsn is not None
        checkpoint = Checkpoint(self._end_lsn, self._committed_at, frozenset(self._write_checkpoints))
        self._end_lsn, self._idle_since, self._is_written = None, monotonic(), False
        self._write_checkpoints = set()
        return checkpoint

    def _is_full(self, times: int) -> bool:
        return len(self._changes) >= times * BATCH_ROWS or self._changes_bytes >= times * BATCH_BYTES

    def _take_changes(self) -> Step:
        changes, self._changes, self._changes_bytes = self._changes, [], 0
        return self._filling.applier.changes_step(changes)

    def _is_idle(self) -> bool:
        return not self._in_transaction and self._end_lsn is None and not self._storing.is_busy()

    def _note_idle_position(self, wal_end: int, *, at_once: bool) -> None:
        """Everything before it was delivered, and nothing of it is waiting."""
        self._idle_lsn = max(self._idle_lsn, wal_end)
        is_due = at_once or monotonic() - self._idle_since >= IDLE_POSITION_INTERVAL_S
        if self._idle_lsn > self.position and is_due:
            self._end_lsn = self._idle_lsn
            self._publish()

    def _confirm_when_due(self) -> None:
        if self.position != self._confirmed or monotonic() - self._confirmed_at >= STATUS_INTERVAL_S:
            self._confirm()

    def _confirm(self) -> None:
        """Tell Postgres how far storage has come: only what is durable (I3)."""
        self._confirmed, self._confirmed_at = self.position, monotonic()
        self._connection.confirm(Lsn(self._confirmed))


def _change(table: ReplicatedTable, message: Insert | Update | Delete) -> Change:
    match message:
        case Insert():
            return change_of(table, None, table.key_of(message.new), message.new)
        case Update():
            return _update(table, message)
        case Delete():
            return deletion_of(table, table.key_of(message.old))


def _update(table: ReplicatedTable, message: Update) -> Change:
    new, before = message.new, message.old
    if before is None:
        key = table.key_of(new)
        return change_of(table, key, key, new)
    # The old tuple repeats what the new one leaves out: all of it under FULL, else the identity's columns.
    new = [old if value is UNCHANGED and old is not None else value for value, old in zip(new, before, strict=True)]
    return change_of(table, table.key_of(before), table.key_of(new), new)
