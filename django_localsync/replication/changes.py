"""Row changes, in commit order, to what they do in storage.

Hot path, in two passes over a batch: the first evaluates the rules for every row (generated code) and resolves all
buckets at once; the second walks the changes in order with each row's remembered state at hand, so that a chain of
changes to one row within a batch comes out right. Inserted rows of a table with a key are not looked up.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeGuard

from ..buckets.membership import NOWHERE, Lookup, Place, RowState, draft_changes, encode_state
from ..exceptions import ReplicationError
from ..pgoutput.messages import UNCHANGED, Values
from ..storage.generations import Generation
from ..storage.writer import BucketKey, LookupEntry, StorageWriter, WriteSet
from ..sync_rules.plan import BucketRow, LookupRow, RowEvaluator, TableName
from .tables import KeyValues, large_values


class UnknownBaseRow(ReplicationError):
    """An UPDATE left a large value out, and storage does not remember it: only a new copy can say what it is."""

    code = "unknown_base_row"

    def __init__(self, table: TableName, column: str) -> None:
        super().__init__(f"{table}: the unchanged value of {column!r} is unknown; a new copy begins")


@dataclass(frozen=True, slots=True)
class ReplicatedTable:
    """A table in the layout that its tuples have now.

    `key_of` gives a tuple's key; `identity` as in CatalogTable. `toastable` lists position and name of the used
    columns whose values an UPDATE may leave out.
    """

    id: int
    name: TableName
    identity: str
    key_of: Callable[[KeyValues], str]
    toastable: tuple[tuple[int, str], ...]
    toast_target: int
    evaluate: RowEvaluator


class Change(NamedTuple):
    """One row change: insert (no `before`), delete (no `after`) or update; both are keys, `values` the new tuple."""

    table: ReplicatedTable
    before: str | None
    after: str | None
    values: Values | None


Evaluated = tuple[list[BucketRow], list[LookupRow]]


class ChangeApplier:
    """Applies changes of one generation inside the writer's open transaction."""

    def __init__(self, writer: StorageWriter, generation: Generation) -> None:
        self._writer = writer
        self._bucket_definitions = generation.bucket_definitions
        self._lookup_definitions = generation.lookup_definitions
        self._buckets: Mapping[BucketKey, int] = {}  # ids of every bucket that the batch at hand names

    def apply(self, changes: Sequence[Change]) -> None:
        """Write the operations, row states and lookups that follow from a batch of changes."""
        evaluated = [
            change.table.evaluate(change.values) if change.values and _is_whole(change.values) else None
            for change in changes
        ]
        definitions = self._bucket_definitions
        self._buckets = self._writer.bucket_ids(
            [(definitions[row.source], row.parameters) for result in evaluated if result for row in result[0]]
        )
        rows = _Rows(self._writer, changes)
        output = WriteSet()
        for change, result in zip(changes, evaluated, strict=True):
            self._apply_one(change, result, rows, output)
        rows.save(output)
        self._writer.write(output)

    def truncate(self, table: ReplicatedTable) -> None:
        """Take back every row of a table. Everything earlier must have been applied."""
        if table.identity == "none":
            self._truncate_unremembered(table)
            return
        key = ""
        while batch := self._writer.rows_from(table.id, key, limit=5000):
            output = WriteSet()
            for row_key, state in batch:
                _move(table, row_key, row_key, state, NOWHERE, (), output)
                output.deleted_rows.append((table.id, row_key))
            self._writer.write(output)
            key = batch[-1][0]

    def _truncate_unremembered(self, table: ReplicatedTable) -> None:
        output = WriteSet(removed_lookups=self._writer.lookups_of(table.id))
        for bucket, row_type, row_id, subkey in self._writer.live_rows(self._bucket_definitions, f"{table.id}/"):
            output.drafts += draft_changes([(bucket, row_type, row_id)], (), subkey, subkey)
        self._writer.write(output)

    def _apply_one(self, change: Change, result: Evaluated | None, rows: _Rows, output: WriteSet) -> None:
        table, before_key, after_key, values = change
        before = rows.take(table, before_key) if before_key is not None else None
        if values is None or after_key is None:
            assert before_key is not None, "a change has a row before or after"
            if before is not None and not rows.drop_copy(table, before_key, before):
                _move(table, before_key, before_key, before, NOWHERE, (), output)
            return
        if _is_whole(values) and result is not None:
            whole = values
        else:
            whole = _fill(table, values, before)
            result = table.evaluate(whole)
            self._buckets = self._writer.bucket_ids(
                [(self._bucket_definitions[row.source], row.parameters) for row in result[0]]
            )
        places, lookups = self._located(result)
        after = RowState(
            tuple(place for place, _ in places), lookups, large_values(whole, table.toastable, table.toast_target)
        )
        if table.identity == "row":
            if before is not None and before_key is not None and not rows.drop_copy(table, before_key, before):
                _move(table, before_key, before_key, before, NOWHERE, (), output)
            if rows.add_copy(table, after_key):
                return
            before, before_key = None, None
        _move(table, before_key or after_key, after_key, before or NOWHERE, after, places, output)
        if table.identity != "none":
            if before_key is not None and before_key != after_key:
                rows.forget(table, before_key)
            rows.put(table, after_key, after)

    def _located(self, result: Evaluated) -> tuple[list[tuple[Place, str]], tuple[Lookup, ...]]:
        definitions, buckets = self._bucket_definitions, self._buckets
        places = [
            ((buckets[definitions[source], parameters], row_type, row_id), data)
            for source, parameters, row_type, row_id, data in result[0]
        ]
        lookups = tuple((self._lookup_definitions[source], key, outputs) for source, key, outputs in result[1])
        return places, lookups


