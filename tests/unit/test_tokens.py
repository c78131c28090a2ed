"""Tokens and keys: what is accepted, and with which code the rest is refused."""

from __future__ import annotations

import hmac
import json
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread
from types import SimpleNamespace
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from django.contrib.auth.models import User
from django.contrib.sessions.backends.base import SessionBase
from django.test import override_settings
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

from django_localsync.exceptions import AuthError, ConfigurationError
from django_localsync.key_sets import RemoteKeys, VerificationKey, load_key
from django_localsync.tokens import (
    SESSION_ID,
    Token,
    authenticate,
    check_claims,
    make_token,
    parse_authorization,
    user_claims,
    verify,
    verify_token,
)
from tests.vectors import vectors

NOW = 1_700_000_000
CLAIMS = {"sub": "u1", "aud": "localsync", "iat": NOW, "exp": NOW + 300}
SECRETS = {"HS256": b"s" * 32, "HS384": b"s" * 48, "HS512": b"s" * 64}

Json = dict[str, Any]


@pytest.fixture(scope="module")
def private_keys() -> dict[str, Any]:
    """A private key of each asymmetric kind, by the algorithm's family and curve."""
    rsa_key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    return {
        **dict.fromkeys(["RS256", "RS384", "RS512", "PS256", "PS384", "PS512"], rsa_key),
        "ES256": ec.generate_private_key(ec.SECP256R1()),
        "ES384": ec.generate_private_key(ec.SECP384R1()),
        "ES512": ec.generate_private_key(ec.SECP521R1()),
        "EdDSA": ed25519.Ed25519PrivateKey.generate(),
    }


def public_jwk(private_key: Any, **members: Any) -> Json:
    algorithm = {"RSA": RSAAlgorithm, "ECC": ECAlgorithm, "Ed2": OKPAlgorithm}
    kind = "RSA" if isinstance(private_key, rsa.RSAPrivateKey) else "Ed2"
    kind = "ECC" if isinstance(private_key, ec.EllipticCurvePrivateKey) else kind
    return {**json.loads(algorithm[kind].to_jwk(private_key.public_key())), **members}


def secret_jwk(secret: bytes, **members: Any) -> Json:
    return {"kty": "oct", "k": jwt.utils.base64url_encode(secret).decode(), **members}


def encode_part(part: Json) -> str:
    return jwt.utils.base64url_encode(json.dumps(part).encode()).decode()


def sign(secret: bytes, text: str) -> str:
    return jwt.utils.base64url_encode(hmac.digest(secret, text.encode(), "sha256")).decode()


def public_pem(private_key: Any) -> bytes:
    return private_key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def key(document: Json) -> VerificationKey:
    loaded = load_key(document)
    assert loaded is not None
    return loaded


def check(token: str, *keys: VerificationKey) -> Token:
    return verify(token, keys, audience=("localsync",), max_lifetime_s=86_400, now=NOW)


def refusal(act: Callable[[], Any]) -> str:
    with pytest.raises(AuthError) as refused:
        act()
    assert refused.value.status == 401
    return refused.value.code


@pytest.mark.parametrize("vector", vectors("auth_header"))
def test_authorization_headers(vector: Json):
    if vector["expected_token"] is None:
        assert refusal(lambda: parse_authorization(vector["header"])) == "PSYNC_S2101"
    else:
        assert parse_authorization(vector["header"]) == vector["expected_token"]


@pytest.mark.parametrize("header", ["Token", "Token ", "Token  a", "Token a b", "Token a\t", "a"])
def test_malformed_headers_are_refused(header: str):
    assert refusal(lambda: parse_authorization(header)) == "PSYNC_S2101"


@pytest.mark.parametrize("header", [None, ""])
def test_an_absent_token_has_a_code_of_its_own(header: str | None):
    assert refusal(lambda: parse_authorization(header)) == "PSYNC_S2106"


