"""The upload handler: everything that a project says about the writes of its devices, and the order of events."""

from __future__ import annotations

import copy
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import datetime, timedelta
from enum import Enum
from functools import cache
from typing import Any, Self

from django.db import DatabaseError, InterfaceError, OperationalError, connections, models, transaction
from django.utils import timezone
from django.utils.module_loading import import_string
from django.utils.translation import gettext as _
from rest_framework.viewsets import GenericViewSet

from ..conf import get_settings
from ..exceptions import ConfigurationError, OperationDeferred, OperationRejected
from ..protocol.crud import (
    CrudOperation,
    CrudTransaction,
    Op,
    OperationResult,
    Status,
    TransactionResult,
    UploadRequest,
)
from ..upload_models import Rejection
from . import journal
from .conflicts import encode_conflicts
from .context import UploadContext, resolve
from .dead_letters import dismiss_by_device
from .journal import JournalKey
from .rejections import REJECTIONS, as_rejection, refused, reject
from .retention import prune_if_due
from .tables import UploadTable
from .viewsets import ViewSetTable

logger = logging.getLogger("django_localsync.upload")

ATTEMPTS = 3  # at a transaction that deadlocks, or cannot be serialised
Remark = str | None | Awaitable[str | None]
TableFunction = Callable[[CrudOperation, Any], Remark]


class RejectionScope(Enum):
    """What a rejected operation takes with it."""

    TRANSACTION = "its local transaction, which is rejected whole"
    OPERATION = "nothing: the rest of its local transaction is applied"
    QUEUE = "the queue, which stops: nothing is applied, and the device sends it again"


