"""A changed row of a look-up changes what streams hold: of exactly those concerned, at a consistent checkpoint.

Replicator, storage, server and HTTP are the real ones.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from typing import Any

import httpx2
import psycopg
import pytest

from django_localsync.storage.connections import connect
from example_project.postgres import free_port
from tests.conftest import SOAK
from tests.integration.serving.conftest import (
    DEADLINE_S,
    ROOT,
    Lines,
    Server,
    _test_database_url,
    _wait_for_port,
    token_of,
)
from tests.replication import RunningReplicator, drop_replication, replicating
from tests.settings import URL_VARIABLE

USERS = [f"u{number}" for number in range(6)]
MEMBERSHIP = "SELECT project FROM members WHERE user_id = auth.user_id()"
RULES = {
    "config": {"edition": 3},
    "streams": {
        "clock": {"auto_subscribe": True, "query": "SELECT * FROM clock"},
        "issues": {
            "auto_subscribe": True,
            "with": {"mine": MEMBERSHIP},
            "queries": [
                "SELECT * FROM issues WHERE project IN mine",
                "SELECT * FROM notes WHERE issue IN (SELECT id FROM issues WHERE project IN mine)",
                "SELECT * FROM audit WHERE auth.user_id() IN (SELECT user_id FROM members WHERE role = 'admin')",
            ],
        },
    },
}
TABLES = {
    "clock": "id text PRIMARY KEY, tick int",
    "members": "id text PRIMARY KEY, project text, user_id text, role text",
    "issues": "id text PRIMARY KEY, project text, tick int",
    "notes": "id text PRIMARY KEY, issue text, tick int",
    "audit": "id text PRIMARY KEY, tick int",
}


@pytest.fixture
def source(transactional_db: None) -> Iterator[psycopg.Connection[Any]]:
    with connect("default") as session:
        for name, columns in TABLES.items():
            session.execute(f"CREATE TABLE {name} ({columns})")
        session.execute("INSERT INTO clock VALUES ('c', 0)")
        try:
            yield session
        finally:
            drop_replication()
            session.execute(f"DROP TABLE {', '.join(TABLES)}")


@pytest.fixture
def replicator(source: psycopg.Connection[Any]) -> Iterator[RunningReplicator]:
    with replicating(RULES) as running:
        yield running


@pytest.fixture
def server(replicator: RunningReplicator, tmp_path: Any) -> Iterator[Server]:
    port, log = free_port(), tmp_path / "log"
    module = "tests.integration.rules.counting_asgi:application"
    command = [sys.executable, "-m", "uvicorn", "--log-level=warning", "--port", str(port), module]
    environment = os.environ | {URL_VARIABLE: _test_database_url()}
    with log.open("wb") as output:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=output, stderr=output)
    server = Server(process, port, log)
    try:
        _wait_for_port(server)
        yield server
    finally:
        process.kill()
        process.wait()


class Device:
    """A client that keeps the rows of its buckets, and looks at them only when a checkpoint is complete."""

    def __init__(self, server: Server, client: httpx2.Client, user: str) -> None:
        headers = {"Authorization": f"Token {token_of(user)}"}
        request = client.build_request("POST", server.url, json={"raw_data": True}, headers=headers)
        response = client.send(request, stream=True)
        assert response.status_code == 200, (response.read(), server.log.read_text())
        self.user, self._lines = user, Lines(response)
        self._buckets: dict[str, dict[tuple[str, str, str], Any]] = {}

    def complete(self) -> dict[str, dict[str, Any]]:
        """The rows by table and id at the next complete checkpoint."""
        for line in self._lines.through("checkpoint_complete"):
            self._take(line)
        rows: dict[str, dict[str, Any]] = {}
        for bucket in self._buckets.values():
            for (table, row_id, _), data in bucket.items():
                rows.setdefault(table, {})[row_id] = json.loads(data)
        return rows

    def through(self, tick: int) -> Iterator[tuple[int, dict[str, dict[str, Any]]]]:
        """Every complete checkpoint up to that of a tick of the clock, with its own tick."""
        seen = -1
        while seen < tick:
            rows = self.complete()
            seen = rows["clock"]["c"]["tick"]
            yield seen, rows

    def _take(self, line: dict[str, Any]) -> None:
        if "checkpoint" in line:
            names = {bucket["bucket"] for bucket in line["checkpoint"]["buckets"]}
            self._buckets = {name: self._buckets.get(name, {}) for name in names}
        if "checkpoint_diff" in line:
            for bucket in line["checkpoint_diff"]["updated_buckets"]:
                self._buckets.setdefault(bucket["bucket"], {})
            for name in line["checkpoint_diff"]["removed_buckets"]:
                del self._buckets[name]
        if "data" in line:
            held = self._buckets[line["data"]["bucket"]]
            for operation in line["data"]["data"]:
                key = (operation["object_type"], operation["object_id"], operation.get("subkey") or "")
                if operation["op"] == "PUT":
                    held[key] = operation["data"]
                elif operation["op"] == "REMOVE":
                    held.pop(key, None)


@pytest.fixture
def devices(server: Server) -> Iterator[list[Device]]:
    with httpx2.Client(timeout=DEADLINE_S, limits=httpx2.Limits(max_connections=50)) as client:
        yield [Device(server, client, user) for user in USERS]


def tick(session: psycopg.Connection[Any], number: int, *statements: str) -> None:
    """One transaction, which also moves the clock that everybody sees."""
    with session.transaction():
        for statement in statements:
            session.execute(statement)
        session.execute("UPDATE clock SET tick = %s", [number])


def computed(server: Server) -> Counter[str]:
    return Counter(httpx2.get(f"http://127.0.0.1:{server.port}/").json())


CHANGES = [
    ("INSERT INTO members VALUES ('m9', 'p2', 'u0', 'user')", {"u0"}),
    ("UPDATE members SET project = 'p2' WHERE id = 'm1'", {"u1"}),
    ("UPDATE members SET user_id = 'u5' WHERE id = 'm1'", {"u1", "u5"}),
    ("DELETE FROM members WHERE id = 'm2'", {"u2"}),
    ("UPDATE members SET role = 'admin' WHERE id = 'm3'", {"u3"}),
    # A look-up in the middle: whoever reaches the project that it leaves, or the one that it joins.
    ("UPDATE issues SET project = 'p3' WHERE id = 'i1'", {"u0", "u3"}),
    # Rows change, and what they lead to does not.
    ("UPDATE issues SET tick = 9 WHERE id = 'i1'", set()),
    ("INSERT INTO notes VALUES ('n9', 'i1', 1)", set()),
    # The row is another one now, although it says the same.
    ("UPDATE members SET id = 'other' WHERE id = 'm1'", {"u5"}),
]
"""Statements, one after another, and whose look-ups they change."""


def test_a_changed_row_recomputes_exactly_the_streams_concerned(source, replicator, server, devices):
    tick(
        source,
        1,
        "INSERT INTO members VALUES ('m0', 'p1', 'u0', 'user'), ('m1', 'p1', 'u1', 'user'),"
        " ('m2', 'p2', 'u2', 'user'), ('m3', 'p3', 'u3', 'user')",
        "INSERT INTO issues VALUES ('i1', 'p1', 1), ('i2', 'p2', 1)",
        "INSERT INTO notes VALUES ('n1', 'i1', 1)",
    )
    for device in devices:
        list(device.through(1))

    for number, (change, concerned) in enumerate(CHANGES, 2):
        before = computed(server)
        tick(source, number, change)
        for device in devices:
            list(device.through(number))
        assert set(computed(server) - before) == concerned, change


def test_every_checkpoint_shows_one_moment(source, replicator, server, devices):
    """Rows and look-ups change together, in random transactions; each device sees what its user could see after one
    of them, never half of one."""
    rnd, expected = random.Random(), {0: {user: {"clock": {"c"}} for user in USERS}}
    transactions = 400 if SOAK else 40
    for number in range(1, transactions + 1):
        tick(source, number, *random_changes(rnd, number))
        expected[number] = visible(source)

    for device in devices:
        for seen, rows in device.through(transactions):
            assert {table: set(found) for table, found in rows.items()} == expected[seen][device.user], (
                device.user,
                seen,
            )
            assert all(row["tick"] <= seen for found in rows.values() for row in found.values())


def random_changes(rnd: random.Random, number: int) -> list[str]:
    """A few rows come, move, and go."""
    changes = []
    for _ in range(rnd.randint(1, 4)):
        project, issue, user = f"p{rnd.randrange(3)}", f"i{rnd.randrange(4)}", rnd.choice(USERS)
        role, note, member = rnd.choice(["user", "admin"]), f"n{rnd.randrange(6)}", f"m{rnd.randrange(8)}"
        put = "ON CONFLICT (id) DO UPDATE SET"
        changes.append(
            rnd.choice(
                [
                    f"INSERT INTO members VALUES ('{member}', '{project}', '{user}', '{role}')"
                    f" {put} project = excluded.project, user_id = excluded.user_id, role = excluded.role",
                    f"INSERT INTO issues VALUES ('{issue}', '{project}', {number}) {put} project = excluded.project",
                    f"INSERT INTO notes VALUES ('{note}', '{issue}', {number}) {put} issue = excluded.issue",
                    f"INSERT INTO audit VALUES ('a{number}', {number}) {put} tick = {number}",
                    f"DELETE FROM members WHERE id = '{member}'",
                    f"DELETE FROM issues WHERE id = '{issue}'",
                    f"DELETE FROM notes WHERE id = '{note}'",
                ]
            )
        )
    return changes


def visible(session: psycopg.Connection[Any]) -> dict[str, dict[str, set[str]]]:
    """The ids that each user may see now, by table."""
    found: dict[str, dict[str, set[str]]] = {user: {"clock": {"c"}} for user in USERS}
    queries = {
        "issues": "SELECT user_id, issues.id FROM issues JOIN members USING (project)",
        "notes": "SELECT user_id, notes.id FROM notes JOIN issues ON issues.id = issue JOIN members USING (project)",
        "audit": "SELECT user_id, audit.id FROM audit, members WHERE role = 'admin'",
    }
    for table, query in queries.items():
        for user, row_id in session.execute(query).fetchall():
            found[user].setdefault(table, set()).add(row_id)
    return found
