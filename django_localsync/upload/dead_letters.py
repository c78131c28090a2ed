"""Dead letters: rejected transactions in the journal, until somebody retries or dismisses them.

Their operations are rows of `localsync_rejection`, which sync brings to the devices of their user.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from uuid import UUID

from django.contrib.auth import get_user_model
from django.db import transaction
from django.utils.translation import gettext as _

from ..exceptions import OperationRejected
from ..protocol.crud import (
    CrudOperation,
    CrudTransaction,
    Op,
    Status,
    TransactionResult,
    parse_operations,
    parse_result,
)
from ..upload_models import Rejection, UploadJournal
from .context import UploadContext
from .journal import JournalKey, show_rejections

if TYPE_CHECKING:
    from .handler import UploadHandler

State = UploadJournal.State


def retry(upload: UploadJournal, handler: UploadHandler | None = None, user: Any = None) -> TransactionResult:
    """Apply again what was refused, as the user who sent it; what is refused again stays a dead letter.

    `handler` is by default the one in the settings. The answer that the device got stays what it was. Raises
    ValueError if `upload` is not a dead letter or its user is not active, OperationDeferred if the handler cannot take
    it now, and what the handler raises.
    """
    from .handler import get_handler

    handler = get_handler() if handler is None else handler
    using = handler.get_using()
    with transaction.atomic(using=using):
        stored = _lock(upload, using)
        user = _user(stored) if user is None else user
        item = refused_part(stored)
        result = handler.bind(user, stored.user_key, stored.client_id).apply(item)
        stored.rejections.using(using).all().delete()
        if result.status is Status.APPLIED:
            stored.state = State.RETRIED
            stored.save(using=using, update_fields=["state"])
        else:
            show_rejections(using, stored.pk, _key(stored), item, result)
    upload.state = stored.state
    return result


def dismiss(upload: UploadJournal, using: str | None = None) -> None:
    """Give up what was refused: it leaves the user's devices; the journal keeps it until it is pruned.

    Raises ValueError if `upload` is not a dead letter.
    """
    using = using or upload._state.db or "default"
    with transaction.atomic(using=using):
        stored = _lock(upload, using)
        stored.rejections.using(using).all().delete()
        stored.state = State.DISMISSED
        stored.save(using=using, update_fields=["state"])
    upload.state = stored.state


def refused_part(upload: UploadJournal) -> CrudTransaction:
    """What was refused of a local transaction, as it was sent."""
    refused = {item.op_id for item in parse_result(upload.answer or "").operations if item.status is Status.REJECTED}
    operations = parse_operations(upload.operations or "[]")
    return CrudTransaction(upload.transaction_id, tuple(item for item in operations if item.op_id in refused))


def dismiss_by_device(operation: CrudOperation, context: UploadContext) -> str | None:
    """A device deletes a row of `localsync_rejection`: its user has seen it. Raises OperationRejected for all else."""
    if operation.op is not Op.DELETE:
        raise OperationRejected("permission_denied", _("Rejections can only be deleted."))
    try:
        row = UUID(operation.id)
    except ValueError:
        raise OperationRejected("invalid_id", {"id": [_("Must be a valid UUID.")]}) from None
    shown = Rejection._base_manager.using(context.using).filter(user_key=context.user_key)
    upload_id = shown.filter(pk=row).values_list("upload_id", flat=True).first()
    shown.filter(pk=row).delete()
    if upload_id is not None and not shown.filter(upload_id=upload_id).exists():
        uploads = UploadJournal._base_manager.using(context.using)
        uploads.filter(pk=upload_id, state=State.REJECTED).update(state=State.DISMISSED)
    return None


def _user(upload: UploadJournal) -> Any:
    user = get_user_model()._default_manager.get(pk=upload.user_id)
    if not user.is_active:
        raise ValueError(f"{upload} was sent by a user who is no longer active")
    return user


def _lock(upload: UploadJournal, using: str) -> UploadJournal:
    stored = UploadJournal._base_manager.using(using).select_for_update().get(pk=upload.pk)
    if stored.state != State.REJECTED:
        raise ValueError(f"{stored} is not a dead letter: {stored.get_state_display()}")
    return stored


def _key(upload: UploadJournal) -> JournalKey:
    return JournalKey(upload.user_key, upload.client_id, upload.transaction_id, upload.content_hash)
