"""What was read of a source meets the stream: chunks are applied where their marks come through, see marks.py.

Follower's side of the reading, inside the storage transactions of the stream: each chunk is stored with how far its
table has been read, so that a crash resumes at the chunk. Then what is complete is shown, and the rule set that is
complete becomes the active one, in the same transaction that completed it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from functools import partial
from typing import NamedTuple, assert_never

from ..pgoutput.snapshots import Delivered, RecentTransactions, Snapshot
from ..storage import rule_sets, sources
from ..storage.connections import Connection
from ..storage.sources import StoredBackfill
from ..storage.writer import StorageWriter
from ..sync_rules.plan import Plan
from .backfills import Backfill, Backfills
from .changes import Change, ChangeApplier, ReplicatedTable, Step
from .followed_tables import FollowedTables
from .marks import Activation, CatalogRead, ChunkRead, CountBegun, Marks, RowsCounted, TableRead
from .progress import Progress
from .tables import CatalogTable

logger = logging.getLogger(__name__)

REREAD_KEYS = 1000  # rows that are read again at a time
FORGET_AT = 500  # transactions remembered before a look at which of them every snapshot shows


class NeedsReading(Exception):
    """The stream left out large values that storage does not know; those rows must be read again."""

    def __init__(self, table: int, definitions: Collection[int]) -> None:
        self.table, self.definitions = table, frozenset(definitions)
        super().__init__("a change left out large values that are not known; their rows are read again")


class Resume(Exception):
    """What is fed has changed; the stream goes on from where storage stands."""


class Shown(NamedTuple):
    """What a storage transaction makes visible beyond its own changes."""

    shows: bool = False  # all that was withheld
    rules: bool = False  # another rule set


class Filling:
    """Applies what was read of one source."""

    def __init__(
        self,
        storage: Connection,
        writer: StorageWriter,
        tables: FollowedTables,
        backfills: Backfills,
        marks: Marks,
        *,
        rule_set: int,
        plan: Plan,
        aliases: Sequence[str],
        served: frozenset[int],
        progress: Progress,
    ) -> None:
        """`rule_set` is the newest one, of `plan`; `aliases` are all sources; `served` what readers see."""
        self._storage, self._writer, self._tables = storage, writer, tables
        self._backfills, self._marks, self._progress = backfills, marks, progress
        self._rule_set, self._plan, self._aliases, self._served = rule_set, plan, aliases, served
        self._recent = RecentTransactions()
        self._something_ended = self._was_swapped = self._is_count_void = False
        self._with_incomplete: set[int] = set()
        self._forget_at = FORGET_AT
        self._layouts: dict[int, tuple[CatalogTable, ReplicatedTable]] = {}  # that of each backfill's last chunk
        self.applier = ChangeApplier(writer)

    def is_reading(self) -> bool:
        """Whether what the stream delivers must be remembered."""
        return len(self._backfills) > 0

    def note_change(self, delivered: Delivered, change: Change) -> None:
        """A row of a transaction that is being delivered was changed."""
        table = change.table
        for backfill in self._backfills.of_table(table.id):
            backfill.is_quiet = False
            if backfill.stored.counts and backfill.stored.phase == "waiting":
                delivered.keep(table.id, change)
            else:
                delivered.touch(table.id, change.before, change.after)

    def note_truncate(self, delivered: Delivered, table: int) -> None:
        """A table is emptied by a transaction that is being delivered. Rows that were being counted are gone, too."""
        delivered.truncate(table)
        for backfill in self._backfills.of_table(table):
            backfill.is_quiet = False
            if backfill.stored.counts and backfill.stored.phase == "scanning":
                self._backfills.restart(backfill)
                self._is_count_void = True

    def deliver(self, delivered: Delivered) -> None:
        """A transaction was delivered whole."""
        if not self.is_reading():
            self._recent.clear()
            return
        self._recent.add(delivered)
        if self._backfills.horizon is not None and len(self._recent) >= self._forget_at:
            self._forget(self._backfills.horizon)
            self._forget_at = max(FORGET_AT, 2 * len(self._recent))

    def check_incomplete(self) -> None:
        """Raise NeedsReading if rows were left incomplete which nothing is going to read again."""
        incomplete, self.applier.incomplete = self.applier.incomplete, {}
        for table, definitions in incomplete.items():
            self._with_incomplete.add(table)
            read = {d for backfill in self._backfills.of_table(table) for d in backfill.stored.definitions}
            if not definitions <= read or (definitions & self._served and not self._writer.withheld):
                raise NeedsReading(table, definitions)

    def is_mark(self, content: bytes) -> bool:
        """Whether a message of the stream stands for something that was read."""
        return self._marks.find(content) is not None

    def take_chunk(self, content: bytes) -> tuple[Step, Callable[[], None]] | None:
        """The step that stores a chunk, and what saves how far its table has been read; where the stream passes its
        mark. None if it is no chunk, or one that needs more than that: then `pass_mark` is due.
        """
        mark = self._marks.find(content)
        if not isinstance(mark, ChunkRead) or mark.asked is not None:
            return None
        backfill = self._backfills.get(mark.backfill)
        if backfill is None or backfill.attempt != mark.attempt or not self._has_layout(backfill, mark.table):
            return None
        table = self._tables.stored.get(backfill.table.relation_oid)
        if table is None or not self._tables.has_columns(table, _types(mark.table)):
            return None
        self._marks.take(content)
        return self._begin_chunk(backfill, mark)

    def pass_mark(self, content: bytes) -> None:
        """The stream has passed a mark: all that was committed before it is applied."""
        mark = self._marks.take(content)
        if isinstance(mark, CatalogRead):
            self._tables.reconcile(mark, self._rule_set, self._writer, self.applier)
            self._something_ended = True
            return
        backfill = self._backfills.get(mark.backfill) if mark else None
        if mark is None or backfill is None:
            return
        if not isinstance(mark, Activation) and mark.attempt != backfill.attempt:
            return
        match mark:
            case Activation():
                self._activate(backfill)
            case ChunkRead():
                self._apply(backfill, mark)
            case CountBegun():
                self._begin_count(backfill, mark)
            case RowsCounted():
                self._count(backfill, mark)
            case TableRead():
                self._end_table(backfill)
            case _:
                assert_never(mark)

    def finish(self) -> Shown:
        """What becomes visible with this storage transaction. Called last in it."""
        if not self._something_ended:
            return Shown()
        self._something_ended = False
        swaps = rule_sets.is_filled(self._storage, self._aliases)
        if swaps:
            rule_sets.activate(self._storage, self._plan)
            self._was_swapped = True
        shows = self._writer.withheld and not sources.must_withhold(self._storage)
        if not self.is_reading():
            self._progress.finish()
        return Shown(shows, swaps)

    def settle(self) -> None:
        """After the commit. Raises Resume when another rule set is active, or a count must begin again."""
        if self._was_swapped:
            raise Resume("another rule set is active")
        if self._is_count_void:
            raise Resume("a table was emptied while its rows were counted")

    def _activate(self, backfill: Backfill) -> None:
        """Apply the table's changes from here on. The first chunk must show whatever was ignored until now."""
        self._begin_reading(backfill, replace(backfill.stored, phase="scanning"))
        backfill.must_see = self._recent.xids()
        table, all_of_table = backfill.table, self._backfills.of_table(backfill.table.id)
        for each in all_of_table:
            each.is_quiet = False  # another one brings rows, too
        if len(all_of_table) == 1 and table.identity == "key":
            backfill.is_quiet = not self._writer.rows_from(table.id, "", 1)

    def _begin_reading(self, backfill: Backfill, stored: StoredBackfill) -> None:
        if not self._tables.is_followed(backfill.table.relation_oid):
            if stored.definitions & self._served:
                stored = replace(stored, withholds=True)
                self._writer.withhold()
            sources.follow_table(self._storage, backfill.table.id, True)
            self._tables.load()
        self._save(backfill, stored, is_answered=True)

    def _apply(self, backfill: Backfill, chunk: ChunkRead) -> None:
        self._note_columns(backfill, chunk.table)
        begun = self._begin_chunk(backfill, chunk)
        if begun is None:
            return
        step, save = begun
        self.applier.apply_step(step)
        if chunk.asked is not None:
            found = {key for key, _, _ in chunk.rows}
            touched = _touched_keys(self._recent.hidden_from(chunk.snapshot), backfill.stored.table)
            self.applier.drop_missing(self._whole(backfill, chunk.table), chunk.asked - found - set(touched or ()))
        save()

    def _begin_chunk(self, backfill: Backfill, chunk: ChunkRead) -> tuple[Step, Callable[[], None]] | None:
        """None if it cannot be used, since it may show rows as they were before something in the stream."""
        stored, rows = backfill.stored, chunk.rows
        backfill.on_the_way -= 1
        hidden = self._recent.hidden_from(chunk.snapshot)
        touched = _touched_keys(hidden, stored.table)
        if touched is None:
            self._backfills.restart(backfill)
            return None
        if any(stored.table in transaction.truncated for transaction in hidden):
            rows = ()
        elif touched:
            rows = [row for row in rows if row[0] not in touched]
        if stored.file_node not in (None, chunk.table.file_node):
            backfill.is_quiet = False  # the table was rewritten, and is read again
        step = self.applier.chunk_step(
            self._whole(backfill, chunk.table), chunk.part, rows, refreshes=stored.refreshes, are_new=backfill.is_quiet
        )
        if chunk.asked is None:
            stored = replace(
                stored,
                block=chunk.next_block,
                blocks=chunk.blocks,
                file_node=chunk.table.file_node,
                rows=stored.rows + len(chunk.rows),
            )
            self._progress.advance(str(backfill.table.name), len(chunk.rows))
        self._backfills.update(backfill, stored, is_answered=False)
        self._forget(chunk.snapshot)
        return step, partial(sources.save_backfill, self._storage, stored)

    def _count(self, backfill: Backfill, mark: RowsCounted) -> None:
        self._note_columns(backfill, mark.table)
        backfill.on_the_way -= 1
        self.applier.count_rows(replace(self._whole(backfill, mark.table), is_counted=True), mark.rows)
        self._progress.advance(str(backfill.table.name), len(mark.rows))
        self._save(backfill, replace(backfill.stored, rows=backfill.stored.rows + len(mark.rows)))

    def _note_columns(self, backfill: Backfill, table: CatalogTable) -> None:
        stored = self._tables.stored.get(backfill.table.relation_oid)
        if stored is not None:
            self._tables.note_columns(stored, _types(table))

    def _begin_count(self, backfill: Backfill, mark: CountBegun) -> None:
        """Apply what was delivered and the snapshot does not show; whatever comes from here on, it does not show."""
        changes: list[Change] = []
        for transaction in self._recent.hidden_from(mark.snapshot):
            kept = transaction.changes.get(backfill.stored.table, [])
            if kept is None or backfill.stored.table in transaction.truncated:
                self._backfills.restart(backfill)
                return
            changes += kept
        self._begin_reading(backfill, replace(backfill.stored, phase="scanning"))
        self.applier.apply([change._replace(table=replace(change.table, is_counted=True)) for change in changes])

    def _end_table(self, backfill: Backfill) -> None:
        stored = backfill.stored
        if backfill.is_resumed or stored.table in self._with_incomplete:
            keys = self._writer.incomplete_rows(stored.table, REREAD_KEYS)
        else:
            keys = []
        if keys:
            backfill.wanted = keys
            self._save(backfill, replace(stored, phase="rereading"), is_answered=True)
            return
        sources.end_backfill(self._storage, stored.id)
        self._backfills.end(stored.id)
        self._layouts.pop(stored.id, None)
        if stored.counts:
            self._tables.load()  # deletions come after what they delete from here on
        self._something_ended = True

    def _save(self, backfill: Backfill, stored: StoredBackfill, *, is_answered: bool = False) -> None:
        sources.save_backfill(self._storage, stored)
        self._backfills.update(backfill, stored, is_answered=is_answered)

    def _forget(self, snapshot: Snapshot) -> None:
        self._recent.forget([snapshot, *self._marks.snapshots()])

    def _whole(self, backfill: Backfill, table: CatalogTable) -> ReplicatedTable:
        """The table as it is evaluated for everything."""
        if not self._has_layout(backfill, table):
            whole = self._tables.layouts.from_catalog(backfill.table, table)
            self._layouts[backfill.stored.id] = table.without_size(), whole
        return self._layouts[backfill.stored.id][1]

    def _has_layout(self, backfill: Backfill, table: CatalogTable) -> bool:
        known = self._layouts.get(backfill.stored.id)
        return known is not None and known[0] == table.without_size()


def _types(table: CatalogTable) -> dict[str, int]:
    return {column.name: column.type_oid for column in table.columns}


def _touched_keys(hidden: Sequence[Delivered], table: int) -> Collection[str] | None:
    """Keys that some of these transactions touched, or None: too many to know."""
    touched: set[str] = set()
    for transaction in hidden:
        keys = transaction.keys.get(table, ())
        if keys is None:
            return None
        touched.update(keys)
    return touched
