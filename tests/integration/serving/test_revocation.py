"""Access that is revoked: streams end at once in every process, and the tokens are refused from then on."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from secrets import token_hex
from typing import Any

import httpx2
import pytest
from django.contrib.auth.models import User
from django.core.management import CommandError, call_command
from django.test import Client

from django_localsync import revocation
from django_localsync.models import Revocation
from django_localsync.tokens import make_token, verify_token
from tests.integration.serving.conftest import DEADLINE_S, Lines, Server, StartServer, Storage, Streams, token_of
from tests.integration.serving.sockets import Socket
from tests.integration.serving.test_mishaps import terminate_servers_connections

EXPIRED = {"token_expires_in": 0}


@pytest.fixture
def user() -> str:
    """Somebody whom the servers, which outlive a test, have not heard of."""
    return token_hex(4)


def open_lines(streams: Streams, server: Server, token: str, **request: Any) -> Lines:
    """An open stream, after its first checkpoint."""
    lines = Lines(streams.open(server, token=token, **request))
    lines.through("checkpoint_complete")
    return lines


def refusal(response: Any) -> tuple[int, str]:
    """Status and code of an answer, of httpx or of Django's test client."""
    if isinstance(response, httpx2.Response):
        response.read()
    return response.status_code, response.json()["error"]["code"]


def claims(token: str) -> dict[str, Any]:
    return verify_token(token).claims


REVOKE: dict[str, Callable[[str], None]] = {
    "user": lambda token: call_command("localsync_revoke", user=claims(token)["sub"]),
    "client": lambda token: call_command("localsync_revoke", client=f"phone of {claims(token)['sub']}"),
    "token": lambda token: call_command("localsync_revoke", token=claims(token)["jti"]),
}


@pytest.mark.parametrize("what", REVOKE)
def test_what_is_revoked_ends_at_once_and_is_refused_from_then_on(
    storage: Storage, server: Server, streams: Streams, user: str, what: str, capsys: pytest.CaptureFixture[str]
):
    token, other = token_of(user), token_of("u2")
    lines = open_lines(streams, server, token, client_id=f"phone of {user}")
    others = open_lines(streams, server, other, client_id="c2")

    REVOKE[what](token)

    assert lines.rest() == [EXPIRED]
    assert refusal(streams.open(server, token=token, client_id=f"phone of {user}")) == (401, "PSYNC_S2103")
    storage.publish(("all", (), "a", {}))
    assert others.through("checkpoint_complete")
    assert f"{what} " in capsys.readouterr().out


def test_every_process_ends_its_streams(storage: Storage, start_server: StartServer, streams: Streams, user: str):
    token = token_of(user)
    servers = [start_server(), start_server(fresh=True)]
    opened = [open_lines(streams, server, token) for server in servers]

    revocation.revoke_user(user)

    assert [lines.rest() for lines in opened] == [[EXPIRED], [EXPIRED]]


def test_a_stream_over_websocket_ends_too(storage: Storage, server: Server, user: str):
    socket = Socket(server)
    socket.set_up(user)
    socket.request()
    socket.through("checkpoint_complete")

    revocation.revoke_user(user)

    assert socket.next() == EXPIRED
    socket.close()


def test_a_token_that_is_issued_later_is_good(
    storage: Storage, server: Server, streams: Streams, user: str, monkeypatch: pytest.MonkeyPatch
):
    revocation.revoke_user(user)
    monkeypatch.setattr(time, "time", lambda now=time.time: now() + 2)
    token = token_of(user)
    monkeypatch.undo()

    assert open_lines(streams, server, token)


def test_what_is_revoked_while_a_process_cannot_hear_of_it_ends_when_it_can(
    storage: Storage, start_server: StartServer, streams: Streams, user: str
):
    server, token = start_server(), token_of(user)
    lines = open_lines(streams, server, token)
    with storage.connection.transaction():
        storage.connection.execute("LOCK TABLE localsync_checkpoint IN ACCESS EXCLUSIVE MODE")  # listening waits for it
        terminate_servers_connections(storage, "query NOT LIKE '%BEGIN%'")
        revocation.revoke_user(user)

    assert lines.rest() == [EXPIRED]
    assert refusal(streams.open(server, token=token)) == (401, "PSYNC_S2103")


@pytest.fixture
def browser(transactional_db: None) -> Client:
    """A user who is logged in and has a token."""
    browser = Client()
    browser.force_login(User.objects.create_user("alice", pk=random.randrange(10**6, 10**9)))  # see `user`
    return browser


def fetch_token(browser: Client) -> str:
    return str(browser.post("/localsync/token").json()["data"]["token"])


