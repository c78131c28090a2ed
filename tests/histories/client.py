"""A client that syncs every bucket: it downloads what is new, adds up checksums, and checks what it sees."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson
import psycopg
from psycopg import IsolationLevel

from tests.histories.rules import Contents, canonical

PUT, REMOVE = 1, 2
MODULUS = 1 << 32

BUCKETS = """
    SELECT bucket.id, definition.name || bucket.parameters, bucket.operations, bucket.checksum, bucket.last_op_id
      FROM localsync_bucket AS bucket JOIN localsync_definition AS definition ON definition.id = bucket.definition_id
     WHERE definition.state = 'served'
"""
OPERATIONS = """
    SELECT bucket_id, op_id, kind, checksum, row_type, row_id, subkey, data FROM localsync_bucket_operation
     WHERE bucket_id = ANY(%s) AND op_id > %s AND op_id <= %s ORDER BY op_id
"""
DEFINITIONS = "SELECT name FROM localsync_definition WHERE state = 'served' AND kind = 'bucket'"
POSITIONS = "SELECT alias, lsn FROM localsync_source"
LOOKUPS = """
    SELECT key, outputs FROM localsync_parameter_lookup AS entry
      JOIN localsync_definition AS definition ON definition.id = entry.definition_id
     WHERE definition.state = 'served' AND entry.pending <> 1
"""


@dataclass
class Bucket:
    """A bucket as the client holds it."""

    name: str
    operations: int = 0
    checksum: int = 0
    last_op_id: int = 0
    rows: dict[tuple[str, str, str], str] = field(default_factory=dict)

    def apply(self, op_id: int, kind: int, checksum: int, key: tuple[str, str, str], data: str) -> None:
        """Take one operation."""
        self.operations, self.checksum, self.last_op_id = self.operations + 1, self.checksum + checksum, op_id
        if kind == PUT:
            self.rows[key] = data
        else:
            assert self.rows.pop(key, None) is not None, f"{self.name}: a REMOVE of {key} met no PUT"


class Client:
    """One position in the history: where it last synced, and what it held then."""

    def __init__(self) -> None:
        self.op_id = 0
        self.buckets: dict[int, Bucket] = {}
        self.definitions: set[str] = set()
        self.positions: Mapping[str, int] = {}
        self.lookups: list[tuple[str, str]] = []

    def sync(self, storage: psycopg.Connection[Any]) -> None:
        """Go to the newest checkpoint. Raises AssertionError where a client would notice that something is wrong."""
        storage.isolation_level = IsolationLevel.REPEATABLE_READ
        with storage.transaction():
            row = storage.execute("SELECT op_id FROM localsync_checkpoint").fetchone()
            if row is None:
                return
            assert row[0] >= self.op_id, "checkpoints go back"
            served = storage.execute(BUCKETS).fetchall()
            self._download(storage, served, row[0])
            self.definitions = {row[0] for row in storage.execute(DEFINITIONS)}
            self.positions = dict(storage.execute(POSITIONS).fetchall())
            self.lookups = storage.execute(LOOKUPS).fetchall()
        for bucket, name, *totals in served:
            held = self.buckets[bucket]
            assert [held.operations, held.checksum % MODULUS, held.last_op_id] == totals, (
                f"{name}: totals {totals}, but {held.operations} operations add up to {held.checksum % MODULUS}"
            )

    def _download(self, storage: psycopg.Connection[Any], served: list[Any], op_id: int) -> None:
        known = {row[0] for row in served} & self.buckets.keys()
        self.buckets = {row[0]: self.buckets.get(row[0]) or Bucket(row[1]) for row in served}
        for buckets, after in ((known, self.op_id), (self.buckets.keys() - known, 0)):
            for bucket, op, kind, checksum, *key, data in storage.execute(OPERATIONS, (list(buckets), after, op_id)):
                self.buckets[bucket].apply(op, kind, checksum, (key[0], key[1], key[2]), data)
        self.op_id = op_id

    def contents(self) -> Contents:
        """What it holds, without empty buckets."""
        found: Contents = {}
        for bucket in self.buckets.values():
            if bucket.rows:
                assert bucket.name not in found, f"{bucket.name} is served twice"
                found[bucket.name] = Counter(
                    (row_type, row_id, canonical(orjson.loads(data)))
                    for (row_type, row_id, _), data in bucket.rows.items()
                )
        return found

    def rows(self, name: str) -> list[dict[str, Any]]:
        """The rows of a bucket."""
        buckets = [bucket for bucket in self.buckets.values() if bucket.name == name]
        return [orjson.loads(data) for bucket in buckets for data in bucket.rows.values()]
