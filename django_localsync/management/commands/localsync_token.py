"""`manage.py localsync_token`: a token for a user, for developers."""

from __future__ import annotations

from typing import Any

import orjson
from django.contrib.auth import get_user_model
from django.core.management.base import BaseCommand, CommandError, CommandParser

from ...conf import get_settings
from ...exceptions import ConfigurationError
from ...tokens import make_token


class Command(BaseCommand):
    """Prints a token."""

    help = (
        "Print a token for a user, as the token view would give it, and nothing else: for curl, for tests, and to try "
        "rules. Whoever has it can sync as this user until it expires; `localsync_revoke` ends that."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        """Whose token, for how long, with which claims."""
        parser.add_argument("user", help="the user's name (USERNAME_FIELD) or primary key")
        parser.add_argument("--lifetime", type=int, metavar="SECONDS", help="default: TOKEN_LIFETIME_S")
        parser.add_argument("--claims", default="{}", metavar="JSON", help="further claims, as a JSON object")

    def handle(self, *args: Any, **options: Any) -> None:
        """Print the token."""
        longest = get_settings().max_token_lifetime_s
        if options["lifetime"] is not None and not 0 < options["lifetime"] <= longest:
            raise CommandError(f"--lifetime must be from 1 to {longest} seconds (MAX_TOKEN_LIFETIME_S)")
        user = _find_user(options["user"])
        try:
            token = make_token(user, lifetime_s=options["lifetime"], claims=_read_claims(options["claims"]))
        except ConfigurationError as error:
            raise CommandError(str(error)) from error
        self.stdout.write(token)


def _find_user(name: str) -> Any:
    users = get_user_model()._default_manager
    try:
        return users.get_by_natural_key(name)
    except users.model.DoesNotExist:
        pass
    try:
        return users.get(pk=name)
    except (users.model.DoesNotExist, ValueError, TypeError):
        raise CommandError(f"there is no user {name!r}") from None


def _read_claims(text: str) -> dict[str, Any]:
    try:
        claims = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise CommandError(f"--claims is not JSON: {error}") from None
    if not isinstance(claims, dict):
        raise CommandError("--claims must be a JSON object")
    return claims
