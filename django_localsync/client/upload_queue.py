"""The upload queue: local writes in the order in which they were made, and the gate that waits for their receipt.

Functions run inside the caller's transaction. Rules: docs/reference/wire-protocol.md §5.1 and §5.5.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Generic, TypeVar

import apsw
import orjson

from ..protocol.crud import CrudOperation, CrudTransaction, Op
from .bucket_storage import get_value, set_value
from .ddl import GATE_CLOSED, GATE_KEY

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class CrudBatch(Generic[Result]):
    """The oldest writes of the queue; `transaction_id` if they are exactly one local transaction.

    An operation's `op_id` is the queue's own number: it rises, and stays the same when an upload is repeated.
    """

    operations: tuple[CrudOperation, ...]
    transaction_id: int | None
    _complete: Callable[[int, int | None], Result]

    def complete(self, write_checkpoint: int | None = None) -> Result:
        """The backend has these writes: remove them from the queue (with an AsyncDatabase: to be awaited).

        `write_checkpoint`: the backend's own receipt, where it makes them itself.
        """
        return self._complete(self.operations[-1].op_id, write_checkpoint)


def read_transactions(connection: apsw.Connection, max_operations: int) -> list[CrudTransaction]:
    """The oldest transactions, whole, until they hold `max_operations` writes; at least one if there is any."""
    rows = connection.execute(
        "SELECT id, tx_id, data FROM ps_crud WHERE id <= (SELECT max(id) FROM ps_crud WHERE tx_id = "
        "(SELECT tx_id FROM (SELECT id, tx_id FROM ps_crud ORDER BY id LIMIT ?) ORDER BY id DESC LIMIT 1)) ORDER BY id",
        (max_operations,),
    )
    return [
        CrudTransaction(number, tuple(_operation(op_id, data) for op_id, _, data in group))
        for number, group in groupby(rows, key=lambda row: row[1])
    ]


def read_operations(connection: apsw.Connection, limit: int) -> tuple[CrudOperation, ...]:
    """The oldest writes, at most `limit`."""
    rows = connection.execute("SELECT id, data FROM ps_crud ORDER BY id LIMIT ?", (limit,))
    return tuple(_operation(op_id, data) for op_id, data in rows)


def first_op_id(connection: apsw.Connection) -> int | None:
    """The oldest write's number, or None when the queue is empty."""
    row = connection.execute("SELECT min(id) FROM ps_crud").fetchone()
    return row[0] if row else None


def complete(connection: apsw.Connection, through_op_id: int, write_checkpoint: int | None) -> None:
    """Delete the writes up to `through_op_id` (inclusive): the backend has them.

    A `write_checkpoint` of the backend's own, given with the last of the queue, becomes what the gate waits for.
    """
    connection.execute("DELETE FROM ps_crud WHERE id <= ?", (through_op_id,))
    if write_checkpoint is not None and first_op_id(connection) is None:
        set_value(connection, GATE_KEY, write_checkpoint)


def needs_write_checkpoint(connection: apsw.Connection) -> int | None:
    """If everything is uploaded and no receipt was asked for yet: the number of the last write ever queued."""
    if first_op_id(connection) is not None or get_value(connection, GATE_KEY) != GATE_CLOSED:
        return None
    return _sequence(connection)


def set_gate(connection: apsw.Connection, write_checkpoint: int, sequence: int) -> bool:
    """Wait for this receipt, unless there was another write since `sequence` was read (then False)."""
    if first_op_id(connection) is not None or _sequence(connection) != sequence:
        return False
    set_value(connection, GATE_KEY, write_checkpoint)
    return True


def _sequence(connection: apsw.Connection) -> int:
    row = connection.execute("SELECT seq FROM sqlite_sequence WHERE name = 'ps_crud'").fetchone()
    return row[0] if row else 0


def _operation(op_id: int, text: str) -> CrudOperation:
    entry: dict[str, Any] = orjson.loads(text)
    return CrudOperation(
        op_id=op_id,
        op=Op(entry["op"]),
        type=entry["type"],
        id=entry["id"],
        data=entry.get("data"),
        old=entry.get("old"),
        metadata=entry.get("metadata"),
    )
