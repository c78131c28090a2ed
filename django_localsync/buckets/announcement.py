"""What the replicator tells every serving process when a checkpoint became visible.

One NOTIFY a storage transaction, on channel `localsync` of the storage database. It carries the new totals of the
buckets that changed, so that a stream whose lookups are not concerned needs no read to learn its new checkpoint.
`sequence` counts the announcements of one replicator's life and `run` names that life: a listener that sees a jump
in either treats everything as changed.
Postgres refuses payloads of 8000 bytes; what does not fit says only "many".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from zlib import crc32

import orjson

from ..exceptions import ProtocolError

CHANNEL = "localsync"
MESSAGE_PREFIX = "localsync"  # of logical messages in the source's WAL; the content is a decimal digest
MAX_PAYLOAD_BYTES = 7900


class BucketTotals(NamedTuple):
    """A bucket's running totals: number of operations, checksum (0 … 2**32-1), highest op id."""

    operations: int
    checksum: int
    last_op_id: int


@dataclass(frozen=True, slots=True)
class Announcement:
    """A checkpoint became visible.

    `buckets`: new totals by bucket id; `created`: digests (`bucket_digest`) of buckets that did not exist before;
    `lookups`: digests (`lookup_digest`) of parameter index keys whose entries changed; `write_checkpoints`: digests
    (`write_checkpoint_digest`) of clients whose receipt may have been reached. Digests may collide: a stream woken
    in vain reads and finds nothing new. `everything` means: treat all of it as changed. `rules` means the active
    rule set was replaced, so streams end.
    """

    run: str
    sequence: int
    op_id: int
    buckets: Mapping[int, BucketTotals] = field(default_factory=dict)
    created: frozenset[int] = frozenset()
    lookups: frozenset[int] = frozenset()
    write_checkpoints: frozenset[int] = frozenset()
    everything: bool = False
    rules: bool = False

    def is_news(self) -> bool:
        """Whether any stream could be concerned."""
        return bool(
            self.buckets or self.created or self.lookups or self.write_checkpoints or self.everything or self.rules
        )


def encode_announcement(announcement: Announcement) -> str:
    """The NOTIFY payload, at most MAX_PAYLOAD_BYTES bytes; one that would be longer says "everything"."""
    head = {"r": announcement.run, "s": announcement.sequence, "o": announcement.op_id}
    if announcement.rules:
        head["x"] = 1
    body = {
        "b": [[bucket, *totals] for bucket, totals in announcement.buckets.items()],
        "n": sorted(announcement.created),
        "l": sorted(announcement.lookups),
        "w": sorted(announcement.write_checkpoints),
    }
    if not announcement.everything:
        payload = orjson.dumps({**head, **{key: value for key, value in body.items() if value}})
        if len(payload) <= MAX_PAYLOAD_BYTES:
            return payload.decode()
    return orjson.dumps({**head, "many": 1}).decode()


def decode_announcement(payload: str) -> Announcement:
    """Read a payload. Raises ProtocolError when it is not one (another program used the channel)."""
    try:
        document: dict[str, Any] = orjson.loads(payload)
        return Announcement(
            run=document["r"],
            sequence=document["s"],
            op_id=document["o"],
            buckets={bucket: BucketTotals(*totals) for bucket, *totals in document.get("b", [])},
            created=frozenset(document.get("n", ())),
            lookups=frozenset(document.get("l", ())),
            write_checkpoints=frozenset(document.get("w", ())),
            everything="many" in document,
            rules="x" in document,
        )
    except (orjson.JSONDecodeError, KeyError, TypeError, ValueError) as error:
        raise ProtocolError(f"not a checkpoint announcement: {error!r}") from None


def bucket_digest(definition_id: int, parameters: str) -> int:
    """32 bits that stand for a bucket by what it is, before it has an id."""
    return crc32(f"{definition_id}{parameters}".encode())


def lookup_digest(definition_id: int, key: str) -> int:
    """32 bits that stand for a key of the parameter index."""
    return crc32(f"{definition_id}{key}".encode())


def write_checkpoint_digest(user_key: str, client_id: str) -> int:
    """32 bits that stand for one user's client; the logical message that follows a write checkpoint carries it."""
    return crc32(f"{user_key}\0{client_id}".encode())
