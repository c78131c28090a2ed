"""What connects a database to a backend: an app's own connector, or `LocalSyncConnector` for django_localsync's.

The upload's body and answer are described in docs/reference/wire-protocol.md.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import httpx2
import orjson

from ..exceptions import AuthError, ProtocolError
from .transport import ANSWER_TIMEOUT_S, CONNECT_TIMEOUT_S, Credentials, check_endpoint, read_data
from .upload_queue import CrudTransaction

if TYPE_CHECKING:
    from .async_database import AsyncDatabase
    from .database import Database

MAX_OPERATIONS_PER_UPLOAD = 500

logger = logging.getLogger("django_localsync.client")


class Connector(Protocol):
    """What `Database.connect` needs. Methods run in a thread of their own; what they raise is retried after a pause."""

    def fetch_credentials(self) -> Credentials:
        """A token and where to use it; called again when the token has expired or was refused."""
        ...

    def upload_data(self, database: Database) -> None:
        """Send the oldest writes to the backend and complete them. Raise to have them sent again."""
        ...


class AsyncConnector(Protocol):
    """What `AsyncDatabase.connect` needs; see `Connector`."""

    async def fetch_credentials(self) -> Credentials:
        """A token and where to use it; called again when the token has expired or was refused."""
        ...

    async def upload_data(self, database: AsyncDatabase) -> None:
        """Send the oldest writes to the backend and complete them. Raise to have them sent again."""
        ...


@dataclass(frozen=True, slots=True)
class RejectedOperation:
    """Why the backend refused one write: a stable `code` and messages by field."""

    op_id: int
    status: str
    code: str | None = None
    errors: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class RejectedTransaction:
    """A local transaction that the backend refused for good.

    It is out of the queue, and its rows get the backend's values with the next checkpoint.
    """

    transaction: CrudTransaction
    operations: tuple[RejectedOperation, ...]


RejectionCallback = Callable[[RejectedTransaction], None]


class LocalSyncConnector:
    """Connects a `Database` to django_localsync: uploads go to `<endpoint>/upload`.

    `fetch_token` returns a fresh token as text. `on_rejected` is told of each transaction that the backend refused.
    """

    def __init__(
        self, endpoint: str, fetch_token: Callable[[], str], *, on_rejected: RejectionCallback | None = None
    ) -> None:
        self._endpoint, self._fetch_token, self._on_rejected = check_endpoint(endpoint), fetch_token, on_rejected
        self._credentials: Credentials | None = None
        self._http = httpx2.Client(timeout=httpx2.Timeout(ANSWER_TIMEOUT_S, connect=CONNECT_TIMEOUT_S))

    def fetch_credentials(self) -> Credentials:
        """A fresh token, used for uploads as well."""
        self._credentials = Credentials(self._endpoint, self._fetch_token())
        return self._credentials

    def upload_data(self, database: Database) -> None:
        """Upload whole transactions until the queue is empty. Raises RequestError or httpx2.HTTPError to try again."""
        while transactions := database.get_crud_transactions(MAX_OPERATIONS_PER_UPLOAD):
            credentials = self._credentials or self.fetch_credentials()
            response = self._http.post(
                f"{self._endpoint}/upload",
                content=upload_body(database.client_id, transactions),
                headers=credentials.headers | {"Content-Type": "application/json"},
            )
            try:
                rejected = read_answer(transactions, response.status_code, response.content)
            except AuthError:
                self._credentials = None
                raise
            database.complete(transactions[-1].operations[-1].op_id)
            report_rejected(rejected, self._on_rejected)


class AsyncLocalSyncConnector:
    """`LocalSyncConnector` for an `AsyncDatabase`; `fetch_token` is a coroutine function."""

    def __init__(
        self,
        endpoint: str,
        fetch_token: Callable[[], Awaitable[str]],
        *,
        on_rejected: RejectionCallback | None = None,
    ) -> None:
        self._endpoint, self._fetch_token, self._on_rejected = check_endpoint(endpoint), fetch_token, on_rejected
        self._credentials: Credentials | None = None
        self._http = httpx2.AsyncClient(timeout=httpx2.Timeout(ANSWER_TIMEOUT_S, connect=CONNECT_TIMEOUT_S))

    async def fetch_credentials(self) -> Credentials:
        """A fresh token, used for uploads as well."""
        self._credentials = Credentials(self._endpoint, await self._fetch_token())
        return self._credentials

    async def upload_data(self, database: AsyncDatabase) -> None:
        """Upload whole transactions until the queue is empty. Raises RequestError or httpx2.HTTPError to try again."""
        while transactions := await database.get_crud_transactions(MAX_OPERATIONS_PER_UPLOAD):
            credentials = self._credentials or await self.fetch_credentials()
            response = await self._http.post(
                f"{self._endpoint}/upload",
                content=upload_body(database.client_id, transactions),
                headers=credentials.headers | {"Content-Type": "application/json"},
            )
            try:
                rejected = read_answer(transactions, response.status_code, response.content)
            except AuthError:
                self._credentials = None
                raise
            await database.complete(transactions[-1].operations[-1].op_id)
            report_rejected(rejected, self._on_rejected)


def upload_body(client_id: str, transactions: Sequence[CrudTransaction]) -> bytes:
    """The body of POST upload."""
    return orjson.dumps(
        {
            "client_id": client_id,
            "transactions": [
                {"id": each.id, "operations": [entry.to_json() for entry in each.operations]} for each in transactions
            ],
        }
    )


def read_answer(transactions: Sequence[CrudTransaction], status: int, body: bytes) -> list[RejectedTransaction]:
    """The transactions that were refused.

    Raises AuthError for 401, RequestError for another failure, and ProtocolError if the answer is silent about a
    transaction: it then stays in the queue.
    """
    data = read_data(status, body)
    try:
        results = {result["id"]: result for result in data["transactions"]}
        silent = [each.id for each in transactions if results[each.id]["status"] not in _STATUSES]
        rejected = [
            RejectedTransaction(each, tuple(_operation(item) for item in results[each.id].get("operations", ())))
            for each in transactions
            if results[each.id]["status"] == "rejected"
        ]
    except (KeyError, TypeError, AttributeError):
        raise ProtocolError("the answer to an upload does not list its transactions") from None
    if silent:
        raise ProtocolError(f"the answer to an upload has an unknown status for transactions {silent}")
    return rejected


def report_rejected(rejected: Sequence[RejectedTransaction], callback: RejectionCallback | None) -> None:
    """Log refused transactions and tell the app."""
    for each in rejected:
        logger.warning(
            "the backend rejected local transaction %d (%s)",
            each.transaction.id,
            ", ".join(sorted({operation.code or operation.status for operation in each.operations})),
        )
        if callback:
            callback(each)


_STATUSES = frozenset({"applied", "rejected", "deferred"})


def _operation(item: dict[str, Any]) -> RejectedOperation:
    return RejectedOperation(item["op_id"], item["status"], item.get("code"), item.get("errors"))
