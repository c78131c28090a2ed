"""What an error of replication asks for: patience, a new slot, or a person, and what that person should do.

Postgres's texts are translated, its SQLSTATEs are not, so codes decide. Only failures to connect come without a code
(libpq does not hand it out): there the English texts are known, and any other text is one more reason to try again.
https://www.postgresql.org/docs/current/errcodes-appendix.html
"""

from __future__ import annotations

import errno
import re
from dataclasses import dataclass
from enum import Enum

import psycopg

from ..exceptions import ConfigurationError, SlotLost


class Verdict(Enum):
    """What to do after an error."""

    RETRY = "it passes by itself: try again soon"
    NEW_SLOT = "the slot is of no use any more: make another, and read the tables again"
    PERSON = "a person must help: say how, and try again slowly"


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """An error understood. `remedy` is what a person can do about it, if anything."""

    verdict: Verdict
    message: str
    remedy: str | None = None

    def __str__(self) -> str:
        """One line for log and status."""
        return f"{self.message}; {self.remedy}" if self.remedy else self.message


DISK_FULL = "the disk of the database server is full; free space or enlarge it"
POOLER = (
    "this looks like a connection pooler, which replication, LISTEN and session locks cannot pass; "
    "give the server's own address in REPLICATION_URL"
)
MIGRATE = "run: manage.py migrate"
CREDENTIALS = "correct user, password and database of the alias (or of REPLICATION_URL), or let them in by pg_hba.conf"
WAL_LEVEL = "set wal_level = logical and restart Postgres"
ROW_SECURITY = "row level security hides rows; run: ALTER ROLE … BYPASSRLS, or connect as the owner of the tables"
READ_ONLY = "the server accepts no writes: it is a standby, or it was made read-only, perhaps because its disk is full"

# By SQLSTATE; a prefix of two characters stands for its whole class.
BY_SQLSTATE: dict[str, tuple[Verdict, str]] = {
    "25006": (Verdict.PERSON, READ_ONLY),
    "28": (Verdict.PERSON, CREDENTIALS),
    "3D000": (Verdict.PERSON, CREDENTIALS),
    "42501": (
        Verdict.PERSON,
        "the database role lacks a right; as the tables' owner run: GRANT SELECT ON … TO …",
    ),
    "53100": (Verdict.PERSON, DISK_FULL),
    "53200": (Verdict.RETRY, "the database server has too little memory"),
    "53300": (Verdict.RETRY, "the database server has no connection left; raise max_connections or max_wal_senders"),
    "53400": (Verdict.PERSON, "raise max_replication_slots and restart Postgres, or drop slots that nobody reads"),
    "55006": (Verdict.RETRY, "somebody else reads the slot; it is free when they end"),
    "58030": (Verdict.RETRY, "the disk of the database server fails; look into its log"),
    "XX001": (Verdict.PERSON, "the database server finds its data damaged; look into its log"),
    "XX002": (Verdict.PERSON, "the database server finds an index damaged; run: REINDEX"),
}

# Failures to connect, as an English server says them.
BY_TEXT: tuple[tuple[str, Verdict, str], ...] = (
    (r"start walsender|start WAL sender", Verdict.PERSON, "run: ALTER ROLE … REPLICATION"),
    (r"max_wal_senders", Verdict.PERSON, "raise max_wal_senders and restart Postgres"),
    (r"unsupported startup parameter|unsupported pkt type", Verdict.PERSON, POOLER),
    (r"too many clients|remaining connection slots|too many connections", Verdict.RETRY, "raise max_connections"),
    (r"no pg_hba.conf entry|authentication failed|no password supplied", Verdict.PERSON, CREDENTIALS),
    (r"FATAL: +(role|database) .* does not exist", Verdict.PERSON, CREDENTIALS),
    (r"not (currently )?accepting connections", Verdict.PERSON, "run: ALTER DATABASE … ALLOW_CONNECTIONS true"),
)


def diagnose(error: BaseException) -> Diagnosis:
    """Understand an error of the replicator, of whichever of its connections.

    Whatever is not known is to be tried again: that is safe (I3), and most failures pass.
    """
    message = _message(error)
    match error:
        case SlotLost():
            return Diagnosis(Verdict.NEW_SLOT, message)
        case ConfigurationError():
            return Diagnosis(Verdict.PERSON, message)  # its text names the way out
        case psycopg.Error(sqlstate=str()):
            return Diagnosis(*_by_sqlstate(error, message))
        case psycopg.OperationalError():
            return Diagnosis(*_by_text(message))
        case OSError(errno=errno.ENOSPC):
            return Diagnosis(Verdict.PERSON, message, "the disk of this machine is full; free space or enlarge it")
    return Diagnosis(Verdict.RETRY, message)


def _by_sqlstate(error: psycopg.Error, message: str) -> tuple[Verdict, str, str | None]:
    state = error.sqlstate or ""
    if "row-level security" in message or error.diag.source_function == "check_enable_rls":
        return Verdict.PERSON, message, ROW_SECURITY
    if error.diag.source_function == "CheckLogicalDecodingRequirements":
        return Verdict.PERSON, message, WAL_LEVEL
    if state in ("42P01", "42703") and "localsync_" in message:  # undefined table, undefined column
        return Verdict.PERSON, message, MIGRATE
    verdict, remedy = BY_SQLSTATE.get(state) or BY_SQLSTATE.get(state[:2]) or (Verdict.RETRY, None)
    return verdict, message, remedy


def _by_text(message: str) -> tuple[Verdict, str, str | None]:
    for pattern, verdict, remedy in BY_TEXT:
        if re.search(pattern, message):
            return verdict, message, remedy
    return Verdict.RETRY, message, None


def _message(error: BaseException) -> str:
    """The error in one line: a server's primary message and its detail, or all of what a failure to connect says."""
    if isinstance(error, psycopg.Error) and error.diag.message_primary:
        return ": ".join(filter(None, (error.diag.message_primary, error.diag.message_detail)))
    return " ".join(str(error).split()) or type(error).__name__
