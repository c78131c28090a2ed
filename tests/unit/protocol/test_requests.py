"""The body of a stream request."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from django_localsync.exceptions import RequestError
from django_localsync.protocol.requests import (
    MAX_BUCKETS,
    MAX_SUBSCRIPTIONS,
    StreamRequest,
    StreamSubscription,
    parse_stream_request,
)


def parse(**document: Any) -> StreamRequest:
    return parse_stream_request(orjson.dumps(document))


def test_a_request_of_the_node_sdk():
    request = parse(
        buckets=[{"name": "b", "after": "12"}],
        include_checksum=True,
        raw_data=True,
        binary_data=True,
        client_id="4d39",
        parameters={"project": 7},
        streams={
            "include_defaults": False,
            "subscriptions": [
                {"stream": "s", "parameters": {"a": 1}, "override_priority": 1},
                {"stream": "t", "parameters": None, "override_priority": None},
            ],
        },
        app_metadata={},
    )

    assert request == StreamRequest(
        positions={"b": 12},
        client_id="4d39",
        parameters={"project": 7},
        subscriptions=(StreamSubscription("s", {"a": 1}, 1), StreamSubscription("t")),
        include_defaults=False,
        raw_data=True,
    )


@pytest.mark.parametrize("body", [b"", b" ", b"{}", b'{"buckets":null,"streams":null,"unknown":[1]}'])
def test_everything_is_optional_and_the_unknown_is_ignored(body: bytes):
    assert parse_stream_request(body) == StreamRequest()


@pytest.mark.parametrize(
    ("document", "place"),
    [
        ([], "the body"),
        ({"buckets": {}}, "buckets"),
        ({"buckets": [1]}, "buckets[0]"),
        ({"buckets": [{"after": "1"}]}, "buckets[0].name"),
        ({"buckets": [{"name": "b", "after": "x"}]}, "buckets[0].after"),
        ({"buckets": [{"name": "b", "after": "-1"}]}, "buckets[0].after"),
        ({"buckets": [{"name": "b", "after": str(2**63)}]}, "buckets[0].after"),
        ({"buckets": [{"name": "b"}] * (MAX_BUCKETS + 1)}, "buckets"),
        ({"client_id": 1}, "client_id"),
        ({"client_id": "a\0b"}, "client_id"),
        ({"client_id": "x" * 201}, "client_id"),
        ({"parameters": []}, "parameters"),
        ({"raw_data": 1}, "raw_data"),
        ({"streams": []}, "streams"),
        ({"streams": {"include_defaults": "yes"}}, "streams.include_defaults"),
        ({"streams": {"subscriptions": [{}]}}, "streams.subscriptions[0].stream"),
        ({"streams": {"subscriptions": [{"stream": "s", "override_priority": -1}]}}, "override_priority"),
        ({"streams": {"subscriptions": [{"stream": "s"}] * (MAX_SUBSCRIPTIONS + 1)}}, "streams.subscriptions"),
    ],
)
def test_a_wrong_field_is_named(document: Any, place: str):
    with pytest.raises(RequestError) as refused:
        parse_stream_request(orjson.dumps(document))

    assert (refused.value.status, refused.value.code) == (400, "PSYNC_S2001")
    assert place in (refused.value.details or "")


@pytest.mark.parametrize("body", [b"{", b'{"a":NaN}', b'{"a":"\\ud800"}', b"\xff", b"[" * 5000])
def test_a_body_that_is_not_json_is_refused(body: bytes):
    with pytest.raises(RequestError):
        parse_stream_request(body)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.text(), lambda inner: st.lists(inner, max_size=3)
)


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "buckets": JSON | st.lists(st.fixed_dictionaries({"name": JSON, "after": JSON}), max_size=2),
            "client_id": JSON,
            "parameters": JSON,
            "streams": JSON | st.fixed_dictionaries({"subscriptions": JSON, "include_defaults": JSON}),
            "raw_data": JSON,
        },
    )
)
def test_whatever_comes_it_is_parsed_or_refused(document: dict[str, Any]):
    with suppress(RequestError, orjson.JSONEncodeError):
        parse(**document)
