"""`manage.py localsync_revoke`: refuse tokens that were given out, and end the streams opened with them."""

from __future__ import annotations

from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import DatabaseError

from ...revocation import revoke_client, revoke_token, revoke_user


class Command(BaseCommand):
    """Revokes the tokens of a user or a device, or one token."""

    help = (
        "Refuse tokens that were given out until now, and end the streams that were opened with them, at once and in "
        "every process. Tokens given out later are good: to keep somebody out, deactivate the user, which revokes by "
        "itself."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        """What to revoke."""
        what = parser.add_mutually_exclusive_group(required=True)
        what.add_argument("--user", metavar="ID", help="all tokens of a user, by `sub`: the primary key as text")
        what.add_argument("--client", metavar="ID", help="all tokens used by a device, by the id of its database")
        what.add_argument("--token", metavar="JTI", help="one token, by its claim `jti`")

    def handle(self, *args: Any, **options: Any) -> None:
        """Revoke it and say so."""
        revoke, kind, value = next(
            (revoke, kind, options[kind])
            for revoke, kind in ((revoke_user, "user"), (revoke_client, "client"), (revoke_token, "token"))
            if options[kind] is not None
        )
        if not value:
            raise CommandError(f"--{kind} must not be empty")
        try:
            revoke(value)
        except DatabaseError as error:
            raise CommandError(f"storage cannot be written: {error}") from error
        self.stdout.write(f"revoked what was given to {kind} {value!r} until now; its streams end")
