"""The asyncio driver: `Database` with coroutines. SQLite runs in threads, so that the event loop never waits for it."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager, suppress
from os import PathLike
from types import TracebackType
from typing import Any, Self, TypeVar

import apsw

from ..protocol.crud import CrudTransaction
from . import upload_queue
from .connector import AsyncConnector
from .database import expect_row, from_microseconds
from .schema import Schema
from .status import StatusHolder, SyncStatus
from .store import Bindings, Row, Store
from .subscriptions import DEFAULT_TTL_S, Key, subscribe, subscription_key
from .sync import Synchroniser, SyncOptions, uncancelled
from .upload_queue import CrudBatch

T = TypeVar("T")


class AsyncTransaction:
    """An open write transaction. Its reads see its own writes."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def execute(self, sql: str, bindings: Bindings = ()) -> list[Row]:
        """Run one statement; rows, if it has any, as dicts by column name."""
        return await _in_thread(lambda: self._store.execute(sql, bindings))

    async def execute_batch(self, sql: str, bindings: Iterable[Bindings]) -> None:
        """Run one statement for each set of bindings."""
        await _in_thread(lambda: self._store.execute_batch(sql, bindings))

    async def get_all(self, sql: str, bindings: Bindings = ()) -> list[Row]:
        """All rows of a query."""
        return await self.execute(sql, bindings)

    async def get_optional(self, sql: str, bindings: Bindings = ()) -> Row | None:
        """The first row of a query, or None."""
        return next(iter(await self.execute(sql, bindings)), None)

    async def get(self, sql: str, bindings: Bindings = ()) -> Row:
        """The first row of a query. Raises LookupError if there is none."""
        return expect_row(await self.get_optional(sql, bindings))


