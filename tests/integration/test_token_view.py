"""The token view: who gets a token, from where, how often, and what it is good for."""

from __future__ import annotations

from base64 import b64encode
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.core.cache import cache
from django.test import Client, RequestFactory
from rest_framework.authentication import BaseAuthentication
from rest_framework.settings import api_settings

from django_localsync.tokens import SESSION_ID, verify_token
from django_localsync.views import TokenThrottle, TokenView

pytestmark = pytest.mark.django_db

ADDRESS = "/localsync/token"


@pytest.fixture(autouse=True)
def _no_throttling_from_before() -> None:
    cache.clear()


@pytest.fixture
def alice() -> User:
    return User.objects.create_user("alice", password="secret")


@pytest.fixture
def browser(alice: User) -> Client:
    """Alice's browser, logged in, with cookies checked as in production."""
    client = Client(enforce_csrf_checks=True)
    client.force_login(alice)
    return client


def post_with_csrf(browser: Client, **headers: str) -> Any:
    browser.cookies["csrftoken"] = token = "a" * 32
    return browser.post(ADDRESS, headers={"x-csrftoken": token, **headers})


def test_a_logged_in_user_gets_a_token_of_five_minutes(browser: Client, alice: User) -> None:
    response = post_with_csrf(browser)

    data = response.json()["data"]
    token = verify_token(data["token"])
    assert response.status_code == 200
    assert (data["expires_in"], data["user_id"]) == (300, str(alice.pk))
    assert token.user_key == str(alice.pk)
    assert token.claims["exp"] - token.claims["iat"] == 300
    assert response.headers["Cache-Control"] == "no-store"


def test_the_token_names_the_session_without_giving_it_away(browser: Client) -> None:
    response = post_with_csrf(browser)

    session_key = browser.session.session_key
    assert session_key is not None
    assert verify_token(response.json()["data"]["token"]).claims["sid"] == browser.session[SESSION_ID]
    assert session_key not in response.content.decode()


def test_a_login_without_a_session_gives_a_token_without_one(alice: User) -> None:
    credentials = b64encode(b"alice:secret").decode()

    response = Client().post(ADDRESS, headers={"authorization": f"Basic {credentials}"})

    assert response.status_code == 200
    assert "sid" not in verify_token(response.json()["data"]["token"]).claims


def test_another_site_cannot_get_a_token(browser: Client) -> None:
    response = browser.post(ADDRESS, headers={"origin": "https://evil.example"})

    assert response.status_code == 403
    assert "CSRF" in response.json()["error"]["description"]
    assert not cors_headers(response)


def test_no_other_origin_may_read_the_answer(browser: Client) -> None:
    answer = post_with_csrf(browser, origin="https://evil.example")
    preflight = browser.options(
        ADDRESS, headers={"origin": "https://evil.example", "access-control-request-method": "POST"}
    )

    assert not cors_headers(answer)
    assert not cors_headers(preflight)


def test_nobody_gets_nothing() -> None:
    response = Client().post(ADDRESS)

    assert response.status_code in (401, 403)
    assert response.json()["error"]["code"] == "PSYNC_S2101"


def test_a_user_who_was_deactivated_gets_nothing(browser: Client, alice: User) -> None:
    alice.is_active = False
    alice.save()

    assert post_with_csrf(browser).status_code == 403


class Careless(BaseAuthentication):
    """Knows everybody, active or not."""

    def authenticate(self, request: Any) -> tuple[User, None]:
        return User.objects.get(), None


@pytest.mark.parametrize(("is_active", "status"), [(True, 200), (False, 403)])
def test_an_authentication_that_does_not_look_is_not_enough(alice: User, is_active: bool, status: int) -> None:
    User.objects.update(is_active=is_active)

    response = TokenView.as_view(authentication_classes=[Careless])(RequestFactory().post(ADDRESS))

    assert response.status_code == status


def test_reading_gives_no_token(browser: Client) -> None:
    response = browser.get(ADDRESS)

    assert response.status_code == 405
    assert "POST" in response.headers["Allow"]


def test_tokens_are_given_so_often_and_no_more(browser: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TokenThrottle, "THROTTLE_RATES", {"localsync_token": "2/min"})

    responses = [post_with_csrf(browser) for _ in range(3)]

    assert [response.status_code for response in responses] == [200, 200, 429]
    assert responses[2].json()["error"]["code"] == "PSYNC_S2304"
    assert int(responses[2].headers["Retry-After"]) > 0


def test_there_is_a_limit_without_any_setting() -> None:
    assert "localsync_token" not in api_settings.DEFAULT_THROTTLE_RATES
    assert TokenThrottle().num_requests == 60


def cors_headers(response: Any) -> list[str]:
    return [name for name in response.headers if name.startswith("Access-Control")]
