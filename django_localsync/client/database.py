"""The blocking driver: a local database for threads, kept in sync by a thread of its own."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from os import PathLike
from types import TracebackType
from typing import Any, Self, TypeVar

from ..protocol.crud import CrudTransaction
from . import upload_queue
from .connector import Connector
from .schema import Schema
from .status import StatusHolder, SyncStatus
from .store import Bindings, Row, Store
from .subscriptions import DEFAULT_TTL_S, Key, subscribe, subscription_key
from .sync import Synchroniser, SyncOptions, uncancelled
from .upload_queue import CrudBatch

T = TypeVar("T")


class Transaction:
    """An open write transaction. Its reads see its own writes."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def execute(self, sql: str, bindings: Bindings = ()) -> list[Row]:
        """Run one statement; rows, if it has any, as dicts by column name."""
        return self._store.execute(sql, bindings)

    def execute_batch(self, sql: str, bindings: Iterable[Bindings]) -> None:
        """Run one statement for each set of bindings."""
        self._store.execute_batch(sql, bindings)

    def get_all(self, sql: str, bindings: Bindings = ()) -> list[Row]:
        """All rows of a query."""
        return self._store.execute(sql, bindings)

    def get_optional(self, sql: str, bindings: Bindings = ()) -> Row | None:
        """The first row of a query, or None."""
        return next(iter(self._store.execute(sql, bindings)), None)

    def get(self, sql: str, bindings: Bindings = ()) -> Row:
        """The first row of a query. Raises LookupError if there is none."""
        return expect_row(self.get_optional(sql, bindings))


