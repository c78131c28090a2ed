"""The body of a stream request: what a client has, who it says it is, and what it subscribes to.

The format is PowerSync's (docs/reference/wire-protocol.md, "POST sync/stream"). A body is parsed once into frozen
values; unknown fields are ignored, everything that is wrong with a known one is a RequestError (400 PSYNC_S2001)
whose details name the place.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn

import orjson

from ..buckets.operation import MAX_OP_ID, OpId
from ..exceptions import RequestError
from .crud import MAX_CLIENT_ID_CHARACTERS
from .lines import MAX_PRIORITY

MAX_BUCKETS = 10_000  # what a client may say it has; what it may get is a setting
MAX_SUBSCRIPTIONS = 1000


@dataclass(frozen=True, slots=True)
class StreamSubscription:
    """An explicit subscription to a stream; its index in the request is its identity."""

    stream: str
    parameters: Mapping[str, Any] = field(default_factory=dict)
    override_priority: int | None = None


@dataclass(frozen=True, slots=True)
class StreamRequest:
    """A request for a sync stream.

    `positions`: by bucket name, the op id after which the client wants operations. `raw_data`: whether row data is
    sent as JSON text (every current client) or as an embedded object (very old ones). `client_id` may be empty.
    """

    positions: Mapping[str, OpId] = field(default_factory=dict)
    client_id: str = ""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    subscriptions: tuple[StreamSubscription, ...] = ()
    include_defaults: bool = True
    raw_data: bool = False


def parse_stream_request(body: bytes) -> StreamRequest:
    """Read a request body; an empty one asks for the defaults. Raises RequestError."""
    try:
        document = orjson.loads(body) if body.strip() else {}
    except orjson.JSONDecodeError as error:
        _refuse(f"the body is not JSON: {error}")
    return read_stream_request(_object(document, "the body"))


def read_stream_request(document: Mapping[str, Any]) -> StreamRequest:
    """Read a request that was decoded already. Raises RequestError."""
    streams = _object(_get(document, "streams", {}), "streams")
    return StreamRequest(
        positions=_positions(_get(document, "buckets", [])),
        client_id=_text(_get(document, "client_id", ""), "client_id", MAX_CLIENT_ID_CHARACTERS),
        parameters=_object(_get(document, "parameters", {}), "parameters"),
        subscriptions=_subscriptions(_get(streams, "subscriptions", [])),
        include_defaults=_flag(_get(streams, "include_defaults", True), "streams.include_defaults"),
        raw_data=_flag(_get(document, "raw_data", False), "raw_data"),
    )


def _positions(value: Any) -> dict[str, OpId]:
    positions = {}
    for index, item in enumerate(_list(value, "buckets", MAX_BUCKETS)):
        place = f"buckets[{index}]"
        item = _object(item, place)
        positions[_text(item.get("name"), f"{place}.name")] = _op_id(_get(item, "after", "0"), f"{place}.after")
    return positions


def _subscriptions(value: Any) -> tuple[StreamSubscription, ...]:
    place = "streams.subscriptions"
    return tuple(
        _subscription(_object(item, f"{place}[{index}]"), f"{place}[{index}]")
        for index, item in enumerate(_list(value, place, MAX_SUBSCRIPTIONS))
    )


def _subscription(item: dict[str, Any], place: str) -> StreamSubscription:
    return StreamSubscription(
        stream=_text(item.get("stream"), f"{place}.stream"),
        parameters=_object(_get(item, "parameters", {}), f"{place}.parameters"),
        override_priority=_priority(item.get("override_priority"), f"{place}.override_priority"),
    )


def _get(document: Mapping[str, Any], name: str, default: Any) -> Any:
    """A member of an object; null is as good as absent."""
    value = document.get(name)
    return default if value is None else value


def _object(value: Any, place: str) -> dict[str, Any]:
    return value if isinstance(value, dict) else _refuse(f"{place} must be an object")


def _list(value: Any, place: str, most: int) -> list[Any]:
    if not isinstance(value, list):
        _refuse(f"{place} must be a list")
    return value if len(value) <= most else _refuse(f"{place} has more than {most} items")


def _text(value: Any, place: str, most: int | None = None) -> str:
    if not isinstance(value, str) or "\0" in value:
        _refuse(f"{place} must be a string without NUL")
    return value if most is None or len(value) <= most else _refuse(f"{place} is longer than {most} characters")


def _flag(value: Any, place: str) -> bool:
    return value if isinstance(value, bool) else _refuse(f"{place} must be true or false")


def _op_id(value: Any, place: str) -> OpId:
    """A decimal op id; a few old clients send a number."""
    text = str(value) if isinstance(value, int) and not isinstance(value, bool) else value
    if not isinstance(text, str) or len(text) > 19 or not (text.isascii() and text.isdigit()) or int(text) > MAX_OP_ID:
        _refuse(f"{place} must be a decimal op id in a string")
    return OpId(int(text))


def _priority(value: Any, place: str) -> int | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MAX_PRIORITY:
        _refuse(f"{place} must be a whole number from 0 to {MAX_PRIORITY}")
    return value


def _refuse(details: str) -> NoReturn:
    raise RequestError("the stream request is not valid", details=details)
