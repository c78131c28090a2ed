"""A Python client: a local SQLite database that is kept in sync with a django_localsync backend.

Works where Django is not installed: needs only apsw, httpx2 and orjson. `Database` is for threads, `AsyncDatabase` for
asyncio; both have the same methods. See docs/howto/python-client.md.
"""

from ..protocol.crud import CrudOperation, CrudTransaction, Op, OperationResult, Status, TransactionResult
from .async_database import AsyncDatabase, AsyncTransaction
from .connector import (
    AsyncConnector,
    AsyncLocalSyncConnector,
    Connector,
    LocalSyncConnector,
    Rejection,
    UploadDeferred,
)
from .database import Database, Transaction
from .schema import Column, ColumnType, Index, IndexColumn, Schema, Table
from .status import SyncStatus
from .sync import SyncOptions
from .transport import Credentials
from .upload_queue import CrudBatch

__all__ = [
    "AsyncConnector",
    "AsyncDatabase",
    "AsyncLocalSyncConnector",
    "AsyncTransaction",
    "Column",
    "ColumnType",
    "Connector",
    "Credentials",
    "CrudBatch",
    "CrudOperation",
    "CrudTransaction",
    "Database",
    "Index",
    "IndexColumn",
    "LocalSyncConnector",
    "Op",
    "OperationResult",
    "Rejection",
    "Schema",
    "Status",
    "SyncOptions",
    "SyncStatus",
    "Table",
    "Transaction",
    "TransactionResult",
    "UploadDeferred",
]
