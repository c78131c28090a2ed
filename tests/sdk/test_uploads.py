"""A table of cases, by the official JavaScript SDK and by the Python client: what a device writes, what becomes of it
in Postgres, what the backend answers, and what the device has in the end."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from django_localsync.client import Column, ColumnType, Database, LocalSyncConnector, Schema, SyncOptions, Table
from tests.databases import temporary_database
from tests.processes import print_logs, wait_until
from tests.sdk.backend import Backend, running_backend
from tests.sdk.device import TABLES
from tests.sdk.node_client import node_client

REJECTION = {"type": "text", "row_id": "text", "op": "text", "data": "text", "code": "text", "errors": "text"}
SCHEMA: Mapping[str, Mapping[str, str]] = {**TABLES, "localsync_rejection": REJECTION}
TIMEOUT_S = 15.0

Row = tuple[str, str]  # id and title


@dataclass(frozen=True)
class Case:
    """Local transactions of statements; {list} is bob's own list, {other} alice's, {a} … {d} are ids of rows.

    There is a to-do {a} "Milk" in {list} and a to-do {b} "Secret" in {other} from the start. `remain` are the titles
    of {list} in the end, in Postgres and on the device; `codes` those of the dead letters by row.
    """

    writes: Sequence[Sequence[str]]
    remain: Sequence[str]
    codes: Mapping[str, str] = field(default_factory=dict)


INSERT = "INSERT INTO todos (id, list_id, title) VALUES ('{%s}', '{%s}', '%s')"
CASES: dict[str, Case] = {
    "insert": Case([[INSERT % ("c", "list", "Bread")]], ["Bread", "Milk"]),
    "insert, trimmed by the backend": Case([[INSERT % ("c", "list", "  Bread ")]], ["Bread", "Milk"]),
    "update": Case([["UPDATE todos SET title = 'Oat milk' WHERE id = '{a}'"]], ["Oat milk"]),
    "delete": Case([["DELETE FROM todos WHERE id = '{a}'"]], []),
    "several transactions in order": Case(
        [
            [INSERT % ("c", "list", "Bread"), INSERT % ("d", "list", "Salt")],
            ["UPDATE todos SET title = 'Rye bread' WHERE id = '{c}'"],
            ["DELETE FROM todos WHERE id = '{d}'"],
        ],
        ["Milk", "Rye bread"],
    ),
    "replace": Case(
        [["DELETE FROM todos WHERE id = '{a}'", INSERT % ("a", "list", "Again")]],
        ["Again"],
    ),
    "blank": Case([["UPDATE todos SET title = '' WHERE id = '{a}'"]], ["Milk"], {"a": "invalid"}),
    "null": Case([["UPDATE todos SET title = NULL WHERE id = '{a}'"]], ["Milk"], {"a": "invalid"}),
    "too long": Case([[INSERT % ("c", "list", "x" * 201)]], ["Milk"], {"c": "invalid"}),
    "not a boolean": Case([["UPDATE todos SET done = 7 WHERE id = '{a}'"]], ["Milk"], {"a": "invalid"}),
    "a column of the backend": Case(
        [["UPDATE todos SET created_by_id = 1 WHERE id = '{a}'"]], ["Milk"], {"a": "unknown_column"}
    ),
    "into a list of others": Case([[INSERT % ("c", "other", "Spam")]], ["Milk"], {"c": "invalid"}),
    "moved into a list of others": Case(
        [["UPDATE todos SET list_id = '{other}' WHERE id = '{a}'"]], ["Milk"], {"a": "invalid"}
    ),
    "a row of others": Case([[INSERT % ("b", "list", "Mine now")]], ["Milk"], {"b": "permission_denied"}),
    "one bad row rejects its transaction": Case(
        [[INSERT % ("c", "list", "Bread"), INSERT % ("d", "list", "")]],
        ["Milk"],
        {"c": "transaction_rejected", "d": "invalid"},
    ),
    "a bad transaction blocks no other": Case(
        [[INSERT % ("c", "list", "")], [INSERT % ("d", "list", "Salt")]], ["Milk", "Salt"], {"c": "invalid"}
    ),
    "changes of a rejected row": Case(
        [[INSERT % ("c", "list", "")], ["UPDATE todos SET done = 1 WHERE id = '{c}'"]],
        ["Milk"],
        {"c": "invalid row_rejected"},
    ),
    "a row that does not exist": Case(
        [["DELETE FROM todos WHERE id = '{a}'"], [INSERT % ("c", "list", "Bread")]], ["Bread"]
    ),
}


class PythonDevice:
    """The Python client, driven as the SDK is."""

    def __init__(self, path: Path) -> None:
        tables = (
            Table(name, [Column(column, ColumnType(kind)) for column, kind in columns.items()])
            for name, columns in SCHEMA.items()
        )
        self.database = Database(str(path), Schema(tables))

    def connect(self, endpoint: str, token: str) -> None:
        options = SyncOptions(retry_delay_s=0.1, max_retry_delay_s=0.5, upload_throttle_s=0.01)
        self.database.connect(LocalSyncConnector(endpoint, lambda: token), options)

    def disconnect(self) -> None:
        self.database.disconnect()

    def wait_for_first_sync(self) -> None:
        self.database.wait_for_first_sync(TIMEOUT_S)

    def write(self, *statements: tuple[str, Sequence[Any]]) -> None:
        with self.database.write_transaction() as transaction:
            for sql, parameters in statements:
                transaction.execute(sql, parameters)

    def query(self, sql: str, *parameters: Any) -> list[dict[str, Any]]:
        return [dict(row) for row in self.database.get_all(sql, parameters)]

    @property
    def status(self) -> dict[str, Any]:
        return {"queued": int(self.database.get_crud_batch(1) is not None)}


@contextmanager
def python_client() -> Iterator[PythonDevice]:
    with TemporaryDirectory(prefix="localsync-device-") as folder:
        device = PythonDevice(Path(folder) / "device.sqlite")
        try:
            yield device
        finally:
            device.database.close()


@pytest.fixture(scope="module")
def backend(server_url: str, migrated_database: str) -> Iterator[Backend]:
    with temporary_database(server_url, template=migrated_database) as url, running_backend(url) as running:
        yield running


@pytest.fixture(scope="module", params=["node", "python"])
def device(request: pytest.FixtureRequest, backend: Backend) -> Iterator[Any]:
    opened: Any = node_client(SCHEMA) if request.param == "node" else python_client()
    with opened as made:
        made.connect(backend.endpoint, backend.token("bob"))
        made.wait_for_first_sync()
        yield made
    print_logs()


@pytest.mark.parametrize("name", CASES)
def test_what_a_device_writes(backend: Backend, device: Any, name: str) -> None:
    case = CASES[name]
    places = {"list": backend.add_list(name, "bob"), "other": backend.add_list(f"Alice's {name}", "alice")}
    places |= {"a": backend.add_todo(places["list"], "Milk"), "b": backend.add_todo(places["other"], "Secret")}
    places |= {letter: str(uuid.uuid4()) for letter in "cd"}
    wait_until(lambda: titles(device, places) == ["Milk"], "the to-do has come", TIMEOUT_S)
    device.disconnect()

    for statements in case.writes:
        device.write(*((statement.format(**places), []) for statement in statements))
    device.connect(backend.endpoint, backend.token("bob"))

    wait_until(lambda: device.status["queued"] == 0, "the queue is empty", TIMEOUT_S)
    wait_until(
        lambda: (titles(device, places), dead_letters(device, places)) == (sorted(case.remain), dict(case.codes)),
        f"the device has {case.remain} and {case.codes}, not {titles(device, places)}, {dead_letters(device, places)}",
        TIMEOUT_S,
    )
    stored = backend.rows("SELECT title FROM todos WHERE list_id = %(list)s", list=places["list"])
    others = backend.rows("SELECT title FROM todos WHERE list_id = %(list)s", list=places["other"])
    assert sorted(row["title"] for row in stored) == sorted(case.remain)
    assert [row["title"] for row in others] == ["Secret"]


def test_a_dead_letter_is_dismissed_on_the_device(backend: Backend, device: Any) -> None:
    made = str(uuid.uuid4())
    place = backend.add_list("Dismissed", "bob")
    wait_until(lambda: device.query("SELECT id FROM lists WHERE id = ?", place), "the list has come", TIMEOUT_S)
    device.write(("INSERT INTO todos (id, list_id, title) VALUES (?, ?, '')", [made, place]))
    shown = "SELECT id, type, op, data, errors FROM localsync_rejection WHERE row_id = ?"
    (letter,) = wait_until(lambda: device.query(shown, made), "the dead letter has come", TIMEOUT_S)
    assert (letter["type"], letter["op"]) == ("todos", "PUT")
    assert "This field may not be blank." in letter["errors"]

    device.write(("DELETE FROM localsync_rejection WHERE id = ?", [letter["id"]]))

    def count() -> int:
        found = backend.rows("SELECT count(*) AS n FROM localsync_rejection WHERE row_id = %(row)s", row=made)
        return int(found[0]["n"])

    wait_until(lambda: count() == 0, "the dead letter is gone", TIMEOUT_S)
    wait_until(lambda: device.query(shown, made) == [], "on the device as well", TIMEOUT_S)


def test_dead_letters_are_only_on_their_users_devices(backend: Backend, device: Any) -> None:
    assert device.query("SELECT count(*) AS n FROM localsync_rejection")[0]["n"] > 0

    with python_client() as other:
        other.connect(backend.endpoint, backend.token("alice"))
        other.wait_for_first_sync()

        assert other.query("SELECT * FROM localsync_rejection") == []


def titles(device: Any, places: Mapping[str, str]) -> list[str]:
    rows = device.query("SELECT title FROM todos WHERE list_id = ? ORDER BY title", places["list"])
    return sorted(str(row["title"]) for row in rows)


def dead_letters(device: Any, places: Mapping[str, str]) -> dict[str, str]:
    """The codes for each row, in the order of its writes."""
    found: dict[str, list[str]] = {}
    rows = {row: letter for letter, row in places.items()}
    for letter in device.query("SELECT row_id, code FROM localsync_rejection ORDER BY code"):
        if letter["row_id"] in rows:
            found.setdefault(rows[letter["row_id"]], []).append(letter["code"])
    return {row: " ".join(codes) for row, codes in found.items()}
