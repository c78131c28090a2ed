"""A load balancer: connections go to the server that has fewest; one that refuses is passed over."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

CHUNK = 65536


class Balancer:
    """Forwards connections to servers, which are ports of 127.0.0.1. `taken` counts what each was given."""

    def __init__(self, servers: Sequence[int]) -> None:
        self.taken = Counter[int]()
        self.port = 0
        self._open = Counter[int](dict.fromkeys(servers, 0))
        self._loop = asyncio.new_event_loop()
        self._started = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        self._started.wait()

    def close(self) -> None:
        """End it."""
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    def open_at(self, server: int) -> int:
        """How many connections a server has through it."""
        return self._open[server]

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._serve())

    async def _serve(self) -> None:
        self._stop = asyncio.Event()
        listener = await asyncio.start_server(self._balance, "127.0.0.1", 0)
        self.port = int(listener.sockets[0].getsockname()[1])
        self._started.set()
        await self._stop.wait()
        listener.close()

    async def _balance(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for server in sorted(self._open, key=self._open.__getitem__):
            with suppress(OSError):
                back_reader, back_writer = await asyncio.open_connection("127.0.0.1", server)
                break
        else:
            writer.close()  # nobody is there
            return
        self.taken[server] += 1
        self._open[server] += 1
        try:
            await asyncio.gather(_forward(reader, back_writer), _forward(back_reader, writer))
        finally:
            self._open[server] -= 1


async def _forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        with suppress(OSError):
            while data := await reader.read(CHUNK):
                writer.write(data)
                await writer.drain()
    finally:
        writer.close()


@contextmanager
def balanced(servers: Sequence[int]) -> Iterator[Balancer]:
    """A balancer before these servers."""
    balancer = Balancer(servers)
    try:
        yield balancer
    finally:
        balancer.close()
