"""Write checkpoints on real Postgres: numbers that rise, positions that cover, a message that follows."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from secrets import token_hex
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.db import connection, connections, transaction
from django.test import Client

from django_localsync.buckets.announcement import write_checkpoint_digest
from django_localsync.models import WriteCheckpoint
from django_localsync.pgoutput.lsn import Lsn
from django_localsync.storage import write_checkpoints
from django_localsync.storage.write_checkpoints import request_write_checkpoint
from django_localsync.tokens import make_token
from tests.testapp.models import Counter

pytestmark = pytest.mark.django_db(transaction=True)

ADDRESS = "/localsync/write-checkpoint2.json"


def query(sql: str, *parameters: Any) -> Any:
    with connection.cursor() as cursor:
        cursor.execute(sql, parameters)
        return cursor.fetchone()[0]


def position(user_key: str, client_id: str) -> Lsn:
    stored = WriteCheckpoint.objects.get(user_key=user_key, client_id=client_id)
    return Lsn(stored.positions["default"])


@contextmanager
def stream() -> Iterator[Any]:
    """A slot; its function gives (LSN, payload) of what was streamed since the last call."""
    name = f"writes_{token_hex(4)}"
    with connection.cursor() as cursor:
        cursor.execute(f"CREATE PUBLICATION {name}")  # of no table: only messages are wanted
        cursor.execute("SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", [name])

        def changes() -> list[tuple[Lsn, bytes]]:
            cursor.execute(
                "SELECT lsn, data FROM pg_logical_slot_get_binary_changes(%s, NULL, NULL,"
                " 'proto_version', '1', 'publication_names', %s, 'messages', 'true')",
                [name, name],
            )
            return [(Lsn.parse(lsn), bytes(data)) for lsn, data in cursor.fetchall()]

        try:
            yield changes
        finally:
            cursor.execute("SELECT pg_drop_replication_slot(%s)", [name])
            cursor.execute(f"DROP PUBLICATION {name}")


def test_numbers_rise_for_each_user_and_client() -> None:
    asked = [("1", "phone"), ("1", "phone"), ("1", "tablet"), ("2", "phone"), ("1", ""), ("1", "phone")]

    assert [request_write_checkpoint(*key) for key in asked] == [1, 2, 1, 1, 1, 3]


@pytest.mark.parametrize("synchronous_commit", ["on", "off"])
def test_the_position_lies_behind_what_was_committed_and_before_the_message(synchronous_commit: str) -> None:
    with stream() as changes:
        query("SELECT set_config('synchronous_commit', %s, false)", synchronous_commit)
        before = Lsn.parse(query("SELECT pg_current_wal_insert_lsn()"))
        Counter.objects.create(value=1)
        request_write_checkpoint("1", "phone")
        messages = [(lsn, data) for lsn, data in changes() if data[:1] == b"M"]
        query("SELECT set_config('synchronous_commit', 'on', false)")

    (lsn, data) = messages[0]
    assert before < position("1", "phone") < lsn
    assert len(messages) == 1
    assert data[1:2] == b"\1"  # transactional
    assert data[10:20] == b"localsync\0"
    assert int(data[24:]) == write_checkpoint_digest("1", "phone")


def test_the_message_is_flushed_when_the_answer_is_given() -> None:
    query("SELECT set_config('synchronous_commit', 'off', false)")
    try:
        request_write_checkpoint("1", "phone")
        assert Lsn.parse(query("SELECT pg_current_wal_flush_lsn()")) > position("1", "phone")
    finally:
        query("SELECT set_config('synchronous_commit', 'on', false)")


def test_the_number_is_stored_before_the_message_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    emit = write_checkpoints._emit_message

    def look(alias: str, content: str) -> None:
        seen.extend(in_another_connection(lambda: list(WriteCheckpoint.objects.values_list("number", flat=True))))
        emit(alias, content)

    monkeypatch.setattr(write_checkpoints, "_emit_message", look)

    request_write_checkpoint("1", "phone")

    assert seen == [1]


def test_a_higher_number_never_has_a_lower_position() -> None:
    found: list[tuple[int, Lsn]] = []
    read = write_checkpoints._current_position

    def ask() -> None:
        for _ in range(20):
            number = request_write_checkpoint("1", "phone")
            found.append((number, positions[number]))
        connections.close_all()

    positions: dict[int, Lsn] = {}

    def remember(alias: str) -> Lsn:
        lsn = read(alias)
        # The row is locked by this connection, which alone can see its new number.
        positions[query("SELECT number FROM localsync_write_checkpoint")] = lsn
        return lsn

    write_checkpoints._current_position = remember
    try:
        threads = [threading.Thread(target=ask) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
    finally:
        write_checkpoints._current_position = read

    found.sort()
    assert [number for number, _ in found] == list(range(1, 81))
    assert [lsn for _, lsn in found] == sorted(lsn for _, lsn in found)


def test_a_request_inside_a_transaction_is_refused() -> None:
    with pytest.raises(RuntimeError, match="durable"), transaction.atomic():
        request_write_checkpoint("1", "phone")


# Over HTTP.


@pytest.fixture
def alice() -> User:
    return User.objects.create_user("alice")


def ask(client: Client, token: str, address: str = ADDRESS, scheme: str = "Bearer") -> Any:
    return client.get(address, headers={"authorization": f"{scheme} {token}", "accept": "text/html"})


@pytest.mark.parametrize("scheme", ["Bearer", "Token"])
def test_a_client_gets_its_number(client: Client, alice: User, scheme: str) -> None:
    response = ask(client, make_token(alice), f"{ADDRESS}?client_id=phone", scheme)

    assert (response.status_code, response.json()) == (200, {"data": {"write_checkpoint": "1"}})
    assert response.headers["Access-Control-Allow-Origin"] == "*"
    assert "Access-Control-Allow-Credentials" not in response.headers
    assert WriteCheckpoint.objects.filter(user_key=str(alice.pk), client_id="phone").exists()


def test_a_client_without_id_has_a_number_of_its_own(client: Client, alice: User) -> None:
    ask(client, make_token(alice))

    assert WriteCheckpoint.objects.get().client_id == ""


def test_it_works_where_every_request_is_a_transaction(client: Client, alice: User, monkeypatch: Any) -> None:
    monkeypatch.setitem(connection.settings_dict, "ATOMIC_REQUESTS", True)

    assert ask(client, make_token(alice)).status_code == 200


@pytest.mark.parametrize("client_id", ["c" * 201, "a%00b"])
def test_an_impossible_client_id_is_refused(client: Client, alice: User, client_id: str) -> None:
    response = ask(client, make_token(alice), f"{ADDRESS}?client_id={client_id}")

    assert response.status_code == 400
    assert response.json()["error"]["code"] == "PSYNC_S2001"
    assert response.json()["error"]["details"].startswith("client_id: ")
    assert not WriteCheckpoint.objects.exists()


def test_without_a_token_nothing_is_given(client: Client) -> None:
    response = client.get(ADDRESS)

    assert (response.status_code, response.json()["error"]["code"]) == (401, "PSYNC_S2106")
    assert response.headers["WWW-Authenticate"] == "Bearer"


# With numbers of the client's own.

REQUEST_ADDRESS = "/localsync/sync/checkpoint-request"


def ask_for(client: Client, token: str, number: Any, **body: Any) -> Any:
    content = {"client_id": "phone", "checkpoint_request_id": number, **body}
    headers = {"authorization": f"Token {token}"}
    return client.post(REQUEST_ADDRESS, content, content_type="application/json", headers=headers)


def test_a_client_may_number_its_receipts_itself(client: Client, alice: User) -> None:
    asked = [5, 5, 3, "9007199254740993", 8, 2**63 - 1]

    answers = [ask_for(client, make_token(alice), number).json()["data"]["checkpoint_request_id"] for number in asked]

    assert answers == ["5", "5", "5", "9007199254740993", "9007199254740993", str(2**63 - 1)]


def test_a_repeated_number_keeps_its_position_and_makes_the_stream_pass_it(client: Client, alice: User) -> None:
    with stream() as changes:
        ask_for(client, make_token(alice), 5)
        first, key = position(str(alice.pk), "phone"), (str(alice.pk), "phone")
        Counter.objects.create(value=1)
        ask_for(client, make_token(alice), 5)
        ask_for(client, make_token(alice), 4)
        assert position(*key) == first
        ask_for(client, make_token(alice), 6)
        assert position(*key) > first

        assert sum(data[:1] == b"M" for _, data in changes()) == 4


@pytest.mark.django_db
@pytest.mark.parametrize("number", [0, -1, 2**63, 1.5, True, None, "", "x", "-1", "9" * 30, "٣", [1]])
def test_an_impossible_number_is_refused(client: Client, alice: User, number: Any) -> None:
    response = ask_for(client, make_token(alice), number)

    assert (response.status_code, response.json()["error"]["code"]) == (400, "PSYNC_S2001")
    assert response.json()["error"]["details"].startswith("checkpoint_request_id: ")
    assert not WriteCheckpoint.objects.exists()


@pytest.mark.django_db
@pytest.mark.parametrize("body", [{"client_id": 7}, {"client_id": "c" * 201}, {"client_id": "a\0b"}])
def test_a_request_needs_a_possible_client_id(client: Client, alice: User, body: dict[str, Any]) -> None:
    assert ask_for(client, make_token(alice), 1, **body).json()["error"]["details"].startswith("client_id: ")


def test_receipts_of_every_source_are_asked_for(settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    settings.LOCALSYNC = {"SOURCES": ["default", "shard"]}
    monkeypatch.setattr(write_checkpoints, "_current_position", {"default": Lsn(7), "shard": Lsn(9)}.__getitem__)
    emitted: list[str] = []
    monkeypatch.setattr(write_checkpoints, "_emit_message", lambda alias, content: emitted.append(alias))

    request_write_checkpoint("1", "phone")

    assert WriteCheckpoint.objects.get().positions == {"default": 7, "shard": 9}
    assert emitted == ["default", "shard"]


def in_another_connection(work: Any) -> Any:
    results = []

    def run() -> None:
        results.append(work())
        connections.close_all()

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(10)
    return results[0]
