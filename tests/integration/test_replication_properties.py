"""Random transactions, with restarts and crashes at random moments: storage ends with exactly what the rules say.

Each run is a seed. FAULTS are deliberate mistakes, each of which this very property must notice.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Self

import psycopg
import pytest
from django.db import connection
from psycopg import IsolationLevel

from django_localsync.buckets import membership
from django_localsync.buckets.operation import OpKind
from django_localsync.pgoutput.lsn import Lsn
from django_localsync.replication import changes, stream
from django_localsync.replication.changes import ChangeApplier
from django_localsync.replication.stream import Stream
from django_localsync.storage.connections import connect
from django_localsync.storage.writer import StorageWriter, WriteSet
from tests.conftest import SOAK
from tests.replication import RunningReplicator, drop_replication, replicating, stored_buckets

pytestmark = pytest.mark.django_db(transaction=True)

RULES = """
config: {edition: 3}
streams:
  mine: {query: SELECT * FROM note WHERE owner = auth.user_id()}
  shared: {query: SELECT * FROM note WHERE list_id IN (SELECT list_id FROM member WHERE user_id = auth.user_id())}
  lines: {query: "SELECT a || '-' || b AS id, a, b FROM line"}
  accounts: {query: SELECT * FROM account}
"""
SCHEMA = """
    CREATE TABLE note (id int PRIMARY KEY, owner text, list_id int, title text, body text);
    ALTER TABLE note ALTER body SET STORAGE EXTERNAL;
    CREATE TABLE member (list_id int, user_id text, PRIMARY KEY (list_id, user_id));
    CREATE TABLE line (a int, b text);
    ALTER TABLE line REPLICA IDENTITY FULL;
    CREATE TABLE account (id int PRIMARY KEY, amount int);
    INSERT INTO account SELECT i, 0 FROM generate_series(1, 5) AS i;
    INSERT INTO note SELECT i, 'ann', i % 3, 'first', repeat(md5(i::text), 100) FROM generate_series(1, 20) AS i;
"""
RUNS = 200 if SOAK else 3
TRANSACTIONS = 60
USERS = ["ann", "bob", "cat"]


@pytest.fixture(autouse=True)
def tables() -> Iterator[None]:
    """The source's tables; afterwards nothing of them is left."""
    with connection.cursor() as cursor:
        cursor.execute(SCHEMA)
    yield
    drop_replication()
    with connection.cursor() as cursor:
        cursor.execute("DROP TABLE note, member, line, account")


def random_statement(choose: random.Random) -> str:
    """One statement; its rows may or may not exist."""
    number, user, some_list = choose.randrange(1, 40), choose.choice(USERS), choose.randrange(3)
    body = choose.choice(["NULL", "'short'", f"repeat(md5('{choose.random()}'), 100)"])
    line = f"WHERE ctid = (SELECT ctid FROM line ORDER BY a, b, ctid OFFSET {choose.randrange(4)} LIMIT 1)"
    return choose.choice(
        [
            f"INSERT INTO note VALUES ({number}, '{user}', {some_list}, 'new', {body}) ON CONFLICT DO NOTHING",
            f"UPDATE note SET title = title || '!' WHERE id = {number}",
            f"UPDATE note SET owner = '{user}', list_id = {some_list} WHERE id = {number}",
            f"UPDATE note SET body = {body} WHERE id = {number}",
            f"UPDATE note SET id = 100 + id WHERE id = {number}",
            "UPDATE note SET id = id - 100 WHERE id > 100 AND id - 100 NOT IN (SELECT id FROM note)",
            f"DELETE FROM note WHERE id = {number}",
            f"INSERT INTO member VALUES ({some_list}, '{user}') ON CONFLICT DO NOTHING",
            f"DELETE FROM member WHERE user_id = '{user}' AND list_id = {some_list}",
            f"UPDATE member SET user_id = user_id || 'x' WHERE list_id = {some_list} AND length(user_id) < 9",
            f"INSERT INTO line VALUES ({number % 3}, '{user}')",
            f"UPDATE line SET b = '{user}' {line}",
            f"DELETE FROM line {line}",
            f"UPDATE account SET amount = amount + CASE id WHEN 1 THEN {number} ELSE -{number} END WHERE id IN (1, 2)",
            "UPDATE account SET id = id",
        ]
        + (["TRUNCATE line", "TRUNCATE member"] if choose.random() < 0.1 else [])
    )


