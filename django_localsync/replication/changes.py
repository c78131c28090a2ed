"""Row changes, in commit order, to what they do in storage.

Rules are evaluated as changes arrive (generated code), which takes nothing but the row. A batch of them is a *step*:
what must be looked up in storage for it, all at once, and then a walk through the changes in order, with each row's
remembered state at hand, so that a chain of changes to one row comes out right. The walk itself reads no storage, so
that one step can be walked while another is written.

Hot path: inserted rows of a table with a key are not looked up. Remembered states stay texts: most rows stay where they
are, and then comparing the texts is all.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Container, Iterable, Mapping, Sequence
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

    `key_of` gives a tuple's key; `identity` as in CatalogTable; `evaluate` does what all evaluations do; `toastable`
    are the columns of which large values must be remembered. `is_followed`: changes in the stream are applied;
    `is_counted`: rows are still being counted, so deletions may come before what they delete.
    """

    id: int
    name: TableName
    identity: str
    key_of: Callable[[KeyValues], str]
    evaluations: tuple[Evaluation, ...]
    evaluate: RowEvaluator
    toastable: tuple[tuple[int, str], ...]
    toast_target: int
    is_followed: bool = True
    is_counted: bool = False

    @property
    def definitions(self) -> frozenset[int]:
        """Everything that is filled from it."""
        return frozenset().union(*(part.definitions for part in self.evaluations))


Evaluated = tuple[list[BucketRow], list[LookupRow]]
"""A row's buckets and its entries of the parameter index; `source` is the definition's id."""


class Change(NamedTuple):
    """One row change: insert (no `before`), delete (no `after`) or update; both are keys, `values` the new tuple.

    `result` is what the rules make of the new row, as far as the change says all of it.
    """

    table: ReplicatedTable
    before: str | None
    after: str | None
    values: Values | None
    result: Evaluated | None


Row = tuple[str | None, ...]
"""A row that was read."""

Chunk = Sequence[tuple[str, Row, Evaluated]]
"""Rows that were read, each with its key and what the rules make of it."""


# A NamedTuple's own constructor costs twice as much.
_new = tuple.__new__


def change_of(table: ReplicatedTable, before: str | None, after: str, values: Values) -> Change:
    """An inserted or updated row, evaluated if the change says all of it."""
    result = table.evaluate(values) if _is_whole(values, before) else None
    return _new(Change, (table, before, after, values, result))


def deletion_of(table: ReplicatedTable, key: str) -> Change:
    """A deleted row."""
    return _new(Change, (table, key, None, None, None))


Located = tuple[Sequence[Place], Sequence[Lookup], Sequence[Draft]]
"""Where a row is, what it adds to the parameter index, and the PUTs that show it."""

AWAY: Located = ((), (), ())


class Needed(NamedTuple):
    """What a step must know of storage: ids of buckets, and the states of rows, by table."""

    buckets: Collection[BucketKey]
    rows: Mapping[int, Collection[str]]


RowTexts = Mapping[int, Mapping[str, str | None]]
"""States of rows, as texts, by table and key; None: storage does not know the row."""


class Known(NamedTuple):
    """The answer to `Needed`."""

    buckets: dict[BucketKey, int]
    rows: Mapping[int, Mapping[str, str]]


FindBuckets = Callable[[Collection[BucketKey]], Mapping[BucketKey, int]]


class Step(NamedTuple):
    """A piece of work on storage. `walk` adds what it writes to the WriteSet, given the rows' states."""

    needed: Needed
    walk: Callable[[Rows, WriteSet], None]