def test_logging_out_ends_the_streams_of_this_login_and_of_no_other(
    storage: Storage, start_server: StartServer, streams: Streams, browser: Client
):
    server, elsewhere = start_server(), Client()
    elsewhere.force_login(User.objects.get())
    here, there = fetch_token(browser), fetch_token(elsewhere)
    lines, others = open_lines(streams, server, here), open_lines(streams, server, there)

    browser.logout()

    assert lines.rest() == [EXPIRED]
    assert refusal(streams.open(server, token=here)) == (401, "PSYNC_S2103")
    storage.publish(("all", (), "a", {}))
    assert others.through("checkpoint_complete")


@pytest.mark.parametrize("end", ["deactivate", "delete"])
def test_a_user_who_is_deactivated_or_deleted_is_cut_off(
    storage: Storage, start_server: StartServer, streams: Streams, browser: Client, end: str
):
    user = User.objects.get()
    lines = open_lines(streams, start_server(), fetch_token(browser))

    if end == "delete":
        user.delete()
    else:
        user.is_active = False
        user.save()

    assert lines.rest() == [EXPIRED]


def test_a_user_who_is_saved_otherwise_is_not(browser: Client):
    User.objects.get().save()
    User.objects.create_user("inactive", is_active=False)

    assert not Revocation.objects.exists()


@pytest.mark.parametrize("by", ["user", "client"])
def test_uploads_and_receipts_are_refused(browser: Client, by: str):
    token = fetch_token(browser)
    headers = {"authorization": f"Bearer {token}"}
    upload = {"client_id": "phone", "transactions": []}
    checkpoint = {"client_id": "phone", "checkpoint_request_id": "7"}
    if by == "client":
        revocation.revoke_client("phone")
    else:
        revocation.revoke_user(User.objects.get())

    answers = [
        browser.post("/localsync/upload", upload, "application/json", headers=headers),
        browser.get("/localsync/write-checkpoint2.json?client_id=phone", headers=headers),
        browser.post("/localsync/sync/checkpoint-request", checkpoint, "application/json", headers=headers),
    ]

    assert [refusal(answer) for answer in answers] == [(401, "PSYNC_S2103")] * 3


def test_a_very_old_client_is_refused_its_receipt(storage: Storage, server: Server, user: str):
    revocation.revoke_user(user)
    address = server.url.replace("sync/stream", "write-checkpoint.json")

    headers = {"Authorization": f"Bearer {token_of(user)}"}
    deadline = time.monotonic() + DEADLINE_S
    while True:  # a process may hear of the revocation a moment after the request: then it waits for replication
        try:
            response = httpx2.get(f"{address}?client_id=c1", headers=headers, timeout=1)
            break
        except httpx2.ReadTimeout:
            assert time.monotonic() < deadline

    assert refusal(response) == (401, "PSYNC_S2103")


def test_what_no_token_can_need_is_forgotten(settings: Any, transactional_db: None):
    settings.LOCALSYNC = {"MAX_TOKEN_LIFETIME_S": 300}
    revocation.revoke_user("former")
    Revocation.objects.update(revoked_at=int(time.time()) - 300 - 200)

    revocation.revoke_user("u2")

    assert [row.value for row in Revocation.objects.all()] == ["u2"]


def test_a_user_who_logs_out_without_a_token_leaves_nothing(transactional_db: None):
    browser = Client()
    browser.force_login(User.objects.create_user("alice"))

    browser.logout()

    assert not Revocation.objects.exists()


def test_a_token_for_developers(transactional_db: None, capsys: pytest.CaptureFixture[str]):
    user = User.objects.create_user("alice")
    for name in ("alice", str(user.pk)):
        call_command("localsync_token", name, lifetime=60, claims='{"role": "admin"}')
        found = claims(capsys.readouterr().out.strip())
        assert (found["sub"], found["role"], found["exp"] - found["iat"]) == (str(user.pk), "admin", 60)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"user": "nobody"}, "there is no user 'nobody'"),
        ({"lifetime": 10**6}, "--lifetime must be from 1 to 86400"),
        ({"claims": "[]"}, "--claims must be a JSON object"),
        ({"claims": "{"}, "--claims is not JSON"),
        ({"claims": '{"sub": "2"}'}, "claims other than"),
    ],
)
def test_a_token_for_developers_that_cannot_be(transactional_db: None, options: dict[str, Any], reason: str):
    User.objects.create_user("alice")

    with pytest.raises(CommandError, match=reason):
        call_command("localsync_token", options.pop("user", "alice"), **options)


def test_tokens_differ(transactional_db: None):
    user = User.objects.create_user("alice")

    assert make_token(user) != make_token(user)