def random_transaction(session: psycopg.Connection[Any], choose: random.Random) -> None:
    """Some statements, perhaps with a savepoint, perhaps rolled back."""
    with suppress(psycopg.errors.UniqueViolation), session.transaction() as transaction:
        for _ in range(choose.randrange(1, 6)):
            session.execute(random_statement(choose))
        if choose.random() < 0.2:
            with session.transaction() as savepoint:
                session.execute(random_statement(choose))
                raise psycopg.Rollback(savepoint)
        if choose.random() < 0.15:
            raise psycopg.Rollback(transaction)
        if choose.random() < 0.05:
            session.execute(
                "INSERT INTO note SELECT i, 'bulk', 0, '', NULL FROM generate_series(1000, 1000 + %s) AS i"
                " ON CONFLICT (id) DO UPDATE SET title = note.title || '+'",
                [stream.BATCH_ROWS + 500],
            )


class Observer:
    """Reads storage as clients do, all the time: money is never made or lost at any checkpoint (I2)."""

    def __init__(self) -> None:
        self.problem: str | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()

    QUERY = """
        SELECT sum(((newest.data)::json ->> 'amount')::int)
          FROM (SELECT DISTINCT ON (operation.row_id) operation.kind, operation.data
                  FROM localsync_bucket_operation AS operation
                 WHERE operation.op_id <= (SELECT op_id FROM localsync_checkpoint)
                   AND operation.bucket_id IN (
                       SELECT bucket.id FROM localsync_bucket AS bucket
                         JOIN localsync_definition AS definition ON definition.id = bucket.definition_id
                         JOIN localsync_rule_set AS rule_set ON rule_set.id = definition.rule_set_id
                        WHERE definition.name LIKE 'accounts%%' AND rule_set.state = 'active')
                 ORDER BY operation.row_id, operation.op_id DESC) AS newest
    """

    def _run(self) -> None:
        with connect("default") as session:
            session.isolation_level = IsolationLevel.REPEATABLE_READ
            while not self._stop.is_set() and self.problem is None:
                (total,) = session.execute(self.QUERY).fetchone() or (None,)
                if total not in (0, None):
                    self.problem = f"a checkpoint shows half a transaction: the sum is {total}"


