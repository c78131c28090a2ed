"""The client's SQLite file: one connection that writes, one that reads, and what changed with each commit.

The writer has no lock of its own: whoever calls `begin`, `transaction`, `advance` or a method that says so must hold
the driver's. Reads may come from any thread.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from os import PathLike, fspath
from typing import Any, assert_never, cast

import apsw
import apsw.ext

from ..protocol.crud import CrudOperation, CrudTransaction
from . import bucket_storage, subscriptions, upload_queue
from .engine import (
    FULL_SYNC_PRIORITY,
    CloseStream,
    CompleteCheckpoint,
    Event,
    ExtendSubscriptions,
    FetchCredentials,
    Instruction,
    KeepOnlyBuckets,
    NoteStreams,
    RemoveBuckets,
    StoreAction,
    StoreData,
    SyncCompleted,
    SyncIteration,
)
from .layout import bring_to_schema
from .observable import Listeners
from .schema import Schema
from .subscriptions import Subscription

Bindings = Sequence[Any] | Mapping[str, Any]
Row = dict[str, Any]

# WAL: readers never wait for the writer. A power cut may lose the last commits, never their order (NORMAL).
# A first download writes indexes at random places, so that a cache and fewer WAL checkpoints pay.
_CONFIGURE = """
    PRAGMA journal_mode = wal;
    PRAGMA synchronous = normal;
    PRAGMA cache_size = -50000;
    PRAGMA wal_autocheckpoint = 4000;
    PRAGMA journal_size_limit = 67108864;
