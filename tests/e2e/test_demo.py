"""`make demo`, as a newcomer meets it: starts, is used, stops, starts again; and what goes wrong."""

from __future__ import annotations

import os
import signal
import socket
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest

from tests.processes import Process, free_port, wait_until

STOP_TIMEOUT_S = 20.0


@pytest.fixture(scope="module")
def data() -> Iterator[Path]:
    """A folder whose parents anybody may enter, because root's Postgres runs as `nobody`.

    Each test finds what the one before it left, whatever happened to it: that is a promise of the demo.
    """
    with tempfile.TemporaryDirectory(prefix="localsync-demo-") as name:
        Path(name).chmod(0o755)
        yield Path(name) / "data"


@contextmanager
def demo(data: Path, port: int, **environment: str) -> Iterator[Process]:
    """A demo that is stopped if it still runs, its output printed."""
    variables = {"LOCALSYNC_DEMO_DATA": str(data), "PORT": str(port), "DATABASE_URL": "", **environment}
    process = Process("demo", [sys.executable, "-m", "example_project.demo"], Path(f"{data}.log"), variables)
    try:
        yield process
    finally:
        try:
            process.stop()
        finally:
            print(f"--- demo\n{process.log}")


def children_of(process_id: int) -> dict[str, int]:
    """The demo's own processes: a word of their command line → process id."""
    found = Path(f"/proc/{process_id}/task/{process_id}/children").read_text().split()
    commands = {int(child): Path(f"/proc/{child}/cmdline").read_text() for child in found}
    words = ("run_replicator", "uvicorn", "postgres")
    return {word: child for child, command in commands.items() for word in words if word in command}


def is_gone(process_id: int) -> bool:
    return not Path(f"/proc/{process_id}").exists()


def open_page(port: int) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=10) as response:
        return str(response.read().decode())


def test_it_says_what_to_do_and_ends_with_ctrl_c_and_goes_on_with_its_data(data: Path):
    port = free_port()
    with demo(data, port) as running:
        running.wait_for_log("stop         Ctrl-C")
        assert f"http://127.0.0.1:{port}" in running.log
        assert "--user alice" in open_page(port)
        url = (data / "database-url").read_text()
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute("UPDATE todos SET title = 'changed by hand' WHERE title = 'Buy bread'")
        children = children_of(running.pid)

        os.kill(running.pid, signal.SIGINT)

        assert running.wait(STOP_TIMEOUT_S) == 0
        assert [word for word, child in children.items() if not is_gone(child)] == []
        assert "Traceback" not in running.log
        assert not (data / "database-url").exists()

    with demo(data, port) as running:
        running.wait_for_log("stop         Ctrl-C")
        with psycopg.connect((data / "database-url").read_text()) as connection:
            titles = {title for (title,) in connection.execute("SELECT title FROM todos").fetchall()}
        assert "changed by hand" in titles
        assert "Buy bread" not in titles


def test_a_part_that_dies_ends_it_with_a_word(data: Path):
    with demo(data, free_port()) as running:
        running.wait_for_log("stop         Ctrl-C")
        children = children_of(running.pid)

        os.kill(children["run_replicator"], signal.SIGKILL)

        assert running.wait(STOP_TIMEOUT_S) == 1
        assert "the replicator ended" in running.log
        assert [word for word, child in children.items() if not is_gone(child)] == []


def test_it_may_be_killed_and_nothing_is_left_behind(data: Path):
    with demo(data, free_port()) as running:
        running.wait_for_log("stop         Ctrl-C")
        children = children_of(running.pid)
        assert set(children) == {"run_replicator", "uvicorn", "postgres"}

        running.kill()

        for word, child in children.items():
            wait_until(lambda child=child: is_gone(child), f"{word} is gone", STOP_TIMEOUT_S)
    with demo(data, free_port()) as running:
        running.wait_for_log("stop         Ctrl-C")


def test_a_port_that_is_taken_is_named(data: Path):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with demo(data, port) as running:
            assert running.wait(STOP_TIMEOUT_S) == 1
    assert f"port {port} is taken" in running.log


def test_a_database_that_cannot_be_reached_is_named(data: Path):
    with demo(data, free_port(), DATABASE_URL=f"postgresql://x@127.0.0.1:{free_port()}/x") as running:
        assert running.wait(STOP_TIMEOUT_S) == 1
    assert "DATABASE_URL cannot be used" in running.log
    assert "Traceback" not in running.log
