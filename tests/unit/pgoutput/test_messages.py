"""pgoutput messages: what a real server sent, what a small encoder writes, and what is malformed."""

import contextlib
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from django_localsync.exceptions import ProtocolError
from django_localsync.pgoutput.frames import XLogData, decode_frame
from django_localsync.pgoutput.lsn import Lsn
from django_localsync.pgoutput.messages import (
    UNCHANGED,
    Begin,
    Commit,
    Delete,
    Insert,
    LogicalMessage,
    Origin,
    Relation,
    RelationColumn,
    ReplicaIdentity,
    Truncate,
    Type,
    Update,
    decode_message,
    is_complete,
)
from tests.pgoutput_capture import messages, read_goldens

GOLDEN = messages(read_goldens())
PAYLOADS = [frame.payload for frame in map(decode_frame, read_goldens()) if isinstance(frame, XLogData)]

LARGE = "x" * 2100


def golden(kind):
    return [message for message in GOLDEN if isinstance(message, kind)]


def oid_of(table):
    return next(relation.oid for relation in golden(Relation) if relation.name == table)


def test_a_transaction_begins_with_where_and_when_it_was_committed():
    for begin, commit in zip(golden(Begin), golden(Commit), strict=True):
        assert begin.final_lsn == commit.commit_lsn < commit.end_lsn
        assert begin.commit_time == commit.commit_time
        assert begin.xid > 0
    assert [commit.end_lsn for commit in golden(Commit)] == sorted(commit.end_lsn for commit in golden(Commit))


def test_a_relation_tells_its_columns_and_which_of_them_identify_a_row():
    keyed, whole, indexed, unidentified = golden(Relation)[:4]

    assert (keyed.schema, keyed.name, keyed.replica_identity) == ("golden", "keyed", ReplicaIdentity.DEFAULT)
    mood = golden(Type)[0].oid
    assert keyed.columns == (
        RelationColumn("id", 23, -1, True),
        RelationColumn("body", 25, -1, False),
        RelationColumn("mood", mood, -1, False),
        RelationColumn("large", 25, -1, False),
    )
    assert (whole.replica_identity, [column.is_key for column in whole.columns]) == ("f", [True, True])
    assert (indexed.replica_identity, [column.is_key for column in indexed.columns]) == ("i", [False, True, False])
    assert indexed.columns[1].type_modifier == ((12 << 16) | 2) + 4  # numeric(12, 2)
    assert (unidentified.replica_identity, [column.is_key for column in unidentified.columns]) == ("n", [False])


def test_a_changed_layout_is_sent_before_the_next_row():
    layouts = [relation.columns for relation in golden(Relation) if relation.name == "keyed"]

    assert [column.name for column in layouts[1]] == ["id", "body", "large", "at"]
    assert Insert(oid_of("keyed"), ["4", "after DDL", None, "2024-05-06 05:08:09.5+00"]) in GOLDEN


def test_a_type_of_ones_own_is_named():
    assert (golden(Type)[0].schema, golden(Type)[0].name) == ("golden", "mood")


def test_inserted_rows_are_texts():
    keyed = oid_of("keyed")

    assert golden(Insert)[:2] == [
        Insert(keyed, ["1", "blåbær 👋", "ok", LARGE]),
        Insert(keyed, ["2", "", None, None]),
    ]


def test_an_update_leaves_out_a_large_value_and_sends_the_old_row_as_far_as_the_identity_asks():
    keyed, whole, indexed = map(oid_of, ("keyed", "whole", "indexed"))

    assert golden(Update) == [
        Update(keyed, None, ["1", "new", "ok", UNCHANGED], old_is_key=False),
        Update(keyed, ["2", None, None, None], ["3", "", None, None], old_is_key=True),
        Update(whole, ["1", "one"], ["1", "uno"], old_is_key=False),
        Update(indexed, [None, "12.50", None], ["1", "13.00", None], old_is_key=True),
    ]
    assert [is_complete(update.new) for update in golden(Update)] == [False, True, True, True]


def test_a_delete_sends_the_identity_or_the_whole_row():
    keyed, whole, indexed = map(oid_of, ("keyed", "whole", "indexed"))

    assert golden(Delete) == [
        Delete(keyed, ["3", None, None, None], old_is_key=True),
        Delete(whole, ["2", None], old_is_key=False),
        Delete(indexed, [None, "13.00", None], old_is_key=True),
    ]


