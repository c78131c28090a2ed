"""Tokens of sync clients: JWTs (RFC 7519), made here for Django's users or elsewhere.

Our own are signed with a key derived from SECRET_KEY, so they need no set-up. Others are verified with the keys in
the settings `keys` and `jwks_uri` (key_sets.py). What is accepted: docs/reference/wire-protocol.md,
"Authentication". A token is never logged.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Collection, Mapping
from concurrent.futures import Future, wait
from dataclasses import dataclass
from functools import lru_cache
from secrets import token_hex, token_urlsafe
from typing import Any

import jwt
import orjson
from django.conf import settings as django_settings
from django.contrib.auth.base_user import AbstractBaseUser
from django.contrib.sessions.backends.base import SessionBase
from django.core.signals import setting_changed
from django.utils.crypto import salted_hmac
from django.utils.module_loading import import_string

from .conf import get_settings
from .exceptions import AuthError, ConfigurationError
from .key_sets import KeySet, VerificationKey

CLOCK_TOLERANCE_S = 60
PURPOSE = "django_localsync.token"
WAIT_S = 3.0  # what a request waits for key sets that it needs

SESSION_ID = "localsync_session"  # where a login keeps the id that its tokens carry
REVOKED = "the token was revoked"

_RESERVED = {"sub", "aud", "iat", "exp", "nbf", "jti", "sid"}  # they decide who a token is for, and how long

_JWS = jwt.PyJWS()  # a new one for each token would cost a sixth of its verification

EXPIRED, LIFETIME, AUDIENCE, ABSENT = "PSYNC_S2103", "PSYNC_S2104", "PSYNC_S2105", "PSYNC_S2106"


@dataclass(frozen=True, slots=True)
class Token:
    """A verified token. `user_key` is `sub` as text, `expires_at` seconds since the epoch."""

    claims: dict[str, Any]
    user_key: str
    expires_at: float


class UnknownKey(AuthError):
    """No key verifies the token; another set of keys might."""


def parse_authorization(header: str | None) -> str:
    """The token in an Authorization header: scheme `Token` or `Bearer`, one space, no space inside the token.

    Raises AuthError (PSYNC_S2106 without a token, PSYNC_S2101 for another form).
    """
    if not header:
        raise AuthError("a token is required: send the header `Authorization: Bearer <token>`", code=ABSENT)
    scheme, _, token = header.partition(" ")
    if scheme not in ("Token", "Bearer") or not token or any(character.isspace() for character in token):
        raise AuthError("the Authorization header must be `Bearer <token>` or `Token <token>`")
    return token


async def authenticate(header: str | None) -> Token:
    """The verified token of a request's Authorization header. Raises AuthError.

    Key sets that are needed and not at hand are waited for, at most 3 s each time.
    """
    token, keys = parse_authorization(header), _key_set()
    await _wait_async(keys.fetch_missing())
    try:
        return _verify_now(token, keys)
    except UnknownKey:
        fetches = keys.fetch_again()
        if not fetches:
            raise
        await _wait_async(fetches)
    return _verify_now(token, keys)


def verify_token(token: str) -> Token:
    """Verify a token; the synchronous form of `authenticate`. Raises AuthError."""
    keys = _key_set()
    wait(keys.fetch_missing(), timeout=WAIT_S)
    try:
        return _verify_now(token, keys)
    except UnknownKey:
        fetches = keys.fetch_again()
        if not fetches:
            raise
        wait(fetches, timeout=WAIT_S)
    return _verify_now(token, keys)


def make_token(
    user: AbstractBaseUser,
    *,
    session: SessionBase | None = None,
    lifetime_s: int | None = None,
    claims: Mapping[str, Any] | None = None,
) -> str:
    """A token for a Django user, valid from now on for `lifetime_s` (the setting `token_lifetime_s` by default).

    With a session it carries the claim `sid`, by which logging out revokes it. `claims` are further ones. Raises
    ConfigurationError as `user_claims` does.
    """
    settings = get_settings()
    now = int(time.time())
    payload = {
        **user_claims(user),
        **_further(claims or {}, "further claims"),
        "jti": token_hex(12),  # nothing that a command line takes for an option: `localsync_revoke --token -x`
        "aud": settings.audience[0],
        "iat": now,
        "exp": now + (settings.token_lifetime_s if lifetime_s is None else lifetime_s),
    }
    if session is not None:
        payload["sid"] = _session_id(session)
    key = _own_keys()[0]
    return jwt.encode(payload, key.key, algorithm="HS256", headers={"kid": key.id})


def user_claims(user: AbstractBaseUser) -> dict[str, Any]:
    """What a user's tokens say of the user: `sub`, and what the setting `token_claims` adds.

    Raises ConfigurationError when that cannot be imported, or gives anything but a dict of further claims.
    """
    claims = {"sub": subject_of(user)}
    path = get_settings().token_claims
    if path is None:
        return claims
    try:
        further = import_string(path)(user)
    except ImportError as error:
        raise ConfigurationError(f"LOCALSYNC's TOKEN_CLAIMS {path!r} cannot be imported: {error}") from error
    return claims | _further(further, f"LOCALSYNC's TOKEN_CLAIMS {path!r}")


def _further(claims: Any, whose: str) -> dict[str, Any]:
    if not isinstance(claims, dict) or _RESERVED & claims.keys():
        raise ConfigurationError(f"{whose} must be a dict of claims other than {', '.join(sorted(_RESERVED))}")
    return claims


def oldest_token(now: float) -> int:
    """When a token that may still be accepted was issued at the earliest, in seconds since the epoch."""
    return int(now) - get_settings().max_token_lifetime_s - 2 * CLOCK_TOLERANCE_S


def subject_of(user: AbstractBaseUser) -> str:
    """What the claim `sub` of a user's tokens holds: the primary key as text."""
    return str(user._meta.pk.value_to_string(user))


