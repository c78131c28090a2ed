"""The reader itself: one snapshot for everything, and no trace of a read that was given up."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import AsyncIterator
from typing import Any

import pytest

from django_localsync.buckets.operation import OpId
from django_localsync.exceptions import LimitExceeded
from django_localsync.storage.reader import PAGE_OPERATIONS, StorageReader
from django_localsync.storage.resolving import Client
from django_localsync.sync_rules.plan import RequestParameters
from tests.integration.serving.conftest import Storage
from tests.integration.serving.plans import ListedPlan

OPEN_TRANSACTIONS = """
    SELECT count(*) FROM pg_stat_activity
     WHERE datname = current_database() AND pid <> pg_backend_pid() AND state LIKE 'idle in transaction%'
"""

RECEIPT = """
    INSERT INTO localsync_write_checkpoint (user_key, client_id, number, positions, requested_at)
    VALUES (%s, 'c1', %s, '{"default": 1}', now())
"""

# So many that a handful of rows is thought worth a bitmap.
OTHER_BUCKET = """
    INSERT INTO localsync_bucket_operation (bucket_id, op_id, kind, row_type, row_id, subkey, data, checksum)
    SELECT 1, number, 1, 'all', number, '', '{}', 0 FROM generate_series(1, 200000) AS number
"""


@pytest.fixture
async def reader() -> AsyncIterator[StorageReader]:
    made = StorageReader("default", plan_for=ListedPlan, pool_size=4, max_buckets=100)  # type: ignore[arg-type]
    await made.open()
    yield made
    await made.close()


def client(user: str = "u1") -> Client:
    return Client(user, "c1", RequestParameters({"sub": user}))


async def test_reads_that_are_cancelled_leave_no_transaction_open(storage: Storage, reader: StorageReader):
    await reader.read_checkpoint(client())

    for _ in range(300):
        reads = [asyncio.create_task(reader.read_checkpoint(client())) for _ in range(4)]
        await asyncio.sleep(random.uniform(0, 0.004))
        for read in reads:
            read.cancel()
        await asyncio.wait(reads, timeout=10)

    async with asyncio.timeout(10):
        while storage.connection.execute(OPEN_TRANSACTIONS).fetchone() != (0,):
            await asyncio.sleep(0.02)
        assert await reader.read_checkpoint(client())


async def test_more_readers_than_connections_wait_for_their_turn(storage: Storage, reader: StorageReader):
    storage.publish(("mine", ("u7",), "a", {}))

    readings = await asyncio.gather(*(reader.read_checkpoint(client(f"u{number}")) for number in range(200)))

    counts = [sum(bucket.totals.operations for bucket in item.checkpoint.buckets.values()) for item in readings]
    assert counts == [int(number == 7) for number in range(200)]


@pytest.fixture
def groups(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many clients were read together, each time."""
    read, sizes = StorageReader._read, list[int]()

    def look(self: StorageReader, rules: Any, clients: Any) -> Any:
        sizes.append(len(clients))
        return read(self, rules, clients)

    monkeypatch.setattr(StorageReader, "_read", look)
    return sizes


async def test_clients_that_come_together_are_read_together(storage: Storage, reader: StorageReader, groups: list[int]):
    """Each gets its own buckets, lookups and receipt."""
    for number in range(0, 60, 2):
        storage.publish(("mine", (f"u{number}",), "a", {}), join=(f"u{number}", f"list{number % 7}"))
        storage.connection.execute(RECEIPT, (f"u{number}", number + 1))
    storage.publish(*(("lists", (f"list{number}",), "x", {}) for number in range(7)))
    alone = [await reader.read_checkpoint(client(f"u{number}")) for number in range(60)]
    assert groups == [1] * 60
    groups.clear()

    together = await asyncio.gather(*(reader.read_checkpoint(client(f"u{number}")) for number in range(60)))

    assert together == alone
    assert sum(groups) == 60
    assert max(groups) > 20


async def test_what_is_wrong_with_one_client_is_its_own_business(storage: Storage, reader: StorageReader):
    """A text that no JSON can hold, among others that are well."""
    storage.publish(("mine", ("u1",), "a", {}))
    await reader.read_checkpoint(client())
    bad = Client("u1", "\ud800", RequestParameters({"sub": "u1"}))

    readings = await asyncio.gather(
        *(reader.read_checkpoint(item) for item in (client(), bad, client(), client("u2"))), return_exceptions=True
    )

    assert [isinstance(reading, Exception) for reading in readings] == [False, True, False, False]