@pytest.mark.parametrize("vector", vectors("auth"))
def test_claims(vector: Json):
    def verify_vector() -> Token:
        return verify(
            jwt.encode(vector["claims"], SECRETS["HS256"], algorithm="HS256"),
            [key(secret_jwk(SECRETS["HS256"]))],
            audience=vector["config"]["audience"],
            max_lifetime_s=vector["config"]["max_lifetime_s"],
            now=vector["now"],
        )

    if vector["expected"].get("ok"):
        assert verify_vector().user_key == vector["expected"]["user_key"]
    else:
        assert refusal(verify_vector) == vector["expected"]["code"]


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"sub": None}, "PSYNC_S2101"),
        ({"sub": ""}, "PSYNC_S2101"),
        ({"sub": True}, "PSYNC_S2101"),
        ({"sub": ["u1"]}, "PSYNC_S2101"),
        ({"sub": "a\0b"}, "PSYNC_S2101"),
        ({"iat": "1"}, "PSYNC_S2101"),
        ({"exp": float("inf")}, "PSYNC_S2101"),
        ({"exp": True}, "PSYNC_S2101"),
        ({"nbf": NOW + 61}, "PSYNC_S2101"),
        ({"iat": NOW + 61, "exp": NOW + 100}, "PSYNC_S2101"),
        ({"parameters": None}, "PSYNC_S2101"),
        ({"aud": [1, None]}, "PSYNC_S2105"),
        ({"aud": {"localsync": 1}}, "PSYNC_S2105"),
    ],
)
def test_claims_of_a_wrong_kind_are_refused(changes: Json, code: str):
    claims = {**CLAIMS, **changes}

    assert refusal(lambda: check_claims(claims, audience=["localsync"], max_lifetime_s=86_400, now=NOW)) == code


@pytest.mark.parametrize(("subject", "user_key"), [(7, "7"), (7.0, "7"), (1.5, "1.5"), (-(2**63), str(-(2**63)))])
def test_numeric_subjects_keep_their_type_as_a_claim(subject: float, user_key: str):
    token = check_claims({**CLAIMS, "sub": subject}, audience=["localsync"], max_lifetime_s=900, now=NOW)

    assert token.user_key == user_key
    assert token.claims["sub"] == subject


@pytest.mark.parametrize("algorithm", [*SECRETS, "RS256", "RS512", "PS256", "ES256", "ES384", "ES512", "EdDSA"])
def test_every_algorithm_is_verified_by_its_kind_of_key(private_keys: dict[str, Any], algorithm: str):
    secret = SECRETS.get(algorithm)
    signing = secret or private_keys[algorithm]
    verifying = key(secret_jwk(secret) if secret else public_jwk(signing))

    token = jwt.encode(CLAIMS, signing, algorithm=algorithm)

    assert check(token, verifying).user_key == "u1"
    head, body, signature = token.split(".")
    assert refusal(lambda: check(f"{head}.{body}.{signature[::-1]}", verifying)) == "PSYNC_S2101"


def test_a_public_key_is_never_a_secret(private_keys: dict[str, Any]):
    document = public_jwk(private_keys["RS256"], kid="k")
    unsigned = ".".join(encode_part(part) for part in ({"alg": "HS256", "kid": "k"}, CLAIMS))
    secrets = [json.dumps(document).encode(), public_pem(private_keys["RS256"])]
    forgeries = [f"{unsigned}.{sign(secret, unsigned)}" for secret in secrets]

    for forgery in forgeries:
        assert refusal(lambda forgery=forgery: check(forgery, key(document))) == "PSYNC_S2101"


def test_an_unsigned_token_is_refused():
    assert refusal(lambda: check(jwt.encode(CLAIMS, None, algorithm="none"), key(secret_jwk(SECRETS["HS256"]))))


def test_the_keys_own_algorithm_binds(private_keys: dict[str, Any]):
    token = jwt.encode(CLAIMS, private_keys["RS256"], algorithm="RS384")

    assert refusal(lambda: check(token, key(public_jwk(private_keys["RS256"], alg="RS256")))) == "PSYNC_S2101"


def test_a_key_is_chosen_by_its_id():
    token = jwt.encode(CLAIMS, SECRETS["HS256"], headers={"kid": "a"})
    named, other = secret_jwk(SECRETS["HS256"], kid="a"), secret_jwk(b"o" * 32, kid="b")

    assert check(token, key(other), key(named))
    assert refusal(lambda: check(token, key(secret_jwk(b"o" * 32, kid="a")), key(secret_jwk(SECRETS["HS256"]))))
    assert refusal(lambda: check(token, key(secret_jwk(SECRETS["HS256"], kid="b"))))


def test_keys_without_id_are_tried_in_turn():
    token = jwt.encode(CLAIMS, SECRETS["HS256"], headers={"kid": "unknown"})

    assert check(token, key(secret_jwk(b"o" * 32)), key(secret_jwk(SECRETS["HS256"])))


