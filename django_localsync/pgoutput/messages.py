"""The messages of the pgoutput plugin, protocol version 1, values as text.

Row messages are the hot path: a row is a plain list of texts, a message a NamedTuple that names its relation by oid
and looks nothing up. Decoding an insert of 8 columns and 350 bytes takes 4.0 µs, one of 4 short columns 2.2 µs: 250,000
and 450,000 rows/s (benchmarks/decode.py; CPython 3.11, one core of a small virtual machine).
https://www.postgresql.org/docs/current/protocol-logicalrep-message-formats.html
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from enum import Enum, StrEnum
from struct import Struct
from typing import Final, NamedTuple, TypeGuard

from ..exceptions import ProtocolError
from .lsn import Lsn
from .types import CATALOG_SCHEMA


class Unchanged(Enum):
    """The type of UNCHANGED."""

    UNCHANGED = "unchanged"


UNCHANGED: Final = Unchanged.UNCHANGED
"""Stands for a large (TOASTed) value that an UPDATE did not touch: the stream does not repeat it."""

Values = list[str | Unchanged | None]
"""A row: one text a column in the relation's order, None for NULL."""


def is_complete(values: Values) -> TypeGuard[list[str | None]]:
    """Whether the stream gave every value of a row."""
    return UNCHANGED not in values


class ReplicaIdentity(StrEnum):
    """Which old values come with UPDATE and DELETE (`pg_class.relreplident`)."""

    DEFAULT = "d"  # the primary key's
    NOTHING = "n"
    FULL = "f"
    INDEX = "i"


class Begin(NamedTuple):
    """A transaction begins; `final_lsn` is where its commit will be, `xid` its number (32 bits)."""

    final_lsn: Lsn
    commit_time: int
    xid: int


class Commit(NamedTuple):
    """A transaction ends; replication may resume after `end_lsn`."""

    commit_lsn: Lsn
    end_lsn: Lsn
    commit_time: int


class Origin(NamedTuple):
    """The transaction was itself replicated from elsewhere."""

    commit_lsn: Lsn
    name: str


class RelationColumn(NamedTuple):
    """A column of a relation. `is_key`: it belongs to the replica identity (all do when that is FULL)."""

    name: str
    type_oid: int
    type_modifier: int
    is_key: bool


class Relation(NamedTuple):
    """The layout of a relation's rows, sent before its first change and after each change of the layout."""

    oid: int
    schema: str
    name: str
    replica_identity: ReplicaIdentity
    columns: tuple[RelationColumn, ...]


class Type(NamedTuple):
    """The name of a type that is not built in, sent before the relation that uses it."""

    oid: int
    schema: str
    name: str


class Insert(NamedTuple):
    """A new row."""

    relation: int
    new: Values


class Update(NamedTuple):
    """A changed row.

    `old` is what is sent of the row before: nothing, or its identity where that changed (`old_is_key`: the columns
    outside of it are None), or, under replica identity FULL, all of it.
    """

    relation: int
    old: Values | None
    new: Values
    old_is_key: bool


class Delete(NamedTuple):
    """A deleted row: its identity (`old_is_key`: the columns outside of it are None), or, under FULL, all of it."""

    relation: int
    old: Values
    old_is_key: bool


class Truncate(NamedTuple):
    """Relations were emptied together."""

    relations: tuple[int, ...]
    cascade: bool
    restart_identity: bool


class LogicalMessage(NamedTuple):
    """What `pg_logical_emit_message` sent; one that is not transactional stands outside of Begin and Commit."""

    transactional: bool
    lsn: Lsn
    prefix: str
    content: bytes


Message = Begin | Commit | Origin | Relation | Type | Insert | Update | Delete | Truncate | LogicalMessage

_ROW = Struct(">xIBH").unpack_from
_TUPLE = Struct(">BH").unpack_from
_OID = Struct(">xI").unpack_from
_LENGTH = Struct(">I")
_VALUE_LENGTH = _LENGTH.unpack_from
_BEGIN = Struct(">xQqI")
_COMMIT = Struct(">xxQQq")
_ORIGIN = Struct(">xQ")
_RELATION = Struct(">BH")
_RELATION_COLUMN = Struct(">Ii")
_TRUNCATE = Struct(">xIB")
_MESSAGE = Struct(">xBQ")

_NEW, _KEY, _OLD, _TEXT, _NULL, _UNCHANGED = b"NKOtnu"
_CASCADE, _RESTART_IDENTITY = 1, 2  # flags of Truncate
_TRANSACTIONAL = 1  # flag of LogicalMessage

# A NamedTuple's own constructor costs twice as much.
_new = tuple.__new__


def decode_message(payload: bytes) -> Message:
    """Decode the payload of one XLogData. Raises ProtocolError, with tag and offset, for anything malformed."""
    try:
        message, end = _DECODERS[payload[0]](payload)
    except KeyError:
        raise ProtocolError(f"unknown pgoutput message {payload[:1]!r} at offset 0") from None
    except (IndexError, struct.error, ValueError) as error:
        raise ProtocolError(f"malformed pgoutput message {payload[:1]!r} of {len(payload)} bytes: {error!r}") from None
    if end != len(payload):
        raise ProtocolError(f"pgoutput message {payload[:1]!r} has {len(payload)} bytes instead of {end}")
    return message


