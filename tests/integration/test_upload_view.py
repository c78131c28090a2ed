"""`POST upload` over HTTP: who gets in, what a body must be, what an error looks like, what browsers are told."""

from __future__ import annotations

import time
from typing import Any
from uuid import UUID

import jwt
import orjson
import pytest
from django.contrib.auth.models import User
from django.core.cache import cache
from django.db import connection
from django.test import Client, RequestFactory
from rest_framework.throttling import UserRateThrottle

from django_localsync.authentication import TokenAuthentication
from django_localsync.models import UploadJournal
from django_localsync.protocol.crud import CrudOperation
from django_localsync.tokens import Token, make_token
from django_localsync.upload import UploadHandler
from django_localsync.views import UploadThrottle, UploadView
from tests.testapp.models import TodoList

pytestmark = pytest.mark.django_db

ADDRESS = "/localsync/upload"
GROCERIES = UUID(int=1)
KEY = "a secret of another system, of at least sixty-four bytes, for every HMAC"


@pytest.fixture(autouse=True)
def _handler(settings: Any) -> None:
    cache.clear()
    settings.LOCALSYNC = {
        "UPLOAD_HANDLER": "tests.testapp.uploads.Handler",
        "KEYS": [{"kty": "oct", "alg": "HS256", "kid": "elsewhere", "k": jwt.utils.base64url_encode(KEY.encode())}],
    }


@pytest.fixture
def alice() -> User:
    return User.objects.create_user("alice")


def operation(**changes: Any) -> dict[str, Any]:
    return {"op_id": 1, "op": "PUT", "type": "lists", "id": str(GROCERIES), "data": {"name": "Groceries"}} | changes


def body(*operations: dict[str, Any]) -> dict[str, Any]:
    return {"client_id": "phone", "transactions": [{"id": 1, "operations": list(operations) or [operation()]}]}


def post(token: str | None, content: Any = None, **options: Any) -> Any:
    headers = {} if token is None else {"authorization": f"Bearer {token}"}
    client = Client(enforce_csrf_checks=True, raise_request_exception=False)
    content = body() if content is None else content
    content = content if isinstance(content, bytes) else orjson.dumps(content)
    content_type = options.get("content_type", "application/json")
    return client.generic("POST", ADDRESS, content, headers={**headers, "content-type": content_type})


def code(response: Any) -> tuple[int, str]:
    error = response.json()["error"]
    assert error["status"] == response.status_code
    assert set(error) <= {"name", "code", "status", "description", "details"}
    return response.status_code, error["code"]


def test_an_upload_is_applied_and_answered(alice: User) -> None:
    response = post(make_token(alice))

    assert response.json() == {
        "data": {"transactions": [{"id": 1, "status": "applied", "operations": [{"op_id": 1, "status": "applied"}]}]}
    }
    assert TodoList.objects.get(pk=GROCERIES).members.get() == alice
    assert UploadJournal.objects.get().user_key == str(alice.pk)


def test_a_repeat_is_marked(alice: User) -> None:
    first, second = (post(make_token(alice)).json()["data"]["transactions"][0] for _ in range(2))

    assert second == {**first, "repeated": True}


@pytest.mark.parametrize(
    ("wrong", "expected"),
    [
        ({"type": "nonsense"}, ("unknown_table", {"non_field_errors": ["Table “nonsense” cannot be written."]})),
        ({"data": {"nmae": "x"}}, ("unknown_column", {"nmae": ["This column cannot be written."]})),
        ({"data": {}}, ("invalid", {"name": ["This field is required."]})),
    ],
)
def test_a_rejection_is_an_answer(alice: User, wrong: dict[str, Any], expected: tuple[str, Any]) -> None:
    response = post(make_token(alice), body(operation(**wrong)))

    (rejected,) = response.json()["data"]["transactions"][0]["operations"]
    assert (response.status_code, rejected["status"]) == (200, "rejected")
    assert (rejected["code"], rejected["errors"]) == expected


# Who gets in.


def foreign(key: str = KEY, algorithm: str = "HS256", kid: str = "elsewhere", **changes: Any) -> str:
    now = int(time.time())
    claims = {"sub": "1", "aud": "localsync", "iat": now, "exp": now + 60, **changes}
    return jwt.encode(claims, key, algorithm=algorithm, headers={"kid": kid})


