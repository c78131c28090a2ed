"""Replication slots: their names, their health, and whether one can be continued where we stopped."""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from hashlib import sha256
from time import monotonic

from ..exceptions import ConfigurationError
from ..pgoutput.lsn import Lsn
from ..storage.connections import Connection
from .connection import ReplicationConnection, SystemIdentity
from .diagnosis import WAL_LEVEL

logger = logging.getLogger(__name__)

MAX_PREFIX_LENGTH = 40  # of Postgres's 63, so that a number fits behind it
WATCH_INTERVAL_S = 30.0
OLDEST_VERSION = 150_000
WAL_BUDGET_WARNING = 0.5  # of max_slot_wal_keep_size
UNBOUNDED_WAL_WARNING = 4 << 30  # bytes that a slot may retain before it is worth a word, where nothing bounds them


def slot_prefix(configured: str | None, database: str) -> str:
    """What our slots' names begin with: slots are one namespace for a whole server, so the database is in it.

    >>> slot_prefix(None, "shop-eu")
    'localsync_shop_eu_ee5d'
    """
    if configured is not None:
        if not re.fullmatch(r"[a-z0-9_]{1,40}", configured):
            raise ConfigurationError(
                f"SLOT_NAME {configured!r}: Postgres allows a-z, 0-9 and _ in a slot's name, we at most 40 of them"
            )
        return configured
    plain = re.sub(r"[^a-z0-9_]", "_", database.lower())
    if plain != database or len(plain) > MAX_PREFIX_LENGTH - 15:
        plain = f"{plain[: MAX_PREFIX_LENGTH - 15]}_{sha256(database.encode()).hexdigest()[:4]}"
    return f"localsync_{plain}"


@dataclass(frozen=True, slots=True)
class SlotHealth:
    """What Postgres says of a slot. Sizes are in bytes; `safe` and `budget` are None where nothing bounds the WAL."""

    slot: str
    plugin: str | None
    own_database: bool
    active: bool
    wal_status: str | None  # reserved, extended, unreserved or lost
    invalidation: str | None  # why it was lost; Postgres 17 and later say it
    confirmed: Lsn
    lag_bytes: int  # from what we confirmed to the end of the WAL
    retained_bytes: int  # WAL that the server keeps for this slot
    safe_bytes: int | None  # WAL that may yet be written before the slot is lost
    budget_bytes: int | None  # max_slot_wal_keep_size

    @property
    def problem(self) -> str | None:
        """Why the slot can never be continued, or None."""
        if self.plugin != "pgoutput":
            return "it is not a slot of pgoutput"
        if not self.own_database:
            return "it belongs to another database"
        if self.wal_status == "lost":
            return f"Postgres gave it up: {self.invalidation or 'its WAL was removed'}"
        return None

    @property
    def warning(self) -> str | None:
        """What will become a problem, with the way out, or None."""
        if self.wal_status == "unreserved":
            return "the slot is lost at the next checkpoint of Postgres: its WAL exceeds max_slot_wal_keep_size"
        if self.budget_bytes and self.retained_bytes > self.budget_bytes * WAL_BUDGET_WARNING:
            share = self.retained_bytes / self.budget_bytes
            return f"the slot retains {share:.0%} of max_slot_wal_keep_size; beyond it, all tables must be read again"
        if self.budget_bytes is None and self.retained_bytes > UNBOUNDED_WAL_WARNING:
            size = self.retained_bytes / (1 << 30)
            return f"the slot retains {size:.1f} GiB of WAL, and nothing bounds it; set max_slot_wal_keep_size"
        return None


# Columns that came with later versions are read by way of JSON.
SLOT_HEALTH = """
    WITH server AS (
        SELECT CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_lsn() END AS lsn,
               (SELECT nullif(setting::bigint, -1) << 20 FROM pg_settings WHERE name = 'max_slot_wal_keep_size')
                   AS budget)
    SELECT slot_name, plugin, coalesce(database = current_database(), false), active, wal_status,
           to_jsonb(slot) ->> 'invalidation_reason', coalesce(confirmed_flush_lsn, '0/0')::text,
           coalesce(greatest(lsn - confirmed_flush_lsn, 0), 0)::bigint,
           coalesce(greatest(lsn - restart_lsn, 0), 0)::bigint, safe_wal_size, budget
      FROM server, pg_replication_slots AS slot
     WHERE slot_name = %s
"""


