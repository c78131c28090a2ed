"""A backlog is stored by a thread of its own: what was done in order must come out in order, whatever fails."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest

from django_localsync.replication.changes import ChangeApplier
from django_localsync.replication.storing import Storing
from django_localsync.storage.writer import StorageWriter
from tests.replication import RunningReplicator, replicating
from tests.source import eventually, execute, query, rows, streams

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("source")]

NOTES = streams(
    all="SELECT id, title FROM note", kinds="SELECT * FROM note WHERE kind = subscription.parameter('kind')"
)
ROWS = 40


@pytest.fixture(autouse=True)
def backlog(source: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A table, and transactions that wait to be stored: every row is changed many times, some come and go."""
    monkeypatch.setattr("django_localsync.replication.stream.BATCH_ROWS", 1)
    execute("CREATE TABLE note (id int PRIMARY KEY, title text, kind text)")
    with replicating(NOTES):
        execute(f"INSERT INTO note SELECT i, 'new', 'a' FROM generate_series(1, {ROWS}) AS i")
    for turn in range(6):
        execute(
            f"UPDATE note SET title = 'turn {turn}', kind = '{'abc'[turn % 3]}'",
            "DELETE FROM note WHERE id % 4 = 0",
            f"INSERT INTO note SELECT i, 'again', 'b' FROM generate_series(4, {ROWS}, 4) AS i",
            *(f"UPDATE note SET title = title || '!', kind = 'k{number}' WHERE id = 4" for number in range(4)),
            f"UPDATE note SET id = id + 1000 WHERE id = {turn + 1}",
            f"UPDATE note SET id = id - 1000 WHERE id = {turn + 1001}",
        )
    execute(*(f"INSERT INTO note VALUES ({id}, 'late', 'c')" for id in range(2000, 2030)))


def wanted(kind: str | None = None) -> dict[str, str]:
    """Titles by id, as the source has them."""
    return {str(key): title for key, title, its in query("SELECT id, title, kind FROM note") if kind in (None, its)}


def stored(bucket: str) -> dict[str, str]:
    """Titles by id, as a client ends with them."""
    return {key: row["title"] for key, row in rows(bucket).items()}


def check() -> None:
    """Everything is as the source has it, in all buckets."""
    eventually(lambda: stored("all|0[]"), wanted())
    for kind in ("a", "b", "c", "k0", "k3"):
        assert stored(f'kinds|0["{kind}"]') == wanted(kind)


@contextmanager
def threads_of_writes(patch: pytest.MonkeyPatch) -> Iterator[set[str]]:
    """The threads that write storage meanwhile."""
    write, found = StorageWriter.write, set[str]()

    def look(self: StorageWriter, changes: Any) -> None:
        found.add(threading.current_thread().name.split("_")[0])
        write(self, changes)

    with patch.context() as context:
        context.setattr(StorageWriter, "write", look)
        yield found


def test_a_backlog_is_stored_in_order(monkeypatch: pytest.MonkeyPatch):
    with threads_of_writes(monkeypatch) as threads, replicating(NOTES):
        check()
    assert "localsync storage" in threads


def test_a_lonely_change_takes_no_way_through_another_thread(monkeypatch: pytest.MonkeyPatch):
    with replicating(NOTES):
        check()
    monkeypatch.setattr("django_localsync.replication.stream.BATCH_ROWS", 5000)
    with threads_of_writes(monkeypatch) as threads, replicating(NOTES) as replicator:
        for number in range(5):
            execute(f"UPDATE note SET title = 'lonely {number}' WHERE id = 3")
            replicator.catch_up()
        check()
    assert threads == {"localsync follower of default"}


def fail_once(patch: pytest.MonkeyPatch, method: str, call: int, when: str) -> list[int]:
    """Make one call of a StorageWriter's method fail, before or after it has had its effect."""
    original: Callable[..., Any] = getattr(StorageWriter, method)
    calls: list[int] = []

    def sometimes(self: StorageWriter, *args: Any, **named: Any) -> Any:
        calls.append(1)
        if len(calls) == call and when == "before":
            raise psycopg.OperationalError("cut off")
        result = original(self, *args, **named)
        if len(calls) == call and when == "after":
            raise psycopg.OperationalError("cut off")
        return result

    patch.setattr(StorageWriter, method, sometimes)
    return calls


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("method", ["write", "publish", "row_states", "find_buckets", "_lock"])
def test_what_fails_is_stored_again_with_all_that_waited_behind_it(method, when, monkeypatch):
    calls = fail_once(monkeypatch, method, 12, when)
    with replicating(NOTES):
        check()
    assert len(calls) > 20


def test_the_first_failure_is_the_one_that_is_told(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture):
    fail_once(monkeypatch, "write", 12, "before")
    with replicating(NOTES):
        check()
    told = [record.getMessage() for record in caplog.records if "again in" in record.getMessage()]
    assert len(told) == 1
    assert "cut off" in told[0]


def test_it_is_stopped_in_the_middle_of_a_backlog():
    for _ in range(4):
        RunningReplicator(RULES=NOTES).stop()
    with replicating(NOTES):
        check()


def last_step_forgotten(patch: pytest.MonkeyPatch) -> None:
    """A step takes rows as storage had them before the step before it was written."""
    work_out = ChangeApplier.work_out
    patch.setattr(ChangeApplier, "work_out", lambda self, step, known, _, find: work_out(self, step, known, {}, find))


def goes_on_after_a_failure(patch: pytest.MonkeyPatch) -> None:
    """What waits behind something that could not be stored is stored all the same."""
    write, failed = StorageWriter.write, []

    def fail_at_the_end(self: StorageWriter, changes: Any) -> None:
        if not failed and any(draft[4] == "2010" for draft in changes.drafts):
            failed.append(1)
            raise psycopg.OperationalError("cut off")
        write(self, changes)

    patch.setattr(StorageWriter, "write", fail_at_the_end)
    patch.setattr(Storing, "_try", lambda self, task: task())
    shutdown = ThreadPoolExecutor.shutdown
    patch.setattr(ThreadPoolExecutor, "shutdown", lambda self, wait, cancel_futures: shutdown(self, wait=wait))


@pytest.mark.parametrize("fault", [last_step_forgotten, goes_on_after_a_failure])
def test_a_deliberate_fault_is_found(fault, monkeypatch):
    fault(monkeypatch)
    monkeypatch.setattr("tests.source.DEADLINE_S", 3.0)
    replicator = RunningReplicator(RULES=NOTES)
    try:
        with pytest.raises(AssertionError):
            check()
    finally:
        replicator.stop()
