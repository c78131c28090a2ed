"""What a changed row means for its buckets and for the parameter index: its places before against its places after.

Hot path (once a replicated row): plain tuples. A place is where a row is visible, a lookup an entry it contributes to
the parameter index; storage remembers both for each row, so that a change knows what to take back.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import orjson

from .checksum import put_checksum, remove_checksum
from .operation import OpKind

Place = tuple[int, str, str]
"""Bucket id, row type, row id."""

Lookup = tuple[int, str, str]
"""Definition id, key, outputs (both JSON array texts)."""

Draft = tuple[int, int, int, str, str, str, str | None]
"""An operation without its op id: bucket id, OpKind number, checksum, row type, row id, subkey, data."""


class RowState(NamedTuple):
    """What storage remembers of a source row.

    `large` holds texts of columns whose value a later UPDATE may leave out (TOAST), by column name. `copies` counts
    identical rows of a table without a key; while such a table is being read it may be negative, since rows that are
    still to be read may have been deleted already. Elsewhere it is 1, or INCOMPLETE: a large value that the rules need
    is not known, and the row must be read again.
    """

    places: tuple[Place, ...] = ()
    lookups: tuple[Lookup, ...] = ()
    large: Mapping[str, str] = {}
    copies: int = 1


NOWHERE = RowState()
INCOMPLETE = 0

_PUT, _REMOVE = OpKind.PUT.value, OpKind.REMOVE.value  # reading an enum's value costs more than making a draft


def encode_state(state: RowState) -> str:
    """The text that storage keeps; equal states have equal texts."""
    return orjson.dumps([state.places, state.lookups, dict(state.large), state.copies]).decode()


def decode_state(text: str) -> RowState:
    """Read what `encode_state` wrote."""
    places, lookups, large, copies = orjson.loads(text)
    return RowState(tuple(map(tuple, places)), tuple(map(tuple, lookups)), large, copies)


def draft_changes(
    before: Sequence[Place], after: Iterable[tuple[Place, str]], subkey_before: str, subkey_after: str
) -> list[Draft]:
    """The operations that take a row from `before` to `after` (each place with the row's JSON text).

    A row that stays gets only its new PUT; one that leaves a bucket, or changes type, id or subkey there, gets a
    REMOVE that names exactly the PUT it takes back.
    """
    puts = dict(after)
    gone = before if subkey_before != subkey_after else [place for place in before if place not in puts]
    drafts: list[Draft] = []
    for bucket, row_type, row_id in gone:
        checksum = remove_checksum(row_type, row_id, subkey_before)
        drafts.append((bucket, _REMOVE, checksum, row_type, row_id, subkey_before, None))
    for (bucket, row_type, row_id), data in puts.items():
        drafts.append((bucket, _PUT, put_checksum(row_type, row_id, data), row_type, row_id, subkey_after, data))
    return drafts
