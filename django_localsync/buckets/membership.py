"""What a changed row means for its buckets and for the parameter index: its places before against its places after.

Hot path (once a replicated row): plain tuples. A place is where a row is visible, a lookup an entry it contributes to
the parameter index; storage remembers both for each row, so that a change knows what to take back.
"""

from __future__ import annotations

from collections.abc import Collection, Container, Iterable, Mapping, Sequence
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


def encode_state(places: Sequence[Place], lookups: Sequence[Lookup], large: Mapping[str, str], copies: int = 1) -> str:
    """The text that storage keeps of a RowState's parts; equal parts in the same order have equal texts."""
    return orjson.dumps((places, lookups, large, copies)).decode()


def decode_state(text: str, living: Container[int] | None = None) -> RowState:
    """Read what `encode_state` wrote; of all definitions, or of those that are `living`."""
    places, lookups, large, copies = orjson.loads(text)
    return RowState(
        tuple([(*place,) for place in places if living is None or place[0] >> 32 in living]),
        tuple([(*lookup,) for lookup in lookups if living is None or lookup[0] in living]) if lookups else (),
        large,
        copies,
    )


def draft_puts(
    rows: Iterable[tuple[int, str, str, str, str]], buckets: Mapping[tuple[int, str], int], subkey: str
) -> tuple[list[Place], list[Draft]]:
    """Where a row is, and the operations that show it there.

    `rows` are definition id, parameters, row type, row id and JSON text; `buckets` the bucket ids by the first two.
    """
    places: list[Place] = []
    puts: list[Draft] = []
    for definition, parameters, row_type, row_id, data in rows:
        bucket = buckets[definition, parameters]
        places.append((bucket, row_type, row_id))
        puts.append((bucket, _PUT, put_checksum(row_type, row_id, data), row_type, row_id, subkey, data))
    return places, puts


def draft_changes(
    before: Iterable[Place], after: Collection[Place], puts: Iterable[Draft], subkey_before: str, subkey_after: str
) -> list[Draft]:
    """The operations that take a row from its places before to those after, where `puts` show it.

    A row that stays gets only its new PUT; one that leaves a bucket, or changes type, id or subkey there, gets a
    REMOVE that names exactly the PUT it takes back.
    """
    kept = frozenset(after) if after and subkey_before == subkey_after else ()
    drafts: list[Draft] = []
    for bucket, row_type, row_id in before:
        if (bucket, row_type, row_id) not in kept:
            checksum = remove_checksum(row_type, row_id, subkey_before)
            drafts.append((bucket, _REMOVE, checksum, row_type, row_id, subkey_before, None))
    return [*drafts, *puts]
