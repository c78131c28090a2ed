"""Keys that verify tokens made elsewhere: JSON Web Keys (RFC 7517) from the settings and from addresses.

A key set is fetched in a thread when it is first needed, again in the background when it is five minutes old, and
is forgotten when it is an hour old. Symmetric keys are accepted from the settings only.
"""

from __future__ import annotations

import json
import logging
import math
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from http.client import HTTPException
from typing import Any, Final
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

import jwt
from jwt.algorithms import get_default_algorithms

from .exceptions import ConfigurationError

log = logging.getLogger(__name__)

REFRESH_AFTER_S = 300.0
FORGET_AFTER_S = 3600.0
REQUEST_TIMEOUT_S = 30.0
PAUSE_AFTER_FAILURE_S = 60.0
PAUSE_AFTER_SUCCESS_S = 10.0  # an unknown key may be a new one, or anybody's invention
MAX_BYTES = 1 << 20
MIN_RSA_BITS = 2048

# Length of a secret: at least that of the hash (RFC 7518 §3.2).
HMAC_BYTES: Final = {"HS256": 32, "HS384": 48, "HS512": 64}
RSA: Final = frozenset({"RS256", "RS384", "RS512", "PS256", "PS384", "PS512"})
CURVES: Final = {"P-256": "ES256", "P-384": "ES384", "P-521": "ES512"}

# The public members of each key type: what else a key holds is not looked at.
MEMBERS: Final = {"oct": ("k",), "RSA": ("n", "e"), "EC": ("crv", "x", "y"), "OKP": ("crv", "x")}


@dataclass(frozen=True, slots=True)
class VerificationKey:
    """A key, its id (`kid`) and the algorithms it may be used with, which a token can only choose from."""

    id: str | None
    algorithms: frozenset[str]
    key: Any = field(repr=False)


def load_key(document: Mapping[str, Any]) -> VerificationKey | None:
    """Read a JSON Web Key; None for one that does not verify (another `use`, `key_ops` without `verify`).

    Raises ConfigurationError, which never shows the key, for one that cannot be read or is too weak.
    """
    name = f"key {document.get('kid')!r}"
    if document.get("use", "sig") != "sig" or "verify" not in document.get("key_ops", ["verify"]):
        return None
    key_type = document.get("kty")
    if not isinstance(key_type, str) or key_type not in MEMBERS:
        raise ConfigurationError(f"{name}: `kty` must be one of {', '.join(MEMBERS)}")
    algorithms = _algorithms(document, key_type, name)
    public = {"kty": key_type, **{member: document.get(member) for member in MEMBERS[key_type]}}
    try:
        algorithm = get_default_algorithms()[min(algorithms)]
        key = algorithm.prepare_key(algorithm.from_jwk(public))  # refuses a secret that is another key's public part
    except (jwt.PyJWTError, ValueError, TypeError, KeyError, AttributeError):
        raise ConfigurationError(f"{name}: cannot be read as a JSON Web Key of type {key_type}") from None
    if key_type == "RSA" and key.key_size < MIN_RSA_BITS:
        raise ConfigurationError(f"{name}: an RSA key must have {MIN_RSA_BITS} bits or more")
    key_id = document.get("kid")
    return VerificationKey(key_id if isinstance(key_id, str) else None, algorithms, key)


def _algorithms(document: Mapping[str, Any], key_type: str, name: str) -> frozenset[str]:
    """What the type of key allows, narrowed by its `alg`."""
    possible = _possible_algorithms(document, key_type, name)
    wanted = document.get("alg")
    algorithms = possible if wanted is None else possible & {wanted}
    if algorithms:
        return algorithms
    if key_type == "oct":
        raise ConfigurationError(
            f"{name}: the secret is too short for {wanted or 'HS256'}; make it as long as the hash"
        )
    raise ConfigurationError(f"{name}: type, curve and algorithm do not fit, or are not supported")


def _possible_algorithms(document: Mapping[str, Any], key_type: str, name: str) -> frozenset[str]:
    match key_type:
        case "oct":
            length = _secret_length(document.get("k"), name)
            return frozenset(algorithm for algorithm, least in HMAC_BYTES.items() if length >= least)
        case "RSA":
            return RSA
        case "EC":
            return frozenset({CURVES.get(str(document.get("crv")))} - {None})  # type: ignore[arg-type]
        case _:
            return frozenset({"EdDSA"} if document.get("crv") == "Ed25519" else ())


