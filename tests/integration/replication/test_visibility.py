"""Transactions that nobody can see yet, while a table is read: committed in the WAL, and delivered, or prepared.

A commit that waits for a standby (synchronous_standby_names) is decoded before it becomes visible. A server of its own
has a standby that does not exist.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import psycopg
import pytest

from django_localsync.replication import source_reader
from django_localsync.replication.source_reader import SourceReader
from tests.replication import RunningReplicator
from tests.servers import OwnServer, database_alias, own_server
from tests.source import eventually, rows, streams, values, wait_until

pytestmark = pytest.mark.django_db(transaction=True)

RULES = streams(all="SELECT id, title, body FROM note")
ROWS = 60


@pytest.fixture(scope="module")
def server() -> Iterator[OwnServer]:
    """A server whose commits wait for a standby where a session asks for that."""
    settings = {"synchronous_standby_names": "absent", "synchronous_commit": "local", "max_prepared_transactions": "5"}
    with own_server(**settings) as server:
        yield server


@pytest.fixture
def origin(server: OwnServer) -> Iterator[psycopg.Connection[Any]]:
    """A session of the source, alias `origin`, with a table of about ten blocks."""
    with database_alias("origin", server.url), server.connect() as session:
        session.execute(
            "CREATE TABLE note (id int PRIMARY KEY, title text, body text);"
            "ALTER TABLE note ALTER title SET STORAGE PLAIN, ALTER body SET STORAGE EXTERNAL;"
            f"INSERT INTO note SELECT i, rpad('t', 1200), CASE WHEN i < {ROWS - 40} THEN repeat(md5(i::text), 100) END"
            f" FROM generate_series(1, {ROWS}) AS i"
        )
        yield session
        while hidden_commits:
            hidden_commits.pop().release()
        session.execute("DROP TABLE note")
        session.execute("SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE NOT active")
        for (name,) in session.execute("SELECT pubname FROM pg_publication").fetchall():
            session.execute(f'DROP PUBLICATION "{name}"')


@pytest.fixture
def before_chunk(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[int, Callable[[], object]]]:
    """What to do before the snapshot of the chunk of this number (from 1) is taken; each chunk is one block."""
    todo: dict[int, Callable[[], object]] = {}
    chunks = []
    snapshot_of = SourceReader._snapshot_of

    @contextmanager
    def snapshot(reader: SourceReader, backfill: Any) -> Iterator[Any]:
        chunks.append(1)
        todo.get(number := len(chunks), lambda: None)()
        todo.pop(number, None)
        with snapshot_of(reader, backfill) as found:
            yield found

    monkeypatch.setattr(source_reader, "FIRST_CHUNK_BLOCKS", 1)
    monkeypatch.setattr(source_reader, "MAX_CHUNK_BLOCKS", 1)
    monkeypatch.setattr(SourceReader, "_snapshot_of", snapshot)
    yield todo
    assert not todo, f"only {len(chunks)} chunks were read"


hidden_commits: list[HiddenCommit] = []


class HiddenCommit:
    """A transaction that is committed in the WAL, and that nobody sees until `release`."""

    def __init__(self, server: OwnServer, *statements: str) -> None:
        self._session = server.connect()
        self._session.execute("BEGIN; SET LOCAL synchronous_commit = on")
        for statement in statements:
            self._session.execute(statement)
        self._thread = threading.Thread(target=self._commit)
        self._thread.start()
        hidden_commits.append(self)
        wait = "SELECT wait_event = 'SyncRep' FROM pg_stat_activity WHERE pid = %s"
        with server.connect() as session:
            pid = self._session.info.backend_pid
            wait_until(lambda: session.execute(wait, (pid,)).fetchone() == (True,), "the commit waits for its standby")

    def _commit(self) -> None:
        with suppress(psycopg.Error):
            self._session.execute("COMMIT")

    def release(self) -> None:
        """Become visible."""
        while self._thread.is_alive():
            self._session.cancel_safe()
            self._thread.join(0.02)
        if not self._session.closed:
            self._session.close()


@contextmanager
def replicating() -> Iterator[RunningReplicator]:
    """A replicator from `origin` to the test database."""
    running = RunningReplicator(RULES=RULES, SOURCES=["origin"])
    try:
        yield running
    finally:
        running.stop()
    assert running.error is None


def titles(session: psycopg.Connection[Any]) -> dict[str, str]:
    """What the rules say of the table now."""
    return {str(key): title for key, title in session.execute("SELECT id, title FROM note")}


def test_a_commit_that_nobody_sees_yet_is_newer_than_the_chunk(server, origin, before_chunk):
    hidden: list[HiddenCommit] = []
    before_chunk[2] = lambda: hidden.append(
        HiddenCommit(
            server,
            f"UPDATE note SET title = 'hidden' WHERE id IN ({ROWS - 1}, {ROWS})",
            f"DELETE FROM note WHERE id = {ROWS - 2}",
            f"UPDATE note SET id = 1000 WHERE id = {ROWS - 3}",
            "INSERT INTO note VALUES (2000, 'hidden')",
        )
    )
    with replicating():
        eventually(lambda: len(rows()), ROWS)  # one more, one less: the stream has what no reader of the table sees
        assert titles(origin)[str(ROWS)] != "hidden"
        found = values("title")
        assert (found[str(ROWS)], found[str(ROWS - 1)], found["2000"]) == ("hidden", "hidden", "hidden")
        assert str(ROWS - 2) not in found
        assert str(ROWS - 3) not in found
        hidden[0].release()
        assert found == titles(origin)
        origin.execute("UPDATE note SET title = 'later'")
        eventually(lambda: values("title"), titles(origin))
        assert {len(row["body"] or "") for row in rows().values()} == {3200, 0}


def test_a_commit_that_nobody_sees_and_that_no_list_of_running_transactions_names(server, origin, before_chunk):
    """Taken directly after the newest completed transaction: its number is the snapshot's xmax, not in its list."""
    hidden: list[HiddenCommit] = []
    before_chunk[4] = lambda: hidden.append(
        HiddenCommit(server, f"UPDATE note SET title = 'hidden' WHERE id > {ROWS - 30}")
    )
    with replicating():
        eventually(lambda: len(rows()), ROWS)
        assert {title for row_id, title in values("title").items() if int(row_id) > ROWS - 30} == {"hidden"}
        hidden[0].release()
        assert values("title") == titles(origin)


