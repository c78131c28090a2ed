"""Sync lines: what the server streams to a client, one JSON object with one key a line.

The format is PowerSync's (docs/reference/wire-protocol.md §2). Op ids and write checkpoints are decimal strings on
the wire, counts, priorities and checksums are numbers. `encode_…` makes the bytes of a line, with its newline, or as a
BSON document with the same members; `parse_line` is the client's side and as strict as the official clients.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, cast

import orjson

from ..buckets.checksum import MODULUS
from ..buckets.operation import Operation, OpId, OpKind
from ..exceptions import ProtocolError
from .bson import encode_bson

DEFAULT_PRIORITY = 3
MAX_PRIORITY = 2147483646  # clients reserve the next number for "everything"


class LineFormat(Enum):
    """How lines are written; the value is the media type."""

    NDJSON = "application/x-ndjson"
    BSON = "application/vnd.powersync.bson-stream"


@dataclass(frozen=True, slots=True)
class BucketChecksum:
    """One bucket of a checkpoint. `subscriptions` are reasons: ("default" | "sub", index)."""

    bucket: str
    checksum: int
    count: int = 0
    priority: int = DEFAULT_PRIORITY
    subscriptions: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True, slots=True)
class StreamInfo:
    """A stream the client is subscribed to; errors are (subscription index or "default", message)."""

    name: str
    is_default: bool
    errors: tuple[tuple[int | str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The complete list of buckets at `last_op_id`."""

    last_op_id: OpId
    buckets: tuple[BucketChecksum, ...]
    write_checkpoint: int | None = None
    streams: tuple[StreamInfo, ...] = ()


@dataclass(frozen=True, slots=True)
class CheckpointDiff:
    """What changed since the checkpoint before; `write_checkpoint` replaces the previous one, also by absence."""

    last_op_id: OpId
    updated_buckets: tuple[BucketChecksum, ...]
    removed_buckets: tuple[str, ...]
    write_checkpoint: int | None = None


@dataclass(frozen=True, slots=True)
class BucketData:
    """Operations of one bucket in ascending op id order."""

    bucket: str
    operations: tuple[Operation, ...]
    after: OpId | None = None
    next_after: OpId | None = None
    has_more: bool = False


@dataclass(frozen=True, slots=True)
class CheckpointComplete:
    """All data of the latest checkpoint was sent."""

    last_op_id: OpId | None


@dataclass(frozen=True, slots=True)
class PartialCheckpointComplete:
    """All buckets of this priority and of smaller numbers are complete."""

    last_op_id: OpId | None
    priority: int


@dataclass(frozen=True, slots=True)
class TokenExpiresIn:
    """Whole seconds until the token expires; also the keepalive."""

    seconds: int


@dataclass(frozen=True, slots=True)
class UnknownLine:
    """A line of a kind we do not know; clients ignore it."""

    kind: str = field(compare=False, default="")


Line = (
    Checkpoint
    | CheckpointDiff
    | BucketData
    | CheckpointComplete
    | PartialCheckpointComplete
    | TokenExpiresIn
    | UnknownLine
)


def encode_checkpoint(line: Checkpoint, format: LineFormat = LineFormat.NDJSON) -> bytes:
    """The bytes of a `checkpoint` line."""
    return _encode(
        "checkpoint",
        {
            "last_op_id": str(line.last_op_id),
            **_write_checkpoint(line.write_checkpoint),
            "buckets": [_bucket(bucket) for bucket in line.buckets],
            "streams": [
                {
                    "name": stream.name,
                    "is_default": stream.is_default,
                    "errors": [{"subscription": which, "message": text} for which, text in stream.errors],
                }
                for stream in line.streams
            ],
        },
        format,
    )


def encode_checkpoint_diff(line: CheckpointDiff, format: LineFormat = LineFormat.NDJSON) -> bytes:
    """The bytes of a `checkpoint_diff` line."""
    return _encode(
        "checkpoint_diff",
        {
            "last_op_id": str(line.last_op_id),
            **_write_checkpoint(line.write_checkpoint),
            "updated_buckets": [_bucket(bucket) for bucket in line.updated_buckets],
            "removed_buckets": list(line.removed_buckets),
        },
        format,
    )


def encode_checkpoint_complete(line: CheckpointComplete, format: LineFormat = LineFormat.NDJSON) -> bytes:
    """The bytes of a `checkpoint_complete` line."""
    return _encode("checkpoint_complete", {"last_op_id": str(line.last_op_id)}, format)


def encode_partial_checkpoint_complete(
    line: PartialCheckpointComplete, format: LineFormat = LineFormat.NDJSON
) -> bytes:
    """The bytes of a `partial_checkpoint_complete` line."""
    body = {"last_op_id": str(line.last_op_id), "priority": line.priority}
    return _encode("partial_checkpoint_complete", body, format)