class ChangeApplier:
    """Applies changes inside the writer's open transaction.

    `incomplete` collects what must be read again, since a large value is unknown: table id → definitions that need it.
    """

    def __init__(self, writer: StorageWriter) -> None:
        self._writer = writer
        self._buckets: dict[BucketKey, int] = {}  # ids of every bucket that the step at hand names
        self._find_late: FindBuckets = writer.bucket_ids
        self.incomplete: dict[int, set[int]] = {}

    def apply(self, changes: Sequence[Change]) -> None:
        """Write the operations, row states and lookups that follow from a batch of changes."""
        self.apply_step(self.changes_step(changes))

    def apply_step(self, step: Step) -> None:
        """Look up, work out and write a step."""
        output, _ = self.work_out(step, self.look_up(step.needed), {}, self._writer.bucket_ids)
        self._writer.write(output)

    def look_up(self, needed: Needed, begin: Callable[[], None] = lambda: None) -> Known:
        """Ask storage for what a step must know.

        Buckets that did not exist are made, which takes the writer's transaction: `begin` has to open one.
        """
        rows = {table: self._writer.row_states(table, keys) for table, keys in needed.rows.items()}
        if self._writer.find_buckets(needed.buckets):
            begin()
        return Known(self._writer.bucket_ids(needed.buckets), rows)

    def work_out(
        self, step: Step, known: Known, since: RowTexts, find_buckets: FindBuckets
    ) -> tuple[WriteSet, RowTexts]:
        """What a step writes, and the states of the rows that it touches as they are then.

        `since` are those that were written after storage was asked. `find_buckets` is called for the few buckets that
        show only in the walk.
        """
        self._buckets, self._find_late = known.buckets, find_buckets
        rows, output = Rows(self._writer.read_state, known.rows, since), WriteSet()
        step.walk(rows, output)
        rows.save(output)
        return output, rows.now

    def changes_step(self, changes: Sequence[Change]) -> Step:
        """A batch of changes, in order."""
        wanted: dict[int, set[str]] = defaultdict(set)
        buckets: set[BucketKey] = set()
        for table, before, after, _, result in changes:
            if before is not None:
                wanted[table.id].add(before)
            if after is not None and table.identity == "row":
                wanted[table.id].add(after)
            if result is not None:
                for row in result[0]:
                    buckets.add(row[:2])

        def walk(rows: Rows, output: WriteSet) -> None:
            for change in changes:
                self._apply_one(change, rows, output)

        return Step(Needed(buckets, wanted), walk)

    def chunk_step(
        self, whole: ReplicatedTable, part: ReplicatedTable, chunk: Chunk, *, refreshes: bool, are_new: bool
    ) -> Step:
        """What rows that were read mean for some definitions.

        `part` is the table as it was evaluated for those definitions, `whole` for all: a row that was incomplete is
        written whole. A row that is stored with the same places already was changed in the stream since. `are_new`:
        storage knows none of them.
        """
        buckets = {row[:2] for _, _, result in chunk for row in result[0]}
        wanted = {} if part.identity == "none" or are_new else {part.id: [key for key, _, _ in chunk]}

        def walk(rows: Rows, output: WriteSet) -> None:
            for key, values, result in chunk:
                self._apply_read(whole, part, key, values, result, refreshes, rows, output)

        return Step(Needed(buckets, wanted), walk)

    def count_rows(self, table: ReplicatedTable, rows: Iterable[Row]) -> None:
        """Add rows of a table without a key that is being read whole."""
        self.apply([change_of(table, None, table.key_of(values), [*values]) for values in rows])

    def drop_missing(self, table: ReplicatedTable, keys: Iterable[str]) -> None:
        """Take back incomplete rows that were looked for and are not there."""
        self.apply([deletion_of(table, key) for key in keys])

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

    def _apply_one(self, change: Change, rows: Rows, output: WriteSet) -> None:
        table, before_key, after_key, values, result = change
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

    def _apply_read(
        self,
        whole: ReplicatedTable,
        part: ReplicatedTable,
        key: str,
        values: Sequence[str | None],
        result: Evaluated,
        refreshes: bool,
        rows: Rows,
        output: WriteSet,
    ) -> None:
        if part.identity == "none":
            self._replace_unremembered(part, key, result, output)
            return
        before = rows.take(part.id, key)
        if part.identity == "row" and (before is None or before.copies < 1):
            return  # it was deleted since, or is still to be counted
        if before is None:
            self._put(part, None, key, values, result, rows, output)
        elif before.copies == INCOMPLETE:
            self._put(whole, key, key, values, self._evaluate_late(whole.evaluations, values), rows, output)
        else:
            self._fill_in(part, key, values, before, result, refreshes, rows, output)

    def _delete(self, table: ReplicatedTable, key: str, rows: Rows, output: WriteSet) -> None:
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
        rows: Rows,
        output: WriteSet,
    ) -> None:
        """A row is there as it is now. What it was before matters only where its state was another."""
        after = places, lookups, puts = self._locate(table, key, result)
        state = encode_state(places, lookups, large_values(values, table.toastable, table.toast_target))
        if before_key is None:
            _move(table.id, key, key, NOWHERE, after, output)
        elif before_key == key and rows.text(table.id, key) == state:
            output.drafts += puts
        else:
            _move(table.id, before_key, key, rows.take(table.id, before_key) or NOWHERE, after, output)
            if before_key != key:
                rows.forget(table.id, before_key)
        if table.identity != "none":
            rows.put(table.id, key, state)

    def _drop_copy(self, table: ReplicatedTable, key: str, rows: Rows, output: WriteSet) -> None:
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
        rows: Rows,
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
        new = _state(table, values, *located[:2])
        rows.put_state(table.id, key, new._replace(copies=copies))
        if state is None or not _same(state, new):
            _move(table.id, key, key, state or NOWHERE, located, output)

    def _remember_incomplete(
        self,
        change: Change,
        values: list[str | None],
        missing: set[str],
        before: RowState | None,
        rows: Rows,
        output: WriteSet,
    ) -> None:
        """Evaluate what can be; the rest stays as it was, or away under a new key, until the row is read again."""
        table, before_key, after_key, _, _ = change
        assert before_key is not None
        assert after_key is not None
        before = before or NOWHERE
        blind = [part for part in table.evaluations if missing & {name for _, name in part.toastable}]
        seeing = [part for part in table.evaluations if part not in blind]
        unknown = {definition for part in blind for definition in part.definitions}
        places, lookups, puts = self._locate(table, after_key, self._evaluate_late(seeing, values))
        known = _state(table, values, places, lookups)
        if before_key == after_key:
            kept = _only(before, unknown)
            known = known._replace(places=known.places + kept.places, lookups=known.lookups + kept.lookups)
        _move(table.id, before_key, after_key, before, (known.places, known.lookups, puts), output)
        if before_key != after_key:
            rows.forget(table.id, before_key)
        rows.put_state(table.id, after_key, known._replace(copies=INCOMPLETE))
        self.incomplete.setdefault(table.id, set()).update(unknown)

    def _replace_unremembered(self, table: ReplicatedTable, key: str, result: Evaluated, output: WriteSet) -> None:
        """Add a row that the stream may have brought already: then it takes the place of itself."""
        _, lookups, puts = self._locate(table, key, result)
        output.drafts += puts
        entries = _entries(table.id, key, lookups)
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
        rows: Rows,
        output: WriteSet,
    ) -> None:
        """Add a row's places in some definitions to what is stored of it, if there is anything new."""
        definitions = part.definitions
        located = self._locate(part, key, result)
        new = _state(part, values, *located[:2])
        rest = _except(before, definitions)
        after = RowState(
            rest.places + new.places, rest.lookups + new.lookups, {**rest.large, **new.large}, before.copies
        )
        if not refreshes and _same(before, after) and before.large == after.large:
            return
        rows.put_state(part.id, key, after)
        _move(part.id, key, key, _only(before, definitions), located, output)

    def _evaluate_late(self, evaluations: Sequence[Evaluation], values: Sequence[str | None]) -> Evaluated:
        """Of a row that could not be evaluated with its batch."""
        result = evaluation_of_all(evaluations)(values)
        missing = [row[:2] for row in result[0] if row[:2] not in self._buckets]
        if missing:
            self._buckets |= self._find_late(missing)
        return result

    def _locate(self, table: ReplicatedTable, key: str, result: Evaluated) -> Located:
        rows, lookups = result
        places, puts = draft_puts(rows, self._buckets, _subkey(table.id, key))
        return places, [(*lookup,) for lookup in lookups] if lookups else lookups, puts


