"""Stores revocations and tells every serving process. Uses Django's connection, and its transaction if there is one."""

from __future__ import annotations

from django.db import connections, transaction

from ..protocol.revocations import CHANNEL, Bearer, Revocation, RevocationKind, encode_revocation, revocation_key

ADD = """
    INSERT INTO localsync_revocation AS stored (key, kind, value, revoked_at)
    VALUES (%(key)s, %(kind)s, %(value)s, %(revoked_at)s)
        ON CONFLICT (key) DO UPDATE SET revoked_at = greatest(stored.revoked_at, EXCLUDED.revoked_at)
"""
# Index (revoked_at).
PRUNE = "DELETE FROM localsync_revocation WHERE revoked_at < %s"
NOTIFY = "SELECT pg_notify(%s, %s)"

# Primary key.
FIND = "SELECT 1 FROM localsync_revocation WHERE key = ANY(%s) AND revoked_at >= %s LIMIT 1"
LIST = "SELECT key, revoked_at FROM localsync_revocation"


def add_revocation(alias: str, kind: RevocationKind, value: str, revoked_at: int, *, oldest: int) -> None:
    """Store a revocation and announce it, both when the transaction commits. Those made before `oldest` are deleted.

    Moments are seconds since the epoch.
    """
    revocation = Revocation(revocation_key(kind, value), revoked_at)
    row = {"key": revocation.key, "kind": kind.value, "value": value, "revoked_at": revoked_at}
    with transaction.atomic(using=alias), connections[alias].cursor() as cursor:
        cursor.execute(ADD, row)
        cursor.execute(PRUNE, [oldest])
        cursor.execute(NOTIFY, [CHANNEL, encode_revocation(revocation)])


def is_revoked(alias: str, bearer: Bearer) -> bool:
    """Whether storage has a revocation of the bearer's token."""
    with connections[alias].cursor() as cursor:
        cursor.execute(FIND, [list(bearer.keys), bearer.issued_at])
        return cursor.fetchone() is not None
