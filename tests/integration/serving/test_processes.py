"""Several processes over one storage, and very many streams in one."""

from __future__ import annotations

import asyncio
import resource
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from tests.conftest import SOAK
from tests.integration.serving.conftest import Lines, Server, StartServer, Storage, Streams, token_of

CHECKPOINTS = 5
IDLE, ACTIVE = (2000, 1000) if SOAK else (100, 50)
UPDATES = 100 if SOAK else 10
OPENED_AT_ONCE = 20
TIMEOUT_S = 60.0
COMPLETE = b'"checkpoint_complete"'


def test_each_process_is_woken_once_for_a_checkpoint(storage: Storage, start_server: StartServer, streams: Streams):
    servers = [start_server(fresh=True) for _ in range(2)]
    opened = [Lines(streams.open(server, user)) for server in servers for user in ("u1", "u1", "u2")]
    for lines in opened:
        lines.through("checkpoint_complete")
    before = [server.state()["announcements"] for server in servers]

    for number in range(CHECKPOINTS):
        storage.publish(("all", (), f"r{number}", {}), ("mine", ("u1",), f"r{number}", {}))
        for lines in opened:
            kinds = [next(iter(line)) for line in lines.through("checkpoint_complete")]
            assert kinds.count("checkpoint_diff") == 1

    after = [server.state()["announcements"] for server in servers]
    assert [now - then for now, then in zip(after, before, strict=True)] == [CHECKPOINTS] * 2


class Listener(asyncio.Protocol):
    """A stream of which it only counts the complete checkpoints."""

    def __init__(self, user: str) -> None:
        self.completed, self._user, self._tail = 0, user, b""
        self._awaited, self._arrived = 0, asyncio.get_running_loop().create_future()

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        body = b'{"raw_data":true}'
        head = f"POST /any/prefix/sync/stream HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token_of(self._user)}\r\n"
        transport.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)

    def data_received(self, data: bytes) -> None:
        searched = self._tail + data
        self.completed += searched.count(COMPLETE)
        self._tail = searched[-len(COMPLETE) + 1 :]
        if self.completed >= self._awaited and not self._arrived.done():
            self._arrived.set_result(time.monotonic())

    def arrival(self, number: int) -> asyncio.Future[float]:
        """When so many checkpoints are complete."""
        self._awaited, self._arrived = number, asyncio.get_running_loop().create_future()
        if self.completed >= number:
            self._arrived.set_result(time.monotonic())
        return self._arrived


async def open_listeners(server: Server, users: Sequence[str]) -> list[Listener]:
    limit, loop = asyncio.Semaphore(OPENED_AT_ONCE), asyncio.get_running_loop()

    async def open_one(user: str) -> Listener:
        async with limit:
            _, listener = await loop.create_connection(lambda: Listener(user), "127.0.0.1", server.port)
            await asyncio.wait_for(listener.arrival(1), TIMEOUT_S)
            return listener

    return list(await asyncio.gather(*map(open_one, users)))


async def measure_deliveries(storage: Storage, listeners: Sequence[Listener], user: str) -> list[float]:
    """Seconds from each commit to its arrival, for every listener, sorted."""
    delays: list[float] = []
    for number in range(UPDATES):
        arrivals = [listener.arrival(number + 2) for listener in listeners]
        await asyncio.to_thread(storage.publish, ("mine", (user,), f"r{number % 10}", {"text": "x" * 500}))
        began = time.monotonic()
        delays += [at - began for at in await asyncio.wait_for(asyncio.gather(*arrivals), TIMEOUT_S)]
    return sorted(delays)


@contextmanager
def many_files() -> Iterator[None]:
    """As many open files as the system allows, here and in servers that are started now."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_one_process_serves_idle_and_active_streams_in_bounded_memory(storage: Storage, start_server: StartServer):
    async def measure(server: Server) -> tuple[list[float], list[int]]:
        await open_listeners(server, ["busy"])  # what the first stream makes is nobody's
        memory = [server.state()["memory_kib"]]
        idle = await open_listeners(server, [f"u{number}" for number in range(IDLE)])
        memory.append(server.state()["memory_kib"])
        active = await open_listeners(server, ["busy"] * ACTIVE)
        memory.append(server.state()["memory_kib"])
        delays = await measure_deliveries(storage, active, "busy")
        memory.append(server.state()["memory_kib"])
        assert {listener.completed for listener in idle} == {1}, "streams that nothing concerns were woken"
        for listener in [*idle, *active]:
            listener.transport.abort()
        return delays, memory

    storage.publish(("mine", ("busy",), "r0", {}))  # a new bucket would have every stream read its checkpoint anew
    with many_files():
        delays, memory = asyncio.run(measure(start_server(fresh=True, max_streams_per_user=ACTIVE + 1)))

    first, with_idle, with_active, at_last = memory
    print(
        f"{IDLE} idle: {(with_idle - first) / IDLE:.1f} KB each; {ACTIVE} active: {(at_last - with_idle) / ACTIVE:.1f}"
    )
    print(f"delay p50 {delays[len(delays) // 2] * 1000:.0f} ms, p99 {delays[int(len(delays) * 0.99)] * 1000:.0f} ms")
    assert with_idle - first < IDLE * 40 + 4096
    assert at_last - with_active < ACTIVE * 40 + 16_384, "deliveries leave something behind"
