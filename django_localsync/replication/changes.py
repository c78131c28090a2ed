"""Row changes, in commit order, to what they do in storage.

Hot path, in two passes over a batch: the first evaluates the rules for every row (generated code) and resolves all
buckets at once; the second walks the changes in order with each row's remembered state at hand, so that a chain of
changes to one row within a batch comes out right. Inserted rows of a table with a key are not looked up. Remembered
states stay texts: most rows stay where they are, and then comparing the texts is all.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeGuard, cast

from ..buckets.membership import (
    INCOMPLETE,
    NOWHERE,
    Draft,
    Lookup,
    Place,
    RowState,
    draft_changes,
    draft_puts,
    encode_state,
)
from ..pgoutput.messages import UNCHANGED, Values
from ..storage.writer import BucketKey, LookupEntry, StorageWriter, WriteSet
from ..sync_rules.plan import BucketRow, LookupRow, RowEvaluator, TableName
from .tables import KeyValues, large_values


@dataclass(frozen=True, slots=True)
class Evaluation:
    """One feed's part in a table: the generated function, which calls its sources by their definitions' ids.

    `toastable` lists position and name of the columns that it reads and whose values an UPDATE may leave out.
    """

    evaluate: RowEvaluator
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


Evaluated = tuple[list[BucketRow], list[LookupRow]]
"""A row's buckets and its entries of the parameter index; `source` is the definition's id."""


class Located(NamedTuple):
    """Where a row is, what it adds to the parameter index, and the PUTs that show it."""

    places: Sequence[Place]
    lookups: Sequence[Lookup]
    puts: Sequence[Draft]


AWAY = Located((), (), ())


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
            _evaluate(table.evaluations, values) if values and _is_whole(values, before) else None
            for table, before, _, values in changes
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
            before = states.take(part.id, key)
            if part.identity == "row" and (before is None or before.copies < 1):
                continue  # it was deleted since, or is still to be counted
            if part.identity == "none":
                self._replace_unremembered(part, key, result, output)
            elif before is None:
                self._put(part, None, key, values, result, states, output)
            elif before.copies == INCOMPLETE:
                self._put(whole, key, key, values, self._evaluate_late(whole.evaluations, values), states, output)
            elif not self._fill_in(part, key, values, before, result, refreshes, states, output):
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
                _move(table, row_key, row_key, state, AWAY, output)
                output.deleted_rows.setdefault(table, []).append(row_key)
            self._writer.write(output)
            key = batch[-1][0]

    def _truncate_unremembered(self, table: int, definitions: Iterable[int]) -> None:
        output = WriteSet(removed_lookups=self._writer.lookups_of(table))
        for bucket, row_type, row_id, subkey in self._writer.live_rows(sorted(definitions), f"{table}/"):
            output.drafts += draft_changes([(bucket, row_type, row_id)], (), (), subkey, subkey)
        self._writer.write(output)

    def _apply_one(self, change: Change, result: Evaluated | None, rows: _Rows, output: WriteSet) -> None:
        table, before_key, after_key, values = change
        if values is None or after_key is None:
            assert before_key is not None, "a change has a row before or after"
            self._delete(table, before_key, rows, output)
            return
        if result is None:
            before = rows.take(table.id, before_key) if before_key is not None else None
            whole, missing = _fill(table, values, before)
            if missing:
                self._remember_incomplete(change, whole, missing, before, rows, output)
                return
            result = self._evaluate_late(table.evaluations, whole)
        else:
            whole = cast("list[str | None]", values)
        if table.identity == "row":
            if before_key is not None:
                self._drop_copy(table, before_key, rows, output)
            self._add_copy(table, after_key, whole, result, rows, output)
        else:
            self._put(table, before_key, after_key, whole, result, rows, output)

    def _delete(self, table: ReplicatedTable, key: str, rows: _Rows, output: WriteSet) -> None:
        if table.identity == "row":
            self._drop_copy(table, key, rows, output)
        elif (before := rows.take(table.id, key)) is not None:
            rows.forget(table.id, key)
            _move(table.id, key, key, before, AWAY, output)

    def _put(
        self,
        table: ReplicatedTable,
        before_key: str | None,
        key: str,
        values: Sequence[str | None],
        result: Evaluated,
        rows: _Rows,
        output: WriteSet,
    ) -> None:
        """A row is there as it is now. What it was before matters only where its state was another."""
        after = self._locate(table, key, result)
        state = encode_state(after.places, after.lookups, large_values(values, table.toastable, table.toast_target))
        if before_key is None:
            _move(table.id, key, key, NOWHERE, after, output)
        elif before_key == key and rows.text(table.id, key) == state:
            output.drafts += after.puts
        else:
            _move(table.id, before_key, key, rows.take(table.id, before_key) or NOWHERE, after, output)
            if before_key != key:
                rows.forget(table.id, before_key)
        if table.identity != "none":
            rows.put(table.id, key, state)

    def _drop_copy(self, table: ReplicatedTable, key: str, rows: _Rows, output: WriteSet) -> None:
        """One of several identical rows is gone, or the last one."""
        state = rows.take(table.id, key)
        copies = (state.copies if state else 0) - 1
        if copies < 0 and not table.is_counted:
            return
        if copies == 0:
            rows.forget(table.id, key)
        else:
            rows.put_state(table.id, key, (state or NOWHERE)._replace(copies=copies))
        if copies == 0 and state is not None:
            _move(table.id, key, key, state, AWAY, output)

    def _add_copy(
        self,
        table: ReplicatedTable,
        key: str,
        values: Sequence[str | None],
        result: Evaluated,
        rows: _Rows,
        output: WriteSet,
    ) -> None:
        """A row came; an identical one may be there already, or have been deleted before it was read."""
        state = rows.take(table.id, key)
        copies = (state.copies if state else 0) + 1
        if copies == 0:
            rows.forget(table.id, key)
            return
        if copies < 0:
            rows.put_state(table.id, key, NOWHERE._replace(copies=copies))
            return
        located = self._locate(table, key, result)
        new = _state(table, values, located)
        rows.put_state(table.id, key, new._replace(copies=copies))
        if state is None or not _same(state, new):
            _move(table.id, key, key, state or NOWHERE, located, output)

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
        located = self._locate(table, after_key, self._evaluate_late(seeing, values))
        known = _state(table, values, located)
        if before_key == after_key:
            kept = _only(before, unknown)
            known = known._replace(places=known.places + kept.places, lookups=known.lookups + kept.lookups)
        _move(table.id, before_key, after_key, before, Located(known.places, known.lookups, located.puts), output)
        if before_key != after_key:
            rows.forget(table.id, before_key)
        rows.put_state(table.id, after_key, known._replace(copies=INCOMPLETE))
        self.incomplete.setdefault(table.id, set()).update(unknown)

    def _replace_unremembered(self, table: ReplicatedTable, key: str, result: Evaluated, output: WriteSet) -> None:
        """Add a row that the stream may have brought already: then it takes the place of itself."""
        located = self._locate(table, key, result)
        output.drafts += located.puts
        entries = _entries(table.id, key, located.lookups)
        output.removed_lookups |= entries
        output.added_lookups |= entries

    def _fill_in(
        self,
        part: ReplicatedTable,
        key: str,
        values: Sequence[str | None],
        before: RowState,
        result: Evaluated,
        refreshes: bool,
        rows: _Rows,
        output: WriteSet,
    ) -> bool:
        """Add a row's places in some definitions to what is stored of it; answers whether there was anything new."""
        definitions = part.definitions
        located = self._locate(part, key, result)
        new = _state(part, values, located)
        rest = _except(before, definitions)
        after = RowState(
            rest.places + new.places, rest.lookups + new.lookups, {**rest.large, **new.large}, before.copies
        )
        if not refreshes and _same(before, after) and before.large == after.large:
            return False
        rows.put_state(part.id, key, after)
        _move(part.id, key, key, _only(before, definitions), located, output)
        return True

    def _find_buckets(self, evaluated: Iterable[Evaluated | None]) -> None:
        self._buckets = self._writer.bucket_ids([row[:2] for result in evaluated if result for row in result[0]])

    def _evaluate_late(self, evaluations: Sequence[Evaluation], values: Sequence[str | None]) -> Evaluated:
        """Of a row that could not be evaluated with its batch."""
        result = _evaluate(evaluations, values)
        self._find_buckets([result])
        return result

    def _locate(self, table: ReplicatedTable, key: str, result: Evaluated) -> Located:
        rows, lookups = result
        places, puts = draft_puts(rows, self._buckets, _subkey(table.id, key))
        return Located(places, [(*lookup,) for lookup in lookups], puts)


