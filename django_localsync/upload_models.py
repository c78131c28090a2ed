"""What uploads leave behind: the journal, dead letters, and the keys of rows that devices made offline.

These tables are in the database that the upload handler writes to, because they commit together with its writes.
`localsync_rejection` is the one table of this package that is replicated: docs/howto/rejections.md.
"""

from __future__ import annotations

import uuid

from django.db import models
from django.utils import timezone


class UploadJournal(models.Model):
    """One uploaded local transaction and its answer: a repeat gets the first answer."""

    class State(models.TextChoices):
        """What became of it."""

        APPLIED = "applied", "applied"
        REJECTED = "rejected", "rejected: a dead letter"
        RETRIED = "retried", "rejected, and applied later"
        DISMISSED = "dismissed", "rejected, and dismissed"
        FAILED = "failed", "failed; the device sends it again"

    user_key = models.TextField(help_text="Subject of the user's token.")
    user_id = models.TextField(help_text="Primary key of the user, as text.")
    client_id = models.TextField()
    transaction_id = models.BigIntegerField()
    content_hash = models.CharField(max_length=64, help_text="SHA-256 of the operations.")
    state = models.CharField(max_length=9, choices=State.choices)
    # Texts, because jsonb refuses the NUL characters that a rejected value may hold.
    answer = models.TextField(null=True, help_text="What the client was told, as JSON.")
    operations = models.TextField(null=True, help_text="What was uploaded, as JSON, kept where it was not all applied.")
    conflicts = models.TextField(null=True, help_text="What met newer values, and what became of it, as JSON.")
    failures = models.IntegerField(default=0, help_text="How often it failed before there was an answer.")
    created_at = models.DateTimeField(default=timezone.now, db_index=True)

    class Meta:
        db_table = "localsync_upload_journal"
        verbose_name = "upload"
        permissions = [("retry_upload", "Can retry rejected uploads"), ("dismiss_upload", "Can dismiss them")]
        constraints = [
            models.UniqueConstraint(
                fields=["user_key", "client_id", "transaction_id", "content_hash"],
                name="localsync_upload_journal_key",
            )
        ]

    def __str__(self) -> str:
        return f"transaction {self.transaction_id} of device {self.client_id}"


class Rejection(models.Model):
    """A rejected operation, as its user's devices see it, until it is retried or dismissed."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4)
    upload = models.ForeignKey(UploadJournal, models.CASCADE, related_name="rejections")
    user_key = models.TextField(db_index=True, help_text="Subject of the user's token.")
    client_id = models.TextField()
    transaction_id = models.BigIntegerField()
    op_id = models.BigIntegerField()
    op = models.CharField(max_length=6)
    type = models.TextField(help_text="The table, as the device names it.")
    row_id = models.TextField()
    data = models.TextField(null=True, help_text="The columns that were sent, as JSON.")
    code = models.TextField()
    errors = models.TextField(null=True, help_text="Column → messages, as JSON.")
    created_at = models.DateTimeField(default=timezone.now)

    class Meta:
        db_table = "localsync_rejection"


class UploadedId(models.Model):
    """The key that the server gave a row which a device made under an id of its own."""

    user_key = models.TextField()
    client_id = models.TextField()
    model = models.CharField(max_length=200, help_text="app_label.model_name")
    device_id = models.CharField(max_length=200)
    key = models.BigIntegerField()
    created_at = models.DateTimeField(default=timezone.now, db_index=True)

    class Meta:
        db_table = "localsync_uploaded_id"
        constraints = [
            models.UniqueConstraint(
                fields=["user_key", "client_id", "model", "device_id"], name="localsync_uploaded_id_key"
            )
        ]
