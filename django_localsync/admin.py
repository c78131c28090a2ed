"""The admin: uploads, and what may be done with rejected ones. Nothing else can be changed here."""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING, Any

from django.contrib import admin, messages
from django.db import models
from django.http import HttpRequest
from django.utils.html import format_html
from django.utils.safestring import SafeString

from .exceptions import LocalSyncError
from .protocol.crud import Status
from .upload import dismiss, get_handler, retry
from .upload_models import UploadJournal

logger = logging.getLogger(__name__)

if TYPE_CHECKING:
    _Admin = admin.ModelAdmin[UploadJournal]
else:
    _Admin = admin.ModelAdmin


@admin.register(UploadJournal)
class UploadAdmin(_Admin):
    """Uploaded transactions with their answers; dead letters can be retried or dismissed."""

    list_display = ("created_at", "user_id", "client_id", "transaction_id", "state", "summary")
    list_filter = ("state", "created_at")
    search_fields = ("=user_id", "=client_id")
    date_hierarchy = "created_at"
    ordering = ("-created_at",)
    fields = ("created_at", "user_key", "client_id", "transaction_id", "state", "failures")
    readonly_fields = ("answer_text", "operations_text", "conflicts_text")
    actions = ("retry_uploads", "dismiss_uploads")

    def get_queryset(self, request: HttpRequest) -> models.QuerySet[UploadJournal]:
        """The journal of the database that the handler writes to."""
        return super().get_queryset(request).using(_using())

    def get_fields(self, request: HttpRequest, obj: UploadJournal | None = None) -> Any:
        """What is known of the upload, with its texts readable."""
        return (*self.fields, *self.readonly_fields)

    def has_add_permission(self, request: HttpRequest) -> bool:
        """Only devices upload."""
        return False

    def has_change_permission(self, request: HttpRequest, obj: UploadJournal | None = None) -> bool:
        """What was sent and answered stays what it is."""
        return False

    def has_delete_permission(self, request: HttpRequest, obj: UploadJournal | None = None) -> bool:
        """A line that is gone would let its upload be applied again."""
        return False

    def has_retry_permission(self, request: HttpRequest) -> bool:
        """Who may retry."""
        return request.user.has_perm("django_localsync.retry_upload")

    def has_dismiss_permission(self, request: HttpRequest) -> bool:
        """Who may dismiss."""
        return request.user.has_perm("django_localsync.dismiss_upload")

    @admin.display(description="codes")
    def summary(self, upload: UploadJournal) -> str:
        """The codes of an upload's operations."""
        operations = json.loads(upload.answer)["operations"] if upload.answer else []
        return ", ".join(sorted({item["code"] for item in operations if "code" in item}))

    @admin.display(description="answer")
    def answer_text(self, upload: UploadJournal) -> SafeString:
        """What the device was told."""
        return _pretty(upload.answer)

    @admin.display(description="operations")
    def operations_text(self, upload: UploadJournal) -> SafeString:
        """What the device sent, where it was not all applied."""
        return _pretty(upload.operations)

    @admin.display(description="conflicts")
    def conflicts_text(self, upload: UploadJournal) -> SafeString:
        """What met newer values."""
        return _pretty(upload.conflicts)

    @admin.action(description="Retry rejected uploads", permissions=["retry"])
    def retry_uploads(self, request: HttpRequest, chosen: models.QuerySet[UploadJournal]) -> None:
        """Apply dead letters again, oldest first, as the users who sent them."""
        for upload in chosen.filter(state=UploadJournal.State.REJECTED).order_by("pk"):
            try:
                result = retry(upload)
            except Exception as error:
                logger.exception("retry of %s failed", upload)
                self.message_user(request, f"{upload}: {type(error).__name__}, see the log", messages.ERROR)
                continue
            applied = result.status is Status.APPLIED
            text = "applied" if applied else f"rejected again ({_codes(result)})"
            self.message_user(request, f"{upload}: {text}", messages.SUCCESS if applied else messages.WARNING)

    @admin.action(description="Dismiss rejected uploads", permissions=["dismiss"])
    def dismiss_uploads(self, request: HttpRequest, chosen: models.QuerySet[UploadJournal]) -> None:
        """Give up dead letters: they leave the devices of their users."""
        uploads = list(chosen.filter(state=UploadJournal.State.REJECTED))
        for upload in uploads:
            dismiss(upload)
        self.message_user(request, f"{len(uploads)} dismissed", messages.SUCCESS)


def _using() -> str:
    try:
        return get_handler().get_using()
    except (LocalSyncError, ImportError):
        return "default"


def _codes(result: Any) -> str:
    return ", ".join(sorted({str(item.code) for item in result.operations if item.code}))


def _pretty(text: str | None) -> SafeString:
    document = json.dumps(json.loads(text), indent=2, ensure_ascii=False) if text else "-"
    return format_html("<pre>{}</pre>", document)