def random_run(seed: int) -> None:
    """Random transactions beside a replicator that is restarted, or crashes, at random moments; then compare."""
    choose = random.Random(seed)
    with connect("default") as session, Observer() as observer:
        for _ in range(TRANSACTIONS):
            random_transaction(session, choose)
        for _ in range(3):
            running = RunningReplicator(RULES=RULES)
            try:
                for _ in range(TRANSACTIONS // 2):
                    random_transaction(session, choose)
                if choose.random() < 0.5:
                    running.catch_up()
            finally:
                running.stop()
            if running.error is not None:
                raise AssertionError("the replicator ended") from running.error
        with replicating(RULES) as running:
            for _ in range(TRANSACTIONS // 2):
                random_transaction(session, choose)
            running.catch_up()
    assert observer.problem is None, observer.problem
    assert stored_rows() == source_rows()
    assert stored_lookups() == source_lookups()


def stored_rows() -> dict[str, dict[str, Any]]:
    """Bucket → row id → row, without empty buckets."""
    return {
        bucket: {row_id: row for (_, row_id), row in rows.items()} for bucket, rows in stored_buckets().items() if rows
    }


def source_rows() -> dict[str, dict[str, Any]]:
    """What the rules say of the tables as they are, by SQL."""
    expected: dict[str, dict[str, Any]] = {}
    with connection.cursor() as cursor:
        cursor.execute("SELECT id, owner, list_id, title, body FROM note")
        for row in cursor.fetchall():
            note = dict(zip(("id", "owner", "list_id", "title", "body"), row, strict=True))
            expected.setdefault(f'mine|0["{note["owner"]}"]', {})[str(note["id"])] = note
            expected.setdefault(f"shared|0[{note['list_id']}]", {})[str(note["id"])] = note
        cursor.execute("SELECT a, b FROM line")
        for a, b in cursor.fetchall():
            expected.setdefault("lines|0[]", {})[f"{a}-{b}"] = {"id": f"{a}-{b}", "a": a, "b": b}
        cursor.execute("SELECT id, amount FROM account")
        for key, amount in cursor.fetchall():
            expected.setdefault("accounts|0[]", {})[str(key)] = {"id": key, "amount": amount}
    return expected


def stored_lookups() -> list[tuple[str, str]]:
    """The parameter index of the active rule set: key, outputs."""
    with connection.cursor() as cursor:
        cursor.execute("""
            SELECT entry.key, entry.outputs FROM localsync_parameter_lookup AS entry
              JOIN localsync_definition AS definition ON definition.id = entry.definition_id
              JOIN localsync_rule_set AS rule_set ON rule_set.id = definition.rule_set_id
             WHERE rule_set.state = 'active'
        """)
        return sorted(cursor.fetchall())


def source_lookups() -> list[tuple[str, str]]:
    """What the parameter index should say: user → list."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT user_id, list_id FROM member")
        return sorted((f'["{user}"]', f"[{some_list}]") for user, some_list in cursor.fetchall())


@pytest.mark.parametrize("run", range(RUNS))
def test_storage_ends_with_what_the_rules_say(run, record_property):
    seed = random.SystemRandom().randrange(2**32)
    record_property("seed", seed)
    try:
        random_run(seed)
    except BaseException as error:
        error.add_note(f"seed {seed}")
        raise


@contextmanager
def crashes(patch: pytest.MonkeyPatch, choose: random.Random, probability: float) -> Iterator[None]:
    """Storage and source connections break at random moments, before or after the call in question."""

    def breaking(call: Callable[..., Any]) -> Callable[..., Any]:
        def broken(*args: Any, **kwargs: Any) -> Any:
            if choose.random() < probability:
                raise psycopg.OperationalError("cut off before")
            result = call(*args, **kwargs)
            if choose.random() < probability:
                raise psycopg.OperationalError("cut off after")
            return result

        return broken

    with patch.context() as patched:
        patched.setattr("django_localsync.replication.replicator.FIRST_RETRY_S", 0.01)
        patched.setattr("django_localsync.replication.replicator.LONGEST_RETRY_S", 0.01)
        for owner, name in [
            (StorageWriter, "write"),
            (StorageWriter, "publish"),
            (StorageWriter, "bucket_ids"),
            (Stream, "_confirm"),
            (Stream, "_receive"),
            (ChangeApplier, "apply"),
        ]:
            patched.setattr(owner, name, breaking(getattr(owner, name)))
        yield


@pytest.mark.parametrize("run", range(RUNS))
def test_crashes_at_random_moments_change_nothing(run, monkeypatch):
    seed = random.SystemRandom().randrange(2**32)
    choose = random.Random(seed)
    try:
        with connect("default") as session, Observer() as observer:
            with crashes(monkeypatch, choose, probability=0.01):
                running = RunningReplicator(RULES=RULES)
                for _ in range(TRANSACTIONS):
                    random_transaction(session, choose)
                running.stop()
            with replicating(RULES):
                assert stored_rows() == source_rows()
                assert stored_lookups() == source_lookups()
        assert observer.problem is None, observer.problem
    except BaseException as error:
        error.add_note(f"seed {seed}")
        raise


def remove_dropped(patch: pytest.MonkeyPatch) -> None:
    """A row that leaves a bucket stays there."""
    draft = membership.draft_changes
    patch.setattr(changes, "draft_changes", lambda *a: [d for d in draft(*a) if d[1] != OpKind.REMOVE])


def grant_too_many(patch: pytest.MonkeyPatch) -> None:
    """A membership that ends stays in the parameter index."""
    write = StorageWriter.write

    def keep(self: StorageWriter, output: WriteSet) -> None:
        output.removed_lookups.clear()
        write(self, output)

    patch.setattr(StorageWriter, "write", keep)


def large_value_forgotten(patch: pytest.MonkeyPatch) -> None:
    """A value that an UPDATE leaves out becomes NULL."""
    patch.setattr(changes, "_fill", lambda table, values, before: [v if isinstance(v, str) else None for v in values])


def truncate_ignored(patch: pytest.MonkeyPatch) -> None:
    """TRUNCATE takes nothing back."""
    patch.setattr(Stream, "_truncate", lambda self, message: None)


def confirmed_too_early(patch: pytest.MonkeyPatch) -> None:
    """The LSN is confirmed before the storage transaction commits, which then fails once (I3)."""
    original, failed = Stream._publish, []

    def confirm_first(self: Stream) -> None:
        assert self._end_lsn is not None
        if len(failed) < 3:
            self._write()
            self._connection.confirm(Lsn(self._end_lsn))
            failed.append(1)
            raise psycopg.OperationalError("cut off before the commit")
        original(self)

    patch.setattr(Stream, "_publish", confirm_first)


def replay_applied(patch: pytest.MonkeyPatch) -> None:
    """What is stored already is applied again after a restart: the position is kept, but not consulted."""
    start, init = stream.ReplicationConnection.start, Stream.__init__

    def forget(self: Stream, *args: Any, **kwargs: Any) -> None:
        init(self, *args, **kwargs)
        self._lsn = 0

    patch.setattr(Stream, "__init__", forget)
    patch.setattr(Stream, "_confirm", lambda self: None)
    patch.setattr(
        stream.ReplicationConnection, "start", lambda self, slot, after, names: start(self, slot, Lsn(0), names)
    )


def half_transaction_published(patch: pytest.MonkeyPatch) -> None:
    """Every part of a transaction is shown as soon as it is written (I2)."""
    changed = Stream._row_changed

    def publish_at_once(self: Stream, message: Any) -> None:
        changed(self, message)
        table = self._tables[message.relation]
        if table is None or table.name.name != "account":
            return  # one publish a row of a bulk change would take all day
        end, self._end_lsn = self._end_lsn, self._lsn
        confirm, self._confirm = self._confirm, lambda: None  # type: ignore[method-assign]
        self._publish()
        self._end_lsn, self._confirm = end, confirm  # type: ignore[method-assign]

    patch.setattr(Stream, "_row_changed", publish_at_once)


def stale_copied_row(patch: pytest.MonkeyPatch) -> None:
    """The copy does not read the slot's snapshot, but a moment before it: what happened between is lost."""
    create = stream.ReplicationConnection.create_slot
    reader = connect("default")

    def early(self: stream.ReplicationConnection, slot: str) -> Any:
        reader.rollback()
        reader.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
        (snapshot,) = reader.execute("SELECT pg_export_snapshot()").fetchone() or ("",)
        with connect("default") as session:
            # No statement of a run touches such a row again, so nothing heals what was lost.
            session.execute("INSERT INTO note SELECT least(min(id), 0) - 1, 'ann', 0, '', NULL FROM note")
        return create(self, slot)._replace(snapshot=snapshot)

    patch.setattr(stream.ReplicationConnection, "create_slot", early)


def totals_forgotten(patch: pytest.MonkeyPatch) -> None:
    """A batch's totals are not added once in a while."""
    save, calls = StorageWriter.save_written, []

    def sometimes(self: StorageWriter) -> Any:
        calls.append(1)
        if len(calls) % 5 == 0:
            self._totals = {}
        return save(self)

    patch.setattr(StorageWriter, "save_written", sometimes)


def copies_not_counted(patch: pytest.MonkeyPatch) -> None:
    """Deleting one of two identical rows takes both."""
    patch.setattr(changes._Rows, "add_copy", lambda self, table, key: self.take(table, key) is not None)


FAULTS = [
    remove_dropped,
    grant_too_many,
    large_value_forgotten,
    truncate_ignored,
    confirmed_too_early,
    replay_applied,
    half_transaction_published,
    stale_copied_row,
    totals_forgotten,
    copies_not_counted,
]


def random_runs(count: int) -> None:
    """Runs of the seeds 0 … count - 1."""
    for seed in range(count):
        random_run(seed)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_deliberate_fault_is_found(fault, monkeypatch):
    with monkeypatch.context() as patch:
        fault(patch)
        patch.setattr("tests.replication.DEADLINE_S", 5.0)  # some faults keep it from ever catching up
        with pytest.raises(AssertionError):
            random_runs(5)