@pytest.mark.parametrize(
    ("token", "expected"),
    [
        (None, "PSYNC_S2106"),
        ("nonsense", "PSYNC_S2101"),
        ("two words", "PSYNC_S2101"),
        (foreign(exp=int(time.time()) - 300), "PSYNC_S2103"),
        (foreign(exp=int(time.time()) + 90_000), "PSYNC_S2104"),
        (foreign(aud="elsewhere"), "PSYNC_S2105"),
        (foreign(algorithm="HS512"), "PSYNC_S2101"),
        (foreign(key="", algorithm="none"), "PSYNC_S2101"),
        (foreign(key=KEY[::-1]), "PSYNC_S2101"),
        (foreign(sub=None), "PSYNC_S2101"),
        (foreign(sub="0"), "PSYNC_S2101"),
        (foreign(sub="alice"), "PSYNC_S2101"),
        (foreign(sub="9" * 40), "PSYNC_S2101"),
    ],
)
def test_a_bad_token_is_refused_with_its_code(
    alice: User, caplog: pytest.LogCaptureFixture, token: str | None, expected: str
) -> None:
    response = post(token)

    assert code(response) == (401, expected)
    assert response.headers["WWW-Authenticate"] == "Bearer"
    assert response.headers["Access-Control-Allow-Origin"] == "*"
    assert token is None or token not in response.content.decode() + caplog.text
    assert not TodoList.objects.exists()


def test_a_token_made_elsewhere_is_accepted(alice: User) -> None:
    assert post(foreign(sub=alice.pk)).status_code == 200


@pytest.mark.parametrize("subject", [" {}", "0{}", "+{}"])
def test_a_subject_that_only_looks_like_a_key_is_nobody(alice: User, subject: str) -> None:
    assert code(post(foreign(sub=subject.format(alice.pk)))) == (401, "PSYNC_S2101")


def test_an_inactive_user_is_refused(alice: User) -> None:
    token = make_token(alice)
    User.objects.update(is_active=False)  # which sends no signal, so nothing is revoked

    assert code(post(token)) == (401, "PSYNC_S2101")


def test_a_session_is_not_enough(alice: User) -> None:
    client = Client()
    client.force_login(alice)

    assert code(client.post(ADDRESS, body(), content_type="application/json")) == (401, "PSYNC_S2106")


class ByName(TokenAuthentication):
    def get_user(self, token: Token) -> Any:
        return User.objects.get(username=token.user_key)


class Mine(UploadView):
    """A project's own view."""

    authentication_classes = (ByName,)

    class handler_class(UploadHandler):  # noqa: N801
        def perform_put(self, operation: CrudOperation, user: Any) -> str:
            return f"thanks, {user.username}"


def test_a_project_may_subclass_the_view(alice: User) -> None:
    request = RequestFactory().post(
        "/", body(), content_type="application/json", headers={"authorization": f"Token {foreign(sub='alice')}"}
    )

    response = Mine.as_view()(request)

    assert b'"code":"thanks, alice"' in response.content


# What a body must be.


@pytest.mark.parametrize(
    ("content", "details"),
    [
        (b"", "line 1"),
        (b"{", "line 1"),
        (b"\xff", "UTF-8"),
        (b"[]", "body: must be an object"),
        (b'{"client_id": "c"}', "transactions: must be a list"),
    ],
)
def test_a_bad_body_is_refused_with_its_place(alice: User, content: bytes, details: str) -> None:
    response = post(make_token(alice), content)

    assert code(response) == (400, "PSYNC_S2001")
    assert details in response.json()["error"]["details"]


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""])
def test_another_media_type_is_refused(alice: User, content_type: str) -> None:
    assert code(post(make_token(alice), b"{}", content_type=content_type)) == (415, "PSYNC_S2004")


def test_a_media_type_may_have_parameters(alice: User) -> None:
    assert post(make_token(alice), content_type="Application/JSON; charset=utf-8").status_code == 200


def test_a_body_that_is_too_long_is_refused(alice: User, settings: Any) -> None:
    settings.LOCALSYNC = {**settings.LOCALSYNC, "MAX_UPLOAD_BYTES": 1000}

    assert post(make_token(alice), b"{}".ljust(1000)).status_code == 400
    assert code(post(make_token(alice), b"{}".ljust(1001))) == (413, "PSYNC_S2001")


