"""The servers that are measured, each a process of its own, and what is behind: Postgres with rows, a replicator."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import jwt
import psycopg

from benchmarks.localsync_bench.source import seed
from benchmarks.replication.process import ROOT, manage, replicator
from example_project.postgres import free_port

SECRET = "YmVuY2gtc2VjcmV0LWJlbmNoLXNlY3JldC1iZW5jaC1zZWNyZXQ"
START_TIMEOUT_S = 30.0
_TICKS_A_SECOND = os.sysconf("SC_CLK_TCK")
_SOME_GROUPS = "INSERT INTO bench_memberships (user_id, group_id) SELECT 'some-groups', 'group-' || i"
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


class Server:
    """A running ASGI server."""

    def __init__(self, name: str, port: int, process: subprocess.Popen[bytes]) -> None:
        self.name, self.port, self._process = name, port, process

    def cpu_s(self) -> float:
        """CPU seconds that it has used."""
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / _TICKS_A_SECOND

    def resident_kb(self) -> float:
        """Resident memory in KB."""
        return int(Path(f"/proc/{self._process.pid}/statm").read_text().split()[1]) * _PAGE_BYTES / 1024


def environment_of(url: str) -> dict[str, str]:
    """What configures `benchmarks.server` for a database."""
    return {
        "DJANGO_SETTINGS_MODULE": "benchmarks.server.settings",
        "BENCH_STYLE": "streams",
        "BENCH_SECRET": SECRET,
        "BENCH_SOURCE_DSN": url,
    }


@cache
def token(user: str) -> str:
    """A token of an hour for a user."""
    now = int(time.time())
    key = jwt.utils.base64url_decode(SECRET)
    return jwt.encode({"sub": user, "aud": "bench", "iat": now, "exp": now + 3600}, key, headers={"kid": "bench"})


@contextmanager
def replicated(url: str, operations: int) -> Iterator[psycopg.Connection]:
    """Rows in the database at `url`, followed by a replicator; yields a session. `operations`: rows of the stream big.

    User `many-groups` is a member of 10,000 groups, `some-groups` of 1,000; each is a bucket with one row.
    """
    seed(url, big=operations, shared=100, users=1000, rows_per_user=5, groups=10_000, rows_per_group=1)
    environment = environment_of(url)
    manage(environment, "migrate", "-v0")
    with psycopg.connect(url, autocommit=True) as session:
        session.execute(f"{_SOME_GROUPS} FROM generate_series(0, 999) AS i")
        with replicator(session, environment) as process:
            process.wait_until_copied(session)
            yield session


@contextmanager
def ours(url: str) -> Iterator[Server]:
    """Our application, in uvicorn."""
    with _uvicorn("ours", "benchmarks.server.asgi:application", environment_of(url)) as server:
        yield server


@contextmanager
def yardstick(recorded: Path) -> Iterator[Server]:
    """The same server, with recorded answers."""
    with _uvicorn("yardstick", "benchmarks.serving.yardstick:application", {"BENCH_RECORDED": str(recorded)}) as server:
        yield server


@contextmanager
def _uvicorn(name: str, application: str, environment: dict[str, str]) -> Iterator[Server]:
    port = free_port()
    command = [sys.executable, "-m", "uvicorn", application, "--port", str(port), "--log-level", "warning"]
    process = subprocess.Popen(
        [*command, "--timeout-graceful-shutdown", "3", "--lifespan", "off"], cwd=ROOT, env=os.environ | environment
    )
    try:
        _wait_for_port(port, process)
        yield Server(name, port, process)
    finally:
        process.terminate()
        process.wait(10)


def _wait_for_port(port: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while True:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
        except OSError:
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError("the ASGI server did not start") from None
            time.sleep(0.05)
        else:
            return