def read_slot_health(connection: Connection, slot: str) -> SlotHealth | None:
    """How a slot fares, or None where there is none of this name."""
    row = connection.execute(SLOT_HEALTH, (slot,)).fetchone()
    if row is None:
        return None
    name, plugin, own, active, status, invalidation, confirmed, lag, retained, safe, budget = row
    lsn = Lsn.parse(confirmed)
    return SlotHealth(name, plugin, own, active, status, invalidation, lsn, lag, retained, safe, budget)


class SlotWatch:
    """Says once, and not again until it changes, what will become a problem of a slot."""

    def __init__(self, connection: Connection, slot: str) -> None:
        self._connection, self._slot = connection, slot
        self._due, self._is_warned = 0.0, False

    def look_when_due(self) -> None:
        """Ask Postgres, at most once in WATCH_INTERVAL_S. Raises psycopg.Error."""
        if monotonic() < self._due:
            return
        self._due = monotonic() + WATCH_INTERVAL_S
        health = read_slot_health(self._connection, self._slot)
        warning = health.warning if health else None
        if warning and not self._is_warned:
            logger.warning("slot %s: %s", self._slot, warning)
        self._is_warned = warning is not None


def slot_problem(connection: Connection, slot: str, after: Lsn | None = None) -> str | None:
    """Why a slot cannot be continued after `after`, the durable position of storage, or None.

    A slot that stands beyond it was made anew, or moved by somebody else: changes in between would be missing. So
    only what is durable in storage may ever be confirmed.
    """
    health = read_slot_health(connection, slot)
    if health is None:
        return "it does not exist"
    if health.problem is None and after is not None and health.confirmed > after:
        return f"it stands at {health.confirmed}, beyond {after}, which storage holds"
    return health.problem


def history_problem(
    replication: ReplicationConnection, connection: Connection, stored: SystemIdentity, after: Lsn
) -> str | None:
    """Why positions of the server `stored` mean nothing on the server that answers now, or None.

    A standby that was promoted shares its history up to the switch: what lies before it may be continued. A server
    set back to a backup of its files keeps name and timeline, and shows itself by a WAL that ends before `after`.
    """
    now = replication.identify_system()
    if now.system_identifier != stored.system_identifier:
        return "the source is another server"
    if now.timeline != stored.timeline:
        switch = replication.switch_point(stored.timeline, now.timeline)
        if switch is None or switch < after:
            return "the source was restored, or failed over before it had all that storage holds"
    (end,) = connection.execute("SELECT pg_current_wal_insert_lsn()::text").fetchone() or ("0/0",)
    if Lsn.parse(end) < after:
        return "the source was set back to an earlier state"
    return None


def drop_slot(connection: Connection, slot: str) -> bool:
    """Drop a slot; answers False where somebody still reads it. One that does not exist counts as dropped."""
    row = connection.execute("SELECT active FROM pg_replication_slots WHERE slot_name = %s", (slot,)).fetchone()
    if row is None:
        return True
    if row[0]:
        return False
    connection.execute("SELECT pg_drop_replication_slot(%s)", (slot,))
    return True


# Some services let nobody have the attribute, and give a role to be a member of instead.
MAY_REPLICATE = """
    SELECT (SELECT rolreplication OR rolsuper FROM pg_roles WHERE rolname = current_user)
        OR EXISTS (SELECT FROM pg_roles WHERE rolname IN ('rds_replication', 'neon_superuser')
                      AND pg_has_role(oid, 'USAGE'))
"""


def check_server(connection: Connection) -> None:
    """Refuse a server that cannot be a source. Raises ConfigurationError with the way out."""
    if connection.info.server_version < OLDEST_VERSION:
        raise ConfigurationError("the source is older than Postgres 15; upgrade it")
    level, recovering, role = connection.execute(
        "SELECT current_setting('wal_level'), pg_is_in_recovery(), quote_ident(current_user)"
    ).fetchone() or ("", True, "…")
    if recovering:
        raise ConfigurationError("the source is a standby; point the database alias at the primary")
    if level != "logical":
        raise ConfigurationError(f"the source has wal_level = {level}; {WAL_LEVEL}")
    if connection.execute(MAY_REPLICATE).fetchone() != (True,):
        raise ConfigurationError(
            f"the database role may not replicate; run: ALTER ROLE {role} REPLICATION (on Amazon RDS: "
            f"GRANT rds_replication TO {role})"
        )