def encode_token_expires_in(line: TokenExpiresIn, format: LineFormat = LineFormat.NDJSON) -> bytes:
    """The bytes of a `token_expires_in` line."""
    return _encode("token_expires_in", line.seconds, format)


StoredOperation = tuple[int, int, int, str | None, str | None, str | None, str | None]
"""A row of bucket storage: op_id, OpKind number, checksum, row type, row id, subkey, data (JSON text)."""


def encode_bucket_data(
    bucket: str,
    after: int,
    operations: Sequence[StoredOperation],
    has_more: bool,
    *,
    raw_data: bool = True,
    format: LineFormat = LineFormat.NDJSON,
) -> bytes:
    """The bytes of a `data` line from rows of storage (plain tuples: this runs once an operation).

    With `raw_data` (every current client) row data is a JSON text; without, for very old ones, an object. In BSON it
    is always a text.
    """
    as_text = raw_data or format is LineFormat.BSON
    return _encode(
        "data",
        {
            "bucket": bucket,
            "after": str(after),
            "next_after": str(operations[-1][0] if operations else after),
            "has_more": has_more,
            "data": [_operation(operation, as_text) for operation in operations],
        },
        format,
    )


def parse_line(text: bytes | str) -> Line:
    """Read one line. Raises ProtocolError for what official clients refuse; unknown kinds give UnknownLine."""
    try:
        document = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise ProtocolError(f"a sync line is not JSON: {error}") from None
    if not isinstance(document, dict) or len(document) != 1:
        raise ProtocolError("a sync line must be an object with exactly one key")
    ((kind, body),) = document.items()
    parse = _PARSERS.get(kind)
    return parse(body) if parse else UnknownLine(kind)


def _encode(kind: str, body: object, format: LineFormat) -> bytes:
    if format is LineFormat.BSON:
        return encode_bson({kind: body})
    return orjson.dumps({kind: body}, option=orjson.OPT_APPEND_NEWLINE)


def _write_checkpoint(value: int | None) -> dict[str, str]:
    return {} if value is None else {"write_checkpoint": str(value)}


def _bucket(bucket: BucketChecksum) -> dict[str, Any]:
    return {
        "bucket": bucket.bucket,
        "checksum": bucket.checksum,
        "count": bucket.count,
        "priority": bucket.priority,
        "subscriptions": [{kind: index} for kind, index in bucket.subscriptions],
    }


_KIND_NAMES = {kind.value: kind.name for kind in OpKind}
_WITH_ROW = {OpKind.PUT.value, OpKind.REMOVE.value}


def _operation(operation: StoredOperation, as_text: bool) -> dict[str, Any]:
    op_id, kind, checksum, row_type, row_id, subkey, data = operation
    if kind not in _WITH_ROW:
        return {"op_id": str(op_id), "op": _KIND_NAMES[kind], "checksum": checksum}
    return {
        "op_id": str(op_id),
        "op": _KIND_NAMES[kind],
        "object_type": row_type,
        "object_id": row_id,
        "subkey": subkey,
        "checksum": checksum,
        "data": data if as_text or data is None else orjson.Fragment(data),
    }


def _parse_checkpoint(body: Any) -> Checkpoint:
    body = _object(body, "checkpoint")
    return Checkpoint(
        last_op_id=_op_id(body.get("last_op_id"), "last_op_id"),
        buckets=tuple(_parse_bucket(item) for item in _list(body.get("buckets"), "buckets")),
        write_checkpoint=_optional_number_text(body.get("write_checkpoint"), "write_checkpoint"),
        streams=tuple(_parse_stream(item) for item in _list(body.get("streams", []), "streams")),
    )


def _parse_checkpoint_diff(body: Any) -> CheckpointDiff:
    body = _object(body, "checkpoint_diff")
    removed = _list(body.get("removed_buckets"), "removed_buckets")
    return CheckpointDiff(
        last_op_id=_op_id(body.get("last_op_id"), "last_op_id"),
        updated_buckets=tuple(_parse_bucket(item) for item in _list(body.get("updated_buckets"), "updated_buckets")),
        removed_buckets=tuple(_text(name, "removed_buckets") for name in removed),
        write_checkpoint=_optional_number_text(body.get("write_checkpoint"), "write_checkpoint"),
    )


def _parse_data(body: Any) -> BucketData:
    body = _object(body, "data")
    after, next_after = body.get("after"), body.get("next_after")
    return BucketData(
        bucket=_text(body.get("bucket"), "bucket"),
        operations=tuple(_parse_operation(item) for item in _list(body.get("data"), "data")),
        after=None if after is None else _op_id(after, "after"),
        next_after=None if next_after is None else _op_id(next_after, "next_after"),
        has_more=bool(body.get("has_more", False)),
    )


