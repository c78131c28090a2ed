"""What devices send, in few words."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import count
from typing import Any

from django_localsync.protocol.crud import CrudOperation, CrudTransaction, Op, TransactionResult, UploadRequest
from django_localsync.upload import UploadHandler, UploadTable

_op_ids, _transaction_ids = count(1), count(1)


def put(table: str, row: object, **data: Any) -> CrudOperation:
    return CrudOperation(next(_op_ids), Op.PUT, table, str(row), data)


def patch(table: str, row: object, old: Mapping[str, Any] | None = None, **data: Any) -> CrudOperation:
    return CrudOperation(next(_op_ids), Op.PATCH, table, str(row), data, old)


def delete(table: str, row: object, old: Mapping[str, Any] | None = None) -> CrudOperation:
    return CrudOperation(next(_op_ids), Op.DELETE, table, str(row), None, old)


def transaction_of(*operations: CrudOperation) -> CrudTransaction:
    return CrudTransaction(next(_transaction_ids), operations)


def upload_of(*transactions: CrudTransaction, client_id: str = "phone") -> UploadRequest:
    return UploadRequest(client_id, transactions)


def handler_of(attributes: Mapping[str, Any] | None = None, /, **tables: Any) -> UploadHandler:
    """A handler with these tables, and class attributes."""
    return type("Handler", (UploadHandler,), {"tables": tables, **(attributes or {})})()


def send(handler: UploadHandler, user: Any, *operations: CrudOperation, client_id: str = "phone") -> TransactionResult:
    """Send one local transaction."""
    (result,) = handler.handle(upload_of(transaction_of(*operations), client_id=client_id), user)
    return result


def codes(result: TransactionResult) -> list[str | None]:
    return [operation.code for operation in result.operations]


def statuses(result: TransactionResult) -> list[str]:
    return [operation.status.value for operation in result.operations]


def table(**attributes: Any) -> UploadTable:
    return UploadTable(**attributes)
