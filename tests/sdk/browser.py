"""A headless Chromium, driven by its DevTools protocol: the system's, or the one that an npm package brings.

https://chromedevtools.github.io/devtools-protocol/
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from websockets.sync.client import ClientConnection, connect

from tests.processes import ROOT, START_TIMEOUT_S, running, wait_until
from tests.sdk.device import ANSWER_TIMEOUT_S, FOLDER, NODE

SYSTEM_NAMES = ("chromium", "chromium-browser", "google-chrome")
OPTIONS = (
    "--headless",
    "--no-sandbox",  # root has none, nor have many containers, and the only page is ours
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",  # a container's may be small
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",  # nothing from outside
    "--remote-debugging-port=0",
)


class Browser:
    """A running browser. `logs` is what its pages wrote to their consoles."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket, self._last_id = socket, 0
        self.logs: list[str] = []

    def call(self, method: str, session: str | None = None, **parameters: Any) -> dict[str, Any]:
        """The result of a command to the browser, or to the page of a session."""
        self._last_id += 1
        command = {"id": self._last_id, "method": method, "params": parameters}
        self._socket.send(json.dumps(command | ({"sessionId": session} if session else {})))
        while (answer := json.loads(self._socket.recv(ANSWER_TIMEOUT_S))).get("id") != self._last_id:
            self._note(answer)
        assert "error" not in answer, f"{method}: {answer['error']}"
        result: dict[str, Any] = answer["result"]
        return result

    def _note(self, event: dict[str, Any]) -> None:
        if event.get("method") == "Runtime.consoleAPICalled":
            arguments = event["params"]["args"]
            self.logs.append(" ".join(str(each.get("value", each.get("description"))) for each in arguments))
        elif event.get("method") == "Runtime.exceptionThrown":
            details = event["params"]["exceptionDetails"]
            self.logs.append(details.get("exception", details).get("description", details["text"]))


@contextmanager
def chromium() -> Iterator[Browser]:
    """A browser with an empty profile, thrown away afterwards."""
    executable, environment = _executable()
    with TemporaryDirectory(prefix="localsync-browser-", ignore_cleanup_errors=True) as folder:
        command = (str(executable), *OPTIONS, f"--user-data-dir={folder}/profile")
        port_file = Path(folder) / "profile/DevToolsActivePort"
        with running("chromium", *command, environment={"HOME": folder, **environment}) as process:
            wait_until(
                lambda: port_file.exists() and port_file.read_text().count("\n") == 1,
                "Chromium listens",
                START_TIMEOUT_S,
                check=process.check,
            )
            port, path = port_file.read_text().split("\n")
            with connect(f"ws://127.0.0.1:{port}{path}", max_size=None, compression=None, proxy=None) as socket:
                yield Browser(socket)


def _executable() -> tuple[Path, dict[str, str]]:
    """The program, and the environment that it needs."""
    for name in SYSTEM_NAMES:
        if found := shutil.which(name):
            return Path(found), {}
    folder = _unpacked()
    libraries = f"{folder}/al2023/lib"
    return folder / "chromium", {"LD_LIBRARY_PATH": libraries, "FONTCONFIG_PATH": f"{folder}/fonts"}


def _unpacked() -> Path:
    """The folder of the package's Chromium, unpacked when it is needed for the first time."""
    package = FOLDER / "node_modules/@sparticuz/chromium/package.json"
    usable = platform.system() == "Linux" and platform.machine() == "x86_64"
    assert usable, "there is no Chromium; on Debian: apt-get install chromium"
    assert package.exists(), f"{package.relative_to(ROOT)} is missing: run `make test`, which installs it"
    folder = ROOT / "build" / f"chromium-{json.loads(package.read_text())['version']}"
    if not folder.exists():
        folder.parent.mkdir(exist_ok=True)
        # Another test process may do the same: whoever is first renames, and nobody sees a folder that is not whole.
        with TemporaryDirectory(prefix="chromium-", dir=folder.parent) as parts:
            whole = Path(parts) / "whole"
            whole.mkdir()
            unpack = [NODE, FOLDER / "web/unpack.mjs"]
            subprocess.run(unpack, env=os.environ | {"TMPDIR": str(whole)}, check=True)
            if not folder.exists():
                whole.rename(folder)
    return folder
