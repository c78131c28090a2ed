"""Row changes, in commit order, to what they do in storage.

Hot path, in two passes over a batch: the first evaluates the rules for every row (generated code) and resolves all
buckets at once; the second walks the changes in order with each row's remembered state at hand, so that a chain of
changes to one row within a batch comes out right. Inserted rows of a table with a key are not looked up.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeGuard

from ..buckets.membership import INCOMPLETE, NOWHERE, Lookup, Place, RowState, draft_changes, encode_state
from ..pgoutput.messages import UNCHANGED, Values
from ..storage.writer import BucketKey, LookupEntry, StorageWriter, WriteSet
from ..sync_rules.plan import RowEvaluator, TableName
from .tables import KeyValues, large_values


@dataclass(frozen=True, slots=True)
class Evaluation:
    """One feed's part in a table: the generated function, and what its sources are called in storage.

    `toastable` lists position and name of the columns that it reads and whose values an UPDATE may leave out.
    """

    evaluate: RowEvaluator
    bucket_definitions: tuple[int, ...]
    lookup_definitions: tuple[int, ...]
    definitions: frozenset[int]
    toastable: tuple[tuple[int, str], ...]


@dataclass(frozen=True, slots=True)
class ReplicatedTable:
    """A table in the layout that its tuples have now.

    `key_of` gives a tuple's key; `identity` as in CatalogTable; `toastable` are the columns of which large values must
    be remembered. `is_counted`: rows are still being counted, so deletions may come before what they delete.
    """

    id: int
    name: TableName
    identity: str
    key_of: Callable[[KeyValues], str]
    evaluations: tuple[Evaluation, ...]
    toastable: tuple[tuple[int, str], ...]
    toast_target: int
    is_counted: bool = False

    @property
    def definitions(self) -> frozenset[int]:
        """Everything that is filled from it."""
        return frozenset().union(*(part.definitions for part in self.evaluations))


class Change(NamedTuple):
    """One row change: insert (no `before`), delete (no `after`) or update; both are keys, `values` the new tuple."""

    table: ReplicatedTable
    before: str | None
    after: str | None
    values: Values | None


class Evaluated(NamedTuple):
    """A row's buckets (definition, parameters, row type, row id, JSON) and entries of the parameter index."""

    rows: list[tuple[int, str, str, str, str]]
    lookups: list[Lookup]


class Located(NamedTuple):
    """The same with bucket ids."""

    places: list[tuple[Place, str]]
    lookups: tuple[Lookup, ...]