def _parse_complete(body: Any) -> CheckpointComplete:
    last_op_id = _object(body, "checkpoint_complete").get("last_op_id")
    return CheckpointComplete(None if last_op_id is None else _op_id(last_op_id, "last_op_id"))


def _parse_partial_complete(body: Any) -> PartialCheckpointComplete:
    body = _object(body, "partial_checkpoint_complete")
    last_op_id = body.get("last_op_id")
    return PartialCheckpointComplete(
        None if last_op_id is None else _op_id(last_op_id, "last_op_id"), _priority(body.get("priority"))
    )


def _parse_token_expires_in(body: Any) -> TokenExpiresIn:
    return TokenExpiresIn(_whole(body, "token_expires_in", -(2**31), 2**31 - 1))


_PARSERS: dict[str, Any] = {
    "checkpoint": _parse_checkpoint,
    "checkpoint_diff": _parse_checkpoint_diff,
    "data": _parse_data,
    "checkpoint_complete": _parse_complete,
    "partial_checkpoint_complete": _parse_partial_complete,
    "token_expires_in": _parse_token_expires_in,
}


def _parse_bucket(item: Any) -> BucketChecksum:
    item = _object(item, "buckets")
    priority = item.get("priority")
    return BucketChecksum(
        bucket=_text(item.get("bucket"), "bucket"),
        checksum=_checksum(item.get("checksum")),
        count=_whole(item.get("count") or 0, "count", 0, 2**63 - 1),
        priority=DEFAULT_PRIORITY if priority is None else _priority(priority),
        subscriptions=tuple(_reasons(item.get("subscriptions") or [])),
    )


def _reasons(items: Any) -> Iterable[tuple[str, int]]:
    for item in _list(items, "subscriptions"):
        if not isinstance(item, dict) or len(item) != 1:
            raise ProtocolError("a bucket's subscription must be an object with exactly one key")
        ((kind, index),) = item.items()
        if kind not in ("default", "sub"):
            raise ProtocolError(f"unknown reason of a bucket: {kind!r}")
        yield kind, _whole(index, "subscriptions", 0, 2**63 - 1)


def _parse_stream(item: Any) -> StreamInfo:
    item = _object(item, "streams")
    is_default = item.get("is_default")
    if not isinstance(is_default, bool):
        raise ProtocolError("is_default of a stream must be true or false")
    errors = []
    for error in _list(item.get("errors"), "errors"):
        error = _object(error, "errors")
        errors.append((cast("int | str", error.get("subscription")), _text(error.get("message"), "message")))
    return StreamInfo(_text(item.get("name"), "name"), is_default, tuple(errors))


def _parse_operation(item: Any) -> Operation:
    item = _object(item, "data")
    name = item.get("op")
    if not isinstance(name, str) or name not in OpKind.__members__:
        raise ProtocolError(f"unknown operation: {name!r}")
    return Operation(
        op_id=_op_id(item.get("op_id"), "op_id"),
        kind=OpKind[name],
        checksum=_checksum(item.get("checksum")),
        row_type=_optional_text(item.get("object_type"), "object_type"),
        row_id=_optional_text(item.get("object_id"), "object_id"),
        subkey=_optional_text(item.get("subkey"), "subkey"),
        data=_optional_text(item.get("data"), "data"),
    )


def _object(value: Any, name: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ProtocolError(f"{name} must be an object")
    return value


def _list(value: Any, name: str) -> list[Any]:
    if not isinstance(value, list):
        raise ProtocolError(f"{name} must be a list")
    return value


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise ProtocolError(f"{name} must be a string")
    return value


def _optional_text(value: Any, name: str) -> str | None:
    return None if value is None else _text(value, name)


def _op_id(value: Any, name: str) -> OpId:
    text = _text(value, name)
    if not text.isascii() or not text.removeprefix("-").isdigit() or abs(int(text)) >= 2**63:
        raise ProtocolError(f"{name} must be a decimal number in a string")
    return OpId(int(text))


def _optional_number_text(value: Any, name: str) -> int | None:
    return None if value is None else _op_id(value, name)


def _whole(value: Any, name: str, lowest: int, highest: int) -> int:
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not lowest <= value <= highest:
        raise ProtocolError(f"{name} must be a whole number from {lowest} to {highest}")
    return value


def _checksum(value: Any) -> int:
    return _whole(value, "checksum", -(2**31), 2**32 - 1) % MODULUS


def _priority(value: Any) -> int:
    return _whole(value, "priority", 0, MAX_PRIORITY)
