"""One random history: sources that change in every way, a replicator that is killed in every way, clients that look on.

At every checkpoint that a client reads, checksums add up, money is neither made nor lost (I2), and what the position
of a source says is committed is there (I7). In the end every client, wherever it stood, holds what the rules say of
the tables.
"""

from __future__ import annotations

import re
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from random import Random, random
from typing import Any, Self

import psycopg

from django_localsync.storage.connections import connect
from tests.conftest import SOAK
from tests.histories import rules, statements
from tests.histories.client import Client
from tests.replication import RunningReplicator

DEADLINE_S = 15.0
LONGEST_CALM_S = 2.0
CLIENTS = 3
LOCK_TIMEOUT = "SET lock_timeout = '100ms'"


@dataclass
class Plan:
    """How wild a history is: chances of each kind of step, and the number of steps."""

    steps: int
    ddl: float
    restart: float
    cut_off: float
    new_rules: float
    hidden_commit: float
    crash: float
    pause_s: float
    calm: float

    @classmethod
    def random(cls, choose: Random) -> Self:
        """Some histories are calm in some respect, since repairs hide what went wrong before them."""
        return cls(
            steps=choose.choice([10, 25, 50]),
            ddl=choose.choice([0, 0.03, 0.2]),
            restart=choose.choice([0, 0.03, 0.1]),
            cut_off=choose.choice([0, 0.03, 0.1]),
            new_rules=choose.choice([0, 0.03, 0.1]),
            hidden_commit=choose.choice([0, 0.1, 0.3]),
            crash=choose.choice([0, 0, 0.01]) if SOAK else 0,
            pause_s=choose.choice([0, 0.01, 0.03]),
            calm=choose.choice([0, 0.05, 0.1]),
        )


IS_BEING_READ = """
    SELECT NOT EXISTS (SELECT FROM localsync_rule_set WHERE state = 'active')
        OR EXISTS (SELECT FROM localsync_rule_set WHERE state = 'processing')
        OR EXISTS (SELECT FROM localsync_backfill)
"""


class Crashes:
    """Breaks calls at random, before or after they have had their effect."""

    probability = 0.0

    def breaking(self, call: Callable[..., Any]) -> Callable[..., Any]:
        """This call, which now and then fails as a connection does."""

        def broken(*args: Any, **kwargs: Any) -> Any:
            self._perhaps("before")
            result = call(*args, **kwargs)
            self._perhaps("after")
            return result

        return broken

    def _perhaps(self, when: str) -> None:
        if random() < self.probability:
            raise psycopg.OperationalError(f"cut off {when}")


CRASHES = Crashes()


class HiddenCommit:
    """A transaction whose commit is in the WAL, and decoded, while nobody can see it: it waits for a standby.

    The server must name one that does not exist in synchronous_standby_names.
    """

    def __init__(self, session: psycopg.Connection[Any]) -> None:
        self._session = session
        self._thread = threading.Thread(target=self._commit, daemon=True)
        self._thread.start()

    def _commit(self) -> None:
        with suppress(psycopg.Error):
            self._session.execute("COMMIT")

    def release(self) -> None:
        """Let it become visible."""
        while self._thread.is_alive():
            self._session.cancel_safe()
            self._thread.join(0.02)


