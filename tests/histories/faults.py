"""Deliberate mistakes in the replicator, each of which random histories must notice."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import psycopg
import pytest

from django_localsync.buckets.operation import OpKind
from django_localsync.pgoutput.lsn import Lsn
from django_localsync.pgoutput.snapshots import RecentTransactions, Snapshot
from django_localsync.replication import source_reader, stream
from django_localsync.replication.changes import ChangeApplier
from django_localsync.replication.filling import Filling
from django_localsync.replication.source_reader import SourceReader
from django_localsync.replication.stream import Stream
from django_localsync.storage import rule_sets
from django_localsync.storage.writer import StorageWriter, WriteSet

Fault = Callable[[pytest.MonkeyPatch], None]


def remove_dropped(patch: pytest.MonkeyPatch) -> None:
    """A row that leaves a bucket stays there."""
    copy = StorageWriter._copy_operations
    patch.setattr(
        StorageWriter,
        "_copy_operations",
        lambda self, drafts: copy(self, [draft for draft in drafts if draft[1] != OpKind.REMOVE]),
    )


def grant_too_many(patch: pytest.MonkeyPatch) -> None:
    """A membership that ends stays in the parameter index."""
    write = StorageWriter.write

    def keep(self: StorageWriter, output: WriteSet) -> None:
        output.removed_lookups.clear()
        write(self, output)

    patch.setattr(StorageWriter, "write", keep)


def truncate_ignored(patch: pytest.MonkeyPatch) -> None:
    """TRUNCATE takes nothing back."""
    patch.setattr(Stream, "_truncate", lambda self, message: None)


def confirmed_too_early(patch: pytest.MonkeyPatch) -> None:
    """The LSN is confirmed before the storage transaction commits, which then fails now and then (I3)."""
    publish, calls = Stream._publish, []

    def confirm_first(self: Stream) -> None:
        calls.append(1)
        if len(calls) % 4 == 0 and self._end_lsn is not None:
            self._connection.confirm(Lsn(self._end_lsn))
            raise psycopg.OperationalError("cut off before the commit")
        publish(self)

    patch.setattr(Stream, "_publish", confirm_first)


def position_ignored(patch: pytest.MonkeyPatch) -> None:
    """What is stored already is applied again after a restart: the position is kept, but not consulted."""
    start, init = stream.ReplicationConnection.start, Stream.__init__

    def forget(self: Stream, *args: Any, **kwargs: Any) -> None:
        init(self, *args, **kwargs)
        self._storing.position = 0

    patch.setattr(Stream, "__init__", forget)
    patch.setattr(Stream, "_confirm", lambda self: None)
    patch.setattr(
        stream.ReplicationConnection, "start", lambda self, slot, after, names: start(self, slot, Lsn(0), names)
    )


def half_transaction_published(patch: pytest.MonkeyPatch) -> None:
    """A part of a transaction is shown as soon as it is written (I2)."""
    changed = Stream._row_changed

    def publish_at_once(self: Stream, message: Any) -> None:
        changed(self, message)
        if self._changes and self._changes[-1].table.name.name == "account" and self._end_lsn is None:
            self._end_lsn = self.position
            self._publish()

    patch.setattr(Stream, "_row_changed", publish_at_once)


def stale_chunk_row_applied(patch: pytest.MonkeyPatch) -> None:
    """A row of a chunk replaces what the stream has brought since."""
    patch.setattr(RecentTransactions, "hidden_from", lambda self, snapshot: [])


def guard_by_list_alone(patch: pytest.MonkeyPatch) -> None:
    """A transaction counts as seen unless the snapshot names it as running."""
    patch.setattr(Snapshot, "shows", lambda self, xid: self.widen(xid) not in self.in_progress)


def no_barrier(patch: pytest.MonkeyPatch) -> None:
    """Reading begins although transactions run of which the stream may not have everything."""

    def pass_at_once(self: SourceReader, backfill: Any, reading: Any) -> bool:
        backfill.must_see = None
        return True

    patch.setattr(SourceReader, "_has_passed_barrier", pass_at_once)


def rewrite_overlooked(patch: pytest.MonkeyPatch) -> None:
    """Reading goes on at the same block of a table that was rewritten."""
    begin = source_reader._Reading.begin

    def begin_once(self: Any, file_node: int, blocks: int) -> None:
        if self.file_node is None:
            begin(self, file_node, blocks)
        self.file_node = file_node

    patch.setattr(source_reader._Reading, "begin", begin_once)


def large_value_never_read(patch: pytest.MonkeyPatch) -> None:
    """Rows whose large values the stream left out are not read again."""
    patch.setattr(StorageWriter, "incomplete_rows", lambda self, table, limit: [])
    patch.setattr(Filling, "check_incomplete", lambda self: self.applier.incomplete.clear())


def swapped_before_filled(patch: pytest.MonkeyPatch) -> None:
    """A rule set is served as soon as anything of it was read."""
    patch.setattr(
        rule_sets, "is_filled", lambda storage, aliases: rule_sets.load_rule_set(storage, "processing") is not None
    )


def totals_forgotten(patch: pytest.MonkeyPatch) -> None:
    """A checkpoint's totals are not added once in a while."""
    publish, calls = StorageWriter.publish, []

    def sometimes(self: StorageWriter, *args: Any, **kwargs: Any) -> None:
        calls.append(1)
        if len(calls) % 5 == 0:
            self._totals = {}
        publish(self, *args, **kwargs)

    patch.setattr(StorageWriter, "publish", sometimes)


def copies_not_counted(patch: pytest.MonkeyPatch) -> None:
    """Deleting one of two identical rows takes both."""
    drop = ChangeApplier._drop_copy

    def drop_all(self: ChangeApplier, table: Any, key: str, rows: Any, output: WriteSet) -> None:
        state = rows.take(table.id, key)
        if state is not None and state.copies > 1:
            rows.put_state(table.id, key, state._replace(copies=1))
        drop(self, table, key, rows, output)

    patch.setattr(ChangeApplier, "_drop_copy", drop_all)


def last_step_forgotten(patch: pytest.MonkeyPatch) -> None:
    """A step takes rows as storage had them before the step before it was written."""
    work_out = ChangeApplier.work_out
    patch.setattr(ChangeApplier, "work_out", lambda self, step, known, _, find: work_out(self, step, known, {}, find))


def stale_rows_counted_as_new(patch: pytest.MonkeyPatch) -> None:
    """Rows that are read are taken for new ones, although the stream has brought some of them."""
    step = ChangeApplier.chunk_step
    patch.setattr(
        ChangeApplier, "chunk_step", lambda self, *args, are_new, **named: step(self, *args, are_new=True, **named)
    )


QUICKLY_NOTICED: list[Fault] = [
    last_step_forgotten,
    remove_dropped,
    grant_too_many,
    swapped_before_filled,
    totals_forgotten,
]
RARELY_MET: list[Fault] = [
    large_value_never_read,
    truncate_ignored,
    confirmed_too_early,
    position_ignored,
    half_transaction_published,
    stale_chunk_row_applied,
    guard_by_list_alone,
    no_barrier,
    rewrite_overlooked,
    copies_not_counted,
    stale_rows_counted_as_new,
]