def evaluate_rows(table: ReplicatedTable, rows: Iterable[Row]) -> Chunk:
    """Rows that were read, ready to be applied."""
    key_of, evaluate = table.key_of, table.evaluate
    return [(key_of(values), values, evaluate(values)) for values in rows]


def evaluation_of_all(evaluations: Sequence[Evaluation]) -> RowEvaluator:
    """What several feeds make of a row, together."""
    if len(evaluations) == 1:
        return evaluations[0].evaluate

    def evaluate(values: Sequence[str | None]) -> Evaluated:
        rows: list[BucketRow] = []
        lookups: list[LookupRow] = []
        for part in evaluations:
            more_rows, more_lookups = part.evaluate(values)
            rows += more_rows
            lookups += more_lookups
        return rows, lookups

    return evaluate


class Rows:
    """The remembered states, as texts, of the rows a step touches, as they are after each change."""

    def __init__(
        self, read_state: Callable[[str], RowState], stored: Mapping[int, Mapping[str, str]], since: RowTexts
    ) -> None:
        self._read_state = read_state
        self._stored: dict[int, Mapping[str, str | None]] = {**stored}
        for table, rows in since.items():
            self._stored[table] = {**self._stored.get(table, {}), **rows}
        self.now: dict[int, dict[str, str | None]] = defaultdict(dict)

    def text(self, table: int, key: str) -> str | None:
        """The row's state before this change."""
        now = self.now[table]
        return now[key] if key in now else self._stored.get(table, {}).get(key)

    def take(self, table: int, key: str) -> RowState | None:
        """The same, decoded."""
        text = self.text(table, key)
        return None if text is None else self._read_state(text)

    def put(self, table: int, key: str, text: str) -> None:
        """The row's state after this change."""
        self.now[table][key] = text

    def put_state(self, table: int, key: str, state: RowState) -> None:
        """The same, not encoded yet."""
        self.put(table, key, encode_state(*state))

    def forget(self, table: int, key: str) -> None:
        """The row is gone."""
        self.now[table][key] = None

    def save(self, output: WriteSet) -> None:
        """What must be written so that storage remembers the states as they are now."""
        for table, rows in self.now.items():
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
    places, lookups, puts = after
    if before.places:
        subkeys = _subkey(table, before_key), _subkey(table, key)
        output.drafts += draft_changes(before.places, places, puts, *subkeys)
    else:
        output.drafts += puts
    if before.lookups or lookups:
        output.replace_lookups(_entries(table, before_key, before.lookups), _entries(table, key, lookups))


def _entries(table: int, key: str, lookups: Iterable[Lookup]) -> set[LookupEntry]:
    return {LookupEntry(definition, name, table, key, outputs) for definition, name, outputs in lookups}


def _state(
    table: ReplicatedTable, values: Sequence[str | None], places: Iterable[Place], lookups: Iterable[Lookup]
) -> RowState:
    return RowState(tuple(places), tuple(lookups), large_values(values, table.toastable, table.toast_target))


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
