"""Compaction of a bucket's history: fewer and smaller operations, the same rows and checksum for every client (I4).

An operation is *superseded* when a newer one of the same row follows. It becomes a MOVE, which keeps only op id and
checksum. At the head of a bucket, where no PUT is left that is still valid, everything becomes one CLEAR, which makes
a client forget what it has of the bucket and begin with the CLEAR's checksum. A client that already has operations
after the MOVE or CLEAR never sees them; one that stands before them gets the same sum and, further on, whatever
superseded the row.

Only operations up to some op id are looked at. Whoever reads the bucket at a checkpoint before that op id might see
a MOVE without what supersedes it, so such checkpoints cannot be read any more (`Bucket.consistent_from`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from hashlib import blake2b

from .checksum import add_checksums
from .operation import Operation, OpId, OpKind

Step = tuple[int, int, str | None, str | None, str | None]
"""An operation as the walk sees it: op id, OpKind number, row type, row id, subkey."""

ROW_DIGEST_BYTES = 16  # nobody finds two rows of one digest, and a million of them take 80 MB

# A rewritten bucket is downloaded whole by everybody who has it: at most a third more than without.
REWRITE_DEAD_SHARE = 3
REWRITE_DEAD_OPERATIONS = 1000

_PUT, _REMOVE = OpKind.PUT.value, OpKind.REMOVE.value


class Walk:
    """A walk through a bucket from its newest operation to its oldest, which finds what is superseded.

    What lies at or below `compacted_op_id` is compacted among itself and need not be remembered: memory grows with
    the rows that were changed since, about 100 bytes each.
    """

    def __init__(self, compacted_op_id: int = 0) -> None:
        self._compacted_op_id = compacted_op_id
        self._met: set[bytes] = set()
        self.live = 0
        """PUTs met that stay."""

    def find_superseded(self, steps: Iterable[Step]) -> list[int]:
        """Op ids of the superseded operations among the next ones, which are in descending order."""
        superseded = []
        met = self._met
        for op_id, kind, row_type, row_id, subkey in steps:
            if kind != _PUT and kind != _REMOVE:
                continue
            row = blake2b(f"{row_type}\0{row_id}\0{subkey}".encode(), digest_size=ROW_DIGEST_BYTES).digest()
            if row in met:
                superseded.append(op_id)
                continue
            if op_id > self._compacted_op_id:
                met.add(row)
            self.live += kind == _PUT
        return superseded


def is_cleared(kinds: Iterable[int]) -> bool:
    """Whether a head without PUTs, as OpKind numbers, shall become one CLEAR."""
    return sum(kind != OpKind.CLEAR.value for kind in kinds) > 1


def is_mostly_dead(operations: int, live: int) -> bool:
    """Whether a compacted bucket shall be rewritten under a new name, of its live PUTs alone.

    >>> is_mostly_dead(operations=2000, live=100), is_mostly_dead(operations=2000, live=1500)
    (True, False)
    """
    dead = operations - live
    return dead >= REWRITE_DEAD_OPERATIONS and dead >= REWRITE_DEAD_SHARE * live


def compact(operations: Sequence[Operation], through: OpId | None = None) -> list[Operation]:
    """A whole bucket's history in ascending order, compacted as far as `through`, or to its end."""
    end = len(operations) if through is None else sum(operation.op_id <= through for operation in operations)
    superseded = frozenset(Walk().find_superseded(map(_step, reversed(operations[:end]))))
    moved = [_move(operation) if operation.op_id in superseded else operation for operation in operations[:end]]
    head = next((n for n, operation in enumerate(moved) if operation.kind is OpKind.PUT), end)
    if is_cleared(operation.kind for operation in moved[:head]):
        moved[:head] = [clear(moved[:head])]
    return [*moved, *operations[end:]]


def rewrite(operations: Iterable[Operation]) -> list[Operation]:
    """A compacted history without what is dead: another history, that needs another name."""
    return [operation for operation in operations if operation.kind is OpKind.PUT]


def clear(head: Sequence[Operation]) -> Operation:
    """What takes the place of the head of a bucket, none of whose rows is left."""
    return Operation(head[-1].op_id, OpKind.CLEAR, add_checksums(operation.checksum for operation in head))


def _move(operation: Operation) -> Operation:
    return Operation(operation.op_id, OpKind.MOVE, operation.checksum)


def _step(operation: Operation) -> Step:
    return operation.op_id, operation.kind.value, operation.row_type, operation.row_id, operation.subkey
