"""Uploads: the body that carries a device's upload queue, and its answer.

The format is version 1 of docs/reference/upload.schema.json. A body is parsed once into frozen values; everything
that is wrong with its shape is a RequestError (400 PSYNC_S2001) whose details name the place and the problem. It
refuses what no client sends; what an app's user can cause must not block the queue, and is rejected by the handler.
What a value means, or whether it may be written, is the upload handler's business.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, NoReturn

import orjson

from ..exceptions import ProtocolError, RequestError

VERSION = 1
"""Of the format; a body may say it."""

MAX_ID = 2**63 - 1  # SQLite's largest integer
MAX_CLIENT_ID_CHARACTERS = 200
MAX_NAME_CHARACTERS = 200  # of a column, as far as an error repeats it
MAX_COLUMNS = 1999  # what a client's table can have
MAX_OPERATIONS = 50_000  # a body; the official clients send a local transaction, or 100 operations, at a time

Scalar = str | int | float | bool | None
"""A value as SQLite holds it. JSON, decimals, dates and arrays travel as their text."""


class Op(StrEnum):
    """What a local write did."""

    PUT = "PUT"
    PATCH = "PATCH"
    DELETE = "DELETE"


class Status(StrEnum):
    """What became of an operation, or of a local transaction."""

    APPLIED = "applied"
    REJECTED = "rejected"  # for good: sending it again cannot help
    DEFERRED = "deferred"  # not looked at: the device keeps it and sends it again


@dataclass(frozen=True, slots=True)
class CrudOperation:
    """One local write. `op_id` is its number in the device's queue, the same when it is sent again.

    `data` holds the columns that a PUT or PATCH sets (None for DELETE), `old` their previous values where the
    device keeps them, `metadata` a text of the app's own.
    """

    op_id: int
    op: Op
    type: str
    id: str
    data: Mapping[str, Scalar] | None = None
    old: Mapping[str, Scalar] | None = None
    metadata: str | None = None


@dataclass(frozen=True, slots=True)
class CrudTransaction:
    """One local transaction, or the part of it that was sent together."""

    id: int
    operations: tuple[CrudOperation, ...]

    @property
    def content_hash(self) -> str:
        """SHA-256, as 64 hexadecimal digits, of the operations: equal exactly when they are."""
        return hashlib.sha256(self.encode_operations()).hexdigest()

    def encode_operations(self) -> bytes:
        """The operations as canonical JSON: members sorted, absent ones left out."""
        return orjson.dumps([_operation_document(item) for item in self.operations], option=orjson.OPT_SORT_KEYS)


@dataclass(frozen=True, slots=True)
class UploadRequest:
    """The body of an upload: transactions and their operations in the order of the device's queue."""

    client_id: str
    transactions: tuple[CrudTransaction, ...]


@dataclass(frozen=True, slots=True)
class OperationResult:
    """What became of an operation. `errors` is shaped as DRF's: field → list of messages.

    `row_id` is the id that the server gave the row, where it is not the device's own.
    """

    op_id: int
    status: Status
    code: str | None = None
    errors: Mapping[str, Any] | None = None
    row_id: str | None = None


@dataclass(frozen=True, slots=True)
class TransactionResult:
    """What became of a local transaction; `repeated` when this is the answer that it got the first time."""

    id: int
    status: Status
    operations: tuple[OperationResult, ...] = field(default=())
    repeated: bool = False


def parse_upload(body: bytes) -> UploadRequest:
    """Read an upload's body. Unknown members are ignored; a wrong one raises RequestError."""
    document = _object(_loads(body), "body")
    if document.get("version", VERSION) != VERSION:
        _refuse("version", f"must be {VERSION}, or be left out")
    client_id = _text(document.get("client_id"), "client_id", MAX_CLIENT_ID_CHARACTERS)
    if not client_id or "\0" in client_id:
        _refuse("client_id", "must not be empty or hold a NUL character")
    items = _list(document.get("transactions"), "transactions")
    transactions = tuple(_transaction(item, f"transactions[{index}]") for index, item in enumerate(items))
    operations = [operation for transaction in transactions for operation in transaction.operations]
    if len(operations) > MAX_OPERATIONS:
        problem = f"transactions: hold {len(operations)} operations; send at most {MAX_OPERATIONS} at a time"
        raise RequestError("the upload has too many operations", status=413, details=problem)
    _check_ascending((transaction.id for transaction in transactions), "transactions", "id")
    _check_ascending((operation.op_id for operation in operations), "operations", "op_id")
    return UploadRequest(client_id, transactions)


def parse_operations(text: bytes | str) -> tuple[CrudOperation, ...]:
    """The inverse of `CrudTransaction.encode_operations`. Raises RequestError for anything else."""
    items = _list(_loads(text), "operations")
    return tuple(_operation(item, f"operations[{index}]") for index, item in enumerate(items))


def encode_upload(request: UploadRequest) -> bytes:
    """The body that carries `request`; the inverse of `parse_upload`."""
    transactions = [
        {"id": transaction.id, "operations": [_operation_document(item) for item in transaction.operations]}
        for transaction in request.transactions
    ]
    return orjson.dumps({"client_id": request.client_id, "transactions": transactions})


def encode_answer(results: Iterable[TransactionResult]) -> bytes:
    """The body of the answer to an upload."""
    return _dumps({"data": {"transactions": [_result_document(result) for result in results]}})