def _read_values(buffer: bytes, position: int, count: int) -> tuple[Values, int]:
    """The row of `count` columns that begins at `position`, and where it ends: behind the buffer if it is cut short."""
    values: Values = [None] * count
    for index in range(count):
        tag = buffer[position]
        if tag == _TEXT:
            (length,) = _VALUE_LENGTH(buffer, position + 1)
            start = position + 5
            position = start + length
            values[index] = buffer[start:position].decode()
        elif tag == _NULL:
            position += 1
        elif tag == _UNCHANGED:
            values[index] = UNCHANGED
            position += 1
        else:
            raise _unknown_tag("column", tag, position)
    return values, position


def _decode_insert(buffer: bytes) -> tuple[Insert, int]:
    relation, tag, count = _ROW(buffer)
    if tag != _NEW:
        raise _unknown_tag("row", tag, 5)
    values, end = _read_values(buffer, 8, count)
    return _new(Insert, (relation, values)), end


def _decode_update(buffer: bytes) -> tuple[Update, int]:
    relation, tag, count = _ROW(buffer)
    new, end = _read_values(buffer, 8, count)
    if tag == _NEW:
        return _new(Update, (relation, None, new, False)), end
    old, old_is_key = new, _is_key(tag)
    tag, count = _TUPLE(buffer, end)
    if tag != _NEW:
        raise _unknown_tag("row", tag, end)
    new, end = _read_values(buffer, end + 3, count)
    return _new(Update, (relation, old, new, old_is_key)), end


def _decode_delete(buffer: bytes) -> tuple[Delete, int]:
    relation, tag, count = _ROW(buffer)
    old, end = _read_values(buffer, 8, count)
    return _new(Delete, (relation, old, _is_key(tag))), end


def _is_key(tag: int) -> bool:
    if tag not in (_KEY, _OLD):
        raise _unknown_tag("row", tag, 5)
    return tag == _KEY


def _decode_begin(buffer: bytes) -> tuple[Begin, int]:
    final_lsn, commit_time, xid = _BEGIN.unpack_from(buffer)
    return Begin(Lsn(final_lsn), commit_time, xid), _BEGIN.size


def _decode_commit(buffer: bytes) -> tuple[Commit, int]:
    commit_lsn, end_lsn, commit_time = _COMMIT.unpack_from(buffer)
    return Commit(Lsn(commit_lsn), Lsn(end_lsn), commit_time), _COMMIT.size


def _decode_origin(buffer: bytes) -> tuple[Origin, int]:
    (commit_lsn,) = _ORIGIN.unpack_from(buffer)
    name, end = _read_text(buffer, _ORIGIN.size)
    return Origin(Lsn(commit_lsn), name), end


def _decode_relation(buffer: bytes) -> tuple[Relation, int]:
    (oid,) = _OID(buffer)
    schema, position = _read_text(buffer, 5)
    name, position = _read_text(buffer, position)
    identity, count = _RELATION.unpack_from(buffer, position)
    position += _RELATION.size
    columns = []
    for _ in range(count):
        is_key = bool(buffer[position])
        column, position = _read_text(buffer, position + 1)
        type_oid, type_modifier = _RELATION_COLUMN.unpack_from(buffer, position)
        position += _RELATION_COLUMN.size
        columns.append(RelationColumn(column, type_oid, type_modifier, is_key))
    # pgoutput names the catalogue's schema by an empty text.
    return Relation(oid, schema or CATALOG_SCHEMA, name, ReplicaIdentity(chr(identity)), tuple(columns)), position


def _decode_type(buffer: bytes) -> tuple[Type, int]:
    (oid,) = _OID(buffer)
    schema, position = _read_text(buffer, 5)
    name, end = _read_text(buffer, position)
    return Type(oid, schema or CATALOG_SCHEMA, name), end


def _decode_truncate(buffer: bytes) -> tuple[Truncate, int]:
    count, flags = _TRUNCATE.unpack_from(buffer)
    end = _TRUNCATE.size + 4 * count
    oids = buffer[_TRUNCATE.size : end]
    relations = tuple(oid for (oid,) in _LENGTH.iter_unpack(oids))
    return Truncate(relations, bool(flags & _CASCADE), bool(flags & _RESTART_IDENTITY)), end


def _decode_logical_message(buffer: bytes) -> tuple[LogicalMessage, int]:
    flags, lsn = _MESSAGE.unpack_from(buffer)
    prefix, position = _read_text(buffer, _MESSAGE.size)
    (length,) = _LENGTH.unpack_from(buffer, position)
    start = position + _LENGTH.size
    end = start + length
    return LogicalMessage(bool(flags & _TRANSACTIONAL), Lsn(lsn), prefix, buffer[start:end]), end


def _read_text(buffer: bytes, position: int) -> tuple[str, int]:
    """The zero-terminated text at `position`, and where it ends."""
    end = buffer.index(0, position)
    return buffer[position:end].decode(), end + 1


def _unknown_tag(what: str, tag: int, offset: int) -> ProtocolError:
    return ProtocolError(f"unknown {what} tag {bytes([tag])!r} at offset {offset} of a pgoutput message")


_DECODERS: dict[int, Callable[[bytes], tuple[Message, int]]] = {
    ord("B"): _decode_begin,
    ord("C"): _decode_commit,
    ord("O"): _decode_origin,
    ord("R"): _decode_relation,
    ord("Y"): _decode_type,
    ord("I"): _decode_insert,
    ord("U"): _decode_update,
    ord("D"): _decode_delete,
    ord("T"): _decode_truncate,
    ord("M"): _decode_logical_message,
}