def test_truncated_relations_come_together():
    assert golden(Truncate) == [
        Truncate((oid_of("keyed"), oid_of("whole")), cascade=False, restart_identity=False),
        Truncate((oid_of("indexed"),), cascade=True, restart_identity=True),
    ]


def test_logical_messages_carry_bytes():
    beside, within = golden(LogicalMessage)

    assert (beside.transactional, beside.prefix, beside.content) == (False, "beside", b"\x00\xff")
    assert (within.transactional, within.prefix, within.content) == (True, "within", "text æ".encode())
    assert beside.lsn < within.lsn


def test_a_transaction_from_elsewhere_names_its_origin():
    assert golden(Origin) == [Origin(Lsn(0), "golden in pgoutput_golden")]


def test_the_empty_schema_is_the_catalogue():
    relation = b"R" + struct.pack(">I", 1) + b"\0name\0d" + struct.pack(">H", 0)

    assert decode_message(relation) == Relation(1, "pg_catalog", "name", ReplicaIdentity.DEFAULT, ())
    assert decode_message(b"Y" + struct.pack(">I", 2) + b"\0int4\0") == Type(2, "pg_catalog", "int4")


values = st.lists(st.none() | st.just(UNCHANGED) | st.text(max_size=30), max_size=8)
oids = st.integers(0, 2**32 - 1)


def encode_values(row):
    encoded = [struct.pack(">H", len(row))]
    for value in row:
        if value is None:
            encoded.append(b"n")
        elif value is UNCHANGED:
            encoded.append(b"u")
        else:
            text = value.encode()
            encoded.append(b"t" + struct.pack(">I", len(text)) + text)
    return b"".join(encoded)


def encode_row_message(message):
    match message:
        case Insert(relation, new):
            return b"I" + struct.pack(">I", relation) + b"N" + encode_values(new)
        case Update(relation, None, new, _):
            return b"U" + struct.pack(">I", relation) + b"N" + encode_values(new)
        case Update(relation, old, new, old_is_key):
            old_row = (b"K" if old_is_key else b"O") + encode_values(old)
            return b"U" + struct.pack(">I", relation) + old_row + b"N" + encode_values(new)
        case Delete(relation, old, old_is_key):
            return b"D" + struct.pack(">I", relation) + (b"K" if old_is_key else b"O") + encode_values(old)


row_messages = st.one_of(
    st.builds(Insert, oids, values),
    st.builds(Update, oids, st.none(), values, st.just(False)),
    st.builds(Update, oids, values, values, st.booleans()),
    st.builds(Delete, oids, values, st.booleans()),
)


@given(row_messages)
def test_a_row_message_is_read_as_it_was_written(message):
    assert decode_message(encode_row_message(message)) == message


@given(row_messages.map(encode_row_message) | st.sampled_from(PAYLOADS), st.data())
def test_a_message_cut_short_or_drawn_out_is_a_protocol_error(payload, data):
    kept = data.draw(st.integers(0, len(payload) - 1))

    for malformed in (payload[:kept], payload + b"\0"):
        with pytest.raises(ProtocolError):
            decode_message(malformed)


@given(st.sampled_from(PAYLOADS), st.data())
def test_flipped_bytes_give_a_message_or_a_protocol_error(payload, data):
    damaged = bytearray(payload)
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(payload) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(ProtocolError):
        decode_message(bytes(damaged))


@pytest.mark.parametrize(
    ("payload", "complaint"),
    [
        (b"", "malformed"),
        (b"?", "unknown pgoutput message b'\\?' at offset 0"),
        (b"I\0\0\0\1K\0\0", "unknown row tag b'K' at offset 5"),
        (b"I\0\0\0\1N\0\1b\0\0\0\1x", "unknown column tag b'b' at offset 8"),
        (b"D\0\0\0\1N\0\0", "unknown row tag b'N' at offset 5"),
        (b"U\0\0\0\1K\0\0K\0\0", "unknown row tag b'K' at offset 8"),
        (b"I\0\0\0\1N\0\1t\0\0\0\1\xff", "malformed"),
        (b"R\0\0\0\1\0t\0x\0\0", "malformed"),
        (b"I\0\0\0\1N\0\1t\0\0\0\2x", "14 bytes instead of 15"),
    ],
)
def test_what_is_malformed_is_named_with_tag_and_offset(payload, complaint):
    with pytest.raises(ProtocolError, match=complaint):
        decode_message(payload)
