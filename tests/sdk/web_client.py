"""A device in a browser: the page of an app made of `@powersync/web` and `@powersync/react` (web/page.jsx)."""

from __future__ import annotations

import json
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tests.processes import wait_until
from tests.sdk.browser import Browser
from tests.sdk.device import FOLDER, NODE, SYNC_TIMEOUT_S, TABLES, Connection, Device, Tables

MODULES = FOLDER / "node_modules"
DATABASE = "device.sqlite"


class Tab(Device):
    """A tab with the app. The tabs of one profile share storage and, by the SDK's shared worker, their connection."""

    def __init__(self, browser: Browser, app: str, profile: str, tables: Tables, connection: Connection) -> None:
        super().__init__(connection)
        self._browser, self._app, self._profile, self._tables = browser, app, profile, tables
        target = browser.call("Target.createTarget", url=app, browserContextId=profile)
        self._session = browser.call("Target.attachToTarget", flatten=True, **target)["sessionId"]
        browser.call("Runtime.enable", self._session)
        self._open()

    def another(self) -> Tab:
        """Another tab of the same profile."""
        return Tab(self._browser, self._app, self._profile, self._tables, self._connection)

    def reload(self) -> None:
        """Load the page anew, as a user does: nothing but what is stored remains. It does not connect again."""
        self._evaluate("delete globalThis.ask")
        self._browser.call("Page.reload", self._session)
        self._open()

    def show(self, list_id: str | None) -> None:
        """Show the to-dos of a list, for which the page then subscribes; None: nothing, and it lets go."""
        self.ask("show", list=list_id)

    def wait_for_texts(self, *texts: str) -> None:
        """Wait until these are the texts of the page's elements."""
        try:
            wait_until(lambda: self.ask("texts") == list(texts), f"the page shows {texts}", SYNC_TIMEOUT_S)
        except AssertionError as error:
            raise AssertionError(f"{error}; it shows {self.ask('texts')}") from None

    def click(self) -> None:
        """Click the page's button."""
        self.ask("click")

    def _open(self) -> None:
        wait_until(lambda: self._evaluate("'ask' in globalThis"), "the page is loaded", SYNC_TIMEOUT_S)
        self.open(DATABASE, self._tables)

    def _send(self, request: str) -> str:
        return str(self._evaluate(f"ask({json.dumps(request)})"))

    def _evaluate(self, expression: str) -> Any:
        """The value of an expression, or of what it promises, in the page."""
        options = {"awaitPromise": True, "returnByValue": True}
        answer = self._browser.call("Runtime.evaluate", self._session, expression=expression, **options)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")


@contextmanager
def web_client(browser: Browser, app: str, tables: Tables = TABLES, connection: Connection = "http") -> Iterator[Tab]:
    """A tab in a profile of its own, thrown away afterwards; the log of its pages is printed."""
    profile = browser.call("Target.createBrowserContext")["browserContextId"]
    try:
        yield Tab(browser, app, profile, tables, connection)
    finally:
        browser.call("Target.disposeBrowserContext", browserContextId=profile)
        print("--- pages", *browser.logs, sep="\n")
        browser.logs.clear()


@contextmanager
def served_app() -> Iterator[str]:
    """The app as its developer builds and serves it; yields its address, another origin than the backend's."""
    with TemporaryDirectory(prefix="localsync-app-") as name:
        folder = Path(name)
        _build(folder)
        server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Files, directory=name))
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/"
        finally:
            server.shutdown()
            server.server_close()
            thread.join()


def _build(folder: Path) -> None:
    esbuild = MODULES / "esbuild/bin/esbuild"
    assert esbuild.exists(), "the SDK is missing: run `make test`, which installs it"
    options = ["--bundle", "--format=esm", "--jsx=automatic", "--sourcemap=inline", "--log-level=warning"]
    subprocess.run([NODE, esbuild, FOLDER / "web/page.jsx", *options, f"--outfile={folder}/page.js"], check=True)
    shutil.copy(FOLDER / "web/index.html", folder)
    shutil.copytree(MODULES / "@powersync/web/dist/worker", folder / "powersync")


class _Files(SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        """Say nothing of each file."""
