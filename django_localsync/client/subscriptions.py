"""Which streams this database asks for: explicit subscriptions, and the default streams that the server named.

Functions run inside the caller's transaction; times are whole seconds since 1970. Rules:
docs/reference/wire-protocol.md §6.6.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import apsw
import orjson

from .engine import NoteStreams

DEFAULT_TTL_S = 24 * 3600

Key = tuple[str, str]
"""A stream's name and its parameters as JSON text."""


@dataclass(frozen=True, slots=True)
class Subscription:
    """One explicit subscription as the request carries it."""

    row: int
    stream: str
    parameters: dict[str, Any] | None
    priority: int | None


def subscription_key(stream: str, parameters: dict[str, Any] | None) -> Key:
    """What identifies a subscription: equal parameters give equal texts."""
    return stream, orjson.dumps(parameters or None, option=orjson.OPT_SORT_KEYS).decode()


def subscribe(connection: apsw.Connection, key: Key, ttl_s: int, priority: int | None, now_s: int) -> bool:
    """Add or renew a subscription; True if the server must be told."""
    known = connection.execute(
        "SELECT ttl IS NOT NULL AND local_priority IS ? FROM ps_stream_subscriptions "
        "WHERE stream_name = ? AND local_params = ?",
        (priority, *key),
    ).fetchone()
    connection.execute(
        "INSERT INTO ps_stream_subscriptions(stream_name, local_params, local_priority, ttl, expires_at) "
        "VALUES(?, ?, ?, ?, ?) ON CONFLICT(stream_name, local_params) DO UPDATE SET "
        "local_priority = excluded.local_priority, ttl = excluded.ttl, expires_at = excluded.expires_at",
        (*key, priority, ttl_s, now_s + ttl_s),
    )
    return known is None or not known[0]


def extend(connection: apsw.Connection, held: Iterable[Key], now_s: int) -> None:
    """Subscriptions that the app holds live on for their time to live."""
    connection.executemany(
        "UPDATE ps_stream_subscriptions SET expires_at = ? + ttl WHERE stream_name = ? AND local_params = ?",
        [(now_s, *key) for key in held],
    )


def read_subscriptions(connection: apsw.Connection, now_s: int) -> list[Subscription]:
    """The explicit subscriptions to send; those that expired, and default ones no longer served, are deleted."""
    connection.execute(
        "DELETE FROM ps_stream_subscriptions WHERE expires_at < ? OR (ttl IS NULL AND NOT active)", (now_s,)
    )
    rows = connection.execute(
        "SELECT id, stream_name, local_params, local_priority FROM ps_stream_subscriptions "
        "WHERE ttl IS NOT NULL ORDER BY id"
    )
    return [Subscription(row, stream, orjson.loads(text), priority) for row, stream, text, priority in rows]


def note_streams(connection: apsw.Connection, action: NoteStreams) -> None:
    """Mark what the server serves: the sent subscriptions whose stream exists, and its default streams."""
    names = orjson.dumps([stream.name for stream in action.streams]).decode()
    defaults = [(stream.name,) for stream in action.streams if stream.is_default]
    sent = orjson.dumps(action.subscriptions).decode()
    connection.execute(
        "UPDATE ps_stream_subscriptions SET is_default = 0, active = stream_name IN (SELECT value FROM json_each(?)) "
        "AND id IN (SELECT value FROM json_each(?))",
        (names, sent),
    )
    connection.executemany(
        "INSERT INTO ps_stream_subscriptions(stream_name, active, is_default) VALUES(?, 1, 1) "
        "ON CONFLICT(stream_name, local_params) DO UPDATE SET active = 1, is_default = 1",
        defaults,
    )


def last_synced_at_us(connection: apsw.Connection, key: Key) -> int | None:
    """When a subscription's data was last complete, in microseconds since 1970."""
    row = connection.execute(
        "SELECT last_synced_at FROM ps_stream_subscriptions WHERE stream_name = ? AND local_params = ?", key
    ).fetchone()
    return row[0] if row else None
