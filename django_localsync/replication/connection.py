"""The replication connection: slots and COPY BOTH by psycopg's libpq layer.

Always libpq's non-blocking form: `get_copy_data(0)` waits inside libpq while it holds the interpreter's lock.
https://www.postgresql.org/docs/current/protocol-replication.html
"""

from __future__ import annotations

import select
from collections.abc import Sequence
from typing import Any, NamedTuple

import psycopg
from psycopg import pq, sql

from ..exceptions import ReplicationError, SlotLost
from ..pgoutput.frames import encode_status_update
from ..pgoutput.lsn import Lsn
from ..storage.connections import connect_for_rows

MAX_MESSAGES_PER_READ = 10_000  # about 5 MB of small rows: what one read may add to memory


class SystemIdentity(NamedTuple):
    """Which server, and which of its histories, LSNs belong to."""

    system_identifier: str
    timeline: int
    database: str


class CreatedSlot(NamedTuple):
    """A new slot: streaming begins at `consistent_point`; `snapshot` shows exactly what lies before it."""

    consistent_point: Lsn
    snapshot: str


class ReplicationConnection:
    """One walsender connection. `CREATE_REPLICATION_SLOT`'s snapshot lives until the next command on it."""

    def __init__(self, alias: str) -> None:
        self._connection = connect_for_rows(
            alias, replication="database", application_name="django_localsync replicator"
        )
        self._pgconn = self._connection.pgconn

    def close(self) -> None:
        """Close the connection; an open stream ends and its slot becomes free."""
        self._connection.close()

    def identify_system(self) -> SystemIdentity:
        """The server's system identifier and timeline."""
        row = self._query(sql.SQL("IDENTIFY_SYSTEM"))
        return SystemIdentity(str(row[0]), int(row[1]), str(row[3]))

    def create_slot(self, slot: str) -> CreatedSlot:
        """Create a logical slot that uses pgoutput. Waits for transactions that are writing now."""
        row = self._query(
            sql.SQL("CREATE_REPLICATION_SLOT {} LOGICAL pgoutput (SNAPSHOT 'export')").format(sql.Identifier(slot))
        )
        return CreatedSlot(Lsn.parse(str(row[1])), str(row[2]))

    def start(self, slot: str, after: Lsn, publications: Sequence[str]) -> None:
        """Begin streaming committed transactions. Raises SlotLost when the slot cannot serve `after`."""
        names = sql.SQL(",").join(map(sql.Identifier, publications)).as_string(self._connection)
        command = sql.SQL(
            "START_REPLICATION SLOT {} LOGICAL {} (proto_version '1', publication_names {}, messages 'true')"
        ).format(sql.Identifier(slot), sql.SQL(str(after)), sql.Literal(names))
        result = self._pgconn.exec_(command.as_bytes(self._connection))
        if result.status != pq.ExecStatus.COPY_BOTH:
            raise _start_error(slot, result)
        self._pgconn.nonblocking = 1

    def read(self, timeout_s: float, wake_fd: int) -> list[bytes]:
        """CopyData payloads that have arrived; waits up to `timeout_s` for the first, or until `wake_fd` is readable.

        Raises psycopg.OperationalError when the stream has ended.
        """
        payloads = self._drain()
        if payloads:
            return payloads
        readable, _, _ = select.select([self._pgconn.socket, wake_fd], [], [], timeout_s)
        if self._pgconn.socket not in readable:
            return []
        self._pgconn.consume_input()
        return self._drain()

    def has_buffered(self) -> bool:
        """Whether more has arrived on the socket already."""
        return bool(select.select([self._pgconn.socket], [], [], 0)[0])

    def confirm(self, flushed: Lsn) -> None:
        """Tell Postgres that everything before `flushed` is durable here, so it may forget it (I3)."""
        self._pgconn.put_copy_data(encode_status_update(flushed))
        self._pgconn.flush()

    def _drain(self) -> list[bytes]:
        payloads: list[bytes] = []
        while len(payloads) < MAX_MESSAGES_PER_READ:
            size, data = self._pgconn.get_copy_data(1)
            if size > 0:
                payloads.append(bytes(data))
            elif size == 0:
                break
            else:
                raise psycopg.OperationalError(f"the replication stream ended: {_last_error(self._pgconn)}")
        return payloads

    def _query(self, command: sql.SQL | sql.Composed) -> tuple[Any, ...]:
        row = self._connection.execute(command).fetchone()
        if row is None:
            raise ReplicationError("the server answered a replication command with nothing")
        return row


def _start_error(slot: str, result: Any) -> Exception:
    message = result.error_message.decode(errors="replace").strip()
    state = result.error_field(pq.DiagnosticField.SQLSTATE)
    # undefined_object: no such slot; object_not_in_prerequisite_state: invalidated
    if state in (b"42704", b"55000"):
        return SlotLost(slot, message)
    return psycopg.OperationalError(message)


def _last_error(pgconn: Any) -> str:
    result = pgconn.get_result()
    text = result.error_message if result is not None else pgconn.error_message
    return str(text.decode(errors="replace")).strip() or "closed by the server"
