"""Write checkpoints: the receipt of a device's uploads.

A number for each user and client, which the stream echoes once replication has passed the position at which the
uploads were committed (I7). A request costs three round trips to the storage and three to each source.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from django.db import connections, transaction

from ..buckets.announcement import MESSAGE_PREFIX, write_checkpoint_digest
from ..conf import get_settings
from ..pgoutput.lsn import Lsn

# Primary key (user_key, client_id). Locks the row, so that numbers and positions rise together.
COUNT_UP = """
    INSERT INTO localsync_write_checkpoint AS stored (user_key, client_id, number, positions, requested_at)
    VALUES (%(user_key)s, %(client_id)s, 1, '{}', now())
    ON CONFLICT (user_key, client_id) DO UPDATE SET number = stored.number + 1, requested_at = now()
    RETURNING number
"""

# The same, with a number of the client's own: a lower one than the last changes nothing, so a repeat is harmless.
RAISE_TO = """
    INSERT INTO localsync_write_checkpoint AS stored (user_key, client_id, number, positions, requested_at)
    VALUES (%(user_key)s, %(client_id)s, %(number)s, '{}', now())
    ON CONFLICT (user_key, client_id) DO UPDATE SET number = EXCLUDED.number, requested_at = now()
          WHERE stored.number < EXCLUDED.number
    RETURNING number
"""
STORED_NUMBER = (
    "SELECT number FROM localsync_write_checkpoint WHERE user_key = %(user_key)s AND client_id = %(client_id)s"
)

SET_POSITIONS = """
    UPDATE localsync_write_checkpoint SET positions = %(positions)s::jsonb
     WHERE user_key = %(user_key)s AND client_id = %(client_id)s
"""

# The end of what was inserted, not of what was written: with synchronous_commit = off a commit is acknowledged
# before it is written.
CURRENT_POSITION = "SELECT pg_current_wal_insert_lsn()"

# A transactional message reaches the stream as soon as its commit is flushed, which `local` makes it be at once,
# without waiting for standbys.
FLUSH_ONLY = "SET LOCAL synchronous_commit = local"
EMIT_MESSAGE = "SELECT pg_logical_emit_message(true, %s, %s)"


def request_write_checkpoint(
    user_key: str, client_id: str, sources: Sequence[str] | None = None, *, number: int | None = None
) -> int:
    """Give the client its next number, for everything committed to `sources` (aliases; by default all) until now.

    With a `number` of the client's own (from 1), that one is stored unless it is not higher than the last; the
    higher of the two is returned. Must not run inside a transaction of the storage or of a source: what is to be
    acknowledged must be committed, and the message that makes replication pass the position must come after the
    number is stored.
    """
    aliases = get_settings().sources if sources is None else tuple(sources)
    stored = _store(user_key, client_id, aliases, number)
    for alias in aliases:
        _emit_message(alias, str(write_checkpoint_digest(user_key, client_id)))
    return stored


def _store(user_key: str, client_id: str, aliases: Sequence[str], wanted: int | None) -> int:
    storage = get_settings().storage
    key = {"user_key": user_key, "client_id": client_id}
    with transaction.atomic(using=storage, durable=True), connections[storage].cursor() as cursor:
        cursor.execute(COUNT_UP if wanted is None else RAISE_TO, {**key, "number": wanted})
        raised = cursor.fetchone()
        if raised is None:
            cursor.execute(STORED_NUMBER, key)
            return int(cursor.fetchone()[0])
        (number,) = raised
        positions = {alias: _current_position(alias).value for alias in aliases}
        cursor.execute(SET_POSITIONS, {**key, "positions": json.dumps(positions)})
    return int(number)


def _current_position(alias: str) -> Lsn:
    with connections[alias].cursor() as cursor:
        cursor.execute(CURRENT_POSITION)
        return Lsn.parse(cursor.fetchone()[0])


def _emit_message(alias: str, content: str) -> None:
    with transaction.atomic(using=alias, durable=True), connections[alias].cursor() as cursor:
        cursor.execute(FLUSH_ONLY)
        cursor.execute(EMIT_MESSAGE, [MESSAGE_PREFIX, content])
