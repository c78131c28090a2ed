"""The tables of one source, as the stream at this place and the catalogue have them, and how they change.

A table whose rows can no longer be told apart as they were stored is *replaced*: its rows are taken back, and it is
read again under its new identity. Until that is complete nothing is shown, for readers would see it half (I2). One
whose columns changed is *refreshed*: its rows are written again, chunk by chunk, while everything goes on.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace

from ..pgoutput.messages import Relation
from ..storage import rule_sets, sources
from ..storage.connections import Connection
from ..storage.sources import StoredSource, StoredTable
from ..storage.writer import StorageWriter
from ..sync_rules.plan import TableName
from .backfills import Backfill, Backfills
from .changes import ChangeApplier, ReplicatedTable
from .layout import Identity, LayoutBuilder, identity_at
from .marks import CatalogRead
from .progress import Progress
from .tables import CatalogTable, still_mean, type_line

logger = logging.getLogger(__name__)

NO_IDENTITY = (
    "has no replica identity: its new rows are synced, updates and deletes are not; "
    "give it a primary key, or ALTER TABLE … REPLICA IDENTITY FULL"
)


# What rows were read or streamed with for a moment may be nothing that the catalogue is ever seen to say: a column that
# had another name for the length of a transaction. A column's stored meaning says so, until the catalogue is looked at.
IN_DOUBT = "\nin doubt"  # a line that no meaning in the catalogue has: the column was gone, or of another type
SEEN = "seen in a row"  # the whole meaning of a column that only the rows had


class IdentityChanged(Exception):
    """At this place in the stream, a table's rows are identified otherwise than they were stored."""

    def __init__(self, table: StoredTable, identity: Identity, columns: Collection[str]) -> None:
        self.table, self.identity, self.columns = table, identity, columns
        super().__init__(f"the replica identity of {table.name} changed; its rows are read again")