def encode_result(result: TransactionResult) -> str:
    """One transaction's part of the answer as JSON text, as the journal keeps it."""
    return _dumps(_result_document(result)).decode()


def parse_result(text: bytes | str) -> TransactionResult:
    """The inverse of `encode_result`. Raises ProtocolError for anything else."""
    return _result(_decode(text))


def parse_answer(body: bytes | str) -> tuple[TransactionResult, ...]:
    """The inverse of `encode_answer`, for clients. Raises ProtocolError for anything else."""
    try:
        return tuple(_result(item) for item in _decode(body)["data"]["transactions"])
    except (KeyError, TypeError):
        raise ProtocolError("the answer to an upload lacks data.transactions") from None


def _dumps(document: Any) -> bytes:
    # Errors of a list's items are numbered.
    return orjson.dumps(document, option=orjson.OPT_NON_STR_KEYS)


def _loads(body: bytes | str) -> Any:
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise RequestError("the body is not JSON", details=str(error)) from None


def _transaction(value: Any, path: str) -> CrudTransaction:
    document = _object(value, path)
    items = _list(document.get("operations"), f"{path}.operations")
    operations = tuple(_operation(item, f"{path}.operations[{index}]") for index, item in enumerate(items))
    if not operations:
        _refuse(f"{path}.operations", "must not be empty")
    return CrudTransaction(_integer(document.get("id"), f"{path}.id"), operations)


def _operation(value: Any, path: str) -> CrudOperation:
    document = _object(value, path)
    name = document.get("op")
    if not isinstance(name, str) or name not in Op.__members__:
        _refuse(f"{path}.op", "must be PUT, PATCH or DELETE")
    op, metadata = Op[name], document.get("metadata")
    data = _columns(document.get("data"), f"{path}.data")
    if op is Op.DELETE and data:
        _refuse(f"{path}.data", "a DELETE has no data")
    return CrudOperation(
        op_id=_integer(document.get("op_id"), f"{path}.op_id"),
        op=op,
        type=_text(document.get("type"), f"{path}.type"),
        id=_text(document.get("id"), f"{path}.id"),
        data=None if op is Op.DELETE else data or {},
        old=_columns(document.get("old"), f"{path}.old"),
        metadata=None if metadata is None else _text(metadata, f"{path}.metadata"),
    )


def _columns(value: Any, path: str) -> dict[str, Scalar] | None:
    if value is None:
        return None
    columns = _object(value, path)
    if len(columns) > MAX_COLUMNS:
        _refuse(path, f"has more than {MAX_COLUMNS} columns")
    for name, item in columns.items():
        if isinstance(item, dict | list):
            _refuse(f"{path}.{_shorten(name)}", "must be a text, a number, a boolean or null; JSON travels as its text")
    return columns


def _object(value: Any, path: str) -> dict[str, Any]:
    return value if isinstance(value, dict) else _refuse(path, "must be an object")


def _list(value: Any, path: str) -> list[Any]:
    return value if isinstance(value, list) else _refuse(path, "must be a list")


def _text(value: Any, path: str, limit: int | None = None) -> str:
    if not isinstance(value, str):
        _refuse(path, "must be a text")
    if limit is not None and len(value) > limit:
        _refuse(path, f"must have at most {limit} characters")
    return value


def _integer(value: Any, path: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= MAX_ID:
        _refuse(path, f"must be a whole number from 0 to {MAX_ID}")
    return value


def _check_ascending(numbers: Iterable[int], path: str, name: str) -> None:
    previous = -1
    for number in numbers:
        if number <= previous:
            _refuse(path, f"{name} {number} after {previous}: send each once, in the order of the queue")
        previous = number


def _refuse(path: str, problem: str) -> NoReturn:
    raise RequestError("the upload's body is not valid", details=f"{path}: {problem}")


def _shorten(name: str) -> str:
    return name if len(name) <= MAX_NAME_CHARACTERS else f"{name[:MAX_NAME_CHARACTERS]}…"


def _operation_document(operation: CrudOperation) -> dict[str, Any]:
    optional = {"data": operation.data, "old": operation.old, "metadata": operation.metadata}
    return {
        "op_id": operation.op_id,
        "op": operation.op.value,
        "type": operation.type,
        "id": operation.id,
        **{name: value for name, value in optional.items() if value is not None},
    }


def _result_document(result: TransactionResult) -> dict[str, Any]:
    return {
        "id": result.id,
        "status": result.status.value,
        **({"repeated": True} if result.repeated else {}),
        "operations": [_operation_result_document(item) for item in result.operations],
    }


def _operation_result_document(result: OperationResult) -> dict[str, Any]:
    optional = {"code": result.code, "errors": result.errors, "row_id": result.row_id}
    return {
        "op_id": result.op_id,
        "status": result.status.value,
        **{name: value for name, value in optional.items() if value is not None},
    }


def _decode(text: bytes | str) -> Any:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise ProtocolError(f"the answer to an upload is not JSON: {error}") from None


def _result(document: Any) -> TransactionResult:
    try:
        operations: Sequence[Any] = document["operations"]
        return TransactionResult(
            id=document["id"],
            status=Status(document["status"]),
            operations=tuple(
                OperationResult(
                    item["op_id"], Status(item["status"]), item.get("code"), item.get("errors"), item.get("row_id")
                )
                for item in operations
            ),
            repeated=document.get("repeated", False),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ProtocolError(f"not the result of a local transaction: {error!r}") from None
