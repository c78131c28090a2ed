"""Checksums, announcements, and what a changed row means for its buckets."""

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from django_localsync.buckets.announcement import (
    MAX_PAYLOAD_BYTES,
    Announcement,
    BucketTotals,
    bucket_digest,
    decode_announcement,
    encode_announcement,
    lookup_digest,
    write_checkpoint_digest,
)
from django_localsync.buckets.checksum import MODULUS, add_checksums, put_checksum, remove_checksum
from django_localsync.buckets.membership import RowState, decode_state, draft_changes, draft_puts, encode_state
from django_localsync.buckets.operation import MAX_OP_ID, OpKind
from django_localsync.exceptions import ProtocolError
from tests.vectors import vectors

checksums = st.integers(0, MODULUS - 1)
op_ids = st.integers(0, MAX_OP_ID)


@pytest.mark.parametrize("vector", vectors("checksum_sum"))
def test_checksum_sum_vector(vector):
    total = add_checksums(vector["op_checksums"])

    assert total == vector["expected_unsigned"] == vector["expected_signed"] % MODULUS


@pytest.mark.parametrize("vector", vectors("checksum_equivalence"))
def test_checksum_equivalence_vector(vector):
    assert add_checksums([vector["received"]]) == vector["same_unsigned"]


@given(st.lists(checksums), st.randoms(use_true_random=False))
def test_a_bucket_checksum_depends_neither_on_order_nor_on_how_the_sum_is_split(parts, random):
    shuffled = random.sample(parts, len(parts))
    half = len(parts) // 2

    assert add_checksums(parts) == add_checksums([add_checksums(shuffled[:half]), add_checksums(shuffled[half:])])


def test_an_operation_s_checksum_depends_on_what_it_is_and_on_its_row():
    distinct = {
        put_checksum("todos", "1", "{}"),
        put_checksum("todos", "2", "{}"),
        put_checksum("lists", "1", "{}"),
        put_checksum("todos", "1", '{"a":1}'),
        remove_checksum("todos", "1", "{}"),
        remove_checksum("todos", "1", "7/1"),
    }

    assert len(distinct) == 6
    assert all(0 <= checksum < MODULUS for checksum in distinct)


digests = st.frozensets(checksums, max_size=20)
announcements = st.builds(
    Announcement,
    run=st.text(st.characters(codec="ascii", categories=["L", "N"]), max_size=32),
    sequence=op_ids,
    op_id=op_ids,
    buckets=st.dictionaries(op_ids, st.builds(BucketTotals, op_ids, checksums, op_ids), max_size=20),
    created=digests,
    lookups=digests,
    write_checkpoints=digests,
    rules=st.booleans(),
)


@given(announcements)
def test_an_announcement_is_read_as_it_was_written(announcement):
    assert decode_announcement(encode_announcement(announcement)) == announcement


def announcement_of(buckets):
    totals = {bucket: BucketTotals(10**6, MODULUS - 1, MAX_OP_ID) for bucket in range(10**9, 10**9 + buckets)}
    return Announcement("run", 1, MAX_OP_ID, buckets=totals, lookups=frozenset({5}), rules=True)


def test_what_does_not_fit_a_notification_becomes_everything():
    payloads = [encode_announcement(announcement_of(buckets)) for buckets in range(1, 400)]
    decoded = [decode_announcement(payload) for payload in payloads]

    fitting = sum(not announcement.everything for announcement in decoded)
    assert decoded[:fitting] == [announcement_of(buckets) for buckets in range(1, fitting + 1)]
    assert set(map(repr, decoded[fitting:])) == {repr(Announcement("run", 1, MAX_OP_ID, everything=True, rules=True))}
    assert MAX_PAYLOAD_BYTES - 60 < len(payloads[fitting - 1]) <= MAX_PAYLOAD_BYTES  # one more bucket takes 50 bytes


def test_everything_is_announced_as_such():
    announcement = Announcement("run", 2, 3, everything=True)

    assert decode_announcement(encode_announcement(announcement)) == announcement


def test_only_what_could_concern_a_stream_is_news():
    assert not Announcement("run", 1, 1).is_news()
    assert announcement_of(1).is_news()
    assert Announcement("run", 1, 1, everything=True).is_news()
    assert Announcement("run", 1, 1, write_checkpoints=frozenset({7})).is_news()


json_documents = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=3),
    lambda parts: st.lists(parts, max_size=3) | st.dictionaries(st.sampled_from("rsobnlwx"), parts, max_size=8),
)


@given(json_documents)
def test_another_program_s_payload_is_a_protocol_error(document):
    try:
        announcement = decode_announcement(orjson.dumps(document).decode())
    except ProtocolError:
        return
    assert {"r", "s", "o"} <= document.keys()
    assert isinstance(announcement, Announcement)


@pytest.mark.parametrize("payload", ["", "hello", "[]", "5", '{"r":"x"}', '{"r":"x","s":1,"o":1,"b":[[1,2]]}'])
def test_a_payload_that_is_no_announcement_is_named(payload):
    with pytest.raises(ProtocolError, match="not a checkpoint announcement"):
        decode_announcement(payload)


def test_digests_are_unsigned_and_tell_their_parts_apart():
    assert bucket_digest(1, '["a"]') != bucket_digest(2, '["a"]')
    assert lookup_digest(1, '["a"]') != lookup_digest(1, '["b"]')
    assert write_checkpoint_digest("a", "bc") != write_checkpoint_digest("ab", "c")
    assert 0 <= write_checkpoint_digest("", "") < MODULUS


places = st.tuples(st.integers(1, 3), st.sampled_from(["todos", "lists"]), st.sampled_from("12"))
subkeys = st.sampled_from(["7/1", "7/2"])
rows = st.dictionaries(places, st.sampled_from(["{}", '{"a":1}']))


@given(st.frozensets(places), rows, subkeys, subkeys)
def test_a_client_that_had_the_row_before_has_it_afterwards(before, after, subkey_before, subkey_after):
    client = {(*place, subkey_before): "old" for place in before}

    buckets = {(number, "[]"): number for number in (1, 2, 3)}
    located = [(bucket, "[]", row_type, row_id, data) for (bucket, row_type, row_id), data in after.items()]
    places, puts = draft_puts(located, buckets, subkey_after)

    drafts = draft_changes(sorted(before), places, puts, subkey_before, subkey_after)

    assert places == list(after)

    total = add_checksums(draft[2] for draft in drafts)
    removed, put = [], []
    for bucket, kind, _, row_type, row_id, subkey, data in drafts:
        if kind == OpKind.REMOVE:
            del client[bucket, row_type, row_id, subkey]
            removed.append(remove_checksum(row_type, row_id, subkey))
        else:
            client[bucket, row_type, row_id, subkey] = data
            put.append(put_checksum(row_type, row_id, data))
    assert client == {(*place, subkey_after): data for place, data in after.items()}
    assert total == add_checksums(removed + put)
    assert len(put) == len(after)


row_states = st.builds(
    RowState,
    places=st.lists(places, unique=True).map(tuple),
    lookups=st.lists(st.tuples(op_ids, st.text(), st.text())).map(tuple),
    large=st.dictionaries(st.text(), st.text()),
    copies=st.integers(1, 5),
)


@given(row_states)
def test_what_storage_remembers_of_a_row_is_read_as_it_was_written(state):
    assert decode_state(encode_state(*state)) == state
