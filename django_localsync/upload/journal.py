"""The journal of uploads: what each local transaction was answered, in the transaction that applied it.

Hot path: three statements for a local transaction (take the turn, look it up, note the answer). Its key is the
user, the device, the local transaction and a hash of the operations: the same ids with other content are another
write, of a device that was restored from a backup.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Sequence
from datetime import datetime
from typing import Any, NamedTuple

from django.db import connections

from ..protocol.crud import CrudOperation, CrudTransaction, Status, TransactionResult, encode_result, parse_result
from ..upload_models import Rejection, UploadJournal

MAX_REJECTIONS = 100
"""Rows of localsync_rejection for one local transaction; the journal has all of its operations."""
MAX_DEAD_LETTERS = 1000
"""Rejected local transactions of one user that are kept for a retry."""

FIND_ANSWER = """
    SELECT answer FROM localsync_upload_journal
     WHERE user_key = %s AND client_id = %s AND transaction_id = %s AND content_hash = %s AND answer IS NOT NULL
"""

# A line without an answer counts failures; it is filled in.
RECORD = """
    INSERT INTO localsync_upload_journal
           (user_key, client_id, transaction_id, content_hash, user_id, state, answer, operations, conflicts, failures,
            created_at)
    VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, 0, now())
        ON CONFLICT (user_key, client_id, transaction_id, content_hash) DO UPDATE
       SET state = EXCLUDED.state, answer = EXCLUDED.answer, operations = EXCLUDED.operations,
           conflicts = EXCLUDED.conflicts, user_id = EXCLUDED.user_id
    RETURNING id
"""

RECORD_FAILURE = """
    INSERT INTO localsync_upload_journal AS stored
           (user_key, client_id, transaction_id, content_hash, user_id, state, operations, failures, created_at)
    VALUES (%s, %s, %s, %s, %s, 'failed', %s, 1, now())
        ON CONFLICT (user_key, client_id, transaction_id, content_hash) DO UPDATE SET failures = stored.failures + 1
    RETURNING created_at, answer IS NOT NULL
"""

# Index on created_at. What another process is deleting is left to it.
PRUNE = """
    WITH old AS (
        SELECT id FROM localsync_upload_journal WHERE created_at < %s
         ORDER BY created_at LIMIT %s FOR UPDATE SKIP LOCKED
    ), shown AS (DELETE FROM localsync_rejection WHERE upload_id IN (SELECT id FROM old))
    DELETE FROM localsync_upload_journal WHERE id IN (SELECT id FROM old)
"""
PRUNE_IDS = """
    DELETE FROM localsync_uploaded_id WHERE id IN (
        SELECT id FROM localsync_uploaded_id WHERE created_at < %s ORDER BY created_at LIMIT %s FOR UPDATE SKIP LOCKED)
"""


# Index (user_key) of the rejections, of which there are few; each dead letter has one at least. Uploads of two devices
# may come here at once, and need not wait for each other.
DISMISS_OLDEST = """
    WITH oldest AS (
        SELECT id FROM localsync_upload_journal
         WHERE id = ANY(ARRAY(SELECT DISTINCT upload_id FROM localsync_rejection
                               WHERE user_key = %s ORDER BY upload_id DESC OFFSET %s))
           FOR UPDATE SKIP LOCKED
    ), dismissed AS (
        UPDATE localsync_upload_journal AS upload SET state = 'dismissed', operations = NULL
          FROM oldest WHERE upload.id = oldest.id
    )
    DELETE FROM localsync_rejection AS rejection USING oldest WHERE rejection.upload_id = oldest.id
