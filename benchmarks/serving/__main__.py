"""Measures sync streams: our ASGI application beside the same bytes, sent by the same server with no work behind."""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path

import psycopg

from benchmarks.replication.__main__ import server as postgres_server
from tests.databases import temporary_database

from . import measures
from .client import MARKER, open_stream, unframed
from .measures import Figures
from .servers import Server, ours, replicated, yardstick

Start = Callable[[], AbstractContextManager[Server]]
RECORDED = [("big", "reader"), ("by_user", "user-1"), ("by_group", "some-groups"), ("by_group", "many-groups")]


class Bench:
    """A database that is replicated, and recordings of what our server sends."""

    def __init__(self, url: str, source: psycopg.Connection, folder: Path) -> None:
        self._url, self._source, self._folder = url, source, folder
        (self._row,) = source.execute("SELECT id FROM bench_shared ORDER BY id LIMIT 1").fetchone() or (None,)

    def servers(self) -> Iterator[tuple[str, Start]]:
        """How to start each server, by name."""
        yield "ours", partial(ours, self._url)
        yield "yardstick", partial(yardstick, self._folder)

    async def record(self, server: Server) -> None:
        """Keep what the server sends, for the yardstick: answers by stream, or by user where users differ in size."""
        for stream, user in RECORDED:
            client = await open_stream(server.port, user, stream, keep=True)
            await asyncio.wait_for(client.first_complete, measures.TIMEOUT_S)
            self._keep(f"{user if stream == 'by_group' else stream}.ndjson", unframed(client.kept))
            client.close()
        client = await open_stream(server.port, "listener", "shared", keep=True)
        await client.first_complete
        answer = unframed(client.kept)
        found = client.expect(MARKER)
        await self.commit(server, MARKER)
        await found
        await asyncio.sleep(0.5)  # the rest of the lines
        self._keep("shared.ndjson", answer)
        self._keep("update.line", unframed(client.kept)[len(answer) :])
        client.close()

    def _keep(self, name: str, content: bytes) -> None:
        (self._folder / name).write_bytes(content)

    async def commit(self, server: Server, marker: bytes) -> float:
        """Write the marker into the shared row."""

        def write() -> float:
            self._source.execute("UPDATE bench_shared SET name = %s WHERE id = %s", [marker.decode(), self._row])
            return time.perf_counter()

        return await asyncio.to_thread(write)

    async def broadcast(self, server: Server, marker: bytes) -> float:
        """Have the yardstick send the recorded line with this marker."""
        began = time.perf_counter()
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(b"POST /announce HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 32\r\n\r\n" + marker)
        await reader.read()
        writer.close()
        return began

    async def measure(self, start: Start, options: argparse.Namespace) -> Figures:
        """Every figure of one server, which is started anew for each that what it keeps in memory would change."""
        figures: Figures = {}
        for clients in (1, 20):
            with start() as server:
                figures |= await measures.initial_sync(server, clients)
        with start() as server:
            announce = self.commit if server.name == "ours" else self.broadcast
            for user, number in (("some-groups", 1000), ("many-groups", 10_000)):
                figures |= await measures.buckets(server, user, number)
            figures |= await measures.connect_storm(server, options.connects)
            for clients in (1, 100, 500, 1000):
                figures |= await measures.fan_out(server, clients, announce, 100 if clients == 1 else 10)
        return figures


async def run(bench: Bench, options: argparse.Namespace) -> dict[str, list[tuple[float, float]]]:
    """Measure both servers in turn; pairs of figures (ours, yardstick) by name."""
    with dict(bench.servers())["ours"]() as server:
        await bench.record(server)
    pairs: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for repeat in range(options.repeats):
        found: dict[str, Figures] = {}
        for name, start in bench.servers():
            print(f"run {repeat + 1}: {name}", file=sys.stderr, flush=True)
            found[name] = await bench.measure(start, options)
        for name, value in found["ours"].items():
            pairs[name].append((value, found["yardstick"][name]))
    return pairs


def main() -> None:
    """Measure, print a table, write JSON if asked."""
    options = _options()
    with _bench(options) as bench:
        pairs = asyncio.run(run(bench, options))
    print(f"{'':44} {'ours':>12} {'yardstick':>12} {'ratio':>8}")
    for name, values in pairs.items():
        mine, least = (statistics.median(side) for side in zip(*values, strict=True))
        ratio = statistics.median(a / b if b else float("nan") for a, b in values)
        print(f"{name:44} {mine:12,.1f} {least:12,.1f} {ratio:8.2f}")
    if options.json:
        Path(options.json).write_text(json.dumps(pairs, indent=1))


@contextmanager
def _bench(options: argparse.Namespace) -> Iterator[Bench]:
    with (
        postgres_server(18) as (url, _),
        temporary_database(url) as database,
        replicated(database, options.operations) as source,
        tempfile.TemporaryDirectory() as folder,
    ):
        yield Bench(database, source, Path(folder))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serving", description=__doc__)
    parser.add_argument("--operations", type=int, default=200_000, help="operations of a first sync (%(default)s)")
    parser.add_argument("--connects", type=int, default=1000, help="connects of the storm (%(default)s)")
    parser.add_argument("--repeats", type=int, default=1, help="runs, of which the medians are reported (%(default)s)")
    parser.add_argument("--json", metavar="FILE", help="also write all figures there")
    return parser.parse_args()


if __name__ == "__main__":
    main()