@dataclass
class Source:
    """A source as its users write to it. `counts`: after these positions the counter had at least these values."""

    alias: str
    session: psycopg.Connection[Any]
    hidden_session: psycopg.Connection[Any]
    counts: list[tuple[int, int]] = field(default_factory=list)
    log: list[str] = field(default_factory=list)
    open_transaction: bool = False
    hidden: HiddenCommit | None = None

    def step(self, choose: Random, plan: Plan) -> None:
        """Some transaction, or the end of one that is open."""
        chance = choose.random()
        if self.hidden is not None and chance < 0.3:
            self.release()
        elif self.open_transaction and chance < 0.5:
            self.end_transaction(commit=choose.random() < 0.8)
        elif self.hidden is None and chance < plan.hidden_commit:
            self.hide_commit(choose)
        elif not self.open_transaction and choose.random() < plan.ddl / 3:
            self.try_(statements.random_rewrite(choose))
        else:
            self.begin(choose, plan)
            if choose.random() < 0.9:
                self.end_transaction(commit=choose.random() < 0.9)
            else:
                self.open_transaction = True

    def begin(self, choose: Random, plan: Plan) -> None:
        """Some statements in a transaction that stays open."""
        if not self.open_transaction:
            self.session.execute("BEGIN")
        for _ in range(choose.randrange(1, 5)):
            self.try_(statements.random_ddl(choose) if choose.random() < plan.ddl else statements.random_change(choose))
        if choose.random() < 0.05:
            count, table = choose.randrange(100, 1500), choose.choice(["note", "line"])
            columns = {"note": "id, owner", "line": "a, b"}[table]
            self.try_(
                f"INSERT INTO {table} ({columns}) SELECT i, 'bulk' FROM"
                f" generate_series({statements.BULK_ID}, {statements.BULK_ID + count}) AS i"
            )

    def try_(self, statement: str) -> None:
        """Run it; one that fails leaves no trace."""
        with suppress(psycopg.Error), self._savepoint():
            self.session.execute(statement)  # type: ignore[call-overload]
            self.log.append(statement)

    def _savepoint(self) -> Any:
        in_transaction = self.session.info.transaction_status == psycopg.pq.TransactionStatus.INTRANS
        return self.session.transaction() if in_transaction else ExitStack()

    def end_transaction(self, *, commit: bool) -> None:
        """End the open one; a committed one counts up."""
        self.log.append("COMMIT" if commit else "ROLLBACK")
        self.open_transaction = False
        count = None
        if commit:
            with suppress(psycopg.Error), self.session.transaction():
                count = self.session.execute(statements.COUNT_UP).fetchone()
        self.session.execute("COMMIT" if commit else "ROLLBACK")
        if count is not None:
            row = self.session.execute("SELECT (pg_current_wal_insert_lsn() - '0/0'::pg_lsn)::bigint").fetchone()
            self.counts.append((row[0], count[0]))  # type: ignore[index]

    def hide_commit(self, choose: Random) -> None:
        """Commit a transaction that nobody will see for a while."""
        session = self.hidden_session
        session.execute("BEGIN; SET LOCAL synchronous_commit = on")
        for _ in range(choose.randrange(1, 4)):
            with suppress(psycopg.Error), session.transaction():
                session.execute(statements.random_change(choose))  # type: ignore[call-overload]
        self.hidden = HiddenCommit(session)
        self.log.append("a hidden commit")

    def release(self) -> None:
        """Show the hidden commit."""
        if self.hidden is not None:
            self.hidden.release()
            self.hidden = None

    def settle(self) -> None:
        """Nothing is open any more, and every table with rows that changed has an identity."""
        self.release()
        if self.open_transaction:
            self.end_transaction(commit=True)
        for name in statements.followed_without_identity(self.session):
            self.try_(f"ALTER TABLE {name} REPLICA IDENTITY FULL")


class History:
    """The state of a history that is going on."""

    def __init__(self, seed: int, sources: list[Source], storage: psycopg.Connection[Any]) -> None:
        self.choose = Random(seed)
        self.plan = Plan.random(self.choose)
        self.sources, self.storage = sources, storage
        self.streams = rules.random_streams(self.choose)
        self.clients = [Client() for _ in range(CLIENTS)]
        self.running: RunningReplicator | None = None
        self.ghosts: list[tuple[str, str, str]] = []

    def run(self) -> None:
        """Play it, and compare. Raises AssertionError with what went wrong."""
        try:
            for _ in range(self.choose.randrange(5)):
                self.choose.choice(self.sources).step(self.choose, self.plan)
            if self.choose.random() < 0.5:
                self.wait_until_read()
            CRASHES.probability = self.plan.crash
            for _ in range(self.plan.steps):
                self.step()
            CRASHES.probability = 0
            for source in self.sources:
                source.settle()
            self.follow()
            self.compare()
        finally:
            CRASHES.probability = 0
            for source in self.sources:
                source.release()
                source.session.rollback()
            if self.running is not None:
                self.running.stop()

    def step(self) -> None:
        """Something happens."""
        choose, plan = self.choose, self.plan
        if choose.random() < plan.new_rules:
            self.streams = rules.random_streams(choose)
            self.stop()
        elif choose.random() < plan.restart:
            self.stop()
        if choose.random() < plan.calm:
            self.wait_until_read()
        if choose.random() < plan.cut_off:
            self.cut_off()
        if choose.random() < 0.7:
            self.follow()
        choose.choice(self.sources).step(choose, plan)
        if choose.random() < 0.3:
            self.look(choose.choice(self.clients))
        time.sleep(choose.uniform(0, plan.pause_s))

    def follow(self) -> None:
        """Have a replicator with the newest rules."""
        if self.running is not None and self.running.error is not None:
            raise AssertionError("the replicator ended") from self.running.error
        if self.running is None:
            aliases = [source.alias for source in self.sources]
            self.running = RunningReplicator(RULES=rules.rules_of(self.streams), SOURCES=aliases)

    def stop(self) -> None:
        """End the replicator, wherever it is."""
        if self.running is not None:
            self.running.stop()
            self.running = None

    def wait_until_read(self) -> None:
        """Let everything be read that is to be, if nothing holds it up: what follows meets rules that are served."""
        self.follow()
        deadline = time.monotonic() + LONGEST_CALM_S
        while self.storage.execute(IS_BEING_READ).fetchone() == (True,) and time.monotonic() < deadline:
            time.sleep(0.01)

    def cut_off(self) -> None:
        """Break connections of the replicator."""
        for session in self.choose.choice(
            [[self.storage], [self.sources[0].session], [self.storage, self.sources[-1].session]]
        ):
            session.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname = current_database() AND application_name LIKE 'django_localsync %' AND random() < 0.7"
            )

    def look(self, client: Client) -> None:
        """A client syncs."""
        client.sync(self.storage)
        for name in {"zones|0", "zone_ids|0"} & client.definitions:
            found = len(client.rows(f"{name}[]"))
            assert found == statements.ZONES * len(self.sources), f"{name} is served with {found} rows"
        accounts = {row["id"]: row["amount"] for row in client.rows("accounts|0[]")}
        if len(self.sources) > 1 or not accounts:
            return
        counted = accounts.pop(0, 0)
        assert sum(accounts.values()) == 0, f"half a transaction: {accounts}"
        lsn = client.positions.get(self.sources[0].alias, 0)
        promised = max((count for position, count in self.sources[0].counts if position <= lsn), default=0)
        assert counted >= promised, f"position {lsn} promises count {promised}, the client sees {counted}"

    def compare(self) -> None:
        """Wait until a client holds what the rules say, then see that all others do, and that nothing is left over."""
        tables = [rules.read_tables(source.session) for source in self.sources]
        expected = rules.expected_contents(self.streams, tables)
        lookups = rules.expected_lookups(self.streams, tables)
        deadline = time.monotonic() + DEADLINE_S
        while (difference := self.difference(expected, lookups)) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert not difference, f"{self.streams}: {difference} {self.ghosts}\n{self.state()}"
        for client in self.clients:
            self.look(client)
            assert client.contents() == expected, "a client that stood elsewhere holds something else"

    def state(self) -> str:
        """What storage says of itself, for a failure's message."""
        tables = ("source", "rule_set", "definition", "source_table", "backfill", "checkpoint")
        found = {
            table: self.storage.execute(f"SELECT to_jsonb(t) - 'rules' FROM localsync_{table} AS t") for table in tables
        }
        statements = [f"{source.alias}: {statement}" for source in self.sources for statement in source.log]
        return "\n".join([*(f"{table}: {row[0]}" for table, rows in found.items() for row in rows), *statements])

    def difference(self, expected: rules.Contents, lookups: set[tuple[str, str]]) -> str:
        """How the first client's contents, or the parameter index, differ; empty where they do not."""
        self.follow()
        self.look(self.clients[0])
        found = self.clients[0].contents()
        for bucket in sorted(found.keys() | expected.keys()):
            has, wants = found.get(bucket, Counter()), expected.get(bucket, Counter())
            if has != wants:
                too_many, missing = list((has - wants).elements()), list((wants - has).elements())
                subkeys = [key for held in self.clients[0].buckets.values() if held.name == bucket for key in held.rows]
                ids = {row_id for _, row_id, _ in too_many}
                self.ghosts = [key for key in subkeys if key[1] in ids]
                return f"{bucket} has {_short(too_many)} instead of {_short(missing)}"
        if set(self.clients[0].lookups) != lookups:
            return f"the parameter index says {self.clients[0].lookups} instead of {lookups}"
        return ""


