"""pgbench's tables and its TPC-B load: by pgbench itself where it is found, else the same from Python."""

from __future__ import annotations

import random
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import util
from pathlib import Path

import psycopg

from example_project.postgres import PACKAGE, PROGRAMS

ACCOUNTS, TELLERS, BRANCHES = 100_000, 10, 1  # scale 1
FEW_ACCOUNTS = 1000  # where their number does not matter
CONNECTIONS = 4
STOP_TIMEOUT_S = 20.0

TABLES = """
    CREATE TABLE pgbench_history (tid int, bid int, aid int, delta int, mtime timestamp, filler char(22));
    CREATE TABLE pgbench_tellers (tid int NOT NULL PRIMARY KEY, bid int, tbalance int, filler char(84));
    CREATE TABLE pgbench_accounts (aid int NOT NULL PRIMARY KEY, bid int, abalance int, filler char(84));
    CREATE TABLE pgbench_branches (bid int NOT NULL PRIMARY KEY, bbalance int, filler char(88));
    INSERT INTO pgbench_branches VALUES (1, 0, NULL);
    INSERT INTO pgbench_tellers SELECT number, 1, 0, NULL FROM generate_series(1, 10) AS number;
    INSERT INTO pgbench_accounts SELECT number, 1, 0, '' FROM generate_series(1, {accounts}) AS number;
"""
TRANSACTION: Sequence[str] = (
    "UPDATE pgbench_accounts SET abalance = abalance + %(delta)s WHERE aid = %(aid)s",
    "SELECT abalance FROM pgbench_accounts WHERE aid = %(aid)s",
    "UPDATE pgbench_tellers SET tbalance = tbalance + %(delta)s WHERE tid = %(tid)s",
    "UPDATE pgbench_branches SET bbalance = bbalance + %(delta)s WHERE bid = %(bid)s",
    "INSERT INTO pgbench_history (tid, bid, aid, delta, mtime)"
    " VALUES (%(tid)s, %(bid)s, %(aid)s, %(delta)s, CURRENT_TIMESTAMP)",
)


def find_pgbench(url: str) -> str | None:
    """The pgbench of the server's version that comes with the embedded Postgres, else whatever is on the path."""
    with psycopg.connect(url) as connection:
        major = connection.info.server_version // 10_000
    package = util.find_spec(PACKAGE)
    if package is not None and package.origin is not None and major in PROGRAMS:
        program = Path(package.origin).parent / PROGRAMS[major] / "bin/pgbench"
        if program.exists():
            return str(program)
    return shutil.which("pgbench")


def make_tables(url: str, pgbench: str | None, accounts: int = ACCOUNTS) -> None:
    """pgbench's four tables at scale 1, all balances 0. Without pgbench there may be fewer accounts."""
    if pgbench is not None:
        subprocess.run([pgbench, "--initialize", "--scale=1", "--quiet", url], check=True, capture_output=True)
        return
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(TABLES.format(accounts=accounts))


@contextmanager
def load(url: str, pgbench: str | None, seed: int, accounts: int = ACCOUNTS) -> Iterator[None]:
    """TPC-B transactions over four connections, as fast as they go, until the block ends."""
    with _load_by_pgbench(url, pgbench, seed) if pgbench is not None else _load_by_python(url, seed, accounts):
        yield


@contextmanager
def _load_by_pgbench(url: str, pgbench: str, seed: int) -> Iterator[None]:
    command = [pgbench, "--no-vacuum", f"--client={CONNECTIONS}", "--time=100000", f"--random-seed={seed}", url]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        yield
        if process.poll() is not None and process.stderr is not None:
            raise AssertionError(f"pgbench ended by itself: {process.stderr.read().decode(errors='replace')}")
    finally:
        process.terminate()
        process.communicate(timeout=STOP_TIMEOUT_S)


@contextmanager
def _load_by_python(url: str, seed: int, accounts: int) -> Iterator[None]:
    stopping = threading.Event()
    workers = [
        threading.Thread(target=_work, args=(url, random.Random(seed + number), accounts, stopping))
        for number in range(CONNECTIONS)
    ]
    for worker in workers:
        worker.start()
    try:
        yield
        assert all(worker.is_alive() for worker in workers), "a connection of the load failed"
    finally:
        stopping.set()
        for worker in workers:
            worker.join()


def _work(url: str, chance: random.Random, accounts: int, stopping: threading.Event) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        while not stopping.is_set():
            values = {
                "aid": chance.randint(1, accounts),
                "tid": chance.randint(1, TELLERS),
                "bid": chance.randint(1, BRANCHES),
                "delta": chance.randint(-5000, 5000),
            }
            with connection.transaction():
                for statement in TRANSACTION:
                    connection.execute(statement, values)


def wait_for_transactions(url: str, number: int, timeout_s: float) -> None:
    """Wait until the load has committed so many transactions."""
    deadline = time.monotonic() + timeout_s
    with psycopg.connect(url, autocommit=True) as connection:
        while (connection.execute("SELECT count(*) FROM pgbench_history").fetchone() or (0,))[0] < number:
            assert time.monotonic() < deadline, f"the load has not committed {number} transactions"
            time.sleep(0.05)
