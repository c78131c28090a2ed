"""Compaction keeps rows and checksum for a client that stands anywhere (I4); faults put in on purpose are noticed."""

from __future__ import annotations

from contextlib import ExitStack
from unittest.mock import patch

import pytest
from hypothesis import Phase, example, given, settings
from hypothesis import strategies as st

from django_localsync.buckets import compaction
from django_localsync.buckets.checksum import add_checksums
from django_localsync.buckets.compaction import Walk, compact, is_mostly_dead, rewrite
from django_localsync.buckets.operation import Operation, OpId, OpKind
from tests.conftest import SOAK
from tests.vectors import vectors

CASES = 10_000 if SOAK else 50
REDUCED = tuple[dict[tuple[str | None, str | None, str | None], Operation], int]


def reduce_onto(state: REDUCED, operations: list[Operation]) -> REDUCED:
    """A client's rows and checksum after some more operations."""
    rows, checksum = dict(state[0]), state[1]
    for operation in operations:
        row = operation.row_type, operation.row_id, operation.subkey
        checksum = add_checksums([checksum, operation.checksum])
        match operation.kind:
            case OpKind.PUT:
                rows[row] = operation
            case OpKind.REMOVE:
                rows.pop(row, None)
            case OpKind.CLEAR:
                rows, checksum = {}, operation.checksum
    return rows, checksum


EMPTY: REDUCED = ({}, 0)


def reduce_bucket(operations: list[Operation]) -> REDUCED:
    return reduce_onto(EMPTY, operations)


def read_operation(row):
    return Operation(
        OpId(int(row["op_id"])),
        OpKind[row["op"]],
        row["checksum"],
        row.get("object_type"),
        row.get("object_id"),
        row.get("subkey"),
        row.get("data"),
    )


@pytest.mark.parametrize("vector", vectors("compact"))
def test_compaction_vector(vector):
    operations = [read_operation(row) for row in vector["ops"]]

    compacted = compact(operations)

    rows, checksum = reduce_bucket(compacted)
    assert compacted == [read_operation(row) for row in vector["expected_compacted"]]
    assert checksum == vector["bucket_checksum"] == reduce_bucket(operations)[1]
    assert sorted(row.op_id for row in rows.values()) == [int(op_id) for op_id in vector["reduced"]["put_op_ids"]]


changes = st.tuples(
    st.sampled_from([OpKind.PUT, OpKind.PUT, OpKind.REMOVE]),
    st.sampled_from(["todos", "lists"]),
    st.sampled_from("abc"),
    st.sampled_from(["1/x", "2/x"]),
    st.integers(0, 2**32 - 1),
    st.integers(1, 3),
)
histories = st.lists(changes, max_size=25)


def make_history(made) -> list[Operation]:
    operations, op_id = [], 0
    for kind, row_type, row_id, subkey, checksum, distance in made:
        op_id += distance  # other buckets have op ids in between
        data = f'{{"v":{op_id}}}' if kind is OpKind.PUT else None
        operations.append(Operation(OpId(op_id), kind, checksum, row_type, row_id, subkey, data))
    return operations


def check_every_position(made, ends):
    """Compact as far as each of `ends` in turn; a client may have stopped in any version of the history, anywhere."""
    original = make_history(made)
    expected = reduce_bucket(original)
    versions = [original]
    for end in ends:
        versions.append(compact(versions[-1], OpId(end)))
    positions = range(original[-1].op_id + 1 if original else 1)
    for number, before in enumerate(versions):
        for position in positions:
            client = reduce_bucket([operation for operation in before if operation.op_id <= position])
            for after in versions[number:]:
                rest = [operation for operation in after if operation.op_id > position]
                assert reduce_onto(client, rest) == expected
    last = versions[-1]
    assert not original or last[-1].op_id == original[-1].op_id
    if ends and original and ends[-1] >= original[-1].op_id:
        live = expected[0].values()
        assert {operation.data for operation in last if operation.data} == {operation.data for operation in live}
        assert reduce_bucket(rewrite(last))[0] == expected[0]


