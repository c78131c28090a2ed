"""One bucket operation, and the numbers its kind has in storage."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import NewType

OpId = NewType("OpId", int)
"""Position in the one history that all buckets share: 0 is before everything, at most 2**63-1."""

MAX_OP_ID = OpId(2**63 - 1)


class OpKind(IntEnum):
    """What an operation does; `name` is its spelling on the wire, the value its number in storage."""

    PUT = 1
    REMOVE = 2
    MOVE = 3
    CLEAR = 4


@dataclass(frozen=True, slots=True)
class Operation:
    """One operation of a bucket.

    A row inside a bucket is the triple (row_type, row_id, subkey); `data` is the row's JSON text (PUT only);
    `checksum` is 0 … 2**32-1. MOVE and CLEAR carry only op_id, kind and checksum.
    """

    op_id: OpId
    kind: OpKind
    checksum: int
    row_type: str | None = None
    row_id: str | None = None
    subkey: str | None = None
    data: str | None = None
