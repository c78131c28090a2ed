"""Revoking access: tokens that were given out are refused from now on, and the streams opened with them end at once.

Django's logout, a user who is saved as inactive and one who is deleted are revoked by themselves. A device that is
refused asks for a new token; whether it gets one is the token view's business.
"""

from __future__ import annotations

import logging
import time
from typing import Any

from django.contrib.auth import get_user_model
from django.contrib.auth.base_user import AbstractBaseUser
from django.contrib.auth.signals import user_logged_out
from django.contrib.sessions.backends.base import SessionBase
from django.db import DatabaseError
from django.db.models.signals import post_delete, post_save

from .conf import get_settings
from .exceptions import AuthError
from .protocol.revocations import Bearer, RevocationKind
from .storage.revocations import add_revocation, is_revoked
from .tokens import EXPIRED, REVOKED, SESSION_ID, Token, oldest_token, subject_of

logger = logging.getLogger(__name__)


def revoke_user(user: AbstractBaseUser | str) -> None:
    """Revoke every token that a user has; `user` may be the tokens' subject as text."""
    _revoke(RevocationKind.USER, user if isinstance(user, str) else subject_of(user))


def revoke_client(client_id: str) -> None:
    """Revoke every token that a device uses, whoever its user is. A device chooses its id itself: revoke the user, too,
    if it is in wrong hands.
    """
    _revoke(RevocationKind.CLIENT, client_id)


def revoke_token(token_id: str) -> None:
    """Revoke one token, by its claim `jti`."""
    _revoke(RevocationKind.TOKEN, token_id)


def revoke_session(session: SessionBase) -> None:
    """Revoke the tokens that the token view gave to a login. Nothing is done if it gave none."""
    if (session_id := session.get(SESSION_ID)) is not None:
        _revoke(RevocationKind.SESSION, session_id)


def check_not_revoked(token: Token, client_id: str = "") -> None:
    """Ask storage whether a token was revoked. Raises AuthError (PSYNC_S2103)."""
    if is_revoked(get_settings().storage, Bearer.of(token.claims, token.user_key, client_id)):
        raise AuthError(REVOKED, code=EXPIRED)


def _revoke(kind: RevocationKind, value: str) -> None:
    now = int(time.time())
    add_revocation(get_settings().storage, kind, value, now, oldest=oldest_token(now))


# What Django tells. Storage that cannot be reached must not keep anybody from logging out.


def connect_signals() -> None:
    """Listen to Django."""
    user_logged_out.connect(_logged_out, dispatch_uid="localsync")
    post_save.connect(_user_saved, sender=get_user_model(), dispatch_uid="localsync")
    post_delete.connect(_user_deleted, sender=get_user_model(), dispatch_uid="localsync")


def _logged_out(*, request: Any, **_: Any) -> None:
    session = getattr(request, "session", None)
    if session is not None:
        _try(revoke_session, session)


def _user_saved(*, instance: Any, created: bool, raw: bool, **_: Any) -> None:
    if not (instance.is_active or created or raw):
        _try(revoke_user, instance)


def _user_deleted(*, instance: Any, **_: Any) -> None:
    if instance.pk is not None:
        _try(revoke_user, instance)


def _try(revoke: Any, whom: Any) -> None:
    try:
        revoke(whom)
    except DatabaseError:
        logger.exception("%s failed; tokens stay valid until they expire", revoke.__name__)
