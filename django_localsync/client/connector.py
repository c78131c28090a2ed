"""What connects a database to a backend: an app's own connector, or `LocalSyncConnector` for django_localsync's.

The upload's body and answer are those of protocol/crud.py.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import httpx2

from ..exceptions import AuthError, LocalSyncError, ProtocolError
from ..protocol.crud import (
    CrudTransaction,
    Status,
    TransactionResult,
    UploadRequest,
    encode_upload,
    parse_answer,
)
from .transport import ANSWER_TIMEOUT_S, CONNECT_TIMEOUT_S, Credentials, check_endpoint, raise_for_status

if TYPE_CHECKING:
    from .async_database import AsyncDatabase
    from .database import Database

MAX_OPERATIONS_PER_UPLOAD = 500
TOO_LONG = 413  # the status of the answer to a body that the backend does not read

logger = logging.getLogger("django_localsync.client")


class UploadDeferred(LocalSyncError):
    """The backend cannot take the oldest write now; it stays in the queue."""

    code = "deferred"


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
class Rejection:
    """A local transaction that the backend refused for good, with codes and messages per operation.

    It is out of the queue, and its rows get the backend's values with the next checkpoint.
    """

    transaction: CrudTransaction
    result: TransactionResult


@dataclass(frozen=True, slots=True)
class Settlement:
    """What an upload's answer means for the queue.

    Everything up to `through_op_id` (None: nothing) is done with. `is_deferred`: the backend did not look at the
    next transaction, which must be sent again after a pause.
    """

    through_op_id: int | None
    rejections: tuple[Rejection, ...]
    is_deferred: bool


RejectionCallback = Callable[[Rejection], None]


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
            self._send(database, transactions)

    def _send(self, database: Database, transactions: Sequence[CrudTransaction]) -> None:
        credentials = self._credentials or self.fetch_credentials()
        response = self._http.post(
            f"{self._endpoint}/upload",
            content=encode_upload(UploadRequest(database.client_id, tuple(transactions))),
            headers=credentials.headers | {"Content-Type": "application/json"},
        )
        parts = halves(transactions) if response.status_code == TOO_LONG else ()
        for part in parts:
            self._send(database, part)
        if parts:
            return
        try:
            settlement = settle(transactions, response.status_code, response.content)
        except AuthError:
            self._credentials = None
            raise
        if settlement.through_op_id is not None:
            database.complete(settlement.through_op_id)
        report(settlement, self._on_rejected)


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
            await self._send(database, transactions)

    async def _send(self, database: AsyncDatabase, transactions: Sequence[CrudTransaction]) -> None:
        credentials = self._credentials or await self.fetch_credentials()
        response = await self._http.post(
            f"{self._endpoint}/upload",
            content=encode_upload(UploadRequest(database.client_id, tuple(transactions))),
            headers=credentials.headers | {"Content-Type": "application/json"},
        )
        parts = halves(transactions) if response.status_code == TOO_LONG else ()
        for part in parts:
            await self._send(database, part)
        if parts:
            return
        try:
            settlement = settle(transactions, response.status_code, response.content)
        except AuthError:
            self._credentials = None
            raise
        if settlement.through_op_id is not None:
            await database.complete(settlement.through_op_id)
        report(settlement, self._on_rejected)


def halves(transactions: Sequence[CrudTransaction]) -> Sequence[Sequence[CrudTransaction]]:
    """Two parts of an upload that was too long, to be sent in this order; none if it is a single write.

    Parts of one local transaction are applied one by one.
    """
    if len(transactions) > 1:
        middle = len(transactions) // 2
        return transactions[:middle], transactions[middle:]
    whole = transactions[0]
    middle = len(whole.operations) // 2
    parts = (whole.operations[:middle], whole.operations[middle:])
    return tuple((CrudTransaction(whole.id, part),) for part in parts) if middle else ()


def settle(transactions: Sequence[CrudTransaction], status: int, body: bytes) -> Settlement:
    """What the answer says about the transactions that were sent.

    Raises AuthError for 401, RequestError for another failure, and ProtocolError if the answer is silent about a
    transaction: they then stay in the queue.
    """
    raise_for_status(status, body)
    results = {result.id: result for result in parse_answer(body)}
    through: int | None = None
    rejections: list[Rejection] = []
    for transaction in transactions:
        result = results.get(transaction.id)
        if result is None:
            raise ProtocolError(f"the answer to an upload is silent about transaction {transaction.id}")
        if result.status is Status.DEFERRED:
            return Settlement(through, tuple(rejections), is_deferred=True)
        if result.status is Status.REJECTED:
            rejections.append(Rejection(transaction, result))
        through = transaction.operations[-1].op_id
    return Settlement(through, tuple(rejections), is_deferred=False)


def report(settlement: Settlement, on_rejected: RejectionCallback | None) -> None:
    """Log refused transactions and tell the app. Raises UploadDeferred if the rest must wait."""
    for rejection in settlement.rejections:
        codes = {operation.code for operation in rejection.result.operations if operation.code}
        logger.warning(
            "the backend rejected local transaction %d: %s",
            rejection.transaction.id,
            ", ".join(sorted(codes)) or "no code given",
        )
        if on_rejected:
            on_rejected(rejection)
    if settlement.is_deferred:
        raise UploadDeferred("the backend deferred the oldest write; it is sent again later")
