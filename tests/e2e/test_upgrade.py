"""A rolling upgrade to a release with another format of operations: neighbours run side by side, nothing is lost.

Releases are processes with other settings (settings_of_release.py): N fills format 1 and knows no other, N + 1 fills
format 2. A release between them that fills 1 and knows 2 already serves before, during and after.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import LiteralString

import psycopg
import pytest

from tests.e2e.devices import Device, Devices, wait_until_equal
from tests.e2e.project import ENVIRONMENT, Database, Person, Rows, open_database
from tests.e2e.wire import EVERYTHING, headers, http
from tests.processes import (
    ROOT,
    Process,
    asgi_process,
    free_port,
    project_environment,
    replicator,
    replicator_process,
    wait_until,
)

SETTINGS = {"DJANGO_SETTINGS_MODULE": "tests.e2e.settings_of_release", **ENVIRONMENT}
OLD = {**SETTINGS, "FORMAT": "1", "KNOWN_TO": "1"}
PREPARED = {**SETTINGS, "FORMAT": "1", "KNOWN_TO": "2"}
NEW = {**SETTINGS, "FORMAT": "2", "KNOWN_TO": "2"}
FILLING: LiteralString = "SELECT format FROM localsync_rule_set WHERE state = 'processing'"


class Upgrade:
    """A database with a person's list, and servers of several releases."""

    def __init__(self, database: Database, devices: Devices, cleanup: ExitStack) -> None:
        self.database, self._devices, self._cleanup = database, devices, cleanup
        self.alice = database.add_person("alice")
        self.list_id = database.add_list("Shared", self.alice)
        for number in range(20):
            database.add_todo(self.list_id, f"Before {number}")

    def run(self, process: AbstractContextManager[Process]) -> Process:
        """Let a process run to the end of the test."""
        return self._cleanup.enter_context(process)

    def serve(self, release: Mapping[str, str], port: int | None = None) -> tuple[str, Process]:
        """A server of a release: its endpoint and its process."""
        port = port or free_port()
        process = self.run(asgi_process(self.database.url, port=port, environment=release))
        return f"http://127.0.0.1:{port}/localsync", process

    def device(self, endpoint: str, name: str) -> Device:
        """A device of Alice's that is online."""
        device = self._devices.new(name)
        device.connect(endpoint, self.alice.token())
        return device

    def expect(self, device: Device, format: int, what: str) -> None:
        """Wait until the device holds exactly what Postgres says, as this format has it."""
        wait_until_equal(device, lambda: in_format(self.database.expected(self.alice), format), what=what)

    @contextmanager
    def fillings_held(self) -> Iterator[None]:
        """Let no table be read: that waits for transactions which began before."""
        with psycopg.connect(self.database.url) as holder:
            holder.execute("SELECT pg_current_xact_id()")
            yield
            holder.rollback()


def in_format(expected: dict[str, Rows], format: int) -> dict[str, Rows]:
    mark = " (2)" if format == 2 else ""
    todos = [(todo, list_id, title + mark, *rest) for todo, list_id, title, *rest in expected["todos"]]
    return {**expected, "todos": sorted(todos)}


@pytest.fixture
def upgrade(fresh_database: str, devices: Devices) -> Iterator[Upgrade]:
    with open_database(fresh_database) as database, ExitStack() as cleanup:
        yield Upgrade(database, devices, cleanup)


def refusal(endpoint: str, person: Person) -> tuple[int, str]:
    answer = http.post(f"{endpoint}/sync/stream", json=EVERYTHING, headers=headers(person.token()))
    return answer.status_code, answer.text


def manage(database: Database, release: Mapping[str, str], *command: str) -> subprocess.CompletedProcess[str]:
    environment = project_environment(database.url, release)
    return subprocess.run(
        [sys.executable, "manage.py", *command],
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_neighbouring_releases_run_side_by_side_while_the_format_changes(upgrade: Upgrade) -> None:
    database = upgrade.database
    old_replicator = upgrade.run(replicator(database.url, environment=OLD))
    old, old_server = upgrade.serve(OLD)
    prepared, _ = upgrade.serve(PREPARED)
    stays, moves = upgrade.device(prepared, "stays"), upgrade.device(old, "moves")
    upgrade.expect(stays, 1, "a device of the prepared release")
    upgrade.expect(moves, 1, "a device of the old release")

    with upgrade.fillings_held():
        new_replicator = upgrade.run(replicator_process(database.url, environment=NEW))
        new_replicator.wait_for_log("standing by")
        assert old_replicator.stop() == 0
        wait_until(lambda: database.rows(FILLING) == [(2,)], "the new format is being filled", 30)
        new, _ = upgrade.serve(NEW)
        early = upgrade.device(new, "early")
        database.add_todo(upgrade.list_id, "While it is filled")
        for device in (stays, moves, early):
            upgrade.expect(device, 1, "every release serves what was there")

    new_replicator.wait_for_log("the rules are active")
    for device in (stays, early):
        upgrade.expect(device, 2, "releases that know the new format go on")
    wait_until(lambda: refusal(old, upgrade.alice)[0] == 503, "the old release refuses")
    assert (
        "bucket storage has format 2, this release of django_localsync knows 1 to 1" in refusal(old, upgrade.alice)[1]
    )
    moves.write(("INSERT INTO todos (id, list_id, title, done) VALUES (uuid(), ?, 'Offline', 0)", [upgrade.list_id]))
    database.add_todo(upgrade.list_id, "After the swap")
    old_server.stop()
    upgrade.serve(NEW, port=int(old.split(":")[2].split("/")[0]))
    for device in (stays, moves, early):
        upgrade.expect(device, 2, "everybody has everything")
    assert "Offline (2)" in {title for (title,) in stays.query("SELECT title FROM todos")}


def test_a_release_refuses_a_storage_that_a_newer_one_filled(upgrade: Upgrade) -> None:
    database = upgrade.database
    upgrade.run(replicator(database.url, environment=NEW)).stop()

    refused = manage(database, OLD, "run_replicator")
    checked = manage(database, OLD, "check", "--database", "default")

    assert refused.returncode == 1
    assert "bucket storage has format 2" in refused.stderr
    assert "a newer release filled it" in refused.stderr
    assert "localsync.E020" in checked.stderr
    assert "localsync.E020" not in manage(database, NEW, "check", "--database", "default").stderr
