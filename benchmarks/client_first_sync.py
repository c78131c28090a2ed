"""How fast the Python client applies a first download, and a later one, without a network.

    python benchmarks/client_first_sync.py [rows] [lines a transaction]

Lines are like those of a server with rows of 6 columns: 1000 operations and about 480 kB each.
"""

from __future__ import annotations

import random
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import orjson

from django_localsync.buckets.checksum import add_checksums, put_checksum
from django_localsync.buckets.operation import OpId, OpKind
from django_localsync.client import Column, Schema, Table
from django_localsync.client.engine import LineReceived, SyncIteration
from django_localsync.client.store import Store
from django_localsync.protocol.lines import (
    BucketChecksum,
    Checkpoint,
    CheckpointComplete,
    StoredOperation,
    encode_bucket_data,
    encode_checkpoint,
    encode_checkpoint_complete,
)

OPERATIONS_A_LINE = 1000
COLUMNS = ("title", "list_id", "note")
SCHEMA = Schema([Table("todos", [*map(Column.text, COLUMNS), Column.integer("done"), Column.integer("n")])])


def operation(op_id: int, row_id: str) -> StoredOperation:
    row = {"id": row_id, "title": "x" * 60, "list_id": str(uuid.uuid4()), "done": op_id % 2, "note": "yz" * 45}
    data = orjson.dumps(row | {"n": op_id}).decode()
    return op_id, OpKind.PUT.value, put_checksum("todos", row_id, data), "todos", row_id, f"7/{row_id}", data


def data_lines(operations: list[StoredOperation]) -> Iterator[bytes]:
    for start in range(0, len(operations), OPERATIONS_A_LINE):
        page = operations[start : start + OPERATIONS_A_LINE]
        yield encode_bucket_data("1#all[]", page[0][0] - 1, page, has_more=True).rstrip()


def sync(
    store: Store, iteration: SyncIteration, known: list[StoredOperation], new: list[StoredOperation], batch: int
) -> None:
    """Apply the new operations of a bucket and publish them."""
    last = OpId(new[-1][0])
    checksum = add_checksums(each[2] for each in (*known, *new))
    lines = list(data_lines(new))
    bucket = BucketChecksum("1#all[]", checksum, len(known) + len(new))
    store.advance(iteration, [LineReceived(encode_checkpoint(Checkpoint(last, (bucket,))))])
    begin, begin_cpu = time.perf_counter(), time.process_time()
    for start in range(0, len(lines), batch):
        store.advance(iteration, map(LineReceived, lines[start : start + batch]))
    loaded, loaded_cpu = time.perf_counter(), time.process_time()
    store.advance(iteration, [LineReceived(encode_checkpoint_complete(CheckpointComplete(last)))])
    done, done_cpu = time.perf_counter(), time.process_time()
    report("  download", len(new), loaded - begin, loaded_cpu - begin_cpu)
    report("  publish", len(new), done - loaded, done_cpu - loaded_cpu)
    report("  together", len(new), done - begin, done_cpu - begin_cpu)


def report(what: str, operations: int, seconds: float, cpu_s: float) -> None:
    print(f"{what:12} {operations / seconds:9,.0f} ops/s ({operations / cpu_s:9,.0f} a CPU second)")


def main() -> None:
    rows = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000
    batch = int(sys.argv[2]) if len(sys.argv) > 2 else 16
    ids = [str(uuid.UUID(int=random.getrandbits(128))) for _ in range(rows)]
    first = [operation(number + 1, row_id) for number, row_id in enumerate(ids)]
    second = [operation(rows + number + 1, row_id) for number, row_id in enumerate(random.sample(ids, rows // 5))]
    with tempfile.TemporaryDirectory() as folder:
        store, iteration = Store(Path(folder) / "client.db", SCHEMA), SyncIteration()
        print(f"first download of {rows:,} rows, {batch} lines a transaction")
        sync(store, iteration, [], first, batch)
        print(f"then {len(second):,} of them changed")
        sync(store, iteration, first, second, batch)
        store.close()


if __name__ == "__main__":
    main()
