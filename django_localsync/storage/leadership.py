"""Who may write: one replicator leads, others stand by; and what storage says of itself.

The leader holds an advisory lock over a connection of its own and has taken a number from the checkpoint row. Every
writing transaction locks that row and compares the number, so whoever has lost the lead cannot write any more.
"""

from __future__ import annotations

from secrets import token_hex

from ..exceptions import ConfigurationError
from .connections import Connection

LEADER_LOCK = 0x6C6F63616C73796E  # "localsyn": an advisory lock of the storage's database


def try_lead(connection: Connection) -> bool:
    """Become the one replicator of this storage, for as long as the connection lives."""
    row = connection.execute("SELECT pg_try_advisory_lock(%s)", (LEADER_LOCK,)).fetchone()
    return bool(row and row[0])


def take_number(connection: Connection) -> int:
    """Make every earlier leader's writes fail from here on; answers the number that writes must name now."""
    row = connection.execute("UPDATE localsync_checkpoint SET leader = leader + 1 RETURNING leader").fetchone()
    assert row is not None, "prepare_storage makes the checkpoint row"
    return int(row[0])


def prepare_storage(connection: Connection) -> None:
    """Make the checkpoint row, or renew the incarnation where op ids may have been set back.

    A restored or failed-over storage server has another system identifier or timeline; devices may then be ahead of
    it, so every bucket gets a new name and no name ever has two histories.
    """
    if connection.execute("SELECT to_regclass('localsync_checkpoint')").fetchone() == (None,):
        raise ConfigurationError("the tables of django_localsync do not exist; run: manage.py migrate")
    connection.execute(
        """
        INSERT INTO localsync_checkpoint AS checkpoint
               (id, op_id, written_op_id, withheld, leader, incarnation, system_identifier, timeline)
        SELECT 1, 0, 0, false, 0, %s, system_identifier::text, timeline_id
          FROM pg_control_system(), pg_control_checkpoint()
            ON CONFLICT (id) DO UPDATE
           SET incarnation = excluded.incarnation, system_identifier = excluded.system_identifier,
               timeline = excluded.timeline
         WHERE (checkpoint.system_identifier, checkpoint.timeline)
               IS DISTINCT FROM (excluded.system_identifier, excluded.timeline)
        """,
        (token_hex(4),),
    )
