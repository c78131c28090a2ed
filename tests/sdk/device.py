"""A device that runs the official JavaScript SDK, unmodified, somewhere: what tests ask of it (requests.mjs)."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from tests.e2e.project import COLUMNS

FOLDER = Path(__file__).parent
NODE = FOLDER / "node_modules/.bin/node"
SYNC_TIMEOUT_S = 30.0
ANSWER_TIMEOUT_S = 60.0  # a device keeps to the timeouts that it is given, so this is for a device that hangs

TABLES: Mapping[str, Mapping[str, str]] = COLUMNS

# Sync at once, where an app would rather spare its battery.
OPTIONS = {"retryDelayMs": 200, "crudUploadThrottleMs": 10}

Row = dict[str, Any]
Tables = Mapping[str, Mapping[str, str]]
Connection = Literal["http", "web-socket"]


class Device(ABC):
    """One device. Its methods raise AssertionError with what the SDK says."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.versions: dict[str, str] = {}

    def open(self, path: str, tables: Tables) -> None:
        """Open the database, which is made if there is none."""
        self.versions = {**self.ask("open", path=path, tables=tables), "runtime": self.ask("runtime")}

    @property
    def status(self) -> dict[str, Any]:
        """`connected`, `has_synced`, `synced` (the priorities that were complete, in order), `errors`, `queued`
        writes, `fetches` of credentials, and the `uploads` made."""
        status: dict[str, Any] = self.ask("status")
        return status

    def connect(self, endpoint: str, *tokens: str) -> None:
        """Connect as an app does, whose credentials are one of the tokens after the other; the last one stays."""
        options = {**OPTIONS, "connectionMethod": self._connection}
        self.ask("connect", endpoint=endpoint, tokens=tokens, options=options)

    def disconnect(self) -> None:
        """Go offline."""
        self.ask("disconnect")

    def wait_for_first_sync(self) -> None:
        """Wait until a whole checkpoint has been applied."""
        synced = self.ask("waitForFirstSync", timeout_ms=SYNC_TIMEOUT_S * 1000)
        assert synced, f"no first sync within {SYNC_TIMEOUT_S:.0f} s: {self.status['errors']}"

    def write(self, *statements: tuple[str, Sequence[Any]]) -> None:
        """Run statements, each with its parameters, in one local transaction."""
        self.ask("write", statements=statements)

    def query(self, sql: str, *parameters: Any) -> list[Row]:
        """The rows of a query."""
        rows: list[Row] = self.ask("getAll", sql=sql, parameters=parameters)
        return rows

    def wait_for(self, rows: Sequence[Row], sql: str, *parameters: Any) -> None:
        """Watch a query until its rows are these; column order does not matter."""
        seen = self.ask("watch", sql=sql, parameters=parameters, rows=rows, timeout_ms=SYNC_TIMEOUT_S * 1000)
        if seen != list(rows):
            difference = f"the device has {seen}, not {list(rows)}"
            raise AssertionError(f"after {SYNC_TIMEOUT_S:.0f} s {difference}; its errors: {self.status['errors']}")

    def subscribe(self, stream: str, parameters: Mapping[str, Any], **options: int) -> None:
        """Subscribe to a stream, with the SDK's options `ttl` (in seconds) and `priority`."""
        self.ask("subscribe", stream=stream, parameters=parameters, options=options)

    def wait_for_stream(self) -> None:
        """Wait until the rows of the stream that was subscribed to last are here."""
        synced = self.ask("waitForStream", timeout_ms=SYNC_TIMEOUT_S * 1000)
        assert synced, f"nothing of the stream within {SYNC_TIMEOUT_S:.0f} s: {self.status['errors']}"

    def unsubscribe(self, stream: str, parameters: Mapping[str, Any]) -> None:
        """Let go of the subscriptions to a stream, whose time to live begins."""
        self.ask("unsubscribe", stream=stream, parameters=parameters)

    def unsubscribe_all(self, stream: str, parameters: Mapping[str, Any]) -> None:
        """Forget the subscriptions to a stream, whatever their time to live."""
        self.ask("unsubscribeAll", stream=stream, parameters=parameters)

    def ask(self, request: str, **parameters: Any) -> Any:
        """The result of a request."""
        answer = json.loads(self._send(json.dumps({"do": request, **parameters})))
        assert "error" not in answer, answer["error"]
        return answer.get("result")

    @abstractmethod
    def _send(self, request: str) -> str:
        """Hand a request over, and wait for its answer."""
