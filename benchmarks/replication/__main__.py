"""`python -m benchmarks.replication`; see benchmarks/README.md."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg

from example_project.postgres import EmbeddedPostgres
from tests.databases import temporary_database

from .process import Usage, manage, replicator
from .report import HEADING, Latency, Result, Throughput, as_json, medians
from .source import OPERATIONS, TABLES, create_tables, position, write
from .yardsticks import REFERENCE_LOOP_US, PlainReceiver, copy_seconds, loop_microseconds

URL_VARIABLE = "LOCALSYNC_BENCH_DATABASE_URL"
TRANSACTIONS = (1, 100, 10_000)
FULL_COPY_ROWS, FULL_STREAM_ROWS, FULL_HUGE_ROWS = 1_000_000, 100_000, 5_000_000
SERVER_SETTINGS = {"shared_buffers": "512MB", "max_wal_size": "8GB", "max_slot_wal_keep_size": "-1"}


@dataclass(frozen=True)
class Sizes:
    """How many rows each measurement takes."""

    copy: int
    stream: int
    huge: int
    samples: int


class Bench:
    """One run: its own databases on a server, made and dropped."""

    def __init__(self, source_url: str, storage_url: str, programs: Path | None) -> None:
        self.environment = {
            "DJANGO_SETTINGS_MODULE": "benchmarks.replication.settings",
            "BENCH_SOURCE_URL": source_url,
            "BENCH_STORAGE_URL": storage_url,
        }
        self.source = psycopg.connect(source_url, autocommit=True)
        self.storage = psycopg.connect(storage_url, autocommit=True)
        self.receiver = PlainReceiver(self.source, source_url, programs)
        self._next_row = 1
        create_tables(self.source)
        manage(self.environment, "migrate", "-v0")
        if storage_url != source_url:
            manage(self.environment, "migrate", "-v0", "--database=storage")

    def first_copy(self, rows: int) -> Throughput:
        """Copy both tables, `rows` together."""
        for table in TABLES:
            write(self.source, "insert", table, range(1, rows // 2 + 1), 10_000)
        self._next_row = rows // 2 + 1
        self.source.execute("VACUUM ANALYZE")
        yardstick = copy_seconds(self.source, self.storage, TABLES)
        with replicator(self.source, self.environment) as process:
            process.wait_until_begun()
            began, before = time.perf_counter(), process.usage()
            process.wait_until_copied(self.storage)
            seconds = time.perf_counter() - began
            return _throughput(
                "first copy", rows, seconds, yardstick, process.usage().since(before), process.peak_megabytes()
            )

    def stream(self, name: str, operation: str, rows: int, transaction_rows: int) -> Throughput:
        """A backlog, written while the replicator was away; timed from when it reads its slot.

        Updates and deletes are of the rows that were inserted last.
        """
        if operation == "insert":
            self._next_row += rows
        with self.receiver:
            write(self.source, operation, TABLES[0], range(self._next_row - rows, self._next_row), transaction_rows)
            end = position(self.source)
            self.source.execute("SELECT pg_logical_emit_message(true, 'localsync', '0')")
            yardstick = self.receiver.seconds_until(end)
        with replicator(self.source, self.environment) as process:
            process.wait_until_streaming()
            began, before = time.perf_counter(), process.usage()
            process.wait_until_confirmed(end)
            seconds = time.perf_counter() - began
            return _throughput(name, rows, seconds, yardstick, process.usage().since(before), process.peak_megabytes())

    def latency(self, samples: int) -> Latency:
        """One-row updates, one after the other."""
        listener = psycopg.connect(self.environment["BENCH_STORAGE_URL"], autocommit=True)
        listener.execute("LISTEN localsync")
        delays = []
        with replicator(self.source, self.environment) as process, listener:
            process.wait_until_streaming()
            process.wait_until_confirmed(position(self.source))
            for row in range(1, samples + 1):
                self.source.execute("UPDATE bench_notes SET n = n + 1 WHERE id = md5(%s::text)::uuid", [row])
                committed = time.perf_counter()
                if not list(listener.notifies(timeout=10, stop_after=1)):
                    raise TimeoutError("a checkpoint was not announced within ten seconds")
                delays.append((time.perf_counter() - committed) * 1000)
                time.sleep(0.01)
        return Latency.of("commit to visible checkpoint", delays)

    def run(self, sizes: Sizes) -> Iterator[Result]:
        """Every measurement, in order."""
        yield self.first_copy(sizes.copy)
        for transaction_rows in TRANSACTIONS:
            for operation in OPERATIONS:
                name = f"{operation}, {transaction_rows:,} a transaction"
                yield self.stream(name, operation, sizes.stream, transaction_rows)
        yield self.latency(sizes.samples)
        yield self.stream("one huge transaction", "insert", sizes.huge, sizes.huge)


def _throughput(name: str, rows: int, seconds: float, yardstick: float, used: Usage, megabytes: float) -> Throughput:
    return Throughput(name, rows, seconds, yardstick, used.python / rows * 1e6, used.postgres / rows * 1e6, megabytes)


@contextmanager
def server(major: int) -> Iterator[tuple[str, Path | None]]:
    """The URL of a server and where its programs are: the one that was given, or an embedded one."""
    if given := os.environ.get(URL_VARIABLE):
        yield given, None
        return
    folder = Path(tempfile.mkdtemp(prefix="localsync-bench-"))
    folder.chmod(0o755)  # root's server runs as `nobody`, who must get in
    postgres = EmbeddedPostgres(folder / "postgres", major=major, settings=SERVER_SETTINGS)
    try:
        with postgres as url:
            yield url, postgres.programs
    finally:
        shutil.rmtree(folder)


def main() -> None:
    """Measure, print a table, write JSON if asked."""
    options = _options()
    sizes = Sizes(options.rows, options.rows, options.rows, options.samples)
    if options.full:
        sizes = Sizes(FULL_COPY_ROWS, FULL_STREAM_ROWS, FULL_HUGE_ROWS, options.samples)
    loop = loop_microseconds()
    with server(options.postgres) as (url, programs):
        results = medians([_run_once(url, programs, sizes, options) for _ in range(options.repeats)])
    _print(results, loop)
    if options.json:
        machine = {"loop_us": loop, "reference_loop_us": REFERENCE_LOOP_US, "cores": os.cpu_count()}
        Path(options.json).write_text(as_json(machine, results))


def _run_once(url: str, programs: Path | None, sizes: Sizes, options: argparse.Namespace) -> list[Result]:
    results: list[Result] = []
    with ExitStack() as cleanup:
        source = cleanup.enter_context(temporary_database(url))
        storage = cleanup.enter_context(temporary_database(url)) if options.separate_storage else source
        bench = Bench(source, storage, programs)
        print(f"yardsticks: COPY out | COPY in, and {bench.receiver.name}\n{HEADING}", file=sys.stderr)
        for result in bench.run(sizes):
            print(result.line(), file=sys.stderr, flush=True)
            results.append(result)
    return results


def _print(results: list[Result], loop: float) -> None:
    print(f"\nmedians\n{HEADING}")
    for result in results:
        print(result.line())
    slower = loop / REFERENCE_LOOP_US
    print(f"Python here is {slower:.1f} times slower than on the machine of the speed goals ({loop:.1f} µs a row)")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.replication", description=__doc__)
    parser.add_argument("--rows", type=int, default=20_000, help="rows of each measurement (%(default)s)")
    parser.add_argument("--full", action="store_true", help="the sizes that the speed goals name (takes half an hour)")
    parser.add_argument("--repeats", type=int, default=1, help="runs, of which the medians are reported (%(default)s)")
    parser.add_argument("--samples", type=int, default=200, help="commits whose latency is measured (%(default)s)")
    parser.add_argument("--separate-storage", action="store_true", help="bucket storage in a database of its own")
    parser.add_argument(
        "--postgres", type=int, default=18, help="version of the embedded server, 16 or 18 (%(default)s)"
    )
    parser.add_argument("--json", metavar="FILE", help="also write the results there")
    return parser.parse_args()


if __name__ == "__main__":
    main()
