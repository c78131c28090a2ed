"""`make demo`: the example project in one terminal, with database, replicator and server, until Ctrl-C.

The data stays, and the next demo goes on with it (see places.py). Environment: DATABASE_URL takes a server of yours
(with wal_level = logical) in place of the embedded one, LOCALSYNC_DEMO_DATA another folder, PORT another port.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from types import FrameType

import django
import psycopg
from django.core.management import call_command
from django.db import connections

from .places import ROOT, data_folder, database_url_file
from .postgres import EmbeddedPostgres, PostgresError, end_with_parent

DEFAULT_PORT = 8000
PORTS_TO_TRY = 20
START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 10.0  # a replicator ends within a second, a server within its graceful timeout
GRACEFUL_TIMEOUT_S = 3  # how long uvicorn lets streams end, which otherwise it waits for without limit

WELCOME = """
django_localsync's demo runs at {address}

  log in as    alice, bob (with the name as password), or admin for {address}/admin/
  try          in a terminal each:
                 {client} --user alice
                 {client} --user bob
               type "add Milk" in one and see it in the other; "offline", changes on both sides, "online"
  data         {data}; other commands find the database while the demo runs:
                 {python} manage.py shell
  stop         Ctrl-C; the data stays for the next time
"""


class DemoError(Exception):
    """The demo cannot go on; the text names the way out."""


class Stopped(Exception):
    """The user asked for the end."""


class Child:
    """A process of the demo: it is out of reach of the terminal's Ctrl-C, but ends with the demo in any case."""

    def __init__(self, name: str, *command: str) -> None:
        self.name = name
        self.process = subprocess.Popen(
            [sys.executable, *command],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            preexec_fn=partial(end_with_parent, signal.SIGTERM),
        )

    def stop(self) -> None:
        """End it, kindly first."""
        self.process.terminate()
        try:
            self.process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            print(f"{self.name} did not end within {STOP_TIMEOUT_S:.0f} s and was killed", file=sys.stderr)
            self.process.kill()
            self.process.wait()

    def check(self) -> None:
        """Raise DemoError when it has ended by itself."""
        if (code := self.process.poll()) is not None:
            raise DemoError(f"{self.name} ended with exit code {code}; its last words are above")


def main() -> int:
    """Run the demo until SIGINT, SIGTERM or SIGHUP; return the exit code."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _stop)
    try:
        with ExitStack() as cleanup:
            _run(cleanup)
    except Stopped:
        print("The demo has stopped.")
        return 0
    except (DemoError, PostgresError) as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    return 0


def _run(cleanup: ExitStack) -> None:
    port = _choose_port()
    database = _open_database(cleanup)
    os.environ |= {"DATABASE_URL": database, "DJANGO_SETTINGS_MODULE": "example_project.settings"}
    print("Migrating and seeding …", flush=True)
    _prepare_database()
    options = ["--host=127.0.0.1", f"--port={port}", "--log-level=warning"]
    options += [f"--timeout-graceful-shutdown={GRACEFUL_TIMEOUT_S}"]
    replicator = _start(cleanup, "the replicator", "manage.py", "run_replicator")
    server = _start(cleanup, "the server", "-m", "uvicorn", "example_project.asgi:application", *options)
    _wait_until_ready(port, [replicator, server])
    _welcome(port)
    while True:
        time.sleep(0.2)
        replicator.check()
        server.check()


def _open_database(cleanup: ExitStack) -> str:
    """The URL of the database: the one that was given, or an embedded server's."""
    if given := os.environ.get("DATABASE_URL"):
        _check_server(given)
        return given
    postgres = EmbeddedPostgres(data_folder() / "postgres")
    print(f"Starting Postgres in {postgres.folder} …", flush=True)
    cleanup.callback(postgres.stop)
    url = postgres.start()
    left_for_others = database_url_file()
    left_for_others.touch(0o600)
    left_for_others.write_text(url)
    cleanup.callback(left_for_others.unlink, missing_ok=True)
    return url


def _check_server(url: str) -> None:
    try:
        with psycopg.connect(url, connect_timeout=10) as connection:
            (wal_level,) = connection.execute("SHOW wal_level").fetchone() or ("",)
    except psycopg.Error as error:
        raise DemoError(f"DATABASE_URL cannot be used: {str(error).strip()}") from None
    if wal_level != "logical":
        raise DemoError(
            f"the server of DATABASE_URL has wal_level = {wal_level}; "
            "run ALTER SYSTEM SET wal_level = logical there, and restart it"
        )


def _choose_port() -> int:
    """PORT, which must be free, or the first free port from 8000 on."""
    if chosen := os.environ.get("PORT"):
        if not chosen.isdecimal() or not 0 < int(chosen) < 65536:
            raise DemoError(f"PORT={chosen} is not a port; choose 1024 … 65535")
        if not _is_free(int(chosen)):
            raise DemoError(f"port {chosen} is taken; free it, or choose another: make demo PORT=8123")
        return int(chosen)
    for port in range(DEFAULT_PORT, DEFAULT_PORT + PORTS_TO_TRY):
        if _is_free(port):
            return port
        print(f"Port {port} is taken.")
    raise DemoError(f"ports {DEFAULT_PORT} to {port} are all taken; choose another: make demo PORT=9000")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _prepare_database() -> None:
    django.setup()
    call_command("migrate", verbosity=0)
    call_command("seed")
    connections.close_all()


def _start(cleanup: ExitStack, name: str, *command: str) -> Child:
    child = Child(name, *command)
    cleanup.callback(child.stop)
    return child


def _wait_until_ready(port: int, children: list[Child]) -> None:
    """Wait until the server answers and the first copy is done."""
    from django_localsync.models import RuleSet

    copied = RuleSet.objects.filter(state=RuleSet.State.ACTIVE)
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        for child in children:
            child.check()
        if not _is_free(port) and copied.exists():
            connections.close_all()
            return
        time.sleep(0.1)
    raise DemoError(f"replicator and server were not ready within {START_TIMEOUT_S:.0f} s")


def _welcome(port: int) -> None:
    python = os.path.relpath(sys.executable) if Path(sys.executable).is_relative_to(Path.cwd()) else sys.executable
    address = f"http://127.0.0.1:{port}"
    other_port = "" if port == DEFAULT_PORT else f" --server {address}"
    client = f"{python} -m example_project.client{other_port}"
    print(WELCOME.format(address=address, client=client, python=python, data=data_folder()), flush=True)


def _stop(number: int, frame: FrameType | None) -> None:
    _ignore_signals()
    print("\nStopping …", flush=True)
    raise Stopped


def _ignore_signals() -> None:
    """Everything is stopping already: a second Ctrl-C must not leave a part of it running."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)


if __name__ == "__main__":
    sys.exit(main())
