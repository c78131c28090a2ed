"""Which exceptions of a handler are answers to the device, and what they say."""

from __future__ import annotations

import logging
from typing import Any, cast

from django.core.exceptions import ObjectDoesNotExist, PermissionDenied
from django.core.exceptions import ValidationError as DjangoValidationError
from django.db import DatabaseError, DataError, IntegrityError
from django.http import Http404
from django.utils.translation import gettext as _
from rest_framework import exceptions as drf
from rest_framework.serializers import as_serializer_error

from ..exceptions import OperationRejected
from ..protocol.crud import CrudTransaction, OperationResult, Status, TransactionResult

logger = logging.getLogger("django_localsync.upload")

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


def as_rejection(error: Exception, op_id: int | None = None) -> OperationRejected:
    """What an exception of a handler tells the device. Raises `error` again when it says nothing about the write.

    `op_id` is the operation that was being applied (None: all of them together).
    """
    rejection = _as_rejection(error)
    if rejection.op_id is None:
        rejection.op_id = op_id
    return rejection


def _as_rejection(error: Exception) -> OperationRejected:
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
    sqlstate = getattr(cause, "sqlstate", None) or ""
    raised_by_trigger = sqlstate == "P0001"
    too_large = sqlstate.startswith("54")  # such as a value too long for an index
    if not (raised_by_trigger or too_large) and not isinstance(error, IntegrityError | DataError):
        raise error
    constraint = getattr(getattr(cause, "diag", None), "constraint_name", None)
    logger.warning("upload: the database refuses a write: %s, constraint %s", type(cause).__name__, constraint)
    if isinstance(error, DataError) or too_large:
        return OperationRejected("invalid", _("The database cannot hold this value."))
    return OperationRejected("constraint_violated", _("The write breaks a rule of the database."))


def reject(item: CrudTransaction, why: OperationRejected, status: Status = Status.REJECTED) -> TransactionResult:
    """The whole transaction is refused (or deferred) because of one operation, or of all together."""
    operations = (
        refused(operation.op_id, why, status)
        if why.op_id in (operation.op_id, None)
        else OperationResult(operation.op_id, status, TRANSACTION_REJECTED if status is Status.REJECTED else None)
        for operation in item.operations
    )
    return TransactionResult(item.id, status, tuple(operations))


def refused(op_id: int, why: OperationRejected, status: Status = Status.REJECTED) -> OperationResult:
    """The result of the operation at fault, its errors in DRF's shape."""
    errors = as_serializer_error(drf.ValidationError(cast("Any", why.errors)))
    return OperationResult(op_id, status, why.code, errors)
