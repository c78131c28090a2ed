"""Devices as tests hold them: each a process of its own (device.py) on a file that outlives it."""

from __future__ import annotations

import json
import logging
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from example_project.postgres import end_with_parent
from tests.e2e.project import COLUMNS
from tests.processes import ROOT, wait_until

ANSWER_TIMEOUT_S = 30.0
SYNC_TIMEOUT_S = 20.0

Statement = tuple[str, Sequence[Any]]
Tables = Mapping[str, Mapping[str, str]]


class Device:
    """A device. Its methods raise AssertionError with what the client says."""

    def __init__(
        self, folder: Path, tables: Tables = COLUMNS, indexes: Mapping[str, Sequence[str]] | None = None
    ) -> None:
        """Open the file in `folder`, new or as an earlier device left it."""
        folder.mkdir(parents=True, exist_ok=True)
        self.tables, self._indexes, self._folder = tables, dict(indexes or {}), folder
        self._log = (folder / "log").open("ab")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.e2e.device", str(folder / "device.sqlite")],
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            start_new_session=True,
            preexec_fn=partial(end_with_parent, signal.SIGKILL),
        )
        self._send("open", tables=tables, indexes=self._indexes)
        self._is_open = False  # several devices start at the same time

    def restarted(self) -> Device:
        """Another process on the same file, after this one was killed."""
        return Device(self._folder, self.tables, self._indexes)

    @property
    def log(self) -> str:
        """What its processes have printed."""
        return (self._folder / "log").read_text(errors="replace")

    @property
    def status(self) -> dict[str, Any]:
        """See device.py."""
        status: dict[str, Any] = self._ask("status")
        return status

    def connect(self, endpoint: str, *tokens: str | None) -> None:
        """Go online. Each time a token is wanted the next one is given (None fails); the last one stays."""
        self._ask("connect", endpoint=endpoint, tokens=tokens)

    def disconnect(self) -> None:
        """Go offline."""
        self._ask("disconnect")

    def wait_for_first_sync(self, timeout_s: float = SYNC_TIMEOUT_S) -> None:
        """Wait until a whole checkpoint has been applied, now or earlier."""
        self._ask("wait_for_first_sync", timeout_s=timeout_s)

    def check_checkpoints(self, sql: str) -> None:
        """From now on demand of every applied checkpoint that this query's columns are equal."""
        self._ask("check_checkpoints", sql=sql)

    def write(self, *statements: Statement) -> None:
        """Run statements, each with its parameters, in one local transaction."""
        self._ask("write", statements=statements)

    def begin_write(self, *statements: Statement) -> None:
        """Ask for a write and do not wait for the answer; the device can only be killed then."""
        self._send("write", statements=statements)

    def query(self, sql: str, *parameters: Any) -> list[tuple[Any, ...]]:
        """The rows of a query."""
        return [tuple(row) for row in self._ask("query", sql=sql, parameters=parameters)]

    def rows(self) -> dict[str, list[tuple[Any, ...]]]:
        """Everything it holds: by table, `id` and the declared columns in their order, sorted by id."""
        return {
            table: sorted(self.query(f"SELECT {', '.join(['id', *columns])} FROM {table}"))
            for table, columns in self.tables.items()
        }

    def kill(self) -> None:
        """End it as a flat battery would (kill -9)."""
        self._process.kill()
        self._end()

    def close(self) -> None:
        """End it if it still runs, and print its log."""
        if self._process.poll() is None:
            self.kill()
        self._log.close()
        print(f"--- {self._folder.name}\n{self.log}")

    def _end(self) -> None:
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            try:
                stream.close()
            except BrokenPipeError:
                logging.debug("an unsent request ends with the device")

    def _ask(self, request: str, **parameters: Any) -> Any:
        if not self._is_open:
            self._is_open = True
            self._receive("open")
        self._send(request, **parameters)
        return self._receive(request)

    def _receive(self, request: str) -> Any:
        assert self._process.stdout is not None
        readable, _, _ = select.select([self._process.stdout], [], [], ANSWER_TIMEOUT_S)
        assert readable, f"{request}: no answer within {ANSWER_TIMEOUT_S:.0f} s\n{self.log}"
        line = self._process.stdout.readline()
        assert line, f"{request}: the device ended\n{self.log}"
        answer = json.loads(line)
        assert "error" not in answer, f"{request}: {answer['error']}\n{self.log}"
        return answer["result"]

    def _send(self, request: str, **parameters: Any) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"do": request, **parameters}).encode() + b"\n")
        self._process.stdin.flush()


class Devices:
    """Makes devices, which are all ended afterwards."""

    def __init__(self, folder: Path, cleanup: ExitStack) -> None:
        self._folder, self._cleanup, self._count = folder, cleanup, 0

    def new(self, name: str, tables: Tables = COLUMNS, indexes: Mapping[str, Sequence[str]] | None = None) -> Device:
        """A device with an empty file."""
        self._count += 1
        return self.adopt(Device(self._folder / f"{self._count}-{name}", tables, indexes))

    def adopt(self, device: Device) -> Device:
        """End this one, too."""
        self._cleanup.callback(device.close)
        return device


@contextmanager
def making_devices() -> Iterator[Devices]:
    """Files and processes of devices are gone afterwards."""
    with TemporaryDirectory(prefix="localsync-devices-") as folder, ExitStack() as cleanup:
        yield Devices(Path(folder), cleanup)


def wait_until_equal(device: Device, expected: Any, *, what: str) -> None:
    """Wait until the device has uploaded everything and holds what `expected()` says; compare once more, to explain."""

    def is_equal() -> bool:
        return not device.status["queued"] and device.rows() == expected()

    try:
        wait_until(is_equal, f"{what} holds what Postgres says", SYNC_TIMEOUT_S)
    except AssertionError:
        assert device.rows() == expected(), f"{what}; {device.status}"
        raise
