"""Who keeps us waiting: transactions that write, and must end before a slot is made or a table is read."""

from __future__ import annotations

import logging
from collections.abc import Callable
from time import monotonic

from ..storage.connections import Connection

logger = logging.getLogger(__name__)

SAY_WHO_AFTER_S = 10.0

OLDEST_WRITERS = """
    SELECT format('process %s (%s, %s, since %s)', pid, datname, state, xact_start::timestamp(0))
      FROM pg_stat_activity WHERE backend_xid IS NOT NULL AND pid <> pg_backend_pid()
     UNION ALL SELECT format('prepared transaction %s', gid) FROM pg_prepared_xacts
     LIMIT 5
"""


class Waiting:
    """A wait that may be long; tells once for whom."""

    def __init__(self, connection: Connection, what: Callable[[], object]) -> None:
        """`what` names in the log what waits."""
        self._connection, self._what = connection, what
        self._since, self._has_told = monotonic(), False

    def seconds(self) -> float:
        """How long it lasts until now."""
        return monotonic() - self._since

    def tell_when_long(self) -> None:
        """Log who is waited for, once it has lasted."""
        if self._has_told or self.seconds() < SAY_WHO_AFTER_S:
            return
        self._has_told = True
        writers = [row[0] for row in self._connection.execute(OLDEST_WRITERS)]
        logger.warning("%s waits for %s", self._what(), ", ".join(writers) or "transactions that are ending")
