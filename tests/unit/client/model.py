"""A model of a whole system around one real client store: database, lagging replication, streams that cut and lie.

`World.play` takes a list of steps and checks after each that the client upholds I6: it never loses sight of its own
write before the backend's answer to it has come back, and a published checkpoint is exactly what the server had.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from zlib import crc32

import orjson
from hypothesis import strategies as st

from django_localsync.buckets import compaction
from django_localsync.buckets.checksum import add_checksums
from django_localsync.buckets.operation import Operation, OpKind
from django_localsync.client import Column, Schema, Table
from django_localsync.client.engine import (
    CheckpointPublished,
    CloseStream,
    LineReceived,
    SyncIteration,
    UploadsFinished,
)
from django_localsync.client.store import Store
from django_localsync.client.upload_queue import complete, set_gate
from django_localsync.protocol.lines import (
    BucketChecksum,
    Checkpoint,
    CheckpointComplete,
    CheckpointDiff,
    PartialCheckpointComplete,
    encode_bucket_data,
    encode_checkpoint,
    encode_checkpoint_complete,
    encode_checkpoint_diff,
    encode_partial_checkpoint_complete,
)

SCHEMA = Schema([Table("items", [Column.text("value")])])
PRIORITIES = {"first": 1, "second": 3, "third": 3}
BUCKETS = tuple(PRIORITIES)

row_ids = st.sampled_from(["x", "y", "z"])
values = st.sampled_from(["p", "q", "r", "s"])
buckets = st.sampled_from(BUCKETS)
variants = st.sampled_from(["k1", "k2"])
counts = st.integers(1, 6)


def step(name, *arguments):
    return st.tuples(st.just(name), *arguments)


steps = st.lists(
    st.one_of(
        step("local_write", row_ids, values),
        step("local_write", row_ids, values),
        step("local_delete", row_ids),
        step("upload"),
        step("complete"),
        step("upload_all"),
        step("upload_all"),
        step("ask_receipt"),
        step("take_receipt"),
        step("get_receipt"),
        step("server_write", row_ids, values, variants, buckets),
        step("server_delete", row_ids, variants),
        step("replicate", counts),
        step("checkpoint", st.integers(1, 3)),
        step("checkpoint", st.integers(1, 3)),
        step("deliver", counts),
        step("deliver", st.just(100)),
        step("sync"),
        step("sync"),
        step("cut"),
        step("compact", buckets),
        step("churn", buckets),
        step("toggle_access", buckets),
        step("corrupt"),
    ),
    min_size=5,
    max_size=50,
)


@dataclass
class Snapshot:
    """What the server had at a checkpoint: rows visible to the client, and how much of its log they contain."""

    rows: dict
    position: int


@dataclass
class LocalWrite:
    """The client's newest write of a row; `applied_at`: where in the database's log the backend answered it."""

    op_id: int
    value: str | None
    applied_at: int | None = None


class Server:
    """A database whose log is replicated into buckets when told to."""

    def __init__(self):
        self.log = []
        self.replicated = 0
        self.places = {}  # (row, variant) → bucket
        self.operations = {bucket: [] for bucket in BUCKETS}
        self.access = set(BUCKETS)
        self.last_op_id = 0
        self.receipt = None  # number, position

    def write(self, row, value, variant, bucket):
        self.log.append((row, variant, value, bucket))

    def replicate(self, count):
        for row, variant, value, bucket in self.log[self.replicated : self.replicated + count]:
            self.replicated += 1
            before = self.places.pop((row, variant), None)
            bucket = bucket or before or "second"
            if before and (value is None or before != bucket):
                self._append(before, OpKind.REMOVE, row, variant, None)
            if value is not None:
                self.places[row, variant] = bucket
                self._append(bucket, OpKind.PUT, row, variant, orjson.dumps({"value": value}).decode())

    def _append(self, bucket, kind, row, variant, data):
        self.last_op_id += 1
        checksum = crc32(f"{self.last_op_id}{kind}{row}{variant}{data}".encode())
        self.operations[bucket].append((self.last_op_id, kind.value, checksum, "items", row, variant, data))

    def snapshot(self):
        newest = {}
        for bucket in self.access:
            for operation in reduce_bucket(self.operations[bucket]).values():
                row = operation[4]
                if row not in newest or newest[row][0] < operation[0]:
                    newest[row] = operation
        rows = {row: orjson.loads(operation[6])["value"] for row, operation in newest.items()}
        return Snapshot(rows, self.replicated)

    def ask_receipt(self):
        number = self.receipt[0] + 1 if self.receipt else 1
        self.receipt = (number, len(self.log))
        return number

    def shown_receipt(self):
        return self.receipt[0] if self.receipt and self.receipt[1] <= self.replicated else None

    def compact(self, bucket):
        before = reduce_bucket(self.operations[bucket])
        self.operations[bucket] = compact(self.operations[bucket])
        assert reduce_bucket(self.operations[bucket]) == before


def reduce_bucket(operations):
    live = {}
    for operation in operations:
        key = operation[4:6]
        match OpKind(operation[1]):
            case OpKind.PUT:
                live[key] = operation
            case OpKind.REMOVE:
                live.pop(key, None)
            case OpKind.CLEAR:
                live.clear()
    return live


def compact(operations):
    """What the server's compaction makes of rows of storage."""
    compacted = compaction.compact([Operation(op_id, OpKind(kind), *rest) for op_id, kind, *rest in operations])
    return [
        (each.op_id, each.kind.value, each.checksum, each.row_type, each.row_id, each.subkey, each.data)
        for each in compacted
    ]