def _short(rows: list[tuple[str, str, str]]) -> str:
    """Some rows, their large values cut."""
    return re.sub(r"([0-9a-f]{8})[0-9a-f]{300,}", r"\1…", str(rows[:3]))


RESET_SOURCE = """
    DO $$ DECLARE made text; BEGIN
        FOR made IN SELECT format('%I', relname) FROM pg_class
                     WHERE relkind IN ('r', 'p') AND relnamespace = 'public'::regnamespace LOOP
            EXECUTE format('DROP TABLE IF EXISTS %s CASCADE', made);
        END LOOP;
        FOR made IN SELECT pubname FROM pg_publication LOOP EXECUTE format('DROP PUBLICATION %I', made); END LOOP;
    END $$
"""
DROP_SLOTS = """
    SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots
     WHERE database = current_database() AND NOT active
"""
RESET_STORAGE = """
    DO $$ DECLARE made text; BEGIN
        FOR made IN SELECT relname FROM pg_class WHERE relkind = 'r' AND relname ~ '^localsync_' LOOP
            EXECUTE format('TRUNCATE %I RESTART IDENTITY CASCADE', made);
        END LOOP;
    END $$
"""


class Stage:
    """Connections that histories share, one after another."""

    def __init__(self, aliases: list[str], storage: str) -> None:
        self._cleanup = ExitStack()
        self._storage = self._connect(storage)
        self._sources = [Source(alias, self._connect(alias), self._connect(alias)) for alias in aliases]

    def _connect(self, alias: str) -> psycopg.Connection[Any]:
        return self._cleanup.enter_context(connect(alias, application_name="history"))

    def close(self) -> None:
        """Close them."""
        self._cleanup.close()

    def play(self, seed: int) -> None:
        """Run one history from the beginning. What it raises has the seed as a note."""
        sources = [Source(old.alias, old.session, old.hidden_session) for old in self._sources]
        self._reset(sources)
        try:
            History(seed, sources, self._storage).run()
        except BaseException as error:
            error.add_note(f"seed {seed}")
            raise

    def _reset(self, sources: list[Source]) -> None:
        self._storage.execute(RESET_STORAGE)
        for source in sources:
            source.session.execute(LOCK_TIMEOUT)
            source.hidden_session.execute(LOCK_TIMEOUT)
            source.session.execute(DROP_SLOTS)
            source.session.execute(RESET_SOURCE)
            source.session.execute(statements.SCHEMA)  # type: ignore[call-overload]
