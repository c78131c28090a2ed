"""Heartbeats: proof, in a source where nothing happens, that changes still arrive; and a slot that moves on.

A slot keeps the WAL of the whole server, whichever database writes it. Where the source itself is idle, an empty
message now and then gives it a commit to pass.
"""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic

from ..buckets.announcement import MESSAGE_PREFIX
from ..storage.connections import Connection

HEARTBEAT = "heartbeat"


class Heartbeat:
    """Emits a message into a source's stream once no commit has come through for `interval_s` seconds.

    A storage in the same database needs none while it stores: its own commits pass, and are noted. Time is that of a
    monotonic clock, so that a clock set forwards or back changes nothing.
    """

    def __init__(self, source: Connection, interval_s: float, *, clock: Callable[[], float] = monotonic) -> None:
        """`source` is an ordinary connection in autocommit mode; an interval of 0 means never."""
        self._source, self._interval_s, self._clock = source, interval_s, clock
        self._passed_at = clock()

    def note_commit(self) -> None:
        """A commit of the source has come through."""
        self._passed_at = self._clock()

    def beat_when_due(self) -> bool:
        """Emit a message if one is due; answers whether it did. Raises psycopg.Error."""
        if not self._interval_s or self._clock() - self._passed_at < self._interval_s:
            return False
        self._passed_at = self._clock()
        with self._source.transaction():
            self._source.execute("SET LOCAL synchronous_commit = local")  # flushed at once, no standby is waited for
            self._source.execute("SELECT pg_logical_emit_message(true, %s, %s)", (MESSAGE_PREFIX, HEARTBEAT))
        return True