def _session_id(session: SessionBase) -> str:
    """What the claim `sid` holds: a random name for a login, which is kept in it.

    The session's key would not do: it gives the session away, and some backends change it now and then.
    """
    if SESSION_ID not in session:
        session[SESSION_ID] = token_urlsafe(12)
    return str(session[SESSION_ID])


def verify(
    token: str, keys: Collection[VerificationKey], *, audience: Collection[str], max_lifetime_s: int, now: float
) -> Token:
    """Verify a token with given keys at a given time (seconds since the epoch). Raises AuthError."""
    return check_claims(_verify_signature(token, keys), audience=audience, max_lifetime_s=max_lifetime_s, now=now)


def check_claims(claims: Mapping[str, Any], *, audience: Collection[str], max_lifetime_s: int, now: float) -> Token:
    """The token that verified claims make at a given time. Raises AuthError."""
    user_key = _user_key(claims.get("sub"))
    issued_at, expires_at = _time(claims, "iat"), _time(claims, "exp")
    if not isinstance(claims.get("parameters", {}), dict):
        raise AuthError("the claim `parameters` must be an object")
    if not _audiences(claims) & set(audience):
        raise AuthError(f"the claim `aud` must name one of: {', '.join(sorted(audience))}", code=AUDIENCE)
    if expires_at - issued_at > max_lifetime_s:
        raise AuthError(f"the token is valid for more than {max_lifetime_s} seconds", code=LIFETIME)
    if now > expires_at + CLOCK_TOLERANCE_S:
        raise AuthError("the token has expired", code=EXPIRED)
    valid_from = max(issued_at, _time(claims, "nbf") if "nbf" in claims else issued_at)
    if now < valid_from - CLOCK_TOLERANCE_S:
        raise AuthError("the token is not valid yet")  # issued in the future, it would outlive the longest lifetime
    return Token(dict(claims), user_key, expires_at)


