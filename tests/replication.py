"""Runs a replicator inside the test process, and reads back what it stored."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import orjson
import psycopg
from django.db import connection
from django.test import override_settings

from django_localsync.buckets.checksum import MODULUS
from django_localsync.buckets.operation import OpKind
from django_localsync.replication.replicator import Replicator
from django_localsync.storage.connections import connect

DEADLINE_S = 30.0

Rows = dict[tuple[str, str], Any]
"""(row type, row id) → the row's JSON, parsed."""


class RunningReplicator:
    """A replicator in a thread of its own; `error` is what ended it, if anything did."""

    def __init__(self, **settings: Any) -> None:
        with override_settings(LOCALSYNC=settings):
            self.replicator = Replicator()
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End it and wait for its end."""
        self.replicator.stop()
        self._thread.join(DEADLINE_S)
        assert not self._thread.is_alive(), "the replicator does not stop"

    def _run(self) -> None:
        try:
            self.replicator.run()
        except BaseException as error:
            self.error = error

    def catch_up(self) -> None:
        """Wait until storage holds everything that is committed now."""
        with connect("default") as session:
            position = session.execute("SELECT pg_current_wal_insert_lsn() - '0/0'::pg_lsn").fetchone()[0]
            session.execute("SELECT pg_logical_emit_message(true, 'localsync', '0')")
            deadline = time.monotonic() + DEADLINE_S
            while time.monotonic() < deadline:
                if self.error is not None:
                    raise AssertionError("the replicator ended") from self.error
                if (stored_lsn(session) or 0) >= position:
                    return
                time.sleep(0.01)
        raise AssertionError(f"storage has not reached {position} within {DEADLINE_S} s")


def stored_lsn(session: psycopg.Connection[Any]) -> int | None:
    """The position of all sources; None while something is still being read."""
    row = session.execute(
        "SELECT min(lsn) FROM localsync_source"
        " WHERE EXISTS (SELECT FROM localsync_rule_set WHERE state = 'active')"
        " AND NOT EXISTS (SELECT FROM localsync_rule_set WHERE state = 'processing')"
        " AND NOT EXISTS (SELECT FROM localsync_backfill)"
        " AND NOT (SELECT withheld FROM localsync_checkpoint)"
    ).fetchone()
    return row and row[0]


@contextmanager
def replicating(rules: str | Mapping[str, Any], **settings: Any) -> Iterator[RunningReplicator]:
    """A replicator that has caught up; stopped afterwards. Its slot stays, for the next one to continue."""
    running = RunningReplicator(RULES=rules, **settings)
    try:
        running.catch_up()
        yield running
    finally:
        running.stop()
    if running.error is not None:
        raise running.error


def stored_buckets() -> dict[str, Rows]:
    """The rows that a client of each bucket ends with, by `name[parameters]`, as the active rule set has it.

    Reduces the history as clients do, up to the checkpoint, and checks it: totals equal to the sums, no REMOVE that
    meets no PUT where nothing was compacted.
    """
    with connection.cursor() as cursor:
        cursor.execute("SELECT op_id FROM localsync_checkpoint")
        (checkpoint,) = cursor.fetchone() or (0,)
        cursor.execute("""
            SELECT bucket.id, definition.name || bucket.parameters, bucket.operations, bucket.checksum,
                   bucket.last_op_id, bucket.compacted_op_id
              FROM localsync_bucket AS bucket
              JOIN localsync_definition AS definition ON definition.id = bucket.definition_id
             WHERE definition.state = 'served'
        """)
        buckets = cursor.fetchall()
        return {
            name: _reduce(cursor, bucket, totals, compacted, checkpoint) for bucket, name, *totals, compacted in buckets
        }


def _reduce(cursor: Any, bucket: int, totals: list[int], compacted: int, checkpoint: int) -> Rows:
    cursor.execute(
        "SELECT op_id, kind, checksum, row_type, row_id, subkey, data FROM localsync_bucket_operation"
        " WHERE bucket_id = %s AND op_id <= %s ORDER BY op_id",
        [bucket, checkpoint],
    )
    operations = cursor.fetchall()
    live: dict[tuple[str, str, str], str] = {}
    for op_id, kind, _, row_type, row_id, subkey, data in operations:
        before = live.pop((row_type, row_id, subkey), None)
        if kind == OpKind.PUT:
            live[row_type, row_id, subkey] = data  # the newest PUT comes last
        elif kind == OpKind.CLEAR:
            live.clear()
        elif kind == OpKind.REMOVE and op_id > compacted:
            assert before is not None, "a REMOVE met no PUT"
    assert totals == [
        len(operations),
        sum(operation[2] for operation in operations) % MODULUS,
        max([operation[0] for operation in operations] + [compacted]),
    ], "a bucket's totals are not the sums of its operations"
    return {(row_type, row_id): orjson.loads(data) for (row_type, row_id, _), data in live.items()}


def drop_replication() -> None:
    """Drop the slots and publications of the test database."""
    with connect("default") as session:
        session.execute(
            "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots"
            " WHERE database = current_database() AND NOT active"
        )
        for (name,) in session.execute("SELECT pubname FROM pg_publication").fetchall():
            session.execute(f'DROP PUBLICATION "{name}"')