"""


class JournalKey(NamedTuple):
    """What a line of the journal is found by."""

    user_key: str
    client_id: str
    transaction_id: int
    content_hash: str


def wait_for_turn(using: str, user_key: str, client_id: str) -> None:
    """Let one upload of a client apply a transaction at a time: the second of two equal ones must see the first.

    Held until the surrounding transaction ends.
    """
    digest = hashlib.sha256(f"localsync upload\0{user_key}\0{client_id}".encode()).digest()
    with connections[using].cursor() as cursor:
        cursor.execute("SELECT pg_advisory_xact_lock(%s)", [int.from_bytes(digest[:8], signed=True)])


def find_answer(using: str, key: JournalKey) -> TransactionResult | None:
    """What the transaction was answered, if it was. A statement of its own, after the turn was waited for."""
    with connections[using].cursor() as cursor:
        cursor.execute(FIND_ANSWER, key)
        row = cursor.fetchone()
    return None if row is None else parse_result(row[0])


def record(
    using: str,
    key: JournalKey,
    user_id: str,
    transaction: CrudTransaction,
    result: TransactionResult,
    conflicts: str | None,
) -> None:
    """Note a transaction's answer; what was refused, or met newer values, with everything that was sent."""
    rejected = result.status is Status.REJECTED
    operations = transaction.encode_operations().decode() if rejected or conflicts else None
    state = UploadJournal.State(result.status.value).value
    with connections[using].cursor() as cursor:
        cursor.execute(RECORD, [*key, user_id, state, encode_result(result), operations, conflicts])
        (upload_id,) = cursor.fetchone()
    if rejected:
        show_rejections(using, upload_id, key, transaction, result)
        _dismiss_oldest(using, key.user_key)


def record_failure(using: str, key: JournalKey, user_id: str, transaction: CrudTransaction) -> datetime | None:
    """Count a failure; when the first one was, or None if the transaction has been answered meanwhile."""
    operations = transaction.encode_operations().decode()
    with connections[using].cursor() as cursor:
        cursor.execute(RECORD_FAILURE, [*key, user_id, operations])
        first, answered = cursor.fetchone()
    return None if answered else first


def show_rejections(
    using: str, upload_id: int, key: JournalKey, transaction: CrudTransaction, result: TransactionResult
) -> None:
    """Let the user's devices see what was refused, those operations first that are at fault."""
    operations = {operation.op_id: operation for operation in transaction.operations}
    refused = [item for item in result.operations if item.status is Status.REJECTED]
    at_fault_first: Sequence[Any] = sorted(refused, key=lambda item: item.errors is None)
    Rejection._base_manager.using(using).bulk_create(
        Rejection(
            id=uuid.uuid4(),
            upload_id=upload_id,
            user_key=key.user_key,
            client_id=key.client_id,
            transaction_id=key.transaction_id,
            code=_printable(str(item.code)),
            errors=None if item.errors is None else json.dumps(item.errors, ensure_ascii=False),
            **_columns(operations[item.op_id]),
        )
        for item in at_fault_first[:MAX_REJECTIONS]
    )


def _dismiss_oldest(using: str, user_key: str) -> None:
    """Beyond MAX_DEAD_LETTERS the oldest are dismissed, and what was sent in them is deleted."""
    with connections[using].cursor() as cursor:
        cursor.execute(DISMISS_OLDEST, [user_key, MAX_DEAD_LETTERS])


def prune(using: str, before: datetime, limit: int = 1000) -> int:
    """Delete at most `limit` lines of the journal from before a time, with their dead letters; how many there were."""
    with connections[using].cursor() as cursor:
        cursor.execute(PRUNE, [before, limit])
        deleted = cursor.rowcount
        cursor.execute(PRUNE_IDS, [before, limit])
        return int(deleted + cursor.rowcount)


def _columns(operation: CrudOperation) -> dict[str, Any]:
    data = None if operation.data is None else json.dumps(dict(operation.data), ensure_ascii=True)
    return {
        "op_id": operation.op_id,
        "op": operation.op.value,
        "type": _printable(operation.type),
        "row_id": _printable(operation.id),
        "data": data,
    }


def _printable(text: str) -> str:
    """Without the NUL characters that a column of text refuses."""
    return text.replace("\0", "\N{REPLACEMENT CHARACTER}")