def _verify_signature(token: str, keys: Collection[VerificationKey]) -> dict[str, Any]:
    """The claims of a token that one of the keys signed: the key its `kid` names, else any key without id."""
    try:
        header = jwt.get_unverified_header(token)
    except (jwt.PyJWTError, ValueError):
        raise AuthError("the token is not a signed JWT") from None
    key_id, algorithm = header.get("kid"), header.get("alg")
    if not isinstance(algorithm, str):
        raise AuthError("the token is not a signed JWT")
    named = [key for key in keys if key_id is not None and key.id == key_id]
    usable = [key for key in named or keys if (named or key.id is None) and algorithm in key.algorithms]
    if named and not usable:
        raise AuthError("the token's algorithm is not one of its key's")
    for key in usable:
        try:
            payload = _JWS.decode(token, key.key, algorithms=sorted(key.algorithms))
        except jwt.InvalidSignatureError:
            continue
        except (jwt.PyJWTError, ValueError):
            raise AuthError("the token is not a signed JWT") from None
        return _parse_claims(payload)
    raise UnknownKey("no known key verifies the token")


def _parse_claims(payload: bytes) -> dict[str, Any]:
    try:
        claims = orjson.loads(payload)
    except orjson.JSONDecodeError:
        claims = None
    if not isinstance(claims, dict):
        raise AuthError("the token's claims are not a JSON object")
    return claims


def _user_key(subject: Any) -> str:
    """`sub` as text: strings as they are, numbers as JSON writes them (1.0 is 1)."""
    if isinstance(subject, float) and subject.is_integer():
        subject = int(subject)
    if isinstance(subject, bool) or not isinstance(subject, str | int | float) or subject == "" or "\0" in str(subject):
        raise AuthError("the claim `sub` is required: a string or a number")
    return str(subject)


def _time(claims: Mapping[str, Any], name: str) -> float:
    value = claims.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise AuthError(f"the claim `{name}` is required: a number of seconds" if value is None else f"bad `{name}`")
    return value


def _audiences(claims: Mapping[str, Any]) -> set[str]:
    value = claims.get("aud")
    items = value if isinstance(value, list) else [value]
    return {item for item in items if isinstance(item, str)}


async def _wait_async(fetches: list[Future[None]]) -> None:
    if fetches:
        await asyncio.wait([asyncio.wrap_future(fetch) for fetch in fetches], timeout=WAIT_S)


def _verify_now(token: str, keys: KeySet) -> Token:
    settings = get_settings()
    return verify(
        token,
        [*_own_keys(), *keys.current()],
        audience=settings.audience,
        max_lifetime_s=settings.max_token_lifetime_s,
        now=time.time(),
    )


@lru_cache(maxsize=1)
def _own_keys() -> tuple[VerificationKey, ...]:
    """Keys derived from SECRET_KEY, which signs, and from SECRET_KEY_FALLBACKS."""
    secrets = [django_settings.SECRET_KEY, *django_settings.SECRET_KEY_FALLBACKS]
    return tuple(_derive_key(secret) for secret in secrets)


def _derive_key(secret: str | bytes) -> VerificationKey:
    key = salted_hmac(PURPOSE, "HS256", secret=secret, algorithm="sha256").digest()
    key_id = salted_hmac(f"{PURPOSE}.id", "HS256", secret=secret, algorithm="sha256").hexdigest()[:16]
    return VerificationKey(f"localsync-{key_id}", frozenset({"HS256"}), key)


@lru_cache(maxsize=1)
def _key_set() -> KeySet:
    settings = get_settings()
    return KeySet(settings.keys, settings.jwks_uri)


def check_keys() -> None:
    """Read the configured keys. Raises ConfigurationError for one that cannot be read or is too weak."""
    _key_set()


def _forget_keys(*, setting: str, **_: Any) -> None:
    if setting in ("LOCALSYNC", "SECRET_KEY", "SECRET_KEY_FALLBACKS"):
        _own_keys.cache_clear()
        _key_set.cache_clear()


setting_changed.connect(_forget_keys)
