"""Which tokens are revoked: a list that every serving process keeps in memory, and the notice that makes it longer.

A revocation says what it is about and when it was made. It refuses the tokens issued up to then; a token that the
user gets later is good again, so who must stay out must also get no new ones. Moments are whole seconds since the
epoch, as in the claim `iat`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import Enum
from hashlib import sha256
from typing import Any, NamedTuple

from ..exceptions import ProtocolError

CHANNEL = "localsync_revocation"


class RevocationKind(Enum):
    """What a revocation is about."""

    USER = "user"
    """Every token of a subject (`sub`)."""

    CLIENT = "client"
    """Every token used by a device, by the id that it gives itself."""

    TOKEN = "token"
    """One token, by its claim `jti`."""

    SESSION = "session"
    """The tokens given to a login, by their claim `sid`."""


RevocationKey = str
"""32 hexadecimal digits that stand for whom or what a revocation is about."""


def revocation_key(kind: RevocationKind, value: str) -> RevocationKey:
    """The key of a revocation: of one length, whatever clients call themselves."""
    return sha256(f"{kind.value}\0{value}".encode()).hexdigest()[:32]


class Revocation(NamedTuple):
    """Tokens of `key` that were issued at `revoked_at` or before are refused."""

    key: RevocationKey
    revoked_at: int


class Bearer(NamedTuple):
    """By what a token can be revoked, and when it was issued."""

    keys: tuple[RevocationKey, ...]
    issued_at: int

    @classmethod
    def of(cls, claims: Mapping[str, Any], user_key: str, client_id: str = "") -> Bearer:
        """The bearer of verified claims, on a device that calls itself `client_id` (empty: it does not)."""
        named = {
            RevocationKind.USER: user_key,
            RevocationKind.CLIENT: client_id,
            RevocationKind.TOKEN: claims.get("jti"),
            RevocationKind.SESSION: claims.get("sid"),
        }
        keys = (revocation_key(kind, value) for kind, value in named.items() if isinstance(value, str) and value)
        return cls(tuple(keys), int(claims["iat"]))


class Revocations:
    """All revocations in force."""

    def __init__(self) -> None:
        self._revoked_at: dict[RevocationKey, int] = {}

    def replace(self, revocations: Iterable[Revocation]) -> None:
        """Know these and no others."""
        self._revoked_at = {}
        for revocation in revocations:
            self.add(revocation)

    def add(self, revocation: Revocation) -> None:
        """Know one more; of two about the same, the later one counts."""
        self._revoked_at[revocation.key] = max(revocation.revoked_at, self._revoked_at.get(revocation.key, 0))

    def forget_before(self, moment: int) -> None:
        """Forget those that were made before: no token is so old."""
        self._revoked_at = {key: at for key, at in self._revoked_at.items() if at >= moment}

    def refuses(self, bearer: Bearer) -> bool:
        """Whether the bearer's token is revoked."""
        return any(self._revoked_at.get(key, -1) >= bearer.issued_at for key in bearer.keys)


def encode_revocation(revocation: Revocation) -> str:
    """The payload of a NOTIFY."""
    return f"{revocation.key} {revocation.revoked_at}"


def decode_revocation(payload: str) -> Revocation:
    """Read a payload. Raises ProtocolError."""
    key, _, revoked_at = payload.partition(" ")
    if len(key) != 32 or not (revoked_at.isascii() and revoked_at.isdigit()):
        raise ProtocolError("not a revocation")
    return Revocation(key, int(revoked_at))
