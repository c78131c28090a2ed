"""The upload queue: local writes in the order in which they were made, and the gate that waits for their receipt.

Functions run inside the caller's transaction. Rules: docs/reference/wire-protocol.md §5.1 and §5.5.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from itertools import groupby
from typing import Any

import apsw
import orjson

from .bucket_storage import get_value, set_value
from .ddl import GATE_CLOSED, GATE_KEY


class UpdateType(Enum):
    """What a local write did to its row."""

    PUT = "PUT"
    PATCH = "PATCH"
    DELETE = "DELETE"


@dataclass(frozen=True, slots=True)
class CrudEntry:
    """One local write.

    `op_id` is the queue's own number: it rises, and stays the same when an upload is repeated. `data`: all values
    that are not null for a PUT, the changed ones for a PATCH, None for a DELETE. `old` and `metadata` are there when
    the table's schema asks for them.
    """

    op_id: int
    transaction_id: int
    op: UpdateType
    table: str
    id: str
    data: dict[str, Any] | None = None
    old: dict[str, Any] | None = None
    metadata: str | None = None

    def to_json(self) -> dict[str, Any]:
        """The operation as an upload body has it."""
        entry: dict[str, Any] = {"op_id": self.op_id, "op": self.op.value, "type": self.table, "id": self.id}
        entry["data"] = self.data
        if self.old is not None:
            entry["old"] = self.old
        if self.metadata is not None:
            entry["metadata"] = self.metadata
        return entry


@dataclass(frozen=True, slots=True)
class CrudTransaction:
    """All writes of one local transaction."""

    id: int
    operations: tuple[CrudEntry, ...]


def read_entries(connection: apsw.Connection, limit: int) -> Iterator[CrudEntry]:
    """The oldest writes of the queue, at most `limit`."""
    rows = connection.execute("SELECT id, tx_id, data FROM ps_crud ORDER BY id LIMIT ?", (limit,))
    for op_id, transaction_id, data in rows:
        yield _entry(op_id, transaction_id, data)


def read_transactions(connection: apsw.Connection, max_operations: int) -> list[CrudTransaction]:
    """The oldest transactions, whole, until they hold `max_operations` writes; at least one if there is any."""
    rows = connection.execute(
        "SELECT id, tx_id, data FROM ps_crud WHERE id <= (SELECT max(id) FROM ps_crud WHERE tx_id = "
        "(SELECT tx_id FROM (SELECT id, tx_id FROM ps_crud ORDER BY id LIMIT ?) ORDER BY id DESC LIMIT 1)) ORDER BY id",
        (max_operations,),
    )
    return [
        CrudTransaction(number, tuple(_entry(*row) for row in group))
        for number, group in groupby(rows, key=lambda row: row[1])
    ]


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


def _entry(op_id: int, transaction_id: int, text: str) -> CrudEntry:
    entry = orjson.loads(text)
    return CrudEntry(
        op_id,
        transaction_id,
        UpdateType(entry["op"]),
        entry["type"],
        entry["id"],
        entry.get("data"),
        entry.get("old"),
        entry.get("metadata"),
    )