def test_a_hidden_truncate(server, origin, before_chunk):
    """It locks the table until it is visible, so the reading waits, and then finds nothing."""
    hidden: list[HiddenCommit] = []

    def hide() -> None:
        hidden.append(HiddenCommit(server, "TRUNCATE note", "INSERT INTO note VALUES (1, 'new', 'new')"))
        threading.Timer(0.5, hidden[0].release).start()

    before_chunk[3] = hide
    with replicating():
        eventually(rows, {"1": {"id": 1, "title": "new", "body": "new"}})


def test_a_commit_is_hidden_since_before_the_reading_began(server, origin):
    """Its changes may have come before the table was published: the reading begins when it can be seen."""
    hidden = HiddenCommit(server, "UPDATE note SET title = 'hidden' WHERE id = 1", "DELETE FROM note WHERE id = 2")
    with replicating():
        with pytest.raises(AssertionError):
            _wait_shortly()
        hidden.release()
        eventually(lambda: values("title"), titles(origin))


def _wait_shortly() -> None:
    import time

    deadline = time.monotonic() + 0.7
    while time.monotonic() < deadline:
        if rows():
            return
        time.sleep(0.05)
    raise AssertionError("nothing is shown")


@pytest.mark.parametrize("ending", ["COMMIT", "ROLLBACK"])
def test_a_transaction_is_prepared_while_the_table_is_read(server, origin, before_chunk, ending):
    def prepare() -> None:
        with server.connect() as session:
            session.execute("BEGIN")
            session.execute(f"UPDATE note SET title = 'prepared' WHERE id > {ROWS - 5}")
            session.execute("DELETE FROM note WHERE id = 1")
            session.execute("PREPARE TRANSACTION 'p'")

    before_chunk[3] = prepare
    before_chunk[6] = lambda: origin.execute(f"{ending} PREPARED 'p'")
    with replicating():
        wait_until(lambda: not before_chunk, "it has ended")
        eventually(lambda: values("title"), titles(origin))
        origin.execute("UPDATE note SET title = 'later' WHERE id = 5")
        eventually(lambda: values("title"), titles(origin))


def test_a_prepared_transaction_is_older_than_the_replicator(server, origin, caplog, monkeypatch):
    """It is waited for, like any that writes, and named."""
    monkeypatch.setattr("django_localsync.replication.waiting.SAY_WHO_AFTER_S", 0.1)
    origin.execute("BEGIN; UPDATE note SET title = 'old' WHERE id = 1; PREPARE TRANSACTION 'forgotten'")
    try:
        with replicating():
            wait_until(lambda: "prepared transaction forgotten" in caplog.text, "it is named")
            assert rows() == {}
            origin.execute("COMMIT PREPARED 'forgotten'")
            eventually(lambda: values("title"), titles(origin))
    finally:
        with suppress(psycopg.Error):
            origin.execute("ROLLBACK PREPARED 'forgotten'")


def test_hidden_commits_one_after_another(server, origin, before_chunk):
    """Each chunk meets another one, and each is released at another time."""
    hidden: list[HiddenCommit] = []
    for chunk in range(2, 9):
        before_chunk[chunk] = lambda n=chunk: (
            hidden[-2].release() if len(hidden) > 1 else None,
            hidden.append(
                HiddenCommit(
                    server,
                    f"UPDATE note SET title = 'hidden {n}', id = id + 1000 WHERE id % 9 = {n}",
                    f"INSERT INTO note VALUES ({-n}, 'new', NULL)",
                )
            ),
        )
    with replicating():
        wait_until(lambda: not before_chunk, "all are hidden")
        for commit in hidden:
            commit.release()
        eventually(lambda: values("title"), titles(origin))
        assert {len(row["body"] or "") for row in rows().values()} == {3200, 0}
