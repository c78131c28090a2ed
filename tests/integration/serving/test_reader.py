"""The reader itself: one snapshot for everything, and no trace of a read that was given up."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import AsyncIterator

import pytest

from django_localsync.storage.reader import Client, StorageReader
from django_localsync.sync_rules.plan import RequestParameters
from tests.integration.serving.conftest import Storage
from tests.integration.serving.plans import ListedPlan

OPEN_TRANSACTIONS = """
    SELECT count(*) FROM pg_stat_activity
     WHERE datname = current_database() AND pid <> pg_backend_pid() AND state LIKE 'idle in transaction%'
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
