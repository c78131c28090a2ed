"""The example's terminal client, driven through its standard input as a user or a script does."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.databases import temporary_database
from tests.processes import ROOT, asgi_server, replicator, wait_until

DEADLINE_S = 20.0


class Terminal:
    """A running client: what it has said, and where to type."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self._said: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def type(self, command: str) -> None:
        """Type a command. What was said before is not looked at any more."""
        assert self._process.stdin is not None
        self._said.clear()
        print(command, file=self._process.stdin, flush=True)

    def expect(self, *parts: str) -> None:
        """Wait until a line with all of these parts is said."""
        wait_until(
            lambda: any(all(part in line for part in parts) for line in list(self._said)),
            f"a line with {parts}; said was {self._said}",
            DEADLINE_S,
            check=self._check,
        )

    def leave(self) -> int:
        """End its input, and return its exit code."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        return self._process.wait(DEADLINE_S)

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._said.append(line.rstrip("\n"))

    def _check(self) -> None:
        assert self._process.poll() in (None, 0), f"the client ended: {self._said}"


@contextmanager
def terminal(user: str, server: str, folder: Path, *options: str) -> Iterator[Terminal]:
    command = [sys.executable, "-m", "example_project.client", "--user", user, "--server", server]
    command += ["--database", str(folder / f"{user}.sqlite"), *options]
    streams = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    process = subprocess.Popen(command, cwd=ROOT, text=True, **streams)
    try:
        yield Terminal(process)
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def server(server_url: str, migrated_database: str) -> Iterator[str]:
    """One for all tests, which therefore keep to lists of their own, or undo what they did."""
    with temporary_database(server_url, template=migrated_database) as url:
        environment = os.environ | {"DATABASE_URL": url, "DJANGO_SETTINGS_MODULE": "example_project.settings"}
        subprocess.run([sys.executable, "manage.py", "seed"], check=True, cwd=ROOT, env=environment)
        with replicator(url), asgi_server(url) as address:
            yield address


def test_two_users_see_each_others_changes_live_and_after_being_offline(server: str, tmp_path: Path):
    with terminal("alice", server, tmp_path) as alice, terminal("bob", server, tmp_path) as bob:
        alice.expect("[ ] Buy bread")
        bob.expect("[ ] Buy bread")

        alice.type("add   Milk  ")
        bob.expect("4 [ ] Milk  · alice")
        bob.type("done 4")
        alice.expect("4 [x] Milk")

        alice.type("offline")
        alice.expect("(offline)")
        alice.type("add Written in a tunnel")
        alice.expect("Written in a tunnel  · not uploaded yet")
        bob.type("rm 1")
        bob.expect("1 [ ] Water the plants")
        alice.type("online")

        alice.expect("1 [ ] Water the plants")
        alice.expect("Written in a tunnel  · alice")
        bob.expect("Written in a tunnel  · alice")
        assert alice.leave() == 0
        assert bob.leave() == 0


def test_a_list_appears_when_it_is_shared_and_goes_when_its_user_leaves(server: str, tmp_path: Path):
    with terminal("alice", server, tmp_path) as alice, terminal("bob", server, tmp_path) as bob:
        bob.expect("Household (alice, bob)")
        alice.expect("Household (alice, bob)")
        alice.type("new Trip")
        alice.type("add Tickets")
        alice.type("share bob")
        alice.expect("Trip (alice, bob)")
        bob.type("use 2")
        bob.expect("1 [ ] Tickets")

        bob.type("leave")

        bob.expect("Household (alice, bob)")
        alice.expect("Trip (alice)")


def test_what_the_server_refuses_is_said_and_taken_back(server: str, tmp_path: Path):
    with terminal("alice", server, tmp_path) as alice:
        alice.expect("Household (alice, bob)")

        alice.type("share nobody")

        alice.expect("refused", "There is no user of this name")
        alice.expect("Household (alice, bob)")


def test_a_wrong_password_ends_it_with_a_word(server: str, tmp_path: Path):
    with terminal("alice", server, tmp_path, "--password", "guess") as alice:
        assert alice.leave() == 1


def test_without_a_server_it_works_with_what_is_there(server: str, tmp_path: Path):
    with terminal("alice", server, tmp_path) as alice:
        alice.expect("Household (alice, bob)")
        assert alice.leave() == 0

    with terminal("alice", "http://127.0.0.1:9", tmp_path) as alice:
        alice.expect("cannot be reached")
        alice.expect("Household (alice, bob)")
        alice.type("add Lamp oil")
        alice.expect("Lamp oil  · not uploaded yet")

    with terminal("alice", server, tmp_path) as alice:
        alice.expect("Lamp oil  · alice")
