"""Exactly once: a real server dies by kill -9 at every step of an upload, the device repeats it: one effect remains."""

from __future__ import annotations

import os
import random
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx2
import pytest
from django.contrib.auth.models import User
from django.db import connection

from django_localsync.tokens import make_token
from django_localsync.upload_models import Rejection, UploadedId, UploadJournal
from example_project.database_url import with_database
from example_project.postgres import free_port
from tests.conftest import SOAK
from tests.integration.uploads.crashing_server import FORGETS, STEPS
from tests.processes import START_TIMEOUT_S, running
from tests.settings import URL_VARIABLE
from tests.testapp.models import Counter, Document, Project, Task

pytestmark = pytest.mark.django_db(transaction=True)


class Server:
    """Where it listens, and how it is told to die."""

    def __init__(self, port: int, failpoint: Path) -> None:
        self.address, self._failpoint = f"http://127.0.0.1:{port}/localsync", failpoint

    def die_at(self, step: str) -> None:
        """Die when that step is reached."""
        self._failpoint.write_text(step)

    @property
    def died(self) -> bool:
        """Whether it has done so."""
        return not self._failpoint.exists()

    def forget(self, forgets: bool) -> None:
        """A deliberate fault: no repeat is recognised."""
        fault = self._failpoint.with_name(FORGETS)
        fault.touch() if forgets else fault.unlink()

    def send(self, body: dict[str, Any], token: str) -> Any:
        """The answer's transactions, or None if there was no answer."""
        headers = {"authorization": f"Bearer {token}"}
        try:
            answer = httpx2.post(f"{self.address}/upload", json=body, headers=headers, timeout=20)
        except httpx2.HTTPError:
            return None
        assert answer.status_code == 200, answer.text
        return answer.json()["data"]["transactions"]

    def send_until_answered(self, body: dict[str, Any], token: str) -> Any:
        """What a device does."""
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline:
            if answer := self.send(body, token):
                return answer
            time.sleep(0.02)
        raise AssertionError("no answer in time")


@pytest.fixture(scope="module")
def server(django_db_setup: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server for all tests, on the test database."""
    port, failpoint = free_port(), tmp_path_factory.mktemp("crash") / "failpoint"
    url = with_database(os.environ[URL_VARIABLE], str(connection.settings_dict["NAME"]))
    command = [sys.executable, "-m", "tests.integration.uploads.crashing_server", str(port), str(failpoint)]
    with running("crashing server", *command, environment={URL_VARIABLE: url}):
        yield Server(port, failpoint)


def operation(op_id: int, table: str, row: object, **data: Any) -> dict[str, Any]:
    return {"op_id": op_id, "op": "PUT", "type": table, "id": str(row), "data": data}


# The second is rejected: it writes, and its last operation cannot be applied.
BODY = {
    "client_id": "phone",
    "transactions": [
        {
            "id": 1,
            "operations": [
                operation(1, "counters", 1),
                operation(2, "projects", "p", name="Boat"),
                operation(3, "tasks", "t", project_id="p", title="Saw"),
            ],
        },
        {"id": 2, "operations": [operation(4, "counters", 2), operation(5, "documents", UUID(int=1), title="")]},
        {"id": 3, "operations": [operation(6, "counters", 3), operation(7, "documents", UUID(int=2), title="Plan")]},
    ],
}


def effects() -> dict[str, Any]:
    return {
        "counters": dict(Counter.objects.values_list("pk", "value")),
        "projects": list(Project.objects.values_list("name", "tasks__title")),
        "tasks": Task.objects.count(),
        "documents": list(Document.objects.values_list("title", flat=True)),
        "rejections": sorted(Rejection.objects.values_list("op_id", "code")),
        "ids": UploadedId.objects.count(),
        "journal": list(UploadJournal.objects.order_by("transaction_id").values_list("transaction_id", "state")),
    }


ONCE = {
    "counters": {1: 1, 3: 1},
    "projects": [("Boat", "Saw")],
    "tasks": 1,
    "documents": ["Plan"],
    "rejections": [(4, "transaction_rejected"), (5, "invalid")],
    "ids": 2,
    "journal": [(1, "applied"), (2, "rejected"), (3, "applied")],
}


@pytest.mark.parametrize("step", STEPS)
def test_a_server_that_dies_in_an_upload_leaves_one_effect(server: Server, alice: User, step: str) -> None:
    token = make_token(alice)
    server.die_at(step)

    answer = server.send_until_answered(BODY, token)
    again = server.send_until_answered(BODY, token)

    assert server.died
    assert effects() == ONCE
    assert [item["status"] for item in answer] == ["applied", "rejected", "applied"]
    assert [{**item, "repeated": True} for item in answer] == again


@pytest.mark.parametrize("seed", range(30 if SOAK else 3))
def test_a_server_that_dies_again_and_again_under_several_senders(server: Server, alice: User, seed: int) -> None:
    """The device gives up a request and sends another one while the first still runs."""
    dice, token = random.Random(seed), make_token(alice)
    answers: list[Any] = []
    senders = [
        threading.Thread(target=lambda: answers.append(server.send_until_answered(BODY, token))) for _ in range(3)
    ]
    server.die_at(dice.choice(STEPS))
    for sender in senders:
        sender.start()
    for _ in range(3):
        time.sleep(dice.random() * 0.2)
        if server.died and any(sender.is_alive() for sender in senders):
            server.die_at(dice.choice(STEPS))
    for sender in senders:
        sender.join(START_TIMEOUT_S)
    server.send_until_answered(BODY, token)

    assert len(answers) == 3
    assert effects() == ONCE


def test_a_journal_that_forgets_would_be_noticed(server: Server, alice: User) -> None:
    server.forget(True)
    try:
        server.send_until_answered(BODY, make_token(alice))
        server.send_until_answered(BODY, make_token(alice))
    finally:
        server.forget(False)

    assert effects() != ONCE
    assert effects()["counters"] == {1: 2, 3: 2}
