"""Atomicity on a real workload: pgbench's bank, whose four sums of money are equal after every transaction.

A device syncs while four connections move money and the replicator is killed and started again at random moments. At
every checkpoint that the device applies, the sums must be equal; at the end it holds every row of Postgres.
"""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, LiteralString

import psycopg

from tests.conftest import SOAK
from tests.e2e.devices import Device, Devices
from tests.e2e.pgbench.load import FEW_ACCOUNTS, find_pgbench, load, make_tables, wait_for_transactions
from tests.e2e.project import ENVIRONMENT, Person
from tests.processes import asgi_process, free_port, project_environment, replicator_process, running, wait_until

DURATION_S, LONGEST_PAUSE_S = (300.0, 8.0) if SOAK else (10.0, 4.0)  # of the load; between kills
SYNC_TIMEOUT_S = 120.0
SETTINGS = ENVIRONMENT | {"DJANGO_SETTINGS_MODULE": "tests.e2e.pgbench.settings"}
SEED = random.SystemRandom().randrange(2**31)

TABLES = {
    "pgbench_accounts": {"aid": "integer", "bid": "integer", "abalance": "integer", "filler": "text"},
    "pgbench_tellers": {"tid": "integer", "bid": "integer", "tbalance": "integer", "filler": "text"},
    "pgbench_branches": {"bid": "integer", "bbalance": "integer", "filler": "text"},
    "pgbench_history": {
        "tid": "integer",
        "bid": "integer",
        "aid": "integer",
        "delta": "integer",
        "mtime": "text",
        "filler": "text",
    },
}
# An index makes the sum over accounts that have changed quick, so that the check slows the device down little.
INDEXES = {"pgbench_accounts": ["abalance"]}
SUMS = """
    SELECT (SELECT coalesce(sum(abalance), 0) FROM pgbench_accounts WHERE abalance > 0)
         + (SELECT coalesce(sum(abalance), 0) FROM pgbench_accounts WHERE abalance < 0) AS accounts,
           (SELECT coalesce(sum(tbalance), 0) FROM pgbench_tellers) AS tellers,
           (SELECT coalesce(sum(bbalance), 0) FROM pgbench_branches) AS branches,
           (SELECT coalesce(sum(delta), 0) FROM pgbench_history) AS history
"""
# mtime as the rules write a timestamp.
POSTGRES_ROWS: dict[str, LiteralString] = {
    "pgbench_accounts": "SELECT aid::text, aid, bid, abalance, filler FROM pgbench_accounts",
    "pgbench_tellers": "SELECT tid::text, tid, bid, tbalance, filler FROM pgbench_tellers",
    "pgbench_branches": "SELECT bid::text, bid, bbalance, filler FROM pgbench_branches",
    "pgbench_history": """
        SELECT concat_ws('/', tid, bid, aid, delta, mtime), tid, bid, aid, delta, mtime, filler
          FROM (SELECT tid, bid, aid, delta, to_char(mtime, 'YYYY-MM-DD"T"HH24:MI:SS.US') AS mtime, filler
                  FROM pgbench_history) AS history
    """,
}


@contextmanager
def syncing_device(bank: str, devices: Devices) -> Iterator[Device]:
    """A device that has the whole bank, and checks the sums at every checkpoint that it applies from the first on."""
    port = free_port()
    with asgi_process(bank, port=port, environment=SETTINGS):
        device = devices.new("teller", TABLES, INDEXES)
        device.check_checkpoints(SUMS)
        device.connect(f"http://127.0.0.1:{port}/localsync", Person(1, "anybody").token(lifetime_s=86_400))
        yield device


@dataclass
class Killer:
    """Keeps a replicator running on a database, except that it is killed."""

    url: str
    chance: random.Random
    cleanup: ExitStack
    kills: int = 0
    logs: list[str] = field(default_factory=list)

    def start(self) -> None:
        """Start a replicator; it begins to work in its own time."""
        self.process = self.cleanup.enter_context(replicator_process(self.url, environment=SETTINGS))

    def kill(self) -> None:
        """Kill it (-9) and start another."""
        self.process.check()
        self.process.kill()
        self.kills += 1
        self.logs.append(self.process.log)
        self.start()

    def kill_at_random(self, duration_s: float) -> None:
        """Kill it again and again: while it starts, catches up or follows."""
        deadline = time.monotonic() + duration_s
        while (left_s := deadline - time.monotonic()) > 0:
            time.sleep(min(self.chance.uniform(0.05, LONGEST_PAUSE_S), left_s))
            self.kill()


def test_every_checkpoint_is_whole_transactions_however_often_the_replicator_is_killed(
    fresh_database: str, devices: Devices
) -> None:
    print(f"seed: {SEED}")
    bank, pgbench = fresh_database, find_pgbench(fresh_database)
    make_tables(bank, pgbench)
    with ExitStack() as cleanup, syncing_device(bank, devices) as device:
        killer = Killer(bank, random.Random(SEED), cleanup)
        killer.start()
        killer.process.wait_for_log("the rules are active")
        device.wait_for_first_sync(SYNC_TIMEOUT_S)
        with load(bank, pgbench, SEED):
            killer.kill_at_random(DURATION_S)
        transactions = count(bank)
        caught_up = lambda: device.query("SELECT count(*) FROM pgbench_history") == [(transactions,)]  # noqa: E731
        wait_until(caught_up, "the device has every transaction", SYNC_TIMEOUT_S, check=killer.process.check)

        status = device.status
        summary = f"{status['checkpoints']} checkpoints checked, {transactions} transactions, {killer.kills} kills"
        print(f"{summary}, {'pgbench' if pgbench else 'TPC-B from Python'}, seed {SEED}")
        assert status["violations"] == []
        assert device.rows() == {table: rows(bank, query) for table, query in POSTGRES_ROWS.items()}
        assert status["checkpoints"] > killer.kills
        assert not any("copying" in log for log in killer.logs[1:]), "what was replicated before was copied again"
        assert not any("Traceback" in log for log in [*killer.logs, killer.process.log])


def test_the_check_notices_half_a_transaction(fresh_database: str, devices: Devices) -> None:
    bank = fresh_database
    make_tables(bank, None, FEW_ACCOUNTS)  # from Python, so that this is tried, too
    broken = (sys.executable, "-m", "tests.e2e.pgbench.half_transactions")
    environment = project_environment(bank, SETTINGS)
    with (
        running("broken replicator", *broken, environment=environment) as process,
        syncing_device(bank, devices) as device,
    ):
        process.wait_for_log("the rules are active")
        device.wait_for_first_sync(SYNC_TIMEOUT_S)
        with load(bank, None, SEED, FEW_ACCOUNTS):
            wait_for_transactions(bank, 50, SYNC_TIMEOUT_S)
            wait_until(lambda: device.status["violations"], "half a transaction is noticed", check=process.check)
        assert {"accounts", "tellers", "branches", "history"} == device.status["violations"][0].keys()


def count(url: str) -> int:
    [(number,)] = rows(url, "SELECT count(*) FROM pgbench_history")
    return int(number)


def rows(url: str, query: LiteralString) -> list[tuple[Any, ...]]:
    with psycopg.connect(url) as connection:
        return sorted(connection.execute(query).fetchall())
