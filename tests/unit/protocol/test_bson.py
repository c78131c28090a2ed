"""BSON: the bytes of its specification, and everything that lines and requests are made of."""

from __future__ import annotations

import struct
from contextlib import suppress
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from django_localsync.exceptions import ProtocolError
from django_localsync.protocol.bson import MAX_DEPTH, decode_bson, encode_bson
from django_localsync.protocol.lines import LineFormat, encode_bucket_data

NAMES = st.text(st.characters(codec="utf-8", exclude_characters="\0"))
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False)
    | st.text(st.characters(codec="utf-8")),
    lambda inner: st.lists(inner) | st.dictionaries(NAMES, inner),
)


@pytest.mark.parametrize(
    ("document", "content"),
    [
        ({"hello": "world"}, b"\x16\0\0\0\x02hello\0\x06\0\0\0world\0\0"),
        (
            {"BSON": ["awesome", 5.05, 1986]},
            b"1\0\0\0\x04BSON\0&\0\0\0\x020\0\x08\0\0\0awesome\0\x011\x00\x33\x33\x33\x33\x33\x33\x14@\x102\0\xc2\x07\0\0\0\0",
        ),
        ({}, b"\x05\0\0\0\0"),
        ({"a": None, "b": True}, b"\x0c\0\0\0\x0aa\0\x08b\0\1\0"),
        ({"n": 2**31}, b"\x10\0\0\0\x12n\0\0\0\0\x80\0\0\0\0\0"),
    ],
)
def test_the_bytes_are_those_of_the_specification(document: dict[str, Any], content: bytes):
    assert encode_bson(document) == content
    assert decode_bson(content) == document


@settings(max_examples=50)
@given(st.dictionaries(NAMES, VALUES))
def test_what_is_written_is_read(document: dict[str, Any]):
    read = decode_bson(encode_bson(document))

    assert read == document
    assert repr(read) == repr(document)  # 1 is not 1.0, nor True


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x05\0\0\0",
        b"\x05\0\0\0\1",
        b"\x06\0\0\0\0",
        b"\xff\xff\xff\xff\0",
        b"\x05\0\0\0\0\0",  # something after the document
        b"\x0c\0\0\0\x02a\0\x00\0\0\0\0",  # a text without its NUL
        b"\x0c\0\0\0\x02a\0\x7f\0\0\0\0",  # longer than the document
        b"\x0d\0\0\0\x02a\0\x02\0\0\0\xff\0\0",  # not UTF-8
        b"\x08\0\0\0\x7fa\0\0",  # an unknown type
        b"\x08\0\0\0\x12a\0\0",  # a number beyond the end
    ],
)
def test_damaged_documents_are_refused(content: bytes):
    with pytest.raises(ProtocolError, match="not a BSON document"):
        decode_bson(content)


def test_deep_documents_are_refused():
    content = b"\x05\0\0\0\0"
    for _ in range(MAX_DEPTH):
        content = struct.pack("<i", len(content) + 8) + b"\x03a\0" + content + b"\0"

    with pytest.raises(ProtocolError, match="inside each other"):
        decode_bson(content)


@given(st.binary(), st.integers(0, 200))
def test_no_bytes_do_anything_else(noise: bytes, cut: int):
    valid = encode_bson({"a": "text", "b": [1, 2**40, {"c": None}], "d": 1.5})

    for content in (noise, valid[:cut] + noise, valid[:cut] + noise + valid[cut + len(noise) :]):
        with suppress(ProtocolError):
            decode_bson(content)


def test_data_lines_say_the_same_in_both_formats():
    operations = [
        (1, 1, 0xFFFFFFFF, "todos", "ä", "1/ä", '{"id":"ä","n":[1,null]}'),
        (2, 2, 7, "todos", "b", None, None),
        (3, 3, 9, None, None, None, None),
        (2**62, 4, 9, None, None, None, None),
    ]

    line = encode_bucket_data("b", 0, operations, True)
    document = encode_bucket_data("b", 0, operations, True, format=LineFormat.BSON)

    assert decode_bson(document) == orjson.loads(line)