class ChangeApplier:
    """Applies changes inside the writer's open transaction.

    `incomplete` collects what must be read again, since a large value is unknown: table id → definitions that need it.
    """

    def __init__(self, writer: StorageWriter) -> None:
        self._writer = writer
        self._buckets: Mapping[BucketKey, int] = {}  # ids of every bucket that the batch at hand names
        self.incomplete: dict[int, set[int]] = {}

    def apply(self, changes: Sequence[Change]) -> None:
        """Write the operations, row states and lookups that follow from a batch of changes."""
        evaluated = [
            _evaluate(change.table.evaluations, change.values) if change.values and _is_whole(change.values) else None
            for change in changes
        ]
        self._find_buckets(evaluated)
        wanted: dict[int, set[str]] = defaultdict(set)
        for change in changes:
            if change.before is not None:
                wanted[change.table.id].add(change.before)
            if change.after is not None and change.table.identity == "row":
                wanted[change.table.id].add(change.after)
        rows = _Rows(self._writer, wanted)
        output = WriteSet()
        for change, result in zip(changes, evaluated, strict=True):
            self._apply_one(change, result, rows, output)
        rows.save(output)
        self._writer.write(output)

    def apply_chunk(self, whole: ReplicatedTable, part: ReplicatedTable, rows: Chunk, *, refreshes: bool) -> int:
        """Write what rows that were read mean for some definitions; answers how many rows said something new.

        `part` is the table as it is evaluated for those definitions, `whole` for all: a row that was incomplete is
        written whole. A row that is stored with the same places already was changed in the stream since.
        """
        evaluated = [_evaluate(part.evaluations, values) for _, values in rows]
        self._find_buckets(evaluated)
        states = _Rows(self._writer, {part.id: {key for key, _ in rows}} if part.identity != "none" else {})
        output = WriteSet()
        applied = 0
        for (key, values), result in zip(rows, evaluated, strict=True):
            before = states.take(part, key)
            if part.identity == "row" and (before is None or before.copies < 1):
                continue  # it was deleted since, or is still to be counted
            if before is not None and before.copies == INCOMPLETE:
                self._read_again(whole, key, values, before, states, output)
            elif not self._fill_in(part, key, values, self._locate(result), refreshes, states, output):
                continue
            applied += 1
        states.save(output)
        self._writer.write(output)
        return applied

    def count_rows(self, table: ReplicatedTable, rows: Chunk) -> None:
        """Add rows of a table without a key that is being read whole."""
        self.apply([Change(table, None, key, [*values]) for key, values in rows])

    def drop_missing(self, table: ReplicatedTable, keys: Iterable[str]) -> None:
        """Take back incomplete rows that were looked for and are not there."""
        self.apply([Change(table, key, None, None) for key in keys])

    def truncate(self, table: int, identity: str, definitions: Iterable[int]) -> None:
        """Take back every row of a table (its id), which these definitions read. All earlier must have been applied."""
        if identity == "none":
            self._truncate_unremembered(table, definitions)
            return
        key = ""
        while batch := self._writer.rows_from(table, key, limit=5000):
            output = WriteSet()
            for row_key, state in batch:
                _move(table, row_key, row_key, state, NOWHERE, (), output)
                output.deleted_rows.append((table, row_key))
            self._writer.write(output)
            key = batch[-1][0]

    def _truncate_unremembered(self, table: int, definitions: Iterable[int]) -> None:
        output = WriteSet(removed_lookups=self._writer.lookups_of(table))
        for bucket, row_type, row_id, subkey in self._writer.live_rows(sorted(definitions), f"{table}/"):
            output.drafts += draft_changes([(bucket, row_type, row_id)], (), subkey, subkey)
        self._writer.write(output)

    def _apply_one(self, change: Change, result: Evaluated | None, rows: _Rows, output: WriteSet) -> None:
        table, before_key, after_key, values = change
        before = rows.take(table, before_key) if before_key is not None else None
        if values is None or after_key is None:
            assert before_key is not None, "a change has a row before or after"
            if table.identity == "row":
                self._drop_copy(table, before_key, before, rows, output)
            elif before is not None:
                rows.forget(table, before_key)
                _move(table.id, before_key, before_key, before, NOWHERE, (), output)
            return
        if result is not None and _is_whole(values):
            whole = values
        else:
            whole, missing = _fill(table, values, before)
            if missing:
                self._remember_incomplete(change, whole, missing, before, rows, output)
                return
            result = _evaluate(table.evaluations, whole)
            self._find_buckets([result])
        located = self._locate(result)
        after = _state(table, whole, located)
        if table.identity == "row":
            if before_key is not None:
                self._drop_copy(table, before_key, before, rows, output)
            self._add_copy(table, after_key, after, located, rows, output)
            return
        old_key = after_key if before_key is None else before_key  # a key may be the empty text
        _move(table.id, old_key, after_key, before or NOWHERE, after, located.places, output)
        if table.identity != "none":
            if before_key is not None and before_key != after_key:
                rows.forget(table, before_key)
            rows.put(table, after_key, after)

    def _drop_copy(
        self, table: ReplicatedTable, key: str, state: RowState | None, rows: _Rows, output: WriteSet
    ) -> None:
        """One of several identical rows is gone, or the last one."""
        copies = (state.copies if state else 0) - 1
        if copies < 0 and not table.is_counted:
            return
        if copies == 0:
            rows.forget(table, key)
        else:
            rows.put(table, key, (state or NOWHERE)._replace(copies=copies))
        if copies == 0 and state is not None:
            _move(table.id, key, key, state, NOWHERE, (), output)

    def _add_copy(
        self, table: ReplicatedTable, key: str, new: RowState, located: Located, rows: _Rows, output: WriteSet
    ) -> None:
        """A row came; an identical one may be there already, or have been deleted before it was read."""
        state = rows.take(table, key)
        copies = (state.copies if state else 0) + 1
        if copies == 0:
            rows.forget(table, key)
            return
        if copies < 0:
            rows.put(table, key, NOWHERE._replace(copies=copies))
            return
        rows.put(table, key, new._replace(copies=copies))
        if state is None or not _same(state, new):
            _move(table.id, key, key, state or NOWHERE, new, located.places, output)

    def _remember_incomplete(
        self,
        change: Change,
        values: list[str | None],
        missing: set[str],
        before: RowState | None,
        rows: _Rows,
        output: WriteSet,
    ) -> None:
        """Evaluate what can be; the rest stays as it was, or away under a new key, until the row is read again."""
        table, before_key, after_key, _ = change
        assert before_key is not None
        assert after_key is not None
        before = before or NOWHERE
        blind = [part for part in table.evaluations if missing & {name for _, name in part.toastable}]
        seeing = [part for part in table.evaluations if part not in blind]
        unknown = {definition for part in blind for definition in part.definitions}
        result = _evaluate(seeing, values)
        self._find_buckets([result])
        located = self._locate(result)
        known = _state(table, values, located)
        if before_key == after_key:
            kept = _only(before, unknown)
            known = known._replace(places=known.places + kept.places, lookups=known.lookups + kept.lookups)
            before = before._replace(places=_except(before, unknown).places)
        _move(table.id, before_key, after_key, before, known, located.places, output)
        if before_key != after_key:
            rows.forget(table, before_key)
        rows.put(table, after_key, known._replace(copies=INCOMPLETE))
        self.incomplete.setdefault(table.id, set()).update(unknown)

    def _read_again(
        self,
        table: ReplicatedTable,
        key: str,
        values: list[str | None],
        before: RowState,
        rows: _Rows,
        output: WriteSet,
    ) -> None:
        result = _evaluate(table.evaluations, values)
        self._find_buckets([result])
        located = self._locate(result)
        after = _state(table, values, located)
        rows.put(table, key, after)
        _move(table.id, key, key, before, after, located.places, output)

    def _fill_in(
        self,
        part: ReplicatedTable,
        key: str,
        values: list[str | None],
        located: Located,
        refreshes: bool,
        rows: _Rows,
        output: WriteSet,
    ) -> bool:
        """Add a row's places in some definitions to what is stored of it; answers whether there was anything new."""
        before = rows.take(part, key)
        definitions = {definition for evaluation in part.evaluations for definition in evaluation.definitions}
        new = _state(part, values, located)
        old = _only(before or NOWHERE, definitions)
        rest = _except(before or NOWHERE, definitions)
        after = RowState(
            rest.places + new.places,
            rest.lookups + new.lookups,
            {**rest.large, **new.large},
            before.copies if before else 1,
        )
        if before is not None and not refreshes and _same(before, after) and before.large == after.large:
            return False
        if part.identity != "none":
            rows.put(part, key, after)
        else:  # an entry that the stream brought already is replaced by itself
            output.removed_lookups |= _entries(part.id, key, new)
        _move(part.id, key, key, old, new, located.places, output)
        return True

    def _find_buckets(self, evaluated: Iterable[Evaluated | None]) -> None:
        self._buckets = self._writer.bucket_ids([row[:2] for result in evaluated if result for row in result.rows])

    def _locate(self, result: Evaluated) -> Located:
        buckets = self._buckets
        places = [
            ((buckets[definition, parameters], row_type, row_id), data)
            for definition, parameters, row_type, row_id, data in result.rows
        ]
        return Located(places, tuple(result.lookups))