class _Rows:
    """The remembered states of the rows a batch touches, as they are after each change."""

    def __init__(self, writer: StorageWriter, changes: Iterable[Change]) -> None:
        self._stored: dict[int, dict[str, RowState]] = {}
        self._now: dict[int, dict[str, RowState | None]] = defaultdict(dict)
        wanted: dict[int, set[str]] = defaultdict(set)
        for change in changes:
            if change.before is not None:
                wanted[change.table.id].add(change.before)
            if change.after is not None and change.table.identity == "row":
                wanted[change.table.id].add(change.after)
        for table, keys in wanted.items():
            self._stored[table] = writer.row_states(table, keys)

    def take(self, table: ReplicatedTable, key: str) -> RowState | None:
        """The row's state before this change."""
        now = self._now[table.id]
        if key in now:
            return now[key]
        return self._stored.get(table.id, {}).get(key)

    def put(self, table: ReplicatedTable, key: str, state: RowState) -> None:
        """The row's state after this change."""
        self._now[table.id][key] = state

    def forget(self, table: ReplicatedTable, key: str) -> None:
        """The row is gone."""
        self._now[table.id][key] = None

    def drop_copy(self, table: ReplicatedTable, key: str, state: RowState) -> bool:
        """One of several identical rows is gone, or the last one; answers whether copies are left."""
        if state.copies > 1:
            self.put(table, key, state._replace(copies=state.copies - 1))
            return True
        self.forget(table, key)
        return False

    def add_copy(self, table: ReplicatedTable, key: str) -> bool:
        """A row came; answers whether an identical one was there already (and is counted)."""
        state = self.take(table, key)
        if state is not None:
            self.put(table, key, state._replace(copies=state.copies + 1))
        return state is not None

    def save(self, output: WriteSet) -> None:
        """What must be written so that storage remembers the states as they are now."""
        for table, rows in self._now.items():
            stored = self._stored.get(table, {})
            for key, state in rows.items():
                before = stored.get(key)
                if state is None:
                    if before is not None:
                        output.deleted_rows.append((table, key))
                elif before is None:
                    output.inserted_rows.append((table, key, encode_state(state)))
                elif before != state:
                    output.updated_rows.append((table, key, encode_state(state)))


def _move(
    table: ReplicatedTable,
    before_key: str,
    after_key: str,
    before: RowState,
    after: RowState,
    places: Iterable[tuple[Place, str]],
    output: WriteSet,
) -> None:
    # The table's id makes two source tables under one client name distinct.
    output.drafts += draft_changes(before.places, places, f"{table.id}/{before_key}", f"{table.id}/{after_key}")
    if before.lookups == after.lookups and before_key == after_key:
        return
    old = {LookupEntry(definition, key, table.id, before_key, outputs) for definition, key, outputs in before.lookups}
    new = {LookupEntry(definition, key, table.id, after_key, outputs) for definition, key, outputs in after.lookups}
    output.replace_lookups(old, new)


def _is_whole(values: Values) -> TypeGuard[list[str | None]]:
    return UNCHANGED not in values


def _fill(table: ReplicatedTable, values: Values, before: RowState | None) -> list[str | None]:
    """Put remembered values where Postgres left them out. Columns that no rule reads stay NULL."""
    filled = [None if value is UNCHANGED else value for value in values]
    for position, name in table.toastable:
        if values[position] is UNCHANGED:
            if before is None or name not in before.large:
                raise UnknownBaseRow(table.name, name)
            filled[position] = before.large[name]
    return filled
