"""A device in a Node process of its own (client.mjs): `@powersync/node`."""

from __future__ import annotations

import select
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tests.sdk.device import ANSWER_TIMEOUT_S, FOLDER, NODE, TABLES, Connection, Device, Tables


class NodeClient(Device):
    """Requests and answers are lines on stdin and stdout."""

    def __init__(self, process: subprocess.Popen[bytes], connection: Connection) -> None:
        super().__init__(connection)
        self._requests: Any = process.stdin
        self._answers: Any = process.stdout

    def _send(self, request: str) -> str:
        self._requests.write(request.encode() + b"\n")
        self._requests.flush()
        readable, _, _ = select.select([self._answers], [], [], ANSWER_TIMEOUT_S)
        assert readable, f"no answer within {ANSWER_TIMEOUT_S:.0f} s to {request}"
        line: bytes = self._answers.readline()
        assert line, "the device ended; its log says why"
        return line.decode()


@contextmanager
def node_client(tables: Tables = TABLES, connection: Connection = "http") -> Iterator[NodeClient]:
    """A device with an empty database, thrown away afterwards; its log is printed."""
    assert NODE.exists(), f"{NODE.relative_to(FOLDER.parent.parent)} is missing: run `make test`, which installs it"
    command = [NODE, FOLDER / "client.mjs"]
    with TemporaryDirectory(prefix="localsync-device-") as folder, (Path(folder) / "log").open("w+b") as log:
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log)
        try:
            device = NodeClient(process, connection)
            device.open(str(Path(folder) / "device.sqlite"), tables)
            yield device
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