class Stream:
    """The server's side of one connection: lines on their way, each with the snapshot of a checkpoint it begins."""

    def __init__(self, server, request):
        self._server = server
        self._positions = dict(request)
        self._shown = None
        self.lines = deque()

    def checkpoint(self, chunk):
        server = self._server
        self._announce()
        for priority in (1, 3):
            for bucket in sorted(name for name in server.access if PRIORITIES[name] == priority):
                self._send_data(bucket, chunk)
            if priority == 1:
                self.lines.append(
                    (encode_partial_checkpoint_complete(PartialCheckpointComplete(server.last_op_id, 1)), None)
                )
        self.lines.append((encode_checkpoint_complete(CheckpointComplete(server.last_op_id)), None))

    def _announce(self):
        server = self._server
        now = {
            name: BucketChecksum(
                name, add_checksums(each[2] for each in server.operations[name]), 1, priority=PRIORITIES[name]
            )
            for name in server.access
        }
        receipt, op_id = server.shown_receipt(), server.last_op_id
        if self._shown is None:
            line = encode_checkpoint(Checkpoint(op_id, tuple(now.values()), receipt))
        else:
            updated = tuple(bucket for bucket in now.values() if self._shown.get(bucket.bucket) != bucket)
            removed = tuple(self._shown.keys() - now.keys())
            line = encode_checkpoint_diff(CheckpointDiff(op_id, updated, removed, receipt))
        self._positions = {name: after for name, after in self._positions.items() if name in now}
        self._shown = now
        self.lines.append((line, server.snapshot()))

    def _send_data(self, bucket, chunk):
        after = self._positions.get(bucket, 0)
        new = [operation for operation in self._server.operations[bucket] if operation[0] > after]
        for start in range(0, len(new), chunk):
            self.lines.append((encode_bucket_data(bucket, after, new[start : start + chunk], has_more=False), None))
        self._positions[bucket] = self._server.last_op_id


class WatchedIteration(SyncIteration):
    """Notes what is published."""

    def __init__(self):
        super().__init__()
        self.published = []

    def handle(self, event):
        if isinstance(event, CheckpointPublished):
            self.published.append(event.priority)
        return super().handle(event)