class Database:
    """A SQLite database that is kept in sync with a backend. May be used from any thread.

    Reads see the last commit and never wait for the network. Raises apsw.Error for what SQLite refuses.
    """

    def __init__(self, path: str | PathLike[str], schema: Schema) -> None:
        self._store = Store(path, schema)
        self._lock = threading.RLock()
        self._in_transaction = False
        self._status = StatusHolder(SyncStatus(last_synced_at=from_microseconds(self._store.last_synced_at_us())))
        self._held: Counter[Key] = Counter()
        self._connection: _Connection | None = None
        self._wakers: set[threading.Event] = set()
        self._closed = False
        self.client_id: str = self._store.client_id()
        """Identifies this database to the backend; it stays the same for the life of the file."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    # Sync

    def connect(self, connector: Connector, options: SyncOptions | None = None) -> None:
        """Keep in sync in the background until `disconnect` or `close`; a connection that is there is replaced."""
        self.disconnect()
        self._connection = _Connection(self, connector, options or SyncOptions())

    def disconnect(self) -> None:
        """Stop syncing. Local data stays, writes go on to be queued."""
        if self._connection:
            self._connection.stop()
            self._connection = None

    def disconnect_and_clear(self, *, clear_local: bool = True) -> None:
        """Stop syncing and forget all rows and queued writes, as for a logout; `clear_local`: local-only tables too."""
        self.disconnect()
        with self._exclusive():
            self._store.clear(local=clear_local)
        self._status.update(last_synced_at=None, download_error=None, upload_error=None)

    def close(self) -> None:
        """Stop syncing, end all `watch` loops and close the file."""
        self.disconnect()
        self._closed = True
        for waker in list(self._wakers):
            waker.set()
        with self._lock:
            self._store.close()

    @property
    def status(self) -> SyncStatus:
        """The state of synchronisation now."""
        return self._status.current

    def on_status(self, callback: Callable[[SyncStatus], None]) -> Callable[[], None]:
        """Be told of each change of status, in the syncing thread; call the result to stop."""
        return self._status.listen(callback)

    def wait_for_status(self, predicate: Callable[[SyncStatus], bool], timeout_s: float | None = None) -> None:
        """Wait until the status is as the predicate says. Raises TimeoutError."""
        with self._waker() as changed:
            stop = self._status.listen(lambda _: changed.set())
            try:
                deadline = None if timeout_s is None else time.monotonic() + timeout_s
                while not predicate(self.status):
                    left = None if deadline is None else deadline - time.monotonic()
                    if self._closed or (left is not None and left <= 0) or not changed.wait(left):
                        raise TimeoutError(f"the status did not become as awaited; it is {self.status}")
                    changed.clear()
            finally:
                stop()

    def wait_for_first_sync(self, timeout_s: float | None = None) -> None:
        """Wait until everything was complete once, now or in an earlier run. Raises TimeoutError."""
        self.wait_for_status(lambda status: status.has_synced, timeout_s)

    def sync_stream(self, name: str, parameters: dict[str, Any] | None = None) -> SyncStream:
        """A stream to subscribe to."""
        return SyncStream(self, subscription_key(name, parameters))

    # SQL

    def execute(self, sql: str, bindings: Bindings = ()) -> list[Row]:
        """Run one statement in a transaction of its own; rows, if it has any, as dicts by column name."""
        with self.write_transaction() as transaction:
            return transaction.execute(sql, bindings)

    def execute_batch(self, sql: str, bindings: Iterable[Bindings]) -> None:
        """Run one statement for each set of bindings, in one transaction."""
        with self.write_transaction() as transaction:
            transaction.execute_batch(sql, bindings)

    def get_all(self, sql: str, bindings: Bindings = ()) -> list[Row]:
        """All rows of a query, as dicts by column name."""
        return self._store.read(sql, bindings)

    def get_optional(self, sql: str, bindings: Bindings = ()) -> Row | None:
        """The first row of a query, or None."""
        return next(iter(self._store.read(sql, bindings)), None)

    def get(self, sql: str, bindings: Bindings = ()) -> Row:
        """The first row of a query. Raises LookupError if there is none."""
        return expect_row(self.get_optional(sql, bindings))

    @contextmanager
    def write_transaction(self) -> Iterator[Transaction]:
        """Statements that are committed, and uploaded, together; rolled back if the block raises."""
        with self._exclusive(), self._store.transaction():
            yield Transaction(self._store)

    def watch(self, sql: str, bindings: Bindings = ()) -> Iterator[list[Row]]:
        """The rows of a query now, and again whenever they have changed; ends when the database is closed."""
        tables = self._store.tables_read(sql)
        with self._waker() as changed:
            stop = self._store.changes.add(lambda names: changed.set() if names & tables else None)
            try:
                shown: list[Row] | None = None
                while not self._closed:
                    changed.clear()
                    rows = self._store.read(sql, bindings)
                    if rows != shown:
                        shown = rows
                        yield rows
                    changed.wait()
            finally:
                stop()

    # The upload queue

    def get_crud_batch(self, limit: int = 100) -> CrudBatch[None] | None:
        """The oldest queued writes, or None if there are none. A local transaction may be cut in two."""
        operations = self._store.crud_operations(limit)
        return CrudBatch(operations, None, self.complete) if operations else None

    def get_next_crud_transaction(self) -> CrudBatch[None] | None:
        """The oldest local transaction that is not uploaded, or None."""
        for transaction in self._store.crud_transactions(1):
            return CrudBatch(transaction.operations, transaction.id, self.complete)
        return None

    def get_crud_transactions(self, max_operations: int = 100) -> list[CrudTransaction]:
        """The oldest local transactions, whole, until they hold `max_operations` writes."""
        return self._store.crud_transactions(max_operations)

    def complete(self, through_op_id: int, write_checkpoint: int | None = None) -> None:
        """The backend has all writes up to this one: remove them from the queue.

        `write_checkpoint`: the backend's own receipt, where it makes them itself.
        """
        with self._exclusive(), self._store.transaction() as connection:
            upload_queue.complete(connection, through_op_id, write_checkpoint)

    # For this package

    @contextmanager
    def _exclusive(self) -> Iterator[None]:
        with self._lock:
            if self._in_transaction:
                raise RuntimeError("a write transaction is open in this thread; use its own methods")
            self._in_transaction = True
            try:
                yield
            finally:
                self._in_transaction = False

    @contextmanager
    def _waker(self) -> Iterator[threading.Event]:
        waker = threading.Event()
        self._wakers.add(waker)
        try:
            yield waker
        finally:
            self._wakers.discard(waker)

    def _subscribe(self, key: Key, ttl_s: int, priority: int | None) -> None:
        with self._exclusive(), self._store.transaction() as connection:
            is_new = subscribe(connection, key, ttl_s, priority, int(time.time()))
        self._held[key] += 1
        if is_new and self._connection:
            self._connection.restart_stream()

    def _release(self, key: Key) -> None:
        self._held[key] -= 1
        self._held += Counter()  # drops what nobody holds

    def _has_synced(self, key: Key) -> bool:
        return self._store.has_synced(key)


class SyncStream:
    """A stream by name and parameters."""

    def __init__(self, database: Database, key: Key) -> None:
        self._database, self._key = database, key

    def subscribe(self, *, ttl_s: int = DEFAULT_TTL_S, priority: int | None = None) -> SyncStreamSubscription:
        """Sync this stream: as long as the subscription is held, and `ttl_s` seconds longer."""
        self._database._subscribe(self._key, ttl_s, priority)
        return SyncStreamSubscription(self._database, self._key)


class SyncStreamSubscription:
    """A held subscription."""

    def __init__(self, database: Database, key: Key) -> None:
        self._database, self._key, self._is_held = database, key, True

    def wait_for_first_sync(self, timeout_s: float | None = None) -> None:
        """Wait until the stream's data was complete once. Raises TimeoutError."""
        self._database.wait_for_status(lambda _: self._database._has_synced(self._key), timeout_s)

    def unsubscribe(self) -> None:
        """Let go: the data stays until the time to live has passed."""
        if self._is_held:
            self._is_held = False
            self._database._release(self._key)


