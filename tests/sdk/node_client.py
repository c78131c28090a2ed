"""A device that runs the official JavaScript SDK, unmodified, in a Node process of its own (client.mjs)."""

from __future__ import annotations

import json
import select
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

FOLDER = Path(__file__).parent
NODE = FOLDER / "node_modules/.bin/node"
SYNC_TIMEOUT_S = 10.0
ANSWER_TIMEOUT_S = 20.0  # the driver keeps to the timeouts that it is given, so this is for a driver that hangs

TABLES = {
    "lists": {"name": "text", "owner_id": "integer", "created_at": "text"},
    "memberships": {"list_id": "text", "user_id": "integer", "username": "text"},
    "todos": {
        "list_id": "text",
        "title": "text",
        "done": "integer",
        "created_by_id": "integer",
        "created_at": "text",
        "updated_at": "text",
    },
}
"""What an app for the example project declares."""

# Sync at once, where an app would rather spare its battery.
OPTIONS = {"retryDelayMs": 200, "crudUploadThrottleMs": 10}

Row = dict[str, Any]
Tables = Mapping[str, Mapping[str, str]]


class NodeClient:
    """One device. Its methods raise AssertionError with what the SDK says."""

    def __init__(self, process: subprocess.Popen[bytes], database: Path, tables: Tables) -> None:
        self._requests: Any = process.stdin
        self._answers: Any = process.stdout
        self.versions: dict[str, str] = self._ask("open", path=str(database), tables=tables)

    @property
    def status(self) -> dict[str, Any]:
        """`connected`, `has_synced`, `errors`, `queued` writes, `fetches` of credentials, and the `uploads` made."""
        status: dict[str, Any] = self._ask("status")
        return status

    def connect(self, endpoint: str, *tokens: str, **options: Any) -> None:
        """Connect as an app does, whose credentials are one of the tokens after the other; the last one stays."""
        self._ask("connect", endpoint=endpoint, tokens=tokens, options={**OPTIONS, **options})

    def disconnect(self) -> None:
        """Go offline."""
        self._ask("disconnect")

    def wait_for_first_sync(self) -> None:
        """Wait until a whole checkpoint has been applied."""
        synced = self._ask("waitForFirstSync", timeout_ms=SYNC_TIMEOUT_S * 1000)
        assert synced, f"no first sync within {SYNC_TIMEOUT_S:.0f} s: {self.status['errors']}"

    def write(self, *statements: tuple[str, Sequence[Any]]) -> None:
        """Run statements, each with its parameters, in one local transaction."""
        self._ask("write", statements=statements)

    def query(self, sql: str, *parameters: Any) -> list[Row]:
        """The rows of a query."""
        rows: list[Row] = self._ask("getAll", sql=sql, parameters=parameters)
        return rows

    def wait_for(self, rows: Sequence[Row], sql: str, *parameters: Any) -> None:
        """Watch a query until its rows are these; column order does not matter."""
        seen = self._ask("watch", sql=sql, parameters=parameters, rows=rows, timeout_ms=SYNC_TIMEOUT_S * 1000)
        if seen != list(rows):
            difference = f"the device has {seen}, not {list(rows)}"
            raise AssertionError(f"after {SYNC_TIMEOUT_S:.0f} s {difference}; its errors: {self.status['errors']}")

    def subscribe(self, stream: str, **parameters: Any) -> None:
        """Subscribe to a stream and wait until its rows are here."""
        synced = self._ask("subscribe", stream=stream, parameters=parameters, timeout_ms=SYNC_TIMEOUT_S * 1000)
        assert synced, f"nothing of {stream} within {SYNC_TIMEOUT_S:.0f} s: {self.status['errors']}"

    def unsubscribe(self, stream: str, **parameters: Any) -> None:
        """End the subscriptions to a stream."""
        self._ask("unsubscribe", stream=stream, parameters=parameters)

    def _ask(self, request: str, **parameters: Any) -> Any:
        self._requests.write(json.dumps({"do": request, **parameters}).encode() + b"\n")
        self._requests.flush()
        readable, _, _ = select.select([self._answers], [], [], ANSWER_TIMEOUT_S)
        assert readable, f"{request}: no answer within {ANSWER_TIMEOUT_S:.0f} s"
        line = self._answers.readline()
        assert line, "the device ended; its log says why"
        answer = json.loads(line)
        assert "error" not in answer, answer["error"]
        return answer.get("result")


@contextmanager
def node_client(tables: Tables = TABLES) -> Iterator[NodeClient]:
    """A device with an empty database, thrown away afterwards; its log is printed."""
    assert NODE.exists(), f"{NODE.relative_to(FOLDER.parent.parent)} is missing: run `make test`, which installs it"
    command = [NODE, FOLDER / "client.mjs"]
    with TemporaryDirectory(prefix="localsync-device-") as folder, (Path(folder) / "log").open("w+b") as log:
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log)
        try:
            yield NodeClient(process, Path(folder) / "device.sqlite", tables)
        finally:
            _end(process)
            log.seek(0)
            print(f"--- device\n{log.read().decode(errors='replace')}")


def _end(process: subprocess.Popen[bytes]) -> None:
    """Let it close its database and end: the end of its input tells it to."""
    try:
        process.communicate(timeout=ANSWER_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        raise AssertionError("the SDK did not close its database") from None
