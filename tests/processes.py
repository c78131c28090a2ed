"""Runs the product as a deployment does: replicator and ASGI server as processes of their own, on a given database.

Their logs are printed when they end, so a failing test shows them; tests that share processes call `print_logs` after
each. Should the test run itself be killed, they end too.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal, TypeVar

from example_project.postgres import end_with_parent, free_port

__all__ = [
    "ROOT",
    "Process",
    "asgi_process",
    "asgi_server",
    "free_port",
    "print_logs",
    "project_environment",
    "replicator",
    "replicator_process",
    "running",
    "wait_until",
]

ROOT = Path(__file__).parent.parent
START_TIMEOUT_S = 90.0  # two cores under a full test run: imports alone may take seconds
STOP_TIMEOUT_S = 10.0
POLL_INTERVAL_S = 0.02

Server = Literal["uvicorn", "daphne"]
Found = TypeVar("Found")


class Process:
    """A child process whose output goes to a log that can be read while it runs."""

    def __init__(self, name: str, command: list[str], log: Path, environment: Mapping[str, str]) -> None:
        """`environment` is added to this process's own."""
        self.name, self._log, self._printed = name, log, 0
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                command,
                cwd=ROOT,
                env=os.environ | environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=partial(end_with_parent, signal.SIGKILL),
            )

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def log(self) -> str:
        """Everything it has printed until now."""
        return self._log.read_text(errors="replace")

    def check(self) -> None:
        """Raise AssertionError, with the log, when it has ended by itself."""
        code = self._process.poll()
        assert code is None, f"{self.name} ended with exit code {code}:\n{self.log}"

    def wait_for_log(self, text: str) -> None:
        """Wait until it has printed `text`."""
        wait_until(lambda: text in self.log, f"{self.name} prints {text!r}", START_TIMEOUT_S, check=self.check)

    def print_log(self) -> None:
        """Print what it has printed since this was last called."""
        log = self.log
        print(f"--- {self.name}\n{log[self._printed :]}")
        self._printed = len(log)

    def kill(self) -> None:
        """End it as a power cut would (kill -9)."""
        self._process.kill()
        self._process.wait()

    def wait(self, timeout_s: float) -> int:
        """Wait until it ends by itself; return its exit code. Raises subprocess.TimeoutExpired."""
        return self._process.wait(timeout_s)

    def stop(self) -> int:
        """End it by SIGTERM, unless it has ended; return its exit code. Raises AssertionError if it must be killed."""
        self._process.terminate()
        try:
            return self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"{self.name} did not end within {STOP_TIMEOUT_S:.0f} s of SIGTERM") from None


@contextmanager
def running(name: str, *command: str, environment: Mapping[str, str] | None = None) -> Iterator[Process]:
    """A process that is stopped afterwards, its log printed."""
    with TemporaryDirectory(prefix="localsync-process-") as folder:
        process = Process(name, list(command), Path(folder) / "log", environment or {})
        _running.append(process)
        try:
            yield process
        finally:
            _running.remove(process)
            try:
                process.stop()
            finally:
                process.print_log()


def print_logs() -> None:
    """Print what the running processes have printed since the last time."""
    for process in _running:
        process.print_log()


_running: list[Process] = []


@contextmanager
def replicator_process(database_url: str, *, environment: Mapping[str, str] | None = None) -> Iterator[Process]:
    """`manage.py run_replicator`, just started."""
    command = (sys.executable, "manage.py", "run_replicator")
    with running("replicator", *command, environment=project_environment(database_url, environment)) as process:
        yield process


@contextmanager
def replicator(database_url: str, *, environment: Mapping[str, str] | None = None) -> Iterator[Process]:
    """`manage.py run_replicator`, which has copied what exists and follows the stream."""
    with replicator_process(database_url, environment=environment) as process:
        process.wait_for_log("the rules are active")
        yield process


@contextmanager
def asgi_process(
    database_url: str,
    server: Server = "uvicorn",
    *,
    port: int,
    application: str = "example_project.asgi:application",
    environment: Mapping[str, str] | None = None,
) -> Iterator[Process]:
    """An ASGI server that listens on `port`."""
    options = {
        "uvicorn": ["--host=127.0.0.1", f"--port={port}", "--timeout-graceful-shutdown=3"],
        "daphne": ["--bind=127.0.0.1", f"--port={port}"],
    }
    command = (sys.executable, "-m", server, *options[server], application)
    with running(server, *command, environment=project_environment(database_url, environment)) as process:
        wait_until(lambda: _answers(port), f"{server} listens", START_TIMEOUT_S, check=process.check)
        yield process


@contextmanager
def asgi_server(
    database_url: str, server: Server = "uvicorn", *, environment: Mapping[str, str] | None = None
) -> Iterator[str]:
    """The example project under an ASGI server; yields its address, http://127.0.0.1:<port>."""
    port = free_port()
    with asgi_process(database_url, server, port=port, environment=environment):
        yield f"http://127.0.0.1:{port}"


def project_environment(database_url: str, environment: Mapping[str, str] | None = None) -> dict[str, str]:
    """The example project's environment; a test may name other settings (DJANGO_SETTINGS_MODULE)."""
    own = {"DATABASE_URL": database_url, "DJANGO_SETTINGS_MODULE": "example_project.settings"}
    return own | dict(environment or {})


def wait_until(
    condition: Callable[[], Found], what: str, timeout_s: float = 10.0, *, check: Callable[[], None] = lambda: None
) -> Found:
    """Ask until the answer is true, and return it. Raises AssertionError after `timeout_s`, or what `check` raises."""
    deadline = time.monotonic() + timeout_s
    while not (found := condition()):
        check()
        assert time.monotonic() < deadline, f"waited {timeout_s:.0f} s in vain until {what}"
        time.sleep(POLL_INTERVAL_S)
    return found


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