class _Connection:
    """The syncing thread: an event loop with a Synchroniser in it."""

    def __init__(self, database: Database, connector: Connector, options: SyncOptions) -> None:
        self._database, self._connector, self._options = database, connector, options
        self._loop = asyncio.new_event_loop()
        self._task: asyncio.Task[None] | None = None
        self._synchroniser: Synchroniser | None = None
        started = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(started,), name="localsync", daemon=True)
        self._thread.start()
        started.wait()

    def stop(self) -> None:
        """End the thread; a request that is under way is abandoned."""
        with suppress(RuntimeError):  # it may have ended by itself
            self._loop.call_soon_threadsafe(self._cancel)
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def restart_stream(self) -> None:
        """Begin a new request."""
        if self._synchroniser:
            with suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._synchroniser.restart_stream)

    def _run(self, started: threading.Event) -> None:
        try:
            with asyncio.Runner(loop_factory=lambda: self._loop) as runner, suppress(asyncio.CancelledError):
                runner.run(self._synchronise(started))
        finally:
            started.set()  # whoever waits must not wait for a thread that could not start

    async def _synchronise(self, started: threading.Event) -> None:
        self._task = asyncio.current_task()
        database = self._database
        self._synchroniser = Synchroniser(
            database._store,
            database._status,
            self._options,
            exclusive=self._exclusive,
            fetch=lambda: _in_thread(self._connector.fetch_credentials),
            upload=lambda: _in_thread(lambda: self._connector.upload_data(database)),
            held=lambda: database._held.keys(),
        )
        started.set()
        await self._synchroniser.run()

    def _cancel(self) -> None:
        if self._task:
            self._task.cancel()

    async def _exclusive(self, function: Callable[[], T]) -> T:
        def locked() -> T:
            with self._database._exclusive():
                return function()

        return await uncancelled(asyncio.to_thread(locked))


async def _in_thread(function: Callable[[], T]) -> T:
    """Run an app's function in a daemon thread: neither disconnecting nor the end of the program waits for it."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def settle(result: T | None, error: Exception | None) -> None:
        if not future.done():
            if error:
                future.set_exception(error)
            else:
                future.set_result(result)  # type: ignore[arg-type]

    def work() -> None:
        result, error = None, None
        try:
            result = function()
        except Exception as raised:
            error = raised
        with suppress(RuntimeError):  # nobody waits any more
            loop.call_soon_threadsafe(settle, result, error)

    threading.Thread(target=work, name="localsync connector", daemon=True).start()
    return await future


def expect_row(row: Row | None) -> Row:
    """The row. Raises LookupError if there is none."""
    if row is None:
        raise LookupError("the query has no rows; use get_optional if that may be")
    return row


def from_microseconds(value: int | None) -> datetime | None:
    """A time as the database keeps it."""
    return None if value is None else datetime.fromtimestamp(value / 1_000_000, UTC)