Chunk = Sequence[tuple[str, list[str | None]]]
"""Rows that were read, each with its key."""


def _evaluate(evaluations: Iterable[Evaluation], values: list[str | None]) -> Evaluated:
    rows: list[tuple[int, str, str, str, str]] = []
    lookups: list[Lookup] = []
    for part in evaluations:
        found, entries = part.evaluate(values)
        definitions = part.bucket_definitions
        rows += [(definitions[row[0]], *row[1:]) for row in found]
        if entries:
            definitions = part.lookup_definitions
            lookups += [(definitions[entry[0]], entry[1], entry[2]) for entry in entries]
    return Evaluated(rows, lookups)


class _Rows:
    """The remembered states of the rows a batch touches, as they are after each change."""

    def __init__(self, writer: StorageWriter, wanted: Mapping[int, set[str]]) -> None:
        self._stored: dict[int, dict[str, RowState]] = {}
        self._now: dict[int, dict[str, RowState | None]] = defaultdict(dict)
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
    table: int,
    before_key: str,
    after_key: str,
    before: RowState,
    after: RowState,
    places: Iterable[tuple[Place, str]],
    output: WriteSet,
) -> None:
    # The table's id makes two source tables under one client name distinct.
    output.drafts += draft_changes(before.places, places, f"{table}/{before_key}", f"{table}/{after_key}")
    if before.lookups == after.lookups and before_key == after_key:
        return
    output.replace_lookups(_entries(table, before_key, before), _entries(table, after_key, after))


def _entries(table: int, key: str, state: RowState) -> set[LookupEntry]:
    return {LookupEntry(definition, name, table, key, outputs) for definition, name, outputs in state.lookups}


def _state(table: ReplicatedTable, values: list[str | None], located: Located) -> RowState:
    return RowState(
        tuple(place for place, _ in located.places),
        located.lookups,
        large_values(values, table.toastable, table.toast_target),
    )


def _only(state: RowState, definitions: Container[int]) -> RowState:
    """The part of a state that some definitions fill."""
    return state._replace(
        places=tuple(place for place in state.places if place[0] >> 32 in definitions),
        lookups=tuple(lookup for lookup in state.lookups if lookup[0] in definitions),
    )


def _except(state: RowState, definitions: Container[int]) -> RowState:
    """The part of a state that other definitions fill."""
    return state._replace(
        places=tuple(place for place in state.places if place[0] >> 32 not in definitions),
        lookups=tuple(lookup for lookup in state.lookups if lookup[0] not in definitions),
    )


def _same(one: RowState, other: RowState) -> bool:
    """Whether a row is in the same places with the same lookups, in whatever order."""
    return set(one.places) == set(other.places) and set(one.lookups) == set(other.lookups)


def _is_whole(values: Values) -> TypeGuard[list[str | None]]:
    return UNCHANGED not in values


def _fill(table: ReplicatedTable, values: Values, before: RowState | None) -> tuple[list[str | None], set[str]]:
    """Put remembered values where Postgres left them out; answers also the names of those that are not known.

    Columns that no rule reads stay NULL.
    """
    filled = [None if value is UNCHANGED else value for value in values]
    missing = set()
    for position, name in table.toastable:
        if values[position] is UNCHANGED:
            if before is None or name not in before.large:
                missing.add(name)
            else:
                filled[position] = before.large[name]
    return filled, missing