Chunk = Sequence[tuple[str, Sequence[str | None]]]
"""Rows that were read, each with its key."""


def _evaluate(evaluations: Sequence[Evaluation], values: Sequence[str | None]) -> Evaluated:
    if len(evaluations) == 1:
        return evaluations[0].evaluate(values)
    rows: list[BucketRow] = []
    lookups: list[LookupRow] = []
    for part in evaluations:
        more_rows, more_lookups = part.evaluate(values)
        rows += more_rows
        lookups += more_lookups
    return rows, lookups


class _Rows:
    """The remembered states, as texts, of the rows a batch touches, as they are after each change."""

    def __init__(self, writer: StorageWriter, wanted: Mapping[int, set[str]]) -> None:
        self._read_state = writer.read_state
        self._stored = {table: writer.row_states(table, keys) for table, keys in wanted.items()}
        self._now: dict[int, dict[str, str | None]] = defaultdict(dict)

    def text(self, table: int, key: str) -> str | None:
        """The row's state before this change."""
        now = self._now[table]
        return now[key] if key in now else self._stored.get(table, {}).get(key)

    def take(self, table: int, key: str) -> RowState | None:
        """The same, decoded."""
        text = self.text(table, key)
        return None if text is None else self._read_state(text)

    def put(self, table: int, key: str, text: str) -> None:
        """The row's state after this change."""
        self._now[table][key] = text

    def put_state(self, table: int, key: str, state: RowState) -> None:
        """The same, not encoded yet."""
        self.put(table, key, encode_state(*state))

    def forget(self, table: int, key: str) -> None:
        """The row is gone."""
        self._now[table][key] = None

    def save(self, output: WriteSet) -> None:
        """What must be written so that storage remembers the states as they are now."""
        for table, rows in self._now.items():
            stored = self._stored.get(table, {})
            for key, text in rows.items():
                before = stored.get(key)
                if text is None:
                    if before is not None:
                        output.deleted_rows.setdefault(table, []).append(key)
                elif before is None:
                    output.inserted_rows.append((table, key, text))
                elif before != text:
                    output.updated_rows.append((table, key, text))


def _subkey(table: int, key: str) -> str:
    return f"{table}/{key}"  # the table makes two source tables under one client name distinct


def _move(table: int, before_key: str, key: str, before: RowState, after: Located, output: WriteSet) -> None:
    """A row goes from where it was to where it is."""
    if before.places:
        subkeys = _subkey(table, before_key), _subkey(table, key)
        output.drafts += draft_changes(before.places, after.places, after.puts, *subkeys)
    else:
        output.drafts += after.puts
    if before.lookups or after.lookups:
        output.replace_lookups(_entries(table, before_key, before.lookups), _entries(table, key, after.lookups))


def _entries(table: int, key: str, lookups: Iterable[Lookup]) -> set[LookupEntry]:
    return {LookupEntry(definition, name, table, key, outputs) for definition, name, outputs in lookups}


def _state(table: ReplicatedTable, values: Sequence[str | None], located: Located) -> RowState:
    large = large_values(values, table.toastable, table.toast_target)
    return RowState(tuple(located.places), tuple(located.lookups), large)


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


def _is_whole(values: Values, before: str | None) -> TypeGuard[list[str | None]]:
    return before is None or UNCHANGED not in values  # only an UPDATE leaves values out


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
