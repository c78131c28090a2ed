"""BSON, as much of it as sync lines and requests need: https://bsonspec.org/spec.html (version 1.1).

Values are None, bool, int (64 bits), float, str, and lists and mappings of them; names are str without NUL.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from typing import Any

from ..exceptions import ProtocolError

MAX_DEPTH = 64  # of what is decoded

# Types of values.
_DOUBLE, _TEXT, _DOCUMENT, _ARRAY = b"\x01", b"\x02", b"\x03", b"\x04"
_BOOL, _NULL, _INT32, _INT64 = b"\x08", b"\x0a", b"\x10", b"\x12"

_pack_int32 = struct.Struct("<i").pack
_pack_int64 = struct.Struct("<q").pack
_pack_double = struct.Struct("<d").pack


def encode_bson(document: Mapping[str, Any]) -> bytes:
    """The bytes of a document, members in their order. Raises TypeError and OverflowError for other values."""
    return _encode_members(document.items())


def decode_bson(content: bytes) -> dict[str, Any]:
    """Read one document that takes all of the bytes. Raises ProtocolError."""
    try:
        document, end = _decode_document(content, 0, MAX_DEPTH)
    except (struct.error, IndexError, ValueError) as error:
        raise ProtocolError(f"not a BSON document: {error}") from None
    if end != len(content):
        raise ProtocolError(f"not a BSON document: it ends at byte {end} of {len(content)}")
    return document


def _encode_members(members: Iterable[tuple[str, Any]]) -> bytes:
    body = b"".join([_encode_member(name.encode() + b"\0", value) for name, value in members])
    return _pack_int32(len(body) + 5) + body + b"\0"


def _encode_member(name: bytes, value: Any) -> bytes:
    """One member; bool stands before int, which it is one of."""
    if isinstance(value, str):
        text = value.encode()
        return _TEXT + name + _pack_int32(len(text) + 1) + text + b"\0"
    if value is None:
        return _NULL + name
    if isinstance(value, bool):
        return _BOOL + name + (b"\1" if value else b"\0")
    if isinstance(value, int):
        if -0x80000000 <= value <= 0x7FFFFFFF:
            return _INT32 + name + _pack_int32(value)
        try:
            return _INT64 + name + _pack_int64(value)
        except struct.error:
            raise OverflowError(f"{value} does not fit 64 bits") from None
    if isinstance(value, float):
        return _DOUBLE + name + _pack_double(value)
    if isinstance(value, Mapping):
        return _DOCUMENT + name + _encode_members(value.items())
    if isinstance(value, list | tuple):
        return _ARRAY + name + _encode_members(zip(map(str, range(len(value))), value, strict=True))
    raise TypeError(f"a {type(value).__name__} cannot be written as BSON")


def _decode_document(content: bytes, start: int, depth: int) -> tuple[dict[str, Any], int]:
    """A document that begins at `start`, and where it ends."""
    if depth == 0:
        raise ValueError(f"more than {MAX_DEPTH} documents inside each other")
    (length,) = struct.unpack_from("<i", content, start)
    end = start + length
    if length < 5 or end > len(content) or content[end - 1] != 0:
        raise ValueError(f"a length of {length} at byte {start}")
    document: dict[str, Any] = {}
    position = start + 4
    while position < end - 1:
        kind = content[position : position + 1]
        name_end = content.index(b"\0", position + 1, end)
        name = content[position + 1 : name_end].decode()
        document[name], position = _decode_value(content, kind, name_end + 1, depth)
    if position != end - 1:
        raise ValueError(f"a member beyond the end at byte {end}")
    return document, end


def _decode_value(content: bytes, kind: bytes, start: int, depth: int) -> tuple[Any, int]:
    if kind == _TEXT:
        (length,) = struct.unpack_from("<i", content, start)
        end = start + 4 + length
        if length < 1 or content[end - 1] != 0:
            raise ValueError(f"a text of {length} bytes at byte {start}")
        return content[start + 4 : end - 1].decode(), end
    if kind == _DOCUMENT:
        return _decode_document(content, start, depth - 1)
    if kind == _ARRAY:
        members, end = _decode_document(content, start, depth - 1)
        return list(members.values()), end
    if kind == _BOOL:
        return content[start] != 0, start + 1
    if kind == _NULL:
        return None, start
    if kind not in _NUMBERS:
        raise ValueError(f"a value of type 0x{kind.hex()} at byte {start}, which no client sends")
    layout = _NUMBERS[kind]
    (number,) = layout.unpack_from(content, start)
    return number, start + layout.size


_NUMBERS = {_DOUBLE: struct.Struct("<d"), _INT32: struct.Struct("<i"), _INT64: struct.Struct("<q")}
