"""The replication connection: slots and COPY BOTH by psycopg's libpq layer.

Always libpq's non-blocking form: `get_copy_data(0)` and `get_result()` wait inside libpq while they hold the
interpreter's lock.
https://www.postgresql.org/docs/current/protocol-replication.html
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from contextlib import closing
from typing import Any, NamedTuple

import psycopg
from psycopg import pq, sql
from psycopg.errors import error_from_result

from ..exceptions import ConfigurationError, ReplicationError, SlotLost
from ..pgoutput.frames import encode_status_update
from ..pgoutput.lsn import Lsn
from ..storage.connections import Connection, connect, connect_for_rows
from .diagnosis import POOLER
from .wakeups import wait_readable

MAX_MESSAGES_PER_READ = 10_000  # about 5 MB of small rows: what one read may add to memory
CHECK_INTERVAL_S, CANCEL_TIMEOUT_S = 1.0, 5.0
FAILOVER_SLOTS = 170_000  # server version that can keep a slot on standbys

# What a walsender answers when slot and publication cannot give what is asked for: no such slot or publication, slot
# invalidated, WAL removed.
USELESS_SLOT = {"42704", "55000", "58P01"}
# It answers 55000 also where the server is at fault; the function that refused is named in no language but C.
SERVER_AT_FAULT = {"CheckLogicalDecodingRequirements", "CheckSlotRequirements"}


class SystemIdentity(NamedTuple):
    """Which server, and which of its histories, LSNs belong to."""

    system_identifier: str
    timeline: int
    database: str


class CreatedSlot(NamedTuple):
    """A new slot: streaming begins at `consistent_point`; `snapshot` shows exactly what lies before it."""

    consistent_point: Lsn
    snapshot: str


def check_direct(connection: Connection, alias: str) -> None:
    """Refuse a pooler that lends one backend to several sessions. Raises ConfigurationError with the way out.

    Some proxies only invent process ids of their own. So another session must show that it gets the same backend.
    """
    backend = _backend(connection)
    if backend == connection.info.backend_pid:
        return
    with closing(connect(alias)) as another:
        if _backend(another) == backend:
            raise ConfigurationError(f"database alias {alias!r}: {POOLER}")


class ReplicationConnection:
    """One walsender connection. `CREATE_REPLICATION_SLOT`'s snapshot lives until the next command on it."""

    def __init__(self, alias: str) -> None:
        self._connection = connect_for_rows(
            alias, replication="database", application_name="django_localsync replicator"
        )
        self._pgconn = self._connection.pgconn
        self._slot = ""

    def close(self) -> None:
        """Close the connection; an open stream ends and its slot becomes free."""
        self._connection.close()

    def identify_system(self) -> SystemIdentity:
        """The server's system identifier and timeline. Raises ConfigurationError where a pooler answers instead."""
        try:
            row = self._query(sql.SQL("IDENTIFY_SYSTEM"))
        except psycopg.errors.SyntaxError as error:
            raise ConfigurationError(POOLER) from error
        return SystemIdentity(str(row[0]), int(row[1]), str(row[3]))

    def switch_point(self, timeline: int, current: int) -> Lsn | None:
        """Where the server's history left `timeline` on its way to the timeline `current`.

        Up to there both are the same. None: the server never was on it, or its history file is gone.
        """
        try:
            row = self._query(sql.SQL("TIMELINE_HISTORY {}").format(sql.Literal(current)))
        except psycopg.Error:
            return None
        content = row[1].decode() if isinstance(row[1], bytes) else str(row[1])
        for line in content.splitlines():
            fields = line.split()
            if fields and fields[0] == str(timeline):
                return Lsn.parse(fields[1])
        return None

    def create_slot(
        self, slot: str, check: Callable[[], None] = lambda: None, wake_fd: int | None = None
    ) -> CreatedSlot:
        """Create a logical slot that uses pgoutput. Waits for transactions that are writing now.

        Servers that can take the slot along to a standby are told to. Meanwhile `check` is asked each second, and when
        `wake_fd` becomes readable; if it raises, no slot is left.
        """
        survives_failover = self._connection.info.server_version >= FAILOVER_SLOTS
        command = sql.SQL("CREATE_REPLICATION_SLOT {} LOGICAL pgoutput (SNAPSHOT 'export'{})")
        failover = sql.SQL(", FAILOVER" if survives_failover else "")
        self._pgconn.send_query(command.format(sql.Identifier(slot), failover).as_bytes(self._connection))
        try:
            result = self._wait_for_result(check, wake_fd)
        except BaseException:
            self._connection.cancel_safe(timeout=CANCEL_TIMEOUT_S)
            raise
        if result is None or result.status != pq.ExecStatus.TUPLES_OK:
            raise self._error(result)
        _, point, snapshot, _ = (result.get_value(0, column) or b"" for column in range(4))
        return CreatedSlot(Lsn.parse(point.decode()), snapshot.decode())

    def start(
        self,
        slot: str,
        after: Lsn,
        publications: Sequence[str],
        check: Callable[[], None] = lambda: None,
        wake_fd: int | None = None,
    ) -> None:
        """Begin streaming committed transactions. Raises SlotLost when the slot cannot serve `after`.

        Until the server answers, `check` is asked as in `create_slot`.
        """
        names = sql.SQL(",").join(map(sql.Identifier, publications)).as_string(self._connection)
        command = sql.SQL(
            "START_REPLICATION SLOT {} LOGICAL {} (proto_version '1', publication_names {}, messages 'true')"
        ).format(sql.Identifier(slot), sql.SQL(str(after)), sql.Literal(names))
        self._slot = slot
        self._pgconn.send_query(command.as_bytes(self._connection))
        result = self._wait_for_result(check, wake_fd)
        if result is None or result.status != pq.ExecStatus.COPY_BOTH:
            raise self._error(result)
        self._pgconn.nonblocking = 1

    def read(self, timeout_s: float, wake_fd: int) -> list[bytes]:
        """CopyData payloads that have arrived; waits up to `timeout_s` for the first, or until `wake_fd` is readable.

        Raises psycopg.Error when the stream has ended, SlotLost when it can never be continued.
        """
        payloads = self._drain()
        if payloads:
            return payloads
        if self._pgconn.socket not in wait_readable(self._pgconn.socket, wake_fd, timeout_s=timeout_s):
            return []
        self._pgconn.consume_input()
        return self._drain()

    def has_buffered(self) -> bool:
        """Whether more has arrived on the socket already."""
        return bool(wait_readable(self._pgconn.socket, timeout_s=0))

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
                raise self._error(self._pgconn.get_result())
        return payloads

    def _error(self, result: Any) -> Exception:
        """The error that a result tells of, or that libpq tells of where there is no result."""
        if result is None or result.status != pq.ExecStatus.FATAL_ERROR:
            text = self._pgconn.error_message.decode(errors="replace").strip()
            return psycopg.OperationalError(f"the replication stream ended: {text or 'closed by the server'}")
        error = error_from_result(result, encoding="utf-8")
        if error.sqlstate in USELESS_SLOT and error.diag.source_function not in SERVER_AT_FAULT:
            return SlotLost(self._slot, re.sub(r"\s+", " ", str(error)).strip())
        return error

    def _wait_for_result(self, check: Callable[[], None], wake_fd: int | None) -> Any:
        """The first result of the query that was sent, once there is no other, or once it is a stream."""
        others = [] if wake_fd is None else [wake_fd]
        first = None
        while True:
            while self._pgconn.is_busy():  # else get_result() would wait, and hold up every thread of the process
                if self._pgconn.socket in wait_readable(self._pgconn.socket, *others, timeout_s=CHECK_INTERVAL_S):
                    self._pgconn.consume_input()
                else:
                    check()
            result = self._pgconn.get_result()
            if result is not None and first is None:
                first = result
            if result is None or result.status == pq.ExecStatus.COPY_BOTH:
                return first

    def _query(self, command: sql.SQL | sql.Composed) -> tuple[Any, ...]:
        row = self._connection.execute(command).fetchone()
        if row is None:
            raise ReplicationError("the server answered a replication command with nothing")
        return row


def _backend(connection: Connection) -> int:
    row = connection.execute("SELECT pg_backend_pid()").fetchone()
    assert row is not None
    return int(row[0])
