"""A device: a process with the Python client, told what to do by JSON lines on stdin. Django is not imported.

    python -m tests.e2e.device FILE
    {"do": "query", "sql": "SELECT …"}  →  {"result": …} or {"error": "…"}

One request at a time. It never ends by itself while stdin is open, so that tests can end it as they like.
"""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Sequence
from typing import Any

from django_localsync.client import Column, ColumnType, Database, Index, LocalSyncConnector, Schema, SyncOptions, Table
from django_localsync.client.status import SyncStatus

RETRY_DELAY_S = 0.1  # where an app would rather spare its battery
MAX_RETRY_DELAY_S = 0.5
MOST_VIOLATIONS = 5


class Device:
    """The requests, by name."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._database: Database
        self._tokens: list[str | None] = []
        self._fetches = self._checkpoints = 0
        self._rejections: list[list[str | None]] = []
        self._checked: tuple[str, ...] = ()
        self._violations: list[dict[str, Any]] = []
        self._last_synced_at: Any = None

    def open(self, tables: dict[str, dict[str, str]], indexes: dict[str, list[str]]) -> str:
        """Open the file with a schema (table → column → type); answers the client id."""
        self._database = Database(
            self._path,
            Schema(
                Table(
                    name,
                    [Column(column, ColumnType(kind)) for column, kind in columns.items()],
                    indexes=[Index(column, [column]) for column in indexes.get(name, [])],
                )
                for name, columns in tables.items()
            ),
        )
        self._database.on_status(self._note_checkpoint)
        return self._database.client_id

    def connect(self, endpoint: str, tokens: list[str | None]) -> None:
        """Connect; each time a token is wanted the next one is given (None fails), the last one stays."""
        self._tokens, self._fetches = tokens, 0
        connector = LocalSyncConnector(endpoint, self._fetch_token, on_rejected=self._note_rejection)
        options = SyncOptions(retry_delay_s=RETRY_DELAY_S, max_retry_delay_s=MAX_RETRY_DELAY_S, upload_throttle_s=0.01)
        self._database.connect(connector, options)

    def disconnect(self) -> None:
        """Go offline."""
        self._database.disconnect()

    def wait_for_first_sync(self, timeout_s: float) -> None:
        """Wait until a whole checkpoint has been applied, now or earlier."""
        self._database.wait_for_first_sync(timeout_s)

    def write(self, statements: Sequence[tuple[str, list[Any]]]) -> None:
        """Run statements in one local transaction."""
        with self._database.write_transaction() as transaction:
            for sql, parameters in statements:
                transaction.execute(sql, parameters)

    def query(self, sql: str, parameters: list[Any]) -> list[list[Any]]:
        """The rows of a query, as lists."""
        return [list(row.values()) for row in self._database.get_all(sql, parameters)]

    def check_checkpoints(self, sql: str) -> None:
        """From now on run a query whenever a checkpoint was applied, before the next one can be.

        Its first row's columns must all be equal; `status` tells how often they were not.
        """
        self._checked = (sql,)

    def status(self) -> dict[str, Any]:
        """How it is going."""
        status = self._database.status
        errors = [status.download_error, status.upload_error]
        return {
            "connected": status.connected,
            "errors": [f"{type(error).__name__}: {error}" for error in errors if error],
            "queued": self._database.get_crud_batch(1) is not None,
            "fetches": self._fetches,
            "rejections": self._rejections,
            "checkpoints": self._checkpoints,
            "violations": self._violations[:MOST_VIOLATIONS],
            "violation_count": len(self._violations),
            "imports_django": "django" in sys.modules,
        }

    def _fetch_token(self) -> str:
        token = self._tokens[min(self._fetches, len(self._tokens) - 1)]
        self._fetches += 1
        if token is None:
            raise ConnectionError("no token today")
        return token

    def _note_rejection(self, rejection: Any) -> None:
        self._rejections.append([operation.code for operation in rejection.result.operations])

    def _note_checkpoint(self, status: SyncStatus) -> None:
        """Called in the thread that applies checkpoints, which waits for it."""
        if status.last_synced_at == self._last_synced_at:
            return
        self._last_synced_at = status.last_synced_at
        for sql in self._checked:
            row = self._database.get(sql)
            self._checkpoints += 1
            if len(set(row.values())) != 1:
                self._violations.append(row)


def main() -> None:
    """Answer requests until stdin ends."""
    device = Device(sys.argv[1])
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = {"result": getattr(device, request.pop("do"))(**request)}
        except Exception as error:
            traceback.print_exc()
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
