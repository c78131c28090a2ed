"""The reader itself: one snapshot for everything, and no trace of a read that was given up."""

from __future__ import annotations

import asyncio
import random

from django_localsync.storage.reader import Client, StorageReader
from django_localsync.sync_rules.plan import RequestParameters
from tests.integration.serving.conftest import Storage
from tests.integration.serving.plans import ListedPlan

OPEN_TRANSACTIONS = """
    SELECT count(*) FROM pg_stat_activity
     WHERE datname = current_database() AND pid <> pg_backend_pid() AND state LIKE 'idle in transaction%'
"""


def make_reader() -> StorageReader:
    return StorageReader("default", plan_for=ListedPlan, pool_size=4, max_buckets=100)  # type: ignore[arg-type]


def client(user: str = "u1") -> Client:
    return Client(user, "c1", RequestParameters({"sub": user}))


async def test_reads_that_are_cancelled_leave_no_transaction_open(storage: Storage):
    reader = make_reader()
    await reader.open()
    await reader.read_checkpoint(client())

    for _ in range(300):
        reads = [asyncio.create_task(reader.read_checkpoint(client())) for _ in range(4)]
        await asyncio.sleep(random.uniform(0, 0.004))
        for read in reads:
            read.cancel()
        await asyncio.wait(reads, timeout=10)
    await asyncio.sleep(0.2)

    assert storage.connection.execute(OPEN_TRANSACTIONS).fetchone() == (0,)
    assert await asyncio.wait_for(reader.read_checkpoint(client()), 5)
    await reader.close()
