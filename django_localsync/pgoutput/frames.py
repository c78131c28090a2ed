"""The payloads of CopyData messages in streaming replication, in both directions.

Integers are big-endian; times are microseconds since 2000-01-01 UTC (see `postgres_time`).
https://www.postgresql.org/docs/current/protocol-replication.html
"""

from __future__ import annotations

import struct
from datetime import UTC, datetime, timedelta
from struct import Struct
from typing import NamedTuple

from ..exceptions import ProtocolError
from .lsn import Lsn

POSTGRES_EPOCH = datetime(2000, 1, 1, tzinfo=UTC)

XLOG_DATA = b"w"
"""First byte of a frame that carries a message."""

MESSAGE_START = 25
"""Where the message begins in it."""

_XLOG_DATA = Struct(">xQQq").unpack_from
_KEEPALIVE = Struct(">xQQ?")
_STATUS_UPDATE = Struct(">cQQQq?")


class XLogData(NamedTuple):
    """One message of the stream.

    There is one a row, so LSNs are plain numbers here: `start` is where the message's WAL begins (0 for messages that
    have no place of their own), `end` how far the server has come; `server_time` is when it was sent.
    """

    start: int
    end: int
    server_time: int
    payload: bytes


class PrimaryKeepalive(NamedTuple):
    """The server has come to `wal_end`; with `reply_requested` it closes the connection unless it is answered."""

    wal_end: Lsn
    server_time: int
    reply_requested: bool


Frame = XLogData | PrimaryKeepalive


def decode_frame(frame: bytes) -> Frame:
    """Decode one CopyData payload from the server. Raises ProtocolError for an unknown tag or a wrong length."""
    tag = frame[:1]
    try:
        if tag == XLOG_DATA:
            # tuple.__new__: a NamedTuple's own constructor costs twice as much, and this runs once a row.
            return tuple.__new__(XLogData, (*_XLOG_DATA(frame), frame[MESSAGE_START:]))
        if tag == b"k":
            wal_end, server_time, reply_requested = _KEEPALIVE.unpack(frame)
            return PrimaryKeepalive(Lsn(wal_end), server_time, reply_requested)
    except struct.error:
        raise ProtocolError(f"replication frame {tag!r} of {len(frame)} bytes has the wrong length") from None
    raise ProtocolError(f"unknown replication frame {tag!r} at offset 0")


def encode_status_update(
    flushed: Lsn,
    *,
    written: Lsn | None = None,
    applied: Lsn | None = None,
    client_time: int = 0,
    reply_requested: bool = False,
) -> bytes:
    """A standby status update: everything before `flushed` is durable here, so the server may forget it (I3).

    `written` and `applied` are shown in pg_stat_replication; without them they are `flushed`, too.
    """
    written, applied = written or flushed, applied or flushed
    return _STATUS_UPDATE.pack(b"r", written.value, flushed.value, applied.value, client_time, reply_requested)


def postgres_time(microseconds: int) -> datetime:
    """The moment that a time of the protocol stands for. Raises OverflowError outside of the years 1 … 9999."""
    return POSTGRES_EPOCH + timedelta(microseconds=microseconds)
