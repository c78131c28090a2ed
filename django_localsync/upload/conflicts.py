"""Conflicts: a device changed a row that has changed since the device saw it.

A table notices them by a version field, or by the previous values that the device sends (its schema's
`track_previous`). Columns that only one side changed never conflict.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from django.db import models
from rest_framework.utils.encoders import JSONEncoder

from ..protocol.crud import CrudOperation


@dataclass(frozen=True)
class Conflict:
    """A device's write that meets newer values. All values are Python's, by the serializer's field names.

    `columns` are the fields that both sides changed. `base` is what the device saw (as far as it says so), `theirs`
    what the row holds now, `mine` what the device writes (nothing for a DELETE). `instance` is the row, locked.
    """

    operation: CrudOperation
    instance: Any
    columns: tuple[str, ...]
    base: Mapping[str, Any]
    theirs: Mapping[str, Any]
    mine: Mapping[str, Any]
    outcome: list[str] = field(default_factory=list, compare=False)

    def settle(self, written: Mapping[str, Any] | None) -> None:
        """Note what was written in the end, None for nothing."""
        if written is None:
            self.outcome[:] = ["theirs"]
        else:
            kept = {name: comparable(value) for name, value in written.items()}
            mine = {name: comparable(value) for name, value in self.mine.items()}
            self.outcome[:] = ["mine" if kept == mine else "merged"]


def changed_by_both(
    mine: Mapping[str, Any], theirs: Mapping[str, Any], base: Mapping[str, Any], *, without_base: bool
) -> tuple[str, ...]:
    """The names that `mine` and somebody else changed, to different values.

    A name that is not in `base` counts only if `without_base`: when it is known otherwise that the row changed.
    """

    def conflicts(name: str) -> bool:
        current = comparable(theirs[name])
        changed = current != comparable(base[name]) if name in base else without_base
        return changed and current != comparable(mine[name])

    return tuple(name for name in mine if name in theirs and conflicts(name))


def comparable(value: Any) -> Any:
    """A value as it can be compared: related rows by their keys, bytes as bytes."""
    if isinstance(value, models.Model):
        return value.pk
    return bytes(value) if isinstance(value, memoryview | bytearray) else value


def encode_conflicts(conflicts: Iterable[Conflict]) -> str:
    """Conflicts as JSON text, as the journal keeps them."""
    return json.dumps([_document(item) for item in conflicts], cls=_Encoder, ensure_ascii=False)


def _document(conflict: Conflict) -> dict[str, Any]:
    operation = conflict.operation
    return {
        "op_id": operation.op_id,
        "op": operation.op.value,
        "type": operation.type,
        "id": operation.id,
        "columns": list(conflict.columns),
        "base": dict(conflict.base),
        "theirs": dict(conflict.theirs),
        "mine": dict(conflict.mine),
        "written": conflict.outcome[0] if conflict.outcome else None,
    }


class _Encoder(JSONEncoder):
    def default(self, obj: Any) -> Any:
        """Related rows by their keys; what has no JSON form as its text."""
        if isinstance(obj, models.Model):
            return str(obj.pk)
        if isinstance(obj, bytes | bytearray | memoryview):
            return bytes(obj).hex()
        try:
            return super().default(obj)
        except TypeError:
            return str(obj)