"""
BUSY_TIMEOUT_MS = 30_000

_TRANSACTION_WORDS = frozenset({"BEGIN", "COMMIT", "END", "ROLLBACK", "SAVEPOINT", "RELEASE", "ATTACH", "DETACH"})


class Store:
    """A database file with the tables of a schema. Creates the file if there is none.

    Raises ConfigurationError for a file of another layout, apsw.Error for what SQLite refuses.
    """

    def __init__(self, path: str | PathLike[str], schema: Schema) -> None:
        self.schema = schema
        self.changes: Listeners[frozenset[str]] = Listeners()
        """Told the names of the tables that a commit changed, in the committing thread."""
        self._changed: set[str] = set()
        self._writer = _open(fspath(path))
        self._writer.execute(_CONFIGURE).fetchall()  # execute() alone would stop at the first row
        self._writer.execute(bucket_storage.PREPARE)
        with self.transaction():
            bring_to_schema(self._writer, schema)
        self._reader = _open(fspath(path))
        self._reader.execute("PRAGMA query_only = 1")
        self._reader_lock = threading.Lock()

    def close(self) -> None:
        """Close the file. Nothing else may be called afterwards."""
        with self._reader_lock:
            self._reader.close()
        self._writer.close()

    # Transactions of the writer

    def begin(self) -> None:
        """Begin a write transaction. Holds the driver's lock until commit or rollback."""
        self._writer.execute("BEGIN IMMEDIATE")
        self._writer.set_update_hook(self._note_change)

    def commit(self) -> None:
        """Make the transaction's writes durable and tell listeners which tables changed."""
        self._writer.set_update_hook(None)
        self._finish()

    def rollback(self) -> None:
        """Undo the transaction."""
        self._writer.set_update_hook(None)
        self._changed.clear()
        if self._writer.in_transaction:  # some errors have rolled back already
            self._writer.execute("ROLLBACK")

    @contextmanager
    def transaction(self) -> Iterator[apsw.Connection]:
        """A write transaction of the app or of the upload queue; rolled back if the block raises."""
        self.begin()
        try:
            yield self._writer
            self.commit()
        except BaseException:
            self.rollback()
            raise

    @contextmanager
    def _silent_transaction(self) -> Iterator[apsw.Connection]:
        # No update hook: it would run Python for each downloaded row. What changed is known anyway.
        self._writer.execute("BEGIN IMMEDIATE")
        try:
            yield self._writer
            self._finish()
        except BaseException:
            self.rollback()
            raise

    def _finish(self) -> None:
        self._writer.execute("UPDATE ps_tx SET current_tx = NULL WHERE current_tx IS NOT NULL; COMMIT")
        changed, self._changed = frozenset(self._changed), set()
        if changed:
            self.changes.tell(changed)

    def _note_change(self, _operation: int, _database: str, table: str, _rowid: int) -> None:
        self._changed.add(table)

    # SQL of the app

    def execute(self, sql: str, bindings: Bindings = ()) -> list[Row]:
        """Run a statement in the open transaction; rows as dicts by column name."""
        _refuse_transaction_words(sql)
        return _rows(self._writer, sql, bindings)

    def execute_batch(self, sql: str, bindings: Iterable[Bindings]) -> None:
        """Run a statement in the open transaction, once for each set of bindings."""
        _refuse_transaction_words(sql)
        self._writer.executemany(sql, bindings)

    def read(self, sql: str, bindings: Bindings = ()) -> list[Row]:
        """Run a query on the reading connection: it sees the last commit. Needs no lock."""
        with self._reader_lock:
            return _rows(self._reader, sql, bindings)

    def tables_read(self, sql: str) -> frozenset[str]:
        """The tables that a query reads, views resolved: SQLite names them while it prepares the statement."""
        with self._reader_lock:
            actions = apsw.ext.query_info(self._reader, sql, actions=True).actions or []
        return frozenset(
            action.table_name for action in actions if action.action_name == "SQLITE_READ" and action.table_name
        )

    # Sync

    def advance(self, iteration: SyncIteration, events: Iterable[Event]) -> list[Instruction]:
        """Do in the database what the events cause, in one transaction; what is left to do outside comes back."""
        instructions: list[Instruction] = []
        with self._silent_transaction():
            for event in events:
                actions = deque(iteration.handle(event))
                while actions:
                    match actions.popleft():
                        case (
                            CloseStream() | FetchCredentials() | ExtendSubscriptions() | SyncCompleted() as instruction
                        ):
                            instructions.append(instruction)
                        case action:
                            outcome = self._perform(action)
                            actions.extend(iteration.handle(outcome) if outcome else ())
        return instructions

    def _perform(self, action: StoreAction) -> Event | None:
        match action:
            case StoreData(line):
                bucket_storage.store_data(self._writer, line)
            case KeepOnlyBuckets(names):
                bucket_storage.keep_only_buckets(self._writer, names)
            case RemoveBuckets(names):
                bucket_storage.remove_buckets(self._writer, names)
            case NoteStreams():
                subscriptions.note_streams(self._writer, action)
            case CompleteCheckpoint():
                outcome, changed = bucket_storage.complete_checkpoint(
                    self._writer, self.schema, action, time.time_ns() // 1000
                )
                self._changed |= changed
                return outcome
            case _:
                assert_never(action)
        return None

    def read_stream_state(self) -> tuple[list[tuple[str, int]], list[Subscription]]:
        """What a stream's request says: buckets with their last op ids, and subscriptions. Needs the lock."""
        with self.transaction() as connection:
            wanted = subscriptions.read_subscriptions(connection, int(time.time()))
            buckets = connection.execute("SELECT name, last_op FROM ps_buckets WHERE NOT pending_delete ORDER BY name")
            return cast("list[tuple[str, int]]", buckets.fetchall()), wanted

    def last_synced_at_us(self) -> int | None:
        """When everything was last in sync, in microseconds since 1970."""
        rows = self.read("SELECT last_synced_at FROM ps_sync_state WHERE priority = ?", (FULL_SYNC_PRIORITY,))
        return rows[0]["last_synced_at"] if rows else None

    def client_id(self) -> str:
        """This database's id (a UUID), made at first use. Needs the lock."""
        with self.transaction() as connection:
            connection.execute(
                "INSERT INTO ps_kv(key, value) VALUES('client_id', ?) ON CONFLICT(key) DO NOTHING", (str(uuid.uuid4()),)
            )
            row = connection.execute("SELECT value FROM ps_kv WHERE key = 'client_id'").fetchone()
            return str(row[0])  # type: ignore[index]

    def clear(self, *, local: bool) -> None:
        """Forget everything but the client id: rows, queue, subscriptions; `local`: local-only tables too.

        Needs the lock. The next connection downloads from the beginning.
        """
        with self.transaction() as connection:
            for table in (*_CLEARED, *(f'"{name}"' for name in self._data_tables(local))):
                connection.execute(f"DELETE FROM {table} WHERE true")
                self._changed.add(table.strip('"'))
            connection.execute("DELETE FROM ps_kv WHERE key != 'client_id'")

    def _data_tables(self, local: bool) -> list[str]:
        return [table.data_table for table in self.schema.tables if local or not table.local_only]

    def has_synced(self, key: subscriptions.Key) -> bool:
        """Whether a subscription's data was complete once."""
        with self._reading() as connection:
            return subscriptions.last_synced_at_us(connection, key) is not None

    # Upload queue

    @contextmanager
    def _reading(self) -> Iterator[apsw.Connection]:
        with self._reader_lock:
            yield self._reader

    def crud_operations(self, limit: int) -> tuple[CrudOperation, ...]:
        """The oldest queued writes."""
        with self._reading() as connection:
            return upload_queue.read_operations(connection, limit)

    def crud_transactions(self, max_operations: int) -> list[CrudTransaction]:
        """The oldest queued transactions, whole."""
        with self._reading() as connection:
            return upload_queue.read_transactions(connection, max_operations)

    def first_op_id(self) -> int | None:
        """The oldest queued write's number."""
        with self._reading() as connection:
            return upload_queue.first_op_id(connection)

    def needs_write_checkpoint(self) -> int | None:
        """See upload_queue.needs_write_checkpoint."""
        with self._reading() as connection:
            return upload_queue.needs_write_checkpoint(connection)


_CLEARED = (
    "ps_oplog",
    "ps_buckets",
    "ps_crud",
    "ps_untyped",
    "ps_updated_rows",
    "ps_stream_subscriptions",
    "ps_sync_state",
)


def _open(path: str) -> apsw.Connection:
    connection = apsw.Connection(path)
    connection.set_busy_timeout(BUSY_TIMEOUT_MS)
    connection.create_scalar_function("uuid", lambda *_: str(uuid.uuid4()), 0)  # new rows need ids
    return connection


def _rows(connection: apsw.Connection, sql: str, bindings: Bindings) -> list[Row]:
    cursor = connection.execute(sql, bindings)
    names: list[str] = []
    rows: list[Row] = []
    for row in cursor:
        names = names or [column[0] for column in cursor.get_description()]
        rows.append(dict(zip(names, row, strict=True)))
    return rows


def _refuse_transaction_words(sql: str) -> None:
    words = sql.split(maxsplit=1)
    if words and words[0].rstrip(";").upper() in _TRANSACTION_WORDS:
        raise ValueError(f"{words[0]} cannot be executed by hand; use write_transaction()")