async def test_more_than_is_read_together_is_read_alone(storage: Storage, reader: StorageReader, groups: list[int]):
    """Of one client there is more than it may have: the others have all of theirs."""
    for number in range(310):
        storage.publish(join=("u1", f"list{number}"))
    for user in ("u2", "u3"):
        for number in range(90):
            storage.publish(join=(user, f"list{number}"))
    alone = [await reader.read_checkpoint(client(user)) for user in ("u2", "u3")]
    groups.clear()

    readings = await asyncio.gather(
        *(reader.read_checkpoint(client(user)) for user in ("u1", "u2", "u3")), return_exceptions=True
    )

    assert isinstance(readings[0], LimitExceeded)
    assert readings[1:] == alone
    assert groups == [3, 1, 1, 1]


async def test_a_reading_is_of_one_snapshot(storage: Storage, reader: StorageReader):
    """While rows are published to two buckets at once, no reader sees one of them ahead."""
    stop = threading.Event()

    def publish() -> None:
        for number in range(1000):
            storage.publish(("all", (), f"r{number}", {}), ("mine", ("u1",), f"r{number}", {}))
            if stop.is_set():
                return

    publishing = asyncio.create_task(asyncio.to_thread(publish))
    seen = set()
    try:
        for _ in range(200):
            checkpoint = (await reader.read_checkpoint(client())).checkpoint
            totals = [bucket.totals for bucket in checkpoint.buckets.values()]
            assert len({total.operations for total in totals}) == 1
            assert max(total.last_op_id for total in totals) == checkpoint.op_id
            seen.add(checkpoint.op_id)
    finally:
        stop.set()
        await publishing

    assert len(seen) > 5


async def test_one_of_many_buckets_is_looked_up_in_an_index(storage: Storage):
    """Postgres does not know how few are asked for, and reads the whole table where it expects a hundred."""
    storage.publish(*(("mine", (f"u{number}",), "a", {}) for number in range(5000)))
    storage.connection.execute("ANALYZE localsync_bucket")
    reader = StorageReader("default", plan_for=ListedPlan, pool_size=1, max_buckets=100)  # type: ignore[arg-type]
    await reader.open()
    scans, lookups = _scans_of_buckets(storage)

    await reader.read_checkpoint(client("u7"))
    await reader.close()  # a session that ends tells what it read
    async with asyncio.timeout(10):
        while (after := _scans_of_buckets(storage))[1] == lookups:
            await asyncio.sleep(0.02)
    assert after[0] == scans

    storage.publish(("mine", ("u8",), "b", {}))
    read_by_writer = _scans_of_buckets(storage)
    assert read_by_writer[0] == scans
    assert read_by_writer[1] > after[1]


def _scans_of_buckets(storage: Storage) -> tuple[int, int]:
    """How often the table of buckets was read from end to end, and by an index."""
    storage.connection.execute("SELECT pg_stat_force_next_flush()")
    (found,) = storage.connection.execute(
        "SELECT seq_scan, idx_scan FROM pg_stat_user_tables WHERE relname = 'localsync_bucket'"
    )
    return found


async def test_a_page_reads_no_more_than_itself_although_postgres_knows_nothing_of_the_bucket(storage: Storage):
    """Without statistics Postgres would collect and sort the whole bucket for each page."""
    storage.publish(*(("all", (), f"r{number}", {}) for number in range(5 * PAGE_OPERATIONS)))
    storage.connection.execute(OTHER_BUCKET)
    reader = StorageReader("default", plan_for=ListedPlan, pool_size=1, max_buckets=100)  # type: ignore[arg-type]
    await reader.open()
    checkpoint = (await reader.read_checkpoint(client())).checkpoint
    (bucket,) = [bucket for bucket in checkpoint.buckets.values() if bucket.totals.operations == 5 * PAGE_OPERATIONS]
    assert bucket.id is not None
    before = _index_entries_read(storage)
    page = await reader.read_page(bucket.id, bucket.generation, OpId(0), OpId(bucket.totals.last_op_id))
    await reader.close()  # a session that ends tells what it read

    assert page is not None
    assert len(page) == PAGE_OPERATIONS
    async with asyncio.timeout(10):
        while not (read := _index_entries_read(storage) - before):
            await asyncio.sleep(0.02)
    assert read <= 2 * PAGE_OPERATIONS


def _index_entries_read(storage: Storage) -> int:
    query = "SELECT idx_tup_read FROM pg_stat_user_indexes WHERE indexrelname = 'localsync_bucket_operation_pkey'"
    storage.connection.execute("SELECT pg_stat_clear_snapshot()")
    ((read,),) = storage.connection.execute(query).fetchall()
    return int(read)
