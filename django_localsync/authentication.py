"""Bearer tokens for DRF views: `Authorization: Bearer <jwt>`, or `Token <jwt>` as PowerSync's clients send it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from django.contrib.auth import get_user_model
from django.core.exceptions import ValidationError
from rest_framework.authentication import BaseAuthentication
from rest_framework.request import Request

from .exceptions import AuthError
from .revocation import check_not_revoked
from .tokens import Token, parse_authorization, verify_token


@dataclass(frozen=True)
class Subject:
    """The bearer of a valid token, whether or not it is a user of this project."""

    pk: str
    is_authenticated: bool = True


class SubjectAuthentication(BaseAuthentication):
    """Verifies the token; `request.user` is a Subject and `request.auth` the Token. Raises AuthError.

    A token that was revoked is refused; where the request names a device, its view asks about that.
    """

    def authenticate(self, request: Request) -> tuple[Any, Token]:
        """Verify the token of a request; without one the request is refused, not anonymous."""
        token = verify_token(parse_authorization(request.META.get("HTTP_AUTHORIZATION")))
        check_not_revoked(token)
        return self.get_user(token), token

    def authenticate_header(self, request: Request) -> str:
        """What a 401 says about the way in."""
        return "Bearer"

    def get_user(self, token: Token) -> Any:
        """Who bears `token`."""
        return Subject(token.user_key)


class TokenAuthentication(SubjectAuthentication):
    """Verifies the token; `request.user` is the active Django user that its subject names."""

    def get_user(self, token: Token) -> Any:
        """The user that the token is for, by default the one whose primary key as text is its subject.

        Override this where subjects mean something else. Raises AuthError when there is no such user, or an inactive
        one: both look the same from outside.
        """
        users = get_user_model()._default_manager
        try:
            user = users.filter(pk=users.model._meta.pk.to_python(token.user_key)).first()
        except (ValidationError, ValueError):
            user = None
        if user is None or not user.is_active or str(user.pk) != token.user_key:
            raise AuthError("the token's subject is not an active user")
        return user