NO_TOKENS = ["", "a", "a.b.c", "e30.e30.", "W10.e30.", "\ud800.a.b", "ä.ö.ü"]
NO_HEADERS: list[Json] = [{"alg": ["HS256"]}, {"alg": {}}, {"alg": 1}, {"alg": "HS256", "kid": []}]


@pytest.mark.parametrize("token", NO_TOKENS + [f"{encode_part(header)}.e30.AA" for header in NO_HEADERS])
def test_what_is_no_token_is_refused(token: str):
    assert refusal(lambda: check(token, key(secret_jwk(SECRETS["HS256"])))) == "PSYNC_S2101"


@pytest.mark.parametrize("payload", [b"[]", b"1", b'{"sub":"\\ud800"}', b"{", b'{"exp":NaN}'])
def test_claims_that_are_no_object_are_refused(payload: bytes):
    token = jwt.PyJWS().encode(payload, SECRETS["HS256"], algorithm="HS256")

    assert refusal(lambda: check(token, key(secret_jwk(SECRETS["HS256"])))) == "PSYNC_S2101"


@pytest.mark.parametrize(
    "document",
    [
        secret_jwk(b"short"),
        secret_jwk(b"s" * 40, alg="HS512"),
        {"kty": "oct"},
        {"kty": "oct", "k": "s" * 64, "alg": "RS256"},
        {"kty": "EC", "crv": "secp256k1", "x": "a", "y": "a"},
        {"kty": "RSA", "n": "AQ", "e": "AQAB"},
        {"kty": "RSA"},
        {"kty": "OKP", "crv": "X25519", "x": "a"},
        {"kty": "unknown"},
        {},
    ],
)
def test_weak_or_unreadable_keys_are_a_configuration_error_that_hides_the_key(document: Json):
    with pytest.raises(ConfigurationError) as refused:
        load_key({**document, "kid": "name"})

    assert "'name'" in str(refused.value)
    assert str(document.get("k", "no secret")) not in str(refused.value)


def test_another_keys_public_part_is_no_secret(private_keys: dict[str, Any]):
    with pytest.raises(ConfigurationError):
        load_key(secret_jwk(public_pem(private_keys["RS256"])))


def test_keys_for_other_purposes_are_left_out():
    assert load_key(secret_jwk(SECRETS["HS256"], use="enc")) is None
    assert load_key(secret_jwk(SECRETS["HS256"], key_ops=["sign"])) is None


def test_a_key_does_not_show_its_secret():
    assert "ssss" not in repr(key(secret_jwk(SECRETS["HS256"])))


def user(pk: Any = 7) -> Any:
    return SimpleNamespace(_meta=User._meta, pk=pk, id=pk)


def test_token_ids_can_be_given_to_a_command():
    ids = {verify_token(make_token(user())).claims["jti"] for _ in range(300)}
    assert len(ids) == 300
    assert not any(name.startswith("-") for name in ids)


def test_our_own_tokens_are_verified_without_set_up():
    before = time.time()

    session = SessionBase()
    token = verify_token(make_token(user(), session=session, lifetime_s=60))

    assert (token.user_key, token.claims["sub"], token.claims["aud"]) == ("7", "7", "localsync")
    assert before + 58 < token.expires_at <= time.time() + 60
    assert token.claims["sid"] == session[SESSION_ID]
    assert verify_token(make_token(user(), session=session)).claims["sid"] == session[SESSION_ID]


def test_our_own_tokens_outlive_a_change_of_the_secret_key_among_the_fallbacks(settings: Any):
    token = make_token(user())

    with override_settings(SECRET_KEY="another", SECRET_KEY_FALLBACKS=[settings.SECRET_KEY]):
        assert verify_token(token).user_key == "7"
    with override_settings(SECRET_KEY="another", SECRET_KEY_FALLBACKS=[]):
        assert refusal(lambda: verify_token(token)) == "PSYNC_S2101"


def claims_of_project(user: Any) -> dict[str, Any]:
    return {"organisation": f"o{user.pk}"}


def reserved_claims(user: Any) -> dict[str, Any]:
    return {"sub": "someone else"}


def test_our_own_tokens_carry_the_claims_that_the_project_adds(settings: Any):
    settings.LOCALSYNC = {"TOKEN_CLAIMS": f"{__name__}.claims_of_project"}

    assert user_claims(user()) == {"sub": "7", "organisation": "o7"}
    assert verify_token(make_token(user())).claims["organisation"] == "o7"