def test_a_body_longer_than_django_allows_elsewhere_is_read(alice: User, settings: Any) -> None:
    settings.DATA_UPLOAD_MAX_MEMORY_SIZE = 100

    assert post(make_token(alice), body(operation(metadata="x" * 1000))).status_code == 200


# Errors.


class Broken(UploadHandler):
    """Fails at its second table."""

    def perform_put(self, operation: CrudOperation, user: Any) -> None:
        TodoList.objects.create(id=operation.id, name=operation.type)
        if operation.type == "bug":
            raise RuntimeError("the secret cause")


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(("debug", "atomic"), [(False, False), (True, False), (False, True)])
def test_a_bug_is_logged_and_not_shown(
    alice: User, settings: Any, caplog: pytest.LogCaptureFixture, monkeypatch: Any, debug: bool, atomic: bool
) -> None:
    settings.DEBUG = debug
    settings.LOCALSYNC = {"UPLOAD_HANDLER": f"{__name__}.Broken"}
    monkeypatch.setitem(connection.settings_dict, "ATOMIC_REQUESTS", atomic)
    transactions = [
        {"id": 1, "operations": [operation(op_id=1, id=str(UUID(int=1)), type="fine")]},
        {"id": 2, "operations": [operation(op_id=2, id=str(UUID(int=2)), type="bug")]},
    ]

    response = post(make_token(alice), {"client_id": "phone", "transactions": transactions})

    assert code(response) == (500, "PSYNC_S2001")
    assert b"secret" not in response.content
    assert b"Traceback" not in response.content
    assert "the secret cause" in caplog.text
    assert [item.name for item in TodoList.objects.all()] == ["fine"]
    assert [item.transaction_id for item in UploadJournal.objects.exclude(state="failed")] == [1]


def test_without_a_handler_uploads_fail_and_the_log_says_why(
    alice: User, settings: Any, caplog: pytest.LogCaptureFixture
) -> None:
    settings.LOCALSYNC = {}

    assert code(post(make_token(alice))) == (500, "PSYNC_S2001")
    assert "UPLOAD_HANDLER" in caplog.text


def test_a_throttled_upload_says_when_to_come_back(alice: User, monkeypatch: pytest.MonkeyPatch) -> None:
    class Once(UserRateThrottle):
        rate = "1/min"

    monkeypatch.setattr(UploadView, "throttle_classes", (Once,))

    first, second = post(make_token(alice)), post(make_token(alice))

    assert first.status_code == 200
    assert code(second) == (429, "PSYNC_S2304")
    assert 0 < int(second.headers["Retry-After"]) <= 60


def test_uploads_are_throttled_by_user_as_the_project_says(alice: User, monkeypatch: pytest.MonkeyPatch) -> None:
    assert UploadThrottle().rate == "100/second"
    monkeypatch.setitem(UploadThrottle.THROTTLE_RATES, "localsync_upload", "2/min")

    answers = [post(make_token(user)) for user in (alice, alice, alice, User.objects.create_user("another"))]

    assert [answer.status_code for answer in answers] == [200, 200, 429, 200]


def test_another_method_is_refused(alice: User) -> None:
    response = Client().get(ADDRESS, headers={"authorization": f"Bearer {make_token(alice)}"})

    assert code(response) == (405, "PSYNC_S2001")
    assert "POST" in response.headers["Allow"]


@pytest.mark.parametrize("path", ["", "nonsense", "sync/nonsense", "upload/", "uploads"])
@pytest.mark.parametrize("method", ["get", "post"])
def test_another_path_is_not_there(path: str, method: str) -> None:
    response = getattr(Client(enforce_csrf_checks=True), method)(f"/localsync/{path}")

    assert code(response) == (404, "PSYNC_S2002")


def test_browsers_of_any_origin_may_upload_but_never_with_cookies() -> None:
    response = Client().options(
        ADDRESS, headers={"origin": "https://app.example", "access-control-request-method": "POST"}
    )

    headers = response.headers
    assert response.status_code == 204
    assert headers["Access-Control-Allow-Origin"] == "*"
    assert "Authorization" in headers["Access-Control-Allow-Headers"]
    assert "Access-Control-Allow-Credentials" not in headers
