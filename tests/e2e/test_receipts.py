"""Receipts that a back end makes itself, over a real server: a worker applies a write later and says so in a table."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import LiteralString

import psycopg
import pytest

from django_localsync.client import Column, ColumnType, Credentials, Database, Schema, SyncOptions, Table
from tests.databases import temporary_database
from tests.e2e.project import RunningProject, running_project
from tests.e2e.wire import EVERYTHING, open_stream
from tests.processes import wait_until

RULES = {
    "config": {"edition": 3},
    "streams": {"notes": {"auto_subscribe": True, "query": "SELECT id, title FROM note WHERE owner = auth.user_id()"}},
    "event_definitions": {"write_checkpoints": {"payloads": ["SELECT user_id, client_id, checkpoint FROM done"]}},
}
APPLY: LiteralString = """
    BEGIN;
    INSERT INTO note VALUES ('n{number}', '{user}', 'applied');
    INSERT INTO done (user_id, client_id, checkpoint) VALUES ('{user}', '{client}', {number});
    COMMIT
"""


@pytest.fixture(scope="module")
def project(
    server_url: str, migrated_database: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningProject]:
    rules = tmp_path_factory.mktemp("rules") / "rules.json"
    rules.write_text(json.dumps(RULES))
    environment = {"DJANGO_SETTINGS_MODULE": "tests.e2e.settings_with_rules", "RULES": str(rules)}
    with temporary_database(server_url, template=migrated_database) as url:
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute("CREATE TABLE note (id text PRIMARY KEY, owner text, title text)")
            connection.execute(
                "CREATE TABLE done (id serial PRIMARY KEY, user_id text, client_id text, checkpoint bigint)"
            )
        with running_project(url, environment=environment) as running:
            active: LiteralString = "SELECT 1 FROM localsync_rule_set WHERE state = 'active'"
            wait_until(lambda: running.rows(active), "the rules are active")
            yield running


def apply(project: RunningProject, user: int, client: str, number: int) -> None:
    """What the worker does with a write: the rows and the receipt, in one transaction."""
    with psycopg.connect(project.url, autocommit=True) as connection:
        connection.execute(APPLY.format(user=user, client=client, number=number))  # type: ignore[arg-type]


def test_an_open_stream_echoes_the_number_with_the_checkpoint_that_has_the_rows(project: RunningProject):
    person = project.add_person("ann")
    with open_stream(project.endpoint, person.token(), {**EVERYTHING, "client_id": "phone"}) as stream:
        stream.read_until(b"checkpoint_complete")
        assert b'"write_checkpoint":"' not in stream.received
        apply(project, person.id, "laptop", 70)
        stream.read_until(b'"n70"')
        stream.received = b""
        apply(project, person.id, "phone", 71)
        stream.read_until(b'"n71"')
    announced, _, _ = stream.received.partition(b'"n71"')
    assert b'"write_checkpoint":"71"' in announced
    assert b'"write_checkpoint":"70"' not in stream.received


class QueueConnector:
    """Hands writes to a queue that a worker empties later, and numbers them."""

    def __init__(self, endpoint: str, token: str) -> None:
        self._credentials = Credentials(endpoint, token)
        self.queued: list[int] = []

    def fetch_credentials(self) -> Credentials:
        return self._credentials

    def upload_data(self, database: Database) -> None:
        batch = database.get_crud_batch()
        assert batch is not None
        self.queued.append(100 + batch.operations[-1].op_id)
        batch.complete(self.queued[-1])


def test_a_device_shows_its_own_version_until_the_worker_has_applied_it(project: RunningProject, tmp_path: Path):
    person = project.add_person("bob")
    schema = Schema([Table("note", [Column("title", ColumnType.TEXT)])])
    with Database(str(tmp_path / "device.sqlite"), schema) as database:
        connector = QueueConnector(project.endpoint, person.token())
        database.connect(connector, SyncOptions(retry_delay_s=0.1, upload_throttle_s=0.01))
        database.wait_for_first_sync(20)
        with database.write_transaction() as transaction:
            transaction.execute("INSERT INTO note (id, title) VALUES ('mine', 'waiting')")
        wait_until(lambda: connector.queued, "the write is in the queue")
        (number,) = connector.queued
        apply(project, person.id, "another device", number - 1)
        stored: LiteralString = "SELECT 1 FROM localsync_write_checkpoint WHERE client_id = 'another device'"
        wait_until(lambda: project.rows(stored), "another device's receipt is replicated")
        assert titles(database) == {"mine": "waiting"}
        apply(project, person.id, database.client_id, number)
        wait_until(lambda: len(titles(database)) == 2, "the receipt has come")
        assert titles(database) == {f"n{number - 1}": "applied", f"n{number}": "applied"}


def titles(database: Database) -> dict[str, str]:
    return {row["id"]: row["title"] for row in database.get_all("SELECT id, title FROM note")}