class AsyncDatabase:
    """A SQLite database that is kept in sync with a backend. Belongs to the event loop that made it.

    Reads see the last commit and never wait for the network. Raises apsw.Error for what SQLite refuses.
    """

    def __init__(self, path: str | PathLike[str], schema: Schema) -> None:
        self._store = Store(path, schema)
        self._lock = asyncio.Lock()
        self._owner: asyncio.Task[Any] | None = None
        self._status = StatusHolder(SyncStatus(last_synced_at=from_microseconds(self._store.last_synced_at_us())))
        self._held: Counter[Key] = Counter()
        self._synchroniser: Synchroniser | None = None
        self._task: asyncio.Task[None] | None = None
        self._wakers: set[asyncio.Event] = set()
        self._closed = False
        self.client_id: str = self._store.client_id()
        """Identifies this database to the backend; it stays the same for the life of the file."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    # Sync

    async def connect(self, connector: AsyncConnector, options: SyncOptions | None = None) -> None:
        """Keep in sync in the background until `disconnect` or `close`; a connection that is there is replaced."""
        await self.disconnect()
        self._synchroniser = Synchroniser(
            self._store,
            self._status,
            options or SyncOptions(),
            exclusive=self._run_exclusively,
            fetch=connector.fetch_credentials,
            upload=lambda: connector.upload_data(self),
            held=self._held.keys,
        )
        self._task = asyncio.create_task(self._synchroniser.run())

    async def disconnect(self) -> None:
        """Stop syncing. Local data stays, writes go on to be queued."""
        task, self._task, self._synchroniser = self._task, None, None
        if task:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    async def disconnect_and_clear(self, *, clear_local: bool = True) -> None:
        """Stop syncing and forget all rows and queued writes, as for a logout; `clear_local`: local-only tables too."""
        await self.disconnect()
        await self._run_exclusively(lambda: self._store.clear(local=clear_local))
        self._status.update(last_synced_at=None, download_error=None, upload_error=None)

    async def close(self) -> None:
        """Stop syncing, end all `watch` loops and close the file."""
        await self.disconnect()
        self._closed = True
        for waker in self._wakers:
            waker.set()
        async with self._lock:
            await _in_thread(self._store.close)

    @property
    def status(self) -> SyncStatus:
        """The state of synchronisation now."""
        return self._status.current

    def on_status(self, callback: Callable[[SyncStatus], None]) -> Callable[[], None]:
        """Be told of each change of status, in the event loop; call the result to stop."""
        return self._status.listen(callback)

    async def wait_for_status(self, predicate: Callable[[SyncStatus], bool], timeout_s: float | None = None) -> None:
        """Wait until the status is as the predicate says. Raises TimeoutError."""
        with _Waker(self._wakers, self._status.listen) as waker:
            try:
                async with asyncio.timeout(timeout_s):
                    while not predicate(self.status):
                        if self._closed:
                            raise TimeoutError
                        await waker.next()
            except TimeoutError:
                raise TimeoutError(f"the status did not become as awaited; it is {self.status}") from None

    async def wait_for_first_sync(self, timeout_s: float | None = None) -> None:
        """Wait until everything was complete once, now or in an earlier run. Raises TimeoutError."""
        await self.wait_for_status(lambda status: status.has_synced, timeout_s)

    def sync_stream(self, name: str, parameters: dict[str, Any] | None = None) -> AsyncSyncStream:
        """A stream to subscribe to."""
        return AsyncSyncStream(self, subscription_key(name, parameters))

    # SQL

    async def execute(self, sql: str, bindings: Bindings = ()) -> list[Row]:
        """Run one statement in a transaction of its own; rows, if it has any, as dicts by column name."""
        async with self.write_transaction() as transaction:
            return await transaction.execute(sql, bindings)

    async def execute_batch(self, sql: str, bindings: Iterable[Bindings]) -> None:
        """Run one statement for each set of bindings, in one transaction."""
        async with self.write_transaction() as transaction:
            await transaction.execute_batch(sql, bindings)

    async def get_all(self, sql: str, bindings: Bindings = ()) -> list[Row]:
        """All rows of a query, as dicts by column name."""
        return await _in_thread(lambda: self._store.read(sql, bindings))

    async def get_optional(self, sql: str, bindings: Bindings = ()) -> Row | None:
        """The first row of a query, or None."""
        return next(iter(await self.get_all(sql, bindings)), None)

    async def get(self, sql: str, bindings: Bindings = ()) -> Row:
        """The first row of a query. Raises LookupError if there is none."""
        return expect_row(await self.get_optional(sql, bindings))

    @asynccontextmanager
    async def write_transaction(self) -> AsyncIterator[AsyncTransaction]:
        """Statements that are committed, and uploaded, together; rolled back if the block raises."""
        async with self._exclusive():
            try:
                await _in_thread(self._store.begin)
                yield AsyncTransaction(self._store)
                await _in_thread(self._store.commit)
            except BaseException:
                await _in_thread(self._store.rollback)
                raise

    async def watch(self, sql: str, bindings: Bindings = ()) -> AsyncIterator[list[Row]]:
        """The rows of a query now, and again whenever they have changed; ends when the database is closed."""
        tables = await _in_thread(lambda: self._store.tables_read(sql))
        with _Waker(self._wakers, self._store.changes.add, lambda names: bool(names & tables)) as waker:
            shown: list[Row] | None = None
            while not self._closed:
                rows = await self.get_all(sql, bindings)
                if rows != shown:
                    shown = rows
                    yield rows
                await waker.next()

    # The upload queue

    async def get_crud_batch(self, limit: int = 100) -> CrudBatch[Awaitable[None]] | None:
        """The oldest queued writes, or None if there are none. A local transaction may be cut in two."""
        operations = await _in_thread(lambda: self._store.crud_operations(limit))
        return CrudBatch(operations, None, self.complete) if operations else None

    async def get_next_crud_transaction(self) -> CrudBatch[Awaitable[None]] | None:
        """The oldest local transaction that is not uploaded, or None."""
        for transaction in await self.get_crud_transactions(1):
            return CrudBatch(transaction.operations, transaction.id, self.complete)
        return None

    async def get_crud_transactions(self, max_operations: int = 100) -> list[CrudTransaction]:
        """The oldest local transactions, whole, until they hold `max_operations` writes."""
        return await _in_thread(lambda: self._store.crud_transactions(max_operations))

    async def complete(self, through_op_id: int, write_checkpoint: int | None = None) -> None:
        """The backend has all writes up to this one: remove them from the queue.

        `write_checkpoint`: the backend's own receipt, where it makes them itself.
        """
        await self._in_transaction(lambda c: upload_queue.complete(c, through_op_id, write_checkpoint))

    # For this package

    @asynccontextmanager
    async def _exclusive(self) -> AsyncIterator[None]:
        if self._owner is asyncio.current_task():
            raise RuntimeError("a write transaction is open in this task; use its own methods")
        async with self._lock:
            self._owner = asyncio.current_task()
            try:
                yield
            finally:
                self._owner = None

    async def _run_exclusively(self, function: Callable[[], T]) -> T:
        async with self._exclusive():
            return await _in_thread(function)

    async def _in_transaction(self, function: Callable[[apsw.Connection], T]) -> T:
        def in_transaction() -> T:
            with self._store.transaction() as connection:
                return function(connection)

        return await self._run_exclusively(in_transaction)

    async def _subscribe(self, key: Key, ttl_s: int, priority: int | None) -> None:
        is_new = await self._in_transaction(lambda c: subscribe(c, key, ttl_s, priority, int(time.time())))
        self._held[key] += 1
        if is_new and self._synchroniser:
            self._synchroniser.restart_stream()

    def _release(self, key: Key) -> None:
        self._held[key] -= 1
        if not self._held[key]:
            del self._held[key]


class AsyncSyncStream:
    """A stream by name and parameters."""

    def __init__(self, database: AsyncDatabase, key: Key) -> None:
        self._database, self._key = database, key

    async def subscribe(
        self, *, ttl_s: int = DEFAULT_TTL_S, priority: int | None = None
    ) -> AsyncSyncStreamSubscription:
        """Sync this stream: as long as the subscription is held, and `ttl_s` seconds longer."""
        await self._database._subscribe(self._key, ttl_s, priority)
        return AsyncSyncStreamSubscription(self._database, self._key)


class AsyncSyncStreamSubscription:
    """A held subscription."""

    def __init__(self, database: AsyncDatabase, key: Key) -> None:
        self._database, self._key, self._is_held = database, key, True

    async def wait_for_first_sync(self, timeout_s: float | None = None) -> None:
        """Wait until the stream's data was complete once. Raises TimeoutError."""
        has_synced = self._database._store.has_synced
        await self._database.wait_for_status(lambda _: has_synced(self._key), timeout_s)

    def unsubscribe(self) -> None:
        """Let go: the data stays until the time to live has passed."""
        if self._is_held:
            self._is_held = False
            self._database._release(self._key)


class _Waker:
    """An asyncio.Event that listeners in other threads can set."""

    def __init__(
        self,
        wakers: set[asyncio.Event],
        listen: Callable[[Callable[[Any], None]], Callable[[], None]],
        concerns: Callable[[Any], bool] = lambda _: True,
    ) -> None:
        self._wakers, self._event, self._loop = wakers, asyncio.Event(), asyncio.get_running_loop()
        self._listen, self._concerns = listen, concerns

    def __enter__(self) -> Self:
        self._wakers.add(self._event)
        self._stop = self._listen(self._hear)
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()
        self._wakers.discard(self._event)

    async def next(self) -> None:
        """Wait until something concerned us since the last time."""
        await self._event.wait()
        self._event.clear()

    def _hear(self, what: Any) -> None:
        if self._concerns(what):
            with suppress(RuntimeError):  # the loop may be closed
                self._loop.call_soon_threadsafe(self._event.set)


async def _in_thread(function: Callable[[], T]) -> T:
    """Run something of SQLite's in a thread, to its end even if the caller is cancelled."""
    return await uncancelled(asyncio.to_thread(function))