def _secret_length(value: Any, name: str) -> int:
    try:
        return len(jwt.utils.base64url_decode(value))
    except (ValueError, TypeError):
        raise ConfigurationError(f"{name}: `k` must be base64url text") from None


class KeySet:
    """The configured keys and those of the configured addresses. May be used by many threads."""

    def __init__(self, keys: Iterable[Mapping[str, Any]], uris: Sequence[str]) -> None:
        self._configured = tuple(key for key in map(load_key, keys) if key is not None)
        self._remote = tuple(RemoteKeys(uri) for uri in uris)

    def current(self) -> list[VerificationKey]:
        """Every key at hand; key sets that have become old begin to be fetched."""
        return [*self._configured, *(key for remote in self._remote for key in remote.current())]

    def fetch_missing(self) -> list[Future[None]]:
        """Fetch the key sets that are not at hand; done when they are, or cannot be."""
        return _begun(remote.fetch() for remote in self._remote if remote.is_missing)

    def fetch_again(self) -> list[Future[None]]:
        """Fetch every key set that may be fetched now: another key may have appeared."""
        return _begun(remote.fetch() for remote in self._remote)


def _begun(fetches: Iterable[Future[None] | None]) -> list[Future[None]]:
    return [fetch for fetch in fetches if fetch is not None]


class RemoteKeys:
    """The key set at one address."""

    def __init__(self, uri: str, *, clock: Callable[[], float] = time.monotonic) -> None:
        if urlsplit(uri).scheme not in ("https", "http"):
            raise ConfigurationError(f"jwks_uri must be an address that begins with https://, not {uri!r}")
        self._uri, self._clock = uri, clock
        self._lock = threading.Lock()
        self._keys: tuple[VerificationKey, ...] = ()
        self._fetched_at = self._pause_until = -math.inf
        self._fetching: Future[None] | None = None

    @property
    def is_missing(self) -> bool:
        """Whether no keys are at hand that are young enough."""
        return self._clock() - self._fetched_at >= FORGET_AFTER_S

    def current(self) -> tuple[VerificationKey, ...]:
        """The keys at hand, without waiting."""
        if self._clock() - self._fetched_at >= REFRESH_AFTER_S:
            self.fetch()
        return () if self.is_missing else self._keys

    def fetch(self) -> Future[None] | None:
        """Begin to fetch, unless that has begun; done when it is over, whatever came of it. None: it is too soon."""
        with self._lock:
            if self._fetching is None and self._clock() >= self._pause_until:
                self._fetching = Future()
                self._fetching.set_running_or_notify_cancel()
                threading.Thread(target=self._fetch, args=[self._fetching], daemon=True).start()
            return self._fetching

    def _fetch(self, fetching: Future[None]) -> None:
        pause_s = PAUSE_AFTER_FAILURE_S
        try:
            self._keys = tuple(_read_public_keys(_download(self._uri)))
            self._fetched_at, pause_s = self._clock(), PAUSE_AFTER_SUCCESS_S
        except (OSError, HTTPException, ValueError) as error:
            log.warning("cannot fetch the keys at %s: %s", self._uri, error)
        finally:
            with self._lock:
                self._pause_until, self._fetching = self._clock() + pause_s, None
            fetching.set_result(None)


def _download(uri: str) -> bytes:
    """The body at an address. Raises OSError, or ValueError for one that is too large."""
    request = Request(uri, headers={"Accept": "application/json", "User-Agent": "django_localsync"})
    with urlopen(request, timeout=REQUEST_TIMEOUT_S) as response:
        body: bytes = response.read(MAX_BYTES + 1)
    if len(body) > MAX_BYTES:
        raise ValueError(f"it is larger than {MAX_BYTES} bytes")
    return body


def _read_public_keys(body: bytes) -> list[VerificationKey]:
    """The usable asymmetric keys of a JSON Web Key Set. Raises ValueError if it is not one."""
    document = json.loads(body)
    items = document.get("keys") if isinstance(document, dict) else None
    if not isinstance(items, list):
        raise ValueError("it is not a JSON Web Key Set")
    keys = []
    for item in items:
        if not isinstance(item, dict) or item.get("kty") == "oct":
            continue
        try:
            key = load_key(item)
        except ConfigurationError as error:
            log.warning("ignored a fetched key: %s", error)
            continue
        if key is not None:
            keys.append(key)
    return keys
