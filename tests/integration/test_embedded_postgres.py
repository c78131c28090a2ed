"""The embedded server's life: starts, restarts, crashes, and what it leaves alone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
import pytest

from example_project.postgres import EmbeddedPostgres, PostgresError

DEADLINE_S = 20.0


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder whose parents anybody may enter, unlike those of pytest's tmp_path."""
    with tempfile.TemporaryDirectory(prefix="localsync-postgres-") as name:
        Path(name).chmod(0o755)
        yield Path(name) / "server"


def read_one(url: str, query: str) -> object:
    with psycopg.connect(url) as connection:
        row = connection.execute(query).fetchone()  # type: ignore[call-overload]
    return row[0] if row else None


def postmaster_of(server: EmbeddedPostgres) -> int:
    return int((server.cluster / "postmaster.pid").read_text().split()[0])


def wait_until_gone(process_id: int) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while Path(f"/proc/{process_id}").exists():
        assert time.monotonic() < deadline, f"process {process_id} still runs"
        time.sleep(0.05)


def test_it_is_ready_for_logical_replication_and_keeps_its_data(folder: Path):
    with EmbeddedPostgres(folder) as url:  # durable, as in the demo
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute("CREATE TABLE note AS SELECT 'kept' AS text")
        assert read_one(url, "SHOW wal_level") == "logical"
        assert read_one(url, "SHOW fsync") == "on"

    with EmbeddedPostgres(folder, durable=False) as url:
        assert read_one(url, "SELECT text FROM note") == "kept"
        assert read_one(url, "SHOW fsync") == "off"


def test_nobody_gets_in_without_the_password(folder: Path):
    with EmbeddedPostgres(folder, durable=False) as url:
        port = urlsplit(url).port
        with pytest.raises(psycopg.OperationalError, match="password"):
            psycopg.connect(f"postgresql://postgres:guess@127.0.0.1:{port}/postgres")
        assert (folder / "password").stat().st_mode & 0o077 == 0


def test_it_recovers_from_a_crash(folder: Path):
    server = EmbeddedPostgres(folder, durable=False)
    with psycopg.connect(server.start(), autocommit=True) as connection:
        connection.execute("CREATE TABLE note AS SELECT 'kept' AS text")
    postmaster = postmaster_of(server)
    os.kill(postmaster, signal.SIGKILL)

    url = server.start()

    assert read_one(url, "SELECT text FROM note") == "kept"
    server.stop()


def test_a_lock_whose_process_id_means_another_program_now_is_taken_away(folder: Path):
    server = EmbeddedPostgres(folder, durable=False)
    server.start()
    server.stop()
    (server.cluster / "postmaster.pid").write_text(f"{os.getpid()}\n{server.cluster}\n0\n5432\n\n127.0.0.1\n")

    assert read_one(server.start(), "SELECT 1") == 1
    server.stop()


def test_a_second_server_on_the_same_folder_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("example_project.postgres.OLD_SERVER_TIMEOUT_S", 0.2)
    with EmbeddedPostgres(folder, durable=False), pytest.raises(PostgresError, match="already runs the database"):
        EmbeddedPostgres(folder, durable=False).start()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends children with their parent")
def test_it_ends_with_a_starter_that_is_killed(folder: Path):
    program = f"""
import pathlib, time
from example_project.postgres import EmbeddedPostgres
print(EmbeddedPostgres(pathlib.Path({str(folder)!r}), durable=False).start(), flush=True)
time.sleep(60)
"""
    starter = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert starter.stdout is not None
    assert starter.stdout.readline()
    postmaster = postmaster_of(EmbeddedPostgres(folder))

    starter.kill()
    starter.wait()

    wait_until_gone(postmaster)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root runs it as another user")
def test_root_is_told_where_nobody_cannot_go_and_nothing_is_opened_up(folder: Path):
    folder.mkdir(mode=0o700)

    with pytest.raises(PostgresError, match="cannot enter"):
        EmbeddedPostgres(folder / "inside", durable=False).start()

    assert folder.stat().st_mode & 0o777 == 0o700


def test_a_failure_shows_the_end_of_the_log(folder: Path):
    server = EmbeddedPostgres(folder, durable=False)
    server.start()
    server.stop()
    (server.cluster / "postgresql.conf").write_text("no_such_setting = on\n")

    with pytest.raises(PostgresError, match="no_such_setting"):
        server.start()