@pytest.mark.parametrize("path", ["nowhere.at_all", f"{__name__}.reserved_claims", "builtins.str"])
def test_claims_that_a_project_may_not_give_make_no_token(settings: Any, path: str):
    settings.LOCALSYNC = {"TOKEN_CLAIMS": path}

    with pytest.raises(ConfigurationError, match="TOKEN_CLAIMS"):
        make_token(user())


class KeyServer:
    """Serves a key set over HTTP and counts how often it is asked."""

    def __init__(self) -> None:
        self.body, self.status, self.requests = b"", 200, 0
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.requests += 1
                self.send_response(outer.status)
                self.end_headers()
                self.wfile.write(outer.body)

            def log_message(self, *_: Any) -> None:
                pass

        self._server = HTTPServer(("127.0.0.1", 0), Handler)
        Thread(target=self._server.serve_forever, daemon=True).start()
        self.uri = f"http://127.0.0.1:{self._server.server_port}/keys"

    def serve(self, *keys: Json) -> None:
        self.body = json.dumps({"keys": list(keys)}).encode()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def key_server() -> Iterator[KeyServer]:
    server = KeyServer()
    yield server
    server.stop()


def current_claims() -> Json:
    now = int(time.time())
    return {**CLAIMS, "iat": now, "exp": now + 300}


async def test_keys_are_fetched_when_a_token_needs_them(key_server: KeyServer, private_keys: dict[str, Any]):
    key_server.serve(public_jwk(private_keys["EdDSA"], kid="e"), {"kty": "broken"})
    token = jwt.encode(current_claims(), private_keys["EdDSA"], algorithm="EdDSA", headers={"kid": "e"})

    with override_settings(LOCALSYNC={"JWKS_URI": [key_server.uri]}):
        first = await authenticate(f"Bearer {token}")
        second = verify_token(token)

    assert first.user_key == second.user_key == "u1"
    assert key_server.requests == 1


async def test_secrets_from_an_address_are_ignored(key_server: KeyServer):
    key_server.serve(secret_jwk(SECRETS["HS256"], kid="s"))
    token = jwt.encode(current_claims(), SECRETS["HS256"], headers={"kid": "s"})

    with override_settings(LOCALSYNC={"JWKS_URI": [key_server.uri]}):
        assert refusal(lambda: verify_token(token)) == "PSYNC_S2101"


async def test_unknown_keys_do_not_cause_a_flood_of_fetches(key_server: KeyServer, private_keys: dict[str, Any]):
    key_server.serve()
    token = jwt.encode(current_claims(), private_keys["EdDSA"], algorithm="EdDSA", headers={"kid": "new"})

    with override_settings(LOCALSYNC={"JWKS_URI": [key_server.uri]}):
        for _ in range(20):
            assert refusal(lambda: verify_token(token)) == "PSYNC_S2101"

    assert key_server.requests == 1


def fetch(keys: RemoteKeys) -> None:
    fetching = keys.fetch()
    assert fetching is not None
    fetching.result(5)


def test_an_address_that_fails_is_asked_once_a_minute(key_server: KeyServer):
    key_server.status, now = 500, 0.0
    keys = RemoteKeys(key_server.uri, clock=lambda: now)
    fetch(keys)

    now = 59
    too_soon = keys.fetch()
    now = 61
    fetch(keys)

    assert too_soon is None
    assert key_server.requests == 2


def test_keys_are_refreshed_in_the_background_and_forgotten_after_an_hour(
    key_server: KeyServer, private_keys: dict[str, Any]
):
    key_server.serve(public_jwk(private_keys["EdDSA"], kid="old"))
    now = 0.0
    keys = RemoteKeys(key_server.uri, clock=lambda: now)
    fetch(keys)

    key_server.serve(public_jwk(private_keys["EdDSA"], kid="new"))
    now = 301
    stale = [item.id for item in keys.current()]
    refreshing = keys.fetch()
    if refreshing is not None:
        refreshing.result(5)
    fresh = [item.id for item in keys.current()]
    key_server.status = 500
    now += 3600

    assert (stale, fresh) == (["old"], ["new"])
    assert keys.current() == ()


def test_an_address_must_be_a_web_address():
    with pytest.raises(ConfigurationError):
        RemoteKeys("file:///etc/passwd")


def test_an_unsupported_body_is_not_a_key_set(key_server: KeyServer):
    key_server.body = b"[1]"
    keys = RemoteKeys(key_server.uri)

    fetch(keys)

    assert keys.current() == ()