class FollowedTables:
    """Storage's tables of a source by the oid that the stream calls them, and what is still to be read of them."""

    def __init__(
        self,
        storage: Connection,
        source: StoredSource,
        layouts: LayoutBuilder,
        backfills: Backfills,
        served: frozenset[int],
        progress: Progress,
    ) -> None:
        """`served` are the definitions that readers see and that are fed."""
        self._storage, self._source, self.layouts, self._backfills = storage, source, layouts, backfills
        self._served, self._progress = served, progress
        self._relations: dict[int, Relation] = {}
        self._layouts: dict[int, ReplicatedTable] = {}
        self.stored: dict[int, StoredTable] = {}
        self.load()

    def load(self) -> None:
        """Read from storage what tables there are, and what is to be read."""
        self.stored = {table.relation_oid: table for table in sources.load_tables(self._storage, self._source.id)}
        by_id = {table.id: table for table in self.stored.values()}
        living = {definition for feed in self.layouts.feeds for definition in feed.definition_ids()}
        for stored in sources.load_backfills(self._storage, self._source.id, living):
            if self._backfills.get(stored.id) is None:
                self._progress.expect(max(stored.estimated_rows - stored.rows, 0))
                is_resumed = stored.phase != "waiting"
                self._backfills.add(Backfill(stored, by_id[stored.table], is_resumed=is_resumed))
        self._layouts.clear()

    def is_followed(self, oid: int) -> bool:
        """Whether changes of the table are applied."""
        stored = self.stored.get(oid)
        return stored is not None and stored.followed

    def note_relation(self, relation: Relation) -> None:
        """The stream announces a layout. Raises IdentityChanged where the stored rows cannot be continued with it."""
        self._relations[relation.oid] = relation
        self._layouts.pop(relation.oid, None)
        stored = self.stored.get(relation.oid)
        if stored is None or not stored.followed:
            return
        identity = identity_at(relation, stored, self.layouts.read_table(relation.oid))
        names = {column.name for column in relation.columns}
        is_other_row = identity[0] == "row" and names != dict(stored.columns).keys()
        if is_other_row or identity != (stored.identity, stored.key_columns):
            raise IdentityChanged(stored, identity, names)
        self.note_columns(stored, {column.name: column.type_oid for column in relation.columns})

    def note_columns(self, stored: StoredTable, types: Mapping[str, int]) -> None:
        """Rows come with these columns (name → oid of the type). Where rules read others than the stored rows were made
        of, the catalogue is looked at again: what it says then decides which rows are read again.
        """
        meanings = self._meanings_now(stored, types)
        if meanings is not None:
            # With the rows, if a storage transaction is open; else before them.
            sources.set_table_columns(self._storage, stored.id, sorted(meanings.items()))
            self.load()
            self._backfills.doubt_catalog()

    def has_columns(self, stored: StoredTable, types: Mapping[str, int]) -> bool:
        """Whether rows that come with these columns leave nothing to be noted."""
        return self._meanings_now(stored, types) is None

    def _meanings_now(self, stored: StoredTable, types: Mapping[str, int]) -> dict[str, str] | None:
        before = dict(stored.columns)
        meanings = {name: _meaning_now(meaning, types.get(name)) for name, meaning in before.items()}
        meanings |= dict.fromkeys(types.keys() - before.keys(), SEEN)
        other = {name for name, meaning in meanings.items() if before.get(name) != meaning}
        return meanings if other and self.layouts.used_names(stored.name, meanings) & other else None

    def layout(self, oid: int) -> ReplicatedTable | None:
        """How the stream's tuples of this table are to be read, or None where they are of no use."""
        found = self._layouts.get(oid)
        if found is None:
            stored, relation = self.stored.get(oid), self._relations.get(oid)
            if stored is None or relation is None:
                return None
            names = {column.name for column in relation.columns}
            if not names.issuperset(stored.key_columns):
                return None  # the layout of a moment before the stored one, of a table that is not followed yet
            is_counted = any(backfill.stored.counts for backfill in self._backfills.of_table(stored.id))
            found = replace(
                self.layouts.from_relation(stored, relation), is_followed=stored.followed, is_counted=is_counted
            )
            self._layouts[oid] = found
        return found

    def with_id(self, table: int | None) -> StoredTable | None:
        """The table that storage calls so."""
        return next((stored for stored in self.stored.values() if stored.id == table), None)

    def replace_as_it_is(self, table: StoredTable, writer: StorageWriter, applier: ChangeApplier) -> None:
        """Take a table's rows back and read them again as the catalogue has it now. Nothing may be written before."""
        now = self.layouts.read_table(table.relation_oid) or table
        self.replace(table, (now.identity, now.key_columns), writer, applier)

    def replace(
        self,
        table: StoredTable,
        identity: Identity,
        writer: StorageWriter,
        applier: ChangeApplier,
        names: Collection[str] | None = None,
    ) -> None:
        """Take a table's rows back and read them again under another identity. Nothing may be written before.

        `names` are those of the columns at this place in the stream, where it is not the catalogue's.
        """
        is_served = bool(self.layouts.definitions_of(table.name) & self._served)
        if is_served:
            writer.withhold()
        self._take_back(table, applier)
        now = self.layouts.read_table(table.relation_oid)
        meanings = dict(now.meanings()) if now else {}
        columns = meanings.keys() if names is None else names
        self._add(
            table.relation_oid,
            table.name,
            identity,
            [(name, meanings.get(name, "")) for name in sorted(columns)],
            now.estimated_rows if now else 0,
            withholds=is_served,
        )
        self.load()

    def reread(self, table: int, definitions: Iterable[int], writer: StorageWriter) -> None:
        """Some rows of a table must be read again for these definitions, since the stream left large values out."""
        needed = frozenset(definitions)
        if needed & self._served:
            writer.withhold()
        sources.add_backfill(self._storage, table, needed, 0, withholds=bool(needed & self._served), phase="rereading")

    def begin_counts_again(self, applier: ChangeApplier) -> None:
        """A count that was cut short begins anew: which rows it had counted already, nobody knows."""
        for stored in list(self.stored.values()):
            for backfill in self._backfills.of_table(stored.id):
                if backfill.stored.counts and backfill.stored.phase == "scanning":
                    applier.truncate(stored.id, stored.identity, self.layouts.definitions_of(stored.name))
                    sources.follow_table(self._storage, stored.id, False)
                    again = replace(backfill.stored, phase="waiting", rows=0)
                    sources.save_backfill(self._storage, again)
                    self._backfills.update(backfill, again, is_answered=True)
        self.load()

    def reconcile(self, catalog: CatalogRead, rule_set: int, writer: StorageWriter, applier: ChangeApplier) -> None:
        """Make storage's tables those of the catalogue, and have read whatever that takes."""
        now = {table.oid: table for table in catalog.tables}
        known = [(stored, now.get(stored.relation_oid)) for stored in self.stored.values()]
        for stored, table in known:  # first: these may withhold what follows
            if table is not None and table.name == stored.name and self._must_replace(stored, table, catalog):
                self.replace(stored, (table.identity, table.key_columns), writer, applier)
        for stored, table in known:
            if table is None or table.name != stored.name:
                self._drop(stored, applier)
            elif not self._must_replace(stored, table, catalog):
                self._compare_columns(stored, table)
        for table in now.values():
            if table.oid not in self.stored:
                identity = table.identity, table.key_columns
                self._add(table.oid, table.name, identity, table.meanings(), table.estimated_rows)
        self.load()
        self._fill_new_definitions(now, rule_set)
        sources.save_published(self._storage, self._source.id, catalog.published)
        self.load()

    def _must_replace(self, stored: StoredTable, table: CatalogTable, catalog: CatalogRead) -> bool:
        same = (table.identity, set(table.key_columns)) == (stored.identity, set(stored.key_columns))
        return not same or _keys_differ(stored, table) or (stored.name in catalog.unpublished and stored.followed)

    def _fill_new_definitions(self, now: dict[int, CatalogTable], rule_set: int) -> None:
        if self._source.prepared_for == rule_set:
            return
        filling = rule_sets.filling_definitions(self._storage)
        for stored in self.stored.values():
            backfills = [backfill.stored for backfill in self._backfills.of_table(stored.id)]
            known = {d for backfill in backfills if backfill.reads_all for d in backfill.definitions}
            missing = (self.layouts.definitions_of(stored.name) & filling) - known
            if missing:
                table = now[stored.relation_oid]
                sources.add_backfill(self._storage, stored.id, missing, table.estimated_rows)
                sources.set_table_columns(self._storage, stored.id, table.meanings())
        sources.mark_prepared(self._storage, self._source.id, rule_set)
        self._source = replace(self._source, prepared_for=rule_set)

    def _compare_columns(self, stored: StoredTable, table: CatalogTable) -> None:
        """Have rows read again that no longer say what the rules see.

        Where columns were only added, those are the rows that have values in them, unless a rule left all of them out
        as long as it missed the column.
        """
        if table.meanings() == stored.columns:
            return
        sources.set_table_columns(self._storage, stored.id, table.meanings())
        before = {name: meaning for name, meaning in stored.columns if meaning != SEEN}
        seen, now = dict(stored.columns).keys() - before.keys(), dict(table.meanings())
        used = self.layouts.used_names(table.name, before.keys() | seen | now.keys())
        changed = {name for name in used & before.keys() if not still_mean(before[name], now.get(name))}
        changed |= used & seen - now.keys()
        added = used & (now.keys() - before.keys())
        if not changed and not added:
            return
        logger.info("%s changed (%s); its rows are read again", stored.name, ", ".join(sorted(changed | added)))
        was_missed = added & self.layouts.missing_names(table.name, before)
        sources.add_backfill(
            self._storage,
            stored.id,
            self.layouts.definitions_of(stored.name),
            table.estimated_rows,
            refreshes=True,
            only_with=() if changed or was_missed else added,
        )

    def _drop(self, stored: StoredTable, applier: ChangeApplier) -> None:
        if self.layouts.uses(stored.name):
            logger.info("%s was dropped or renamed; its rows are taken back", stored.name)
            self._take_back(stored, applier)
        else:
            self._retire(stored)

    def _take_back(self, stored: StoredTable, applier: ChangeApplier) -> None:
        applier.truncate(stored.id, stored.identity, self.layouts.definitions_of(stored.name))
        self._retire(stored)

    def _retire(self, stored: StoredTable) -> None:
        for backfill in self._backfills.of_table(stored.id):
            self._backfills.end(backfill.stored.id)
        sources.retire_table(self._storage, stored.id)
        self.stored.pop(stored.relation_oid, None)
        self._layouts.pop(stored.relation_oid, None)

    def _add(
        self,
        oid: int,
        name: TableName,
        identity: Identity,
        columns: Sequence[tuple[str, str]],
        estimated_rows: int,
        *,
        withholds: bool = False,
    ) -> None:
        kind, key = identity
        if kind == "none":
            logger.warning("%s %s", name, NO_IDENTITY)
        problem = NO_IDENTITY if kind == "none" else ""
        table = sources.add_table(self._storage, self._source.id, oid, name, kind, key, columns, problem)
        definitions = self.layouts.definitions_of(name)
        sources.add_backfill(
            self._storage, table.id, definitions, estimated_rows, withholds=withholds, counts=kind == "row"
        )


def _meaning_now(meaning: str, type_oid: int | None) -> str:
    """The stored meaning of a column, given that rows come with a column of this type (None: without it)."""
    if meaning == SEEN or meaning.endswith(IN_DOUBT):
        return meaning
    is_as_before = type_oid is not None and type_line(type_oid) in meaning.split("\n")
    return meaning if is_as_before else meaning + IN_DOUBT


def _keys_differ(stored: StoredTable, table: CatalogTable) -> bool:
    """Whether the keys of the same rows would be others now: key columns of another type, or other whole rows."""
    before, now = dict(stored.columns), dict(table.meanings())
    if stored.identity == "row":
        return before.keys() != now.keys() or any(not still_mean(before[name], now[name]) for name in before)
    return any(not still_mean(before[name], now.get(name)) for name in stored.key_columns if name in before)