class UploadHandler:
    """What a project does with the writes of its devices. Stateless: one instance may serve many uploads.

    Override hooks to do more; all may be coroutine functions. While an upload runs there is `context`: the user, the
    device, the database.
    """

    tables: Mapping[str, type[UploadTable | GenericViewSet[Any]] | UploadTable | TableFunction] = {}
    """A table's name on the device → an UploadTable, a subclass of it, a ViewSet, or a function of operation and user.
    What is not here cannot be written."""
    using: str | None = None
    """Alias of the database that the tables and the journal are in; by default the source."""
    rejection_scope: RejectionScope = RejectionScope.TRANSACTION
    """What a rejected operation takes with it."""
    give_up_after: timedelta | None = timedelta(hours=1)
    """How long a transaction may fail by a bug before it is rejected, so that it no longer blocks the queue."""

    context: UploadContext

    def handle(self, upload: UploadRequest, user: Any, user_key: str | None = None) -> list[TransactionResult]:
        """Apply every transaction of `upload`, in order, and say what became of each.

        `user_key` is the subject of the user's token, by default the user's primary key as text. Must not run inside
        a database transaction: an answer is given only for what is committed. Raises what a handler raises that says
        nothing about the write; what came before is then committed, and answered when the device sends it again.
        """
        bound = self.bind(user, str(user.pk) if user_key is None else user_key, upload.client_id)
        results: list[TransactionResult] = []
        for item in upload.transactions:
            stopped = bool(results) and results[-1].status is Status.DEFERRED
            results.append(_deferred(item) if stopped else bound._answer(item))
        prune_if_due(bound.context.using)
        return results

    def bind(self, user: Any, user_key: str, client_id: str) -> Self:
        """This handler, about to apply what a device of `user` sends."""
        bound = copy.copy(self)
        bound.context = UploadContext.of(user, user_key, client_id, self.get_using())
        bound.context.find_table = cache(bound.find_table)
        return bound

    # Hooks. All run inside the transaction; what they raise undoes it.

    def before_transaction(self, transaction: CrudTransaction, user: Any) -> Any:
        """A local transaction is about to be applied."""

    def after_transaction(self, transaction: CrudTransaction, user: Any, results: Sequence[OperationResult]) -> Any:
        """A local transaction was applied, and is about to be committed. Use `transaction.on_commit` for e-mail."""

    def apply_transaction(self, transaction: CrudTransaction, user: Any) -> Any:
        """Apply a local transaction: override this to handle it as a whole.

        Returns a result for each operation, or None when all are applied.
        """
        if self.rejection_scope is RejectionScope.OPERATION:
            return [self._apply_alone(operation, user) for operation in transaction.operations]
        return [self._apply_one(operation, user) for operation in transaction.operations]

    def apply_operation(self, operation: CrudOperation, user: Any) -> Remark:
        """Apply one operation; a returned text is a remark for the device (`code` of an applied operation)."""
        perform = {Op.PUT: self.perform_put, Op.PATCH: self.perform_patch, Op.DELETE: self.perform_delete}
        return perform[operation.op](operation, user)

    def perform_put(self, operation: CrudOperation, user: Any) -> Remark:
        """Create or replace a row."""
        return self.apply_to_table(operation, user)

    def perform_patch(self, operation: CrudOperation, user: Any) -> Remark:
        """Change columns of a row."""
        return self.apply_to_table(operation, user)

    def perform_delete(self, operation: CrudOperation, user: Any) -> Remark:
        """Delete a row."""
        return self.apply_to_table(operation, user)

    def apply_to_table(self, operation: CrudOperation, user: Any) -> Remark:
        """What `tables` says about an operation. Raises OperationRejected for a table that is not there."""
        found = self.tables.get(operation.type)
        if found is None:
            message = _("Table “%(name)s” cannot be written.") % {"name": operation.type}
            raise OperationRejected("unknown_table", message)
        table = _as_table(found)
        if table is None:
            function: Any = found
            remark: Remark = function(operation, user)
            return remark
        return table.bind(operation, self.context).apply()

    def find_table(self, model: type[models.Model]) -> UploadTable | None:
        """The table that devices write a model's rows by, if they do; None also if the tables do not say."""
        tables = (_as_table(found) for found in self.tables.values())
        return next((table for table in tables if table is not None and table.names_model(model)), None)

    def get_using(self) -> str:
        """The alias of the database that is written to."""
        return self.using or get_settings().source

    # The order of events.

    def apply(self, item: CrudTransaction) -> TransactionResult:
        """Apply a transaction whole, or not at all and say why. Inside a transaction; nothing is journalled."""
        using, user = self.context.using, self.context.user
        self.context.forget()
        try:
            with transaction.atomic(using=using):
                resolve(self.before_transaction(item, user))
                results = resolve(self.apply_transaction(item, user))
                operations = _completed(item, results)
                resolve(self.after_transaction(item, user, operations))
                _check_constraints(using)
        except REJECTIONS as error:
            rejection = as_rejection(error)
            self.context.forget()
            if self.rejection_scope is RejectionScope.QUEUE:
                raise OperationDeferred(rejection.code, rejection.errors, op_id=rejection.op_id) from error
            return reject(item, rejection)
        rejected = any(operation.status is Status.REJECTED for operation in operations)
        return TransactionResult(item.id, Status.REJECTED if rejected else Status.APPLIED, operations)

    def _answer(self, item: CrudTransaction) -> TransactionResult:
        context = self.context
        key = JournalKey(context.user_key, context.client_id, item.id, item.content_hash)
        try:
            return self._apply_once(item, key)
        except OperationDeferred as why:
            logger.info("upload of user %s: transaction %d deferred (%s)", context.user_key, item.id, why.code)
            return reject(item, OperationRejected(why.code, why.errors, op_id=why.op_id), Status.DEFERRED)
        except Exception as error:
            result = self._give_up(item, key, error)
            if result is None:
                raise
            return result

    def _apply_once(self, item: CrudTransaction, key: JournalKey) -> TransactionResult:
        using = self.context.using
        for attempt in range(1, ATTEMPTS + 1):
            try:
                with transaction.atomic(using=using, durable=True):
                    journal.wait_for_turn(using, key.user_key, key.client_id)
                    first = journal.find_answer(using, key)
                    if first is not None:
                        return replace(first, repeated=True)
                    result = self.apply(item)
                    conflicts = encode_conflicts(self.context.conflicts) if self.context.conflicts else None
                    journal.record(using, key, str(self.context.user.pk), item, result, conflicts)
                break
            except OperationalError as error:
                if attempt == ATTEMPTS or not _is_collision(error):
                    raise
        _log_rejection(key, result)
        return result

    def _give_up(self, item: CrudTransaction, key: JournalKey, error: Exception) -> TransactionResult | None:
        """The transaction failed by a bug. Reject it if that has been so for too long; None: it is to be sent again."""
        if self.give_up_after is None or isinstance(error, OperationalError | InterfaceError | ConfigurationError):
            return None
        using, user_id = self.context.using, str(self.context.user.pk)
        result = reject(item, OperationRejected("failed", _("The server could not apply this write.")))
        with suppress(DatabaseError, InterfaceError), transaction.atomic(using=using, durable=True):
            first = journal.record_failure(using, key, user_id, item)
            if first is None or _now() - first < self.give_up_after:
                return None
            journal.record(using, key, user_id, item, result, None)
            logger.error("upload of user %s: gave up transaction %d", key.user_key, item.id, exc_info=error)
            return result
        return None

    def _apply_one(self, operation: CrudOperation, user: Any) -> OperationResult:
        """Apply an operation. Raises OperationRejected with its number."""
        try:
            if operation.type == Rejection._meta.db_table and operation.type not in self.tables:
                remark = dismiss_by_device(operation, self.context)
            else:
                remark = resolve(self.apply_operation(operation, user))
        except REJECTIONS as error:
            raise as_rejection(error, operation.op_id) from error
        return OperationResult(
            operation.op_id, Status.APPLIED, remark, row_id=self.context.row_ids.get(operation.op_id)
        )

    def _apply_alone(self, operation: CrudOperation, user: Any) -> OperationResult:
        """Apply an operation, or reject it and leave the others alone."""
        conflicts = len(self.context.conflicts)
        try:
            with transaction.atomic(using=self.context.using):
                result = self._apply_one(operation, user)
                _check_constraints(self.context.using)
            return result
        except REJECTIONS as error:
            del self.context.conflicts[conflicts:]
            self.context.ids.forget()
            return refused(operation.op_id, as_rejection(error, operation.op_id))


