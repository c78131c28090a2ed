"""What is measured of a server. Each function asks one server and returns figures by name.

Lower is better where a name ends in a unit of time or memory, higher where it ends in `/s`.
"""

from __future__ import annotations

import asyncio
import statistics
import time
import uuid
from collections.abc import Awaitable, Callable, Sequence

from .client import StreamClient, open_stream
from .servers import Server

TIMEOUT_S = 120.0
CONNECTS_AT_ONCE = 50

Announce = Callable[[Server, bytes], Awaitable[float]]
"""Changes the shared row so that all streams get a line with the marker; returns when that was done."""

Figures = dict[str, float]


async def initial_sync(server: Server, clients: int) -> Figures:
    """The whole stream `big`, to some clients at once."""
    cpu, began = server.cpu_s(), time.perf_counter()
    opened = await _open(server, [f"reader-{number}" for number in range(clients)], "big", at_once=clients)
    seconds = max([client.first_complete.result() for client in opened]) - began
    operations = sum(client.operations for client in opened)
    _close(opened)
    name = f"initial sync, {clients} client{'s' * (clients > 1)}"
    return {
        f"{name}: operations/s": operations / seconds,
        f"{name}: CPU µs an operation": (server.cpu_s() - cpu) / operations * 1e6,
    }


async def buckets(server: Server, user: str, number: int, repeats: int = 5) -> Figures:
    """Connect as a user of many buckets: the median."""
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        (client,) = await _open(server, [user], "by_group")
        times.append(client.first_complete.result() - began)
        _close([client])
    return {f"connect with {number:,} buckets: ms": statistics.median(times) * 1000}


async def connect_storm(server: Server, connects: int) -> Figures:
    """Many users connect, each with a bucket of its own, and leave."""
    cpu, began = server.cpu_s(), time.perf_counter()
    for first in range(0, connects, CONNECTS_AT_ONCE):
        users = [f"user-{number % 1000}" for number in range(first, first + CONNECTS_AT_ONCE)]
        _close(await _open(server, users, "by_user", at_once=CONNECTS_AT_ONCE))
    seconds = time.perf_counter() - began
    return {
        "connect storm: connects/s": connects / seconds,
        "connect storm: CPU µs a connect": (server.cpu_s() - cpu) / connects * 1e6,
    }


async def fan_out(server: Server, clients: int, announce: Announce, updates: int) -> Figures:
    """Clients of one bucket, in which a row changes again and again; and the memory that they take."""
    before = server.resident_kb()
    opened = await _open(server, [f"listener-{number}" for number in range(clients)], "shared")
    memory = (server.resident_kb() - before) / clients
    delays: list[float] = []
    cpu = server.cpu_s()
    for _ in range(updates):
        marker = uuid.uuid4().hex.encode()
        arrivals = [client.expect(marker) for client in opened]
        done = await announce(server, marker)
        arrived = await asyncio.wait_for(asyncio.gather(*arrivals), TIMEOUT_S)
        delays += [max(0.0, at - done) for at in arrived]
        await asyncio.sleep(0.1)
    used = server.cpu_s() - cpu
    _close(opened)
    name = f"fan-out to {clients:,}"
    delays.sort()
    figures = {
        f"{name}: delay p50 ms": delays[len(delays) // 2] * 1000,
        f"{name}: delay p99 ms": delays[int(len(delays) * 0.99)] * 1000,
    }
    if clients >= 100:  # else it lies below the clock of CPU time
        figures[f"{name}: CPU µs a delivery"] = used / len(delays) * 1e6
        figures[f"{name}: KB a connection"] = memory
    return figures


async def _open(server: Server, users: Sequence[str], stream: str, *, at_once: int = 20) -> list[StreamClient]:
    """Streams of these users, with their first checkpoint complete."""
    limit = asyncio.Semaphore(at_once)

    async def open_one(user: str) -> StreamClient:
        async with limit:
            client = await open_stream(server.port, user, stream)
            await asyncio.wait_for(client.first_complete, TIMEOUT_S)
            return client

    return list(await asyncio.gather(*map(open_one, users)))


def _close(clients: Sequence[StreamClient]) -> None:
    for client in clients:
        client.close()
