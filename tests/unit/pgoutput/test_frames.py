"""Frames of streaming replication."""

import contextlib
import struct
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from django_localsync.exceptions import ProtocolError
from django_localsync.pgoutput.frames import (
    PrimaryKeepalive,
    XLogData,
    decode_frame,
    encode_status_update,
    postgres_time,
)
from django_localsync.pgoutput.lsn import Lsn
from tests.pgoutput_capture import read_goldens


def test_recorded_frames_are_stream_data_and_keepalives():
    frames = [decode_frame(frame) for frame in read_goldens()]

    data = [frame for frame in frames if isinstance(frame, XLogData)]
    keepalives = [frame for frame in frames if isinstance(frame, PrimaryKeepalive)]
    assert len(data) + len(keepalives) == len(frames)
    assert keepalives
    assert all(frame.start <= frame.end for frame in data)
    assert postgres_time(data[0].server_time) > datetime(2020, 1, 1, tzinfo=UTC)


def test_a_keepalive_says_whether_it_wants_an_answer():
    frame = struct.pack(">cQQB", b"k", 0x16_B374D848, 1_000_000, 1)

    assert decode_frame(frame) == PrimaryKeepalive(Lsn.parse("16/B374D848"), 1_000_000, reply_requested=True)


def test_a_status_update_reports_the_flushed_position_where_nothing_else_is_said():
    update = encode_status_update(Lsn(7))

    assert struct.unpack(">cQQQqB", update) == (b"r", 7, 7, 7, 0, 0)


def test_a_status_update_has_three_positions_a_time_and_a_wish_for_an_answer():
    update = encode_status_update(Lsn(2), written=Lsn(3), applied=Lsn(1), client_time=1_000_000, reply_requested=True)

    assert struct.unpack(">cQQQqB", update) == (b"r", 3, 2, 1, 1_000_000, 1)


def test_nothing_can_be_flushed_yet_applied_at_zero():
    update = encode_status_update(Lsn(2), written=Lsn(0), applied=Lsn(0))

    assert struct.unpack(">cQQQqB", update)[1:4] == (0, 2, 0)


def test_time_counts_microseconds_from_2000():
    assert postgres_time(86_400_000_001) == datetime(2000, 1, 2, microsecond=1, tzinfo=UTC)


@pytest.mark.parametrize("frame", [b"", b"x", b"w", b"w" + bytes(23), b"k" + bytes(16), b"k" + bytes(18)])
def test_malformed_frames_are_named(frame):
    with pytest.raises(ProtocolError, match="replication frame"):
        decode_frame(frame)


@given(st.binary(max_size=60))
def test_any_bytes_are_a_frame_or_a_protocol_error(frame):
    with contextlib.suppress(ProtocolError):
        decode_frame(frame)
