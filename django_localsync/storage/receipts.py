"""Write checkpoints that a project makes itself: rows of its tables, by the event write_checkpoints of the rules."""

from __future__ import annotations

from collections.abc import Iterable

import orjson

from ..buckets.announcement import write_checkpoint_digest
from .connections import Connection

# Primary key (user_key, client_id), in its order. A receipt may be shown from this transaction's position on. While
# rows are written only a lower bound of it is known, which is enough: no earlier transaction's position reaches it,
# and while something is withheld, readers see only those (I7).
RAISE = """
    INSERT INTO localsync_write_checkpoint AS stored (user_key, client_id, number, positions, requested_at)
    SELECT v.u, v.c, v.n, jsonb_build_object(source.alias, source.written_lsn + 1), now()
      FROM json_to_recordset(%s::json) AS v (u text, c text, n bigint, t bigint)
      JOIN localsync_source_table AS source_table ON source_table.id = v.t
      JOIN localsync_source AS source ON source.id = source_table.source_id
     ORDER BY v.u, v.c
    ON CONFLICT (user_key, client_id) DO UPDATE
       SET number = EXCLUDED.number, requested_at = now(),
           positions = (SELECT jsonb_object_agg(alias, greatest(lsn::bigint, (EXCLUDED.positions ->> alias)::bigint))
                          FROM jsonb_each_text(EXCLUDED.positions || stored.positions) AS position (alias, lsn))
     WHERE stored.number < EXCLUDED.number
    RETURNING user_key, client_id
"""


def raise_receipts(connection: Connection, found: Iterable[tuple[str, int]]) -> frozenset[int]:
    """Raise write checkpoints to what rows say: JSON of user id, client id and number, and the row's table (its id).

    Numbers only rise. Belongs in the storage transaction that publishes the rows. Answers the digests of the clients
    whose numbers rose, for the announcement.
    """
    highest: dict[tuple[str, str], tuple[int, int]] = {}
    for outputs, table in found:
        user, client, number = orjson.loads(outputs)
        highest[user, client] = max(highest.get((user, client), (0, 0)), (number, table))
    if not highest:
        return frozenset()
    receipts = [{"u": user, "c": client, "n": n, "t": t} for (user, client), (n, t) in highest.items()]
    raised = connection.execute(RAISE, (orjson.dumps(receipts).decode(),)).fetchall()
    return frozenset(write_checkpoint_digest(user, client) for user, client in raised)