@dataclass
class World:
    """One client and its server."""

    store: Store
    server: Server = field(default_factory=Server)
    pending: dict[str, LocalWrite] = field(default_factory=dict)
    target: Snapshot | None = None
    sent: tuple = ()
    asked: tuple | None = None
    corrupts: bool = False
    lies: int = 0

    def __post_init__(self):
        self.cut()
        for row, bucket in zip("xyz", BUCKETS, strict=True):
            self.server_write(row, "seed", "k1", bucket)
        self.sync()

    def play(self, script):
        for name, *arguments in script:
            getattr(self, name)(*arguments)
            self.check_own_writes()
        self.corrupts = False
        self.settle()

    def visible(self):
        return {row["id"]: row["value"] for row in self.store.read("SELECT id, value FROM items")}

    def check_own_writes(self):
        shown = self.visible()
        for row, write in self.pending.items():
            assert shown.get(row) == write.value, f"the client lost sight of its own write of {row}"

    # The client's app

    def local_write(self, row, value):
        self._write(row, value, "INSERT OR REPLACE INTO items(id, value) VALUES(?1, ?2)", (row, value))

    def local_delete(self, row):
        self._write(row, None, "DELETE FROM items WHERE id = ?", (row,))

    def _write(self, row, value, sql, bindings):
        before = self._newest_op_id()
        with self.store.transaction():
            self.store.execute(sql, bindings)
        if self._newest_op_id() != before:  # deleting nothing queues nothing
            self.pending[row] = LocalWrite(self._newest_op_id(), value)

    def _newest_op_id(self):
        return self.store.read("SELECT coalesce(max(seq), 0) AS id FROM sqlite_sequence")[0]["id"]

    # Uploads

    def upload(self):
        self.sent = tuple(self.store.crud_operations(2))
        for operation in self.sent:
            if operation.op.value == "DELETE":
                for variant in ("k1", "k2"):
                    self.server.write(operation.id, None, variant, None)
            elif operation.data["value"] != "s":  # the backend rejects s, and answers all the same
                self.server.write(operation.id, operation.data["value"], "k1", None)
            write = self.pending.get(operation.id)
            if write and write.op_id == operation.op_id:
                write.applied_at = len(self.server.log)

    def complete(self):
        if self.sent:
            with self.store.transaction() as connection:
                complete(connection, self.sent[-1].op_id, None)
            self.sent = ()

    def upload_all(self):
        while self.store.first_op_id() is not None:
            self.upload()
            self.complete()

    def get_receipt(self):
        self.ask_receipt()
        self.take_receipt()

    def ask_receipt(self):
        sequence = self.store.needs_write_checkpoint()
        if sequence is not None:
            self.asked = (self.server.ask_receipt(), sequence)

    def take_receipt(self):
        if self.asked is None:
            return
        number, sequence = self.asked
        self.asked = None
        with self.store.transaction() as connection:
            is_set = set_gate(connection, number, sequence)
        if is_set:
            self._advance([UploadsFinished()])

    # The server

    def server_write(self, row, value, variant, bucket):
        self.server.write(row, value, variant, bucket)

    def server_delete(self, row, variant):
        self.server.write(row, None, variant, None)

    def replicate(self, count):
        self.server.replicate(count)

    def compact(self, bucket):
        self.server.compact(bucket)

    def churn(self, bucket):
        """A row changes again and again, and compaction leaves a CLEAR of it."""
        for value in "pqr":
            self.server.write("x", value, "k1", bucket)
        self.server.replicate(1000)
        self.server.compact(bucket)

    def toggle_access(self, bucket):
        self.server.access ^= {bucket}

    # The stream

    def checkpoint(self, chunk):
        self.stream.checkpoint(chunk)

    def deliver(self, count):
        for _ in range(min(count, len(self.stream.lines))):
            if not self.stream.lines:
                return  # it was closed
            line, snapshot = self.stream.lines.popleft()
            if snapshot:
                self.target = snapshot
            if self.corrupts and line.startswith(b'{"data"'):
                line, self.corrupts, self.lies = drop_operation(line), False, self.lies + 1
            self._advance([LineReceived(line.rstrip())])

    def corrupt(self):
        self.corrupts = True

    def cut(self):
        buckets, _ = self.store.read_stream_state()
        self.iteration, self.stream = WatchedIteration(), Stream(self.server, buckets)

    def _advance(self, events):
        self.iteration.published.clear()
        instructions = self.store.advance(self.iteration, events)
        if self.iteration.published:
            self._check_publication()
        if any(isinstance(each, CloseStream) for each in instructions):
            assert self.lies, "checksums did not match although the server told the truth"
            self.lies = 0
            self.cut()

    def _check_publication(self):
        if None in self.iteration.published:
            assert self.visible() == self.target.rows, "a published checkpoint is not what the server had"
        answered = [
            row
            for row, write in self.pending.items()
            if write.applied_at is not None and write.applied_at <= self.target.position
        ]
        for row in answered:
            del self.pending[row]

    def settle(self):
        """Let everything come to rest: all is uploaded, replicated, downloaded, and both sides agree."""
        self.upload_all()
        for _ in range(3):  # a mismatch takes one more
            self.get_receipt()
            self.sync()
        assert not self.pending, "a write was never answered"
        assert self.visible() == self.server.snapshot().rows, "the client did not converge"

    def sync(self):
        """All that the database has reaches the client."""
        self.server.replicate(1000)
        self.stream.checkpoint(3)
        self.deliver(1000)


def drop_operation(line):
    document = orjson.loads(line)
    document["data"]["data"].pop()
    return orjson.dumps(document)
