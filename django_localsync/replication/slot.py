"""Replication slots: their names, and whether one can still serve us."""

from __future__ import annotations

import re
from hashlib import sha256

from ..exceptions import ConfigurationError
from ..storage.connections import Connection

MAX_PREFIX_LENGTH = 40  # of Postgres's 63, so that a number fits behind it


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


def slot_problem(connection: Connection, slot: str) -> str | None:
    """Why a slot cannot be continued, or None."""
    row = connection.execute(
        "SELECT wal_status, database = current_database() FROM pg_replication_slots WHERE slot_name = %s", (slot,)
    ).fetchone()
    if row is None:
        return "it does not exist"
    if not row[1]:
        return "it belongs to another database"
    return "its WAL was removed" if row[0] == "lost" else None


def drop_slot(connection: Connection, slot: str) -> bool:
    """Drop a slot; answers False where somebody still reads it. One that does not exist counts as dropped."""
    row = connection.execute("SELECT active FROM pg_replication_slots WHERE slot_name = %s", (slot,)).fetchone()
    if row is None:
        return True
    if row[0]:
        return False
    connection.execute("SELECT pg_drop_replication_slot(%s)", (slot,))
    return True


def check_server(connection: Connection) -> None:
    """Refuse a server that cannot be a source. Raises ConfigurationError with the way out."""
    level, recovering, replicates = connection.execute(
        "SELECT current_setting('wal_level'), pg_is_in_recovery(),"
        " (SELECT rolreplication OR rolsuper FROM pg_roles WHERE rolname = current_user)"
    ).fetchone() or ("", True, False)
    if level != "logical":
        raise ConfigurationError(f"the source has wal_level={level}; set wal_level=logical and restart Postgres")
    if recovering:
        raise ConfigurationError("the source is a standby; point the database alias at the primary")
    if not replicates:
        raise ConfigurationError("the database role may not replicate; run: ALTER ROLE … REPLICATION")
