"""Uploads: a device's local transactions, each applied to the backend exactly once, by the developer's handler.

For each local transaction there is one database transaction, which holds its writes and its line of the journal.
A device sends again what it got no answer to; the journal then gives the first answer, and nothing is written. What
cannot be applied is rejected: rolled back, kept in the journal, answered with codes and field errors, and the queue
goes on. Any other exception ends the upload; what came before it stays and is answered from the journal next time.
This module knows nothing of HTTP (see views.py), so that tests and commands can run a handler.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, cast

from django.core.exceptions import ObjectDoesNotExist, PermissionDenied
from django.core.exceptions import ValidationError as DjangoValidationError
from django.db import DatabaseError, DataError, IntegrityError, connections, transaction
from django.http import Http404
from django.utils.translation import gettext as _
from rest_framework import exceptions as drf
from rest_framework.serializers import as_serializer_error

from .conf import get_settings
from .exceptions import OperationRejected
from .models import UploadJournal
from .protocol.crud import (
    CrudOperation,
    CrudTransaction,
    Op,
    OperationResult,
    Status,
    TransactionResult,
    UploadRequest,
    encode_result,
    parse_result,
)
from .upload_tables import MISSING_ROW, OperationRequest, UploadTable

__all__ = ["MISSING_ROW", "OperationRejected", "OperationRequest", "UploadHandler", "UploadTable"]

logger = logging.getLogger(__name__)

# What may say that an operation can never be applied, so that sending it again would only block the queue (see
# `as_rejection`). Everything else (a lost connection, a deadlock, a bug) is an error, and the device sends again.
REJECTIONS = (
    OperationRejected,
    drf.APIException,
    DjangoValidationError,
    PermissionDenied,
    ObjectDoesNotExist,
    Http404,
    DatabaseError,
)
TRANSACTION_REJECTED = "transaction_rejected"
"""The code of operations without fault of their own, whose local transaction was rejected."""


class UploadHandler:
    """What a project does with the writes of its devices. Stateless: one instance may serve many uploads.

    `tables` maps a table's name on the device to an UploadTable, or a subclass of it; a table that is not there
    cannot be written. `using` is the alias of the database that the tables and the journal are in, by default that
    of the source. Override `perform_put`, `perform_patch` or `perform_delete` to do without tables.
    """

    tables: Mapping[str, UploadTable | type[UploadTable]] = {}
    using: str | None = None

    def handle(self, upload: UploadRequest, user: Any, user_key: str | None = None) -> list[TransactionResult]:
        """Apply every transaction of `upload`, in order, and say what became of each.

        `user_key` is the subject of the user's token, by default the user's primary key as text. Must not run inside
        a database transaction: an answer is given only for what is committed.
        """
        key = str(user.pk) if user_key is None else user_key
        return [self._apply_once(item, user, key, upload.client_id) for item in upload.transactions]

    def apply_operation(self, operation: CrudOperation, user: Any) -> str | None:
        """Apply one operation; a returned text is a remark for the device (`code` of an applied operation)."""
        perform = {Op.PUT: self.perform_put, Op.PATCH: self.perform_patch, Op.DELETE: self.perform_delete}
        return perform[operation.op](operation, user)

    def perform_put(self, operation: CrudOperation, user: Any) -> str | None:
        """Create or replace a row."""
        return self.get_table(operation, user).put()

    def perform_patch(self, operation: CrudOperation, user: Any) -> str | None:
        """Change columns of a row."""
        return self.get_table(operation, user).patch()

    def perform_delete(self, operation: CrudOperation, user: Any) -> str | None:
        """Delete a row."""
        return self.get_table(operation, user).delete()

    def get_table(self, operation: CrudOperation, user: Any) -> UploadTable:
        """The table that `operation` writes to, bound to it. Raises OperationRejected for an unknown one."""
        found = self.tables.get(operation.type)
        if found is None:
            message = _("Table “%(name)s” cannot be written.") % {"name": operation.type}
            raise OperationRejected("unknown_table", message)
        table = found() if isinstance(found, type) else found
        return table.bind(operation, user, self.get_using())

    def get_using(self) -> str:
        """The alias of the database that is written to."""
        return self.using or get_settings().source

    def _apply_once(self, item: CrudTransaction, user: Any, user_key: str, client_id: str) -> TransactionResult:
        using = self.get_using()
        key = {
            "user_key": user_key,
            "client_id": client_id,
            "transaction_id": item.id,
            "content_hash": item.content_hash,
        }
        with transaction.atomic(using=using, durable=True):
            _wait_for_turn(using, user_key, client_id)
            journal = UploadJournal._base_manager.using(using)
            first = journal.filter(**key).values_list("answer", flat=True).first()
            if first is not None:
                return replace(parse_result(first), repeated=True)
            result = self._apply(item, user, using)
            rejected = result.status is Status.REJECTED
            operations = item.encode_operations().decode() if rejected else None
            state = UploadJournal.State(result.status.value)
            journal.create(
                **key, user_id=str(user.pk), state=state, answer=encode_result(result), operations=operations
            )
        if rejected:
            codes = sorted({str(operation.code) for operation in result.operations})
            logger.info("upload of user %s: transaction %d rejected (%s)", user_key, item.id, ", ".join(codes))
        return result

    def _apply(self, item: CrudTransaction, user: Any, using: str) -> TransactionResult:
        """Apply a transaction whole, or not at all and say why."""
        applied: list[OperationResult] = []
        try:
            with transaction.atomic(using=using):
                for operation in item.operations:
                    remark = self.apply_operation(operation, user)
                    applied.append(OperationResult(operation.op_id, Status.APPLIED, remark))
                # Foreign keys are checked at COMMIT, when no answer could be journalled any more.
                connections[using].check_constraints()
        except REJECTIONS as error:
            return _reject(item, len(applied), as_rejection(error))
        return TransactionResult(item.id, Status.APPLIED, tuple(applied))


def as_rejection(error: Exception) -> OperationRejected:
    """What an exception of a handler tells the device. Raises `error` again when it says nothing about the write."""
    match error:
        case OperationRejected():
            return error
        case drf.ValidationError() | DjangoValidationError():
            return OperationRejected("invalid", as_serializer_error(error))
        case drf.PermissionDenied() | drf.NotAuthenticated() | PermissionDenied():
            return OperationRejected("permission_denied", str(error) or drf.PermissionDenied.default_detail)
        case drf.NotFound() | ObjectDoesNotExist() | Http404():
            return OperationRejected("not_found", drf.NotFound.default_detail)
        case drf.APIException() if error.status_code < 500 and not isinstance(error, drf.Throttled):
            return OperationRejected(str(error.default_code), error.detail)
        case DatabaseError():
            return _database_rejection(error)
    raise error


def _database_rejection(error: DatabaseError) -> OperationRejected:
    cause: Any = error.__cause__
    raised_by_trigger = getattr(cause, "sqlstate", None) == "P0001"
    if not raised_by_trigger and not isinstance(error, IntegrityError | DataError):
        raise error
    constraint = getattr(getattr(cause, "diag", None), "constraint_name", None)
    logger.warning("upload: the database refuses a write: %s, constraint %s", type(cause).__name__, constraint)
    if isinstance(error, DataError):
        return OperationRejected("invalid", _("The database cannot hold this value."))
    return OperationRejected("constraint_violated", _("The write breaks a rule of the database."))


def _reject(item: CrudTransaction, at: int, why: OperationRejected) -> TransactionResult:
    """The whole transaction is rejected because of its operation number `at`, or of all together at its end."""
    errors = as_serializer_error(drf.ValidationError(cast("Any", why.errors)))
    together = at == len(item.operations)
    operations = (
        OperationResult(operation.op_id, Status.REJECTED, why.code, errors)
        if together or index == at
        else OperationResult(operation.op_id, Status.REJECTED, TRANSACTION_REJECTED)
        for index, operation in enumerate(item.operations)
    )
    return TransactionResult(item.id, Status.REJECTED, tuple(operations))


def _wait_for_turn(using: str, user_key: str, client_id: str) -> None:
    """Let one upload of a client apply a transaction at a time: the second of two equal ones must see the first."""
    digest = hashlib.sha256(f"localsync upload\0{user_key}\0{client_id}".encode()).digest()
    with connections[using].cursor() as cursor:
        cursor.execute("SELECT pg_advisory_xact_lock(%s)", [int.from_bytes(digest[:8], signed=True)])
