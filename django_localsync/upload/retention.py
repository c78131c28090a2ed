"""What uploads leave behind is pruned by uploads themselves: a little, now and then, so there is nothing to run."""

from __future__ import annotations

import logging
import time
from datetime import timedelta

from django.db import DatabaseError, InterfaceError, connections
from django.utils import timezone

from ..conf import get_settings
from . import journal

PAUSE_S = 600.0  # between two rounds of one process
MOST_LINES = 1000  # of a round

# Primary key; a receipt that nobody asked for in all that time belongs to a device that is gone.
PRUNE_RECEIPTS = """
    DELETE FROM localsync_write_checkpoint WHERE ctid = ANY(ARRAY(
        SELECT ctid FROM localsync_write_checkpoint WHERE requested_at < %s LIMIT %s FOR UPDATE SKIP LOCKED))
"""

logger = logging.getLogger("django_localsync.upload")
_next_round: dict[str, float] = {}


def prune_if_due(using: str) -> int:
    """Delete old lines of the journal in `using`, and old receipts, unless it was done lately; how many there were.

    Trouble is logged: it must not spoil an upload's answer.
    """
    now = time.monotonic()
    if now < _next_round.get(using, 0.0):
        return 0
    _next_round[using] = now + PAUSE_S
    settings = get_settings()
    before = timezone.now() - timedelta(days=settings.journal_retention_days)
    try:
        deleted = journal.prune(using, before, MOST_LINES)
        with connections[settings.storage].cursor() as cursor:
            cursor.execute(PRUNE_RECEIPTS, [before, MOST_LINES])
            return deleted + int(cursor.rowcount)
    except (DatabaseError, InterfaceError) as error:
        logger.warning("the journal of uploads could not be pruned: %s", error)
        return 0