CLEARED_TWICE = [
    (OpKind.PUT, "todos", "a", "1/x", 7, 1),
    (OpKind.REMOVE, "todos", "a", "1/x", 8, 2),
    (OpKind.PUT, "todos", "b", "1/x", 2**32 - 1, 1),
    (OpKind.PUT, "todos", "a", "1/x", 9, 1),
    (OpKind.REMOVE, "todos", "b", "1/x", 10, 1),
    (OpKind.REMOVE, "todos", "a", "1/x", 11, 1),
]
LIVE_HEAD = [(OpKind.PUT, "lists", "c", "1/x", 5, 1), *CLEARED_TWICE]


@settings(max_examples=CASES)
@given(histories, st.lists(st.integers(0, 80), max_size=3).map(sorted))
@example(CLEARED_TWICE, [4, 80])
@example(LIVE_HEAD, [80])
def test_a_client_anywhere_ends_with_the_same_rows_and_checksum(made, ends):
    check_every_position(made, ends)


def walk_in_parts(operations, compacted_op_id, size):
    walk = Walk(compacted_op_id)
    steps = [compaction._step(operation) for operation in reversed(operations)]
    found = [
        op_id for start in range(0, len(steps), size) for op_id in walk.find_superseded(steps[start : start + size])
    ]
    return found, walk.live


@settings(max_examples=CASES)
@given(histories, st.integers(0, 80), st.integers(1, 5))
def test_a_walk_that_remembers_only_what_is_new_finds_the_same(made, compacted_op_id, size):
    operations = compact(make_history(made), OpId(compacted_op_id))

    assert walk_in_parts(operations, compacted_op_id, size) == walk_in_parts(operations, 0, 100)


def moved_without_checksum(operation):
    return Operation(operation.op_id, OpKind.MOVE, 0)


def clear_at_the_first(head):
    return Operation(head[0].op_id, OpKind.CLEAR, add_checksums(operation.checksum for operation in head))


def clear_without_wrap(head):
    return Operation(head[-1].op_id, OpKind.CLEAR, sum(operation.checksum for operation in head))


def clear_of_the_last(head):
    return Operation(head[-1].op_id, OpKind.CLEAR, head[-1].checksum)


class ForgetsSubkeys(Walk):
    def find_superseded(self, steps):
        return super().find_superseded((*step[:4], None) for step in steps)


class ForgetsIds(Walk):
    def find_superseded(self, steps):
        return super().find_superseded((*step[:3], None, step[4]) for step in steps)


class OldestStays(Walk):
    def find_superseded(self, steps):
        return super().find_superseded(reversed(list(steps)))


class IgnoresRemoves(Walk):
    def find_superseded(self, steps):
        return super().find_superseded(step for step in steps if step[1] == OpKind.PUT)


class TakesRemoves(Walk):
    def find_superseded(self, steps):
        steps = list(steps)
        return [*super().find_superseded(steps), *(step[0] for step in steps if step[1] == OpKind.REMOVE)]


FAULTS = {
    "a MOVE loses its checksum": ("_move", moved_without_checksum),
    "a CLEAR stands at the first op id": ("clear", clear_at_the_first),
    "a CLEAR's checksum is not wrapped": ("clear", clear_without_wrap),
    "a CLEAR has only the last checksum": ("clear", clear_of_the_last),
    "source rows are mixed up": ("Walk", ForgetsSubkeys),
    "rows are mixed up": ("Walk", ForgetsIds),
    "the oldest operation stays": ("Walk", OldestStays),
    "a REMOVE supersedes nothing": ("Walk", IgnoresRemoves),
    "every REMOVE is dropped": ("Walk", TakesRemoves),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_deliberate_fault_is_noticed(fault):
    @settings(max_examples=400, database=None, phases=[Phase.explicit, Phase.generate], deadline=None, derandomize=True)
    @given(histories, st.lists(st.integers(0, 80), max_size=3).map(sorted))
    @example(CLEARED_TWICE, [4, 80])
    @example(LIVE_HEAD, [80])
    def play(made, ends):
        check_every_position(made, ends)

    name, replacement = FAULTS[fault]
    with ExitStack() as stack:
        stack.enter_context(patch.object(compaction, name, replacement))
        with pytest.raises((AssertionError, IndexError)):
            play()


def test_only_a_history_that_is_long_and_mostly_dead_is_rewritten():
    assert is_mostly_dead(operations=1000, live=0)
    assert not is_mostly_dead(operations=999, live=0)
    assert is_mostly_dead(operations=4000, live=1000)
    assert not is_mostly_dead(operations=3999, live=1000)