def get_handler() -> UploadHandler:
    """A new handler of the class that the setting UPLOAD_HANDLER names. Raises ConfigurationError without one."""
    path = get_settings().upload_handler
    if path is None:
        raise ConfigurationError("uploads need LOCALSYNC['UPLOAD_HANDLER'], the dotted path of an UploadHandler")
    return as_handler(import_string(path))


def as_handler(found: Any) -> UploadHandler:
    """A handler of a class, or of a function of transaction and user that applies a local transaction."""
    if isinstance(found, type) and issubclass(found, UploadHandler):
        return found()
    if callable(found) and not isinstance(found, type):
        return _FunctionHandler(found)
    raise ConfigurationError("UPLOAD_HANDLER must be a subclass of UploadHandler, or a function(transaction, user)")


class _FunctionHandler(UploadHandler):
    """Local transactions go to a function as they are."""

    def __init__(self, function: Callable[[CrudTransaction, Any], Any]) -> None:
        self._function = function

    def apply_transaction(self, transaction: CrudTransaction, user: Any) -> Any:
        return self._function(transaction, user)


def _as_table(found: Any) -> UploadTable | None:
    if isinstance(found, UploadTable):
        return found
    if isinstance(found, type) and issubclass(found, UploadTable):
        return found()
    if isinstance(found, type) and issubclass(found, GenericViewSet):
        return ViewSetTable(found)
    return None


def _completed(item: CrudTransaction, results: Any) -> tuple[OperationResult, ...]:
    """A result for each operation, in their order; what a handler did not mention is applied."""
    given = {result.op_id: result for result in results or ()}
    return tuple(given.get(op.op_id) or OperationResult(op.op_id, Status.APPLIED) for op in item.operations)


def _deferred(item: CrudTransaction) -> TransactionResult:
    operations = (OperationResult(operation.op_id, Status.DEFERRED) for operation in item.operations)
    return TransactionResult(item.id, Status.DEFERRED, tuple(operations))


def _check_constraints(using: str) -> None:
    """Foreign keys are checked at COMMIT, when no answer could be journalled any more: check them now."""
    with connections[using].cursor() as cursor:
        cursor.execute("SET CONSTRAINTS ALL IMMEDIATE")


def _is_collision(error: OperationalError) -> bool:
    """Whether the database undid this transaction in favour of another one."""
    return str(getattr(error.__cause__, "sqlstate", "")).startswith("40")


def _log_rejection(key: JournalKey, result: TransactionResult) -> None:
    if result.status is Status.REJECTED:
        codes = sorted({str(item.code) for item in result.operations if item.status is Status.REJECTED})
        text = "upload of user %s: transaction %d rejected (%s)"
        logger.info(text, key.user_key, key.transaction_id, ", ".join(codes))


def _now() -> datetime:
    return timezone.now()
