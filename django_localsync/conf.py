"""The settings under `LOCALSYNC`: one typed field each, with its default and meaning.

`LOCALSYNC = {"RULES": …, "UPLOAD_HANDLER": …}` in a project's settings; a key is the field's name in capitals.
docs/reference/settings.md lists them all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import lru_cache
from pathlib import Path
from typing import Any

from django.conf import settings as django_settings
from django.core.signals import setting_changed
from django.db import DEFAULT_DB_ALIAS

from .exceptions import ConfigurationError
from .querysets import Stream, is_dotted_path, rules_document
from .sync_rules.builtin import with_rejections


@dataclass(frozen=True)
class Settings:
    """Every setting of django_localsync."""

    rules: str | Path | Mapping[str, Any] | Stream | Sequence[Stream] | Callable[[], Any] | None = None
    """Sync rules: YAML text, the path of a YAML file, a dict of the same structure, Streams made of QuerySets, or the
    dotted path of Streams."""

    sensitive_columns: tuple[str, ...] = (
        "*password*",
        "*secret*",
        "*token*",
        "*api_key*",
        "*private_key*",
        "sessions.session.*",
    )
    """Columns that a QuerySet must name to sync: patterns of `field` or `app.model.field`, with `*` for anything."""

    upload_handler: str | None = None
    """Dotted path of the project's UploadHandler; without it uploads are refused."""

    sources: tuple[str, ...] = (DEFAULT_DB_ALIAS,)
    """Aliases of the databases whose tables are synced: one, shards of one schema, or unrelated ones."""

    storage: str = DEFAULT_DB_ALIAS
    """Alias of the database that holds buckets; may be the source itself."""

    replication_url: str | Mapping[str, str] | None = None
    """A direct connection to the source as libpq URL or DSN, where the alias goes through a pooler; or one by alias."""

    slot_name: str | None = None
    """Prefix of the replication slot's name; by default `localsync_<database>`. Slots are one namespace a server."""

    publication_name: str = "localsync"
    """Name of the publication; tables without replica identity go to a second one, `<name>_insert_only`."""

    heartbeat_interval_s: float = 60.0
    """After this long without a commit, an idle source gets an empty one, in seconds; 0 means never."""

    audience: tuple[str, ...] = ("localsync",)
    """Accepted `aud` claims; our own tokens carry the first."""

    keys: tuple[Mapping[str, Any], ...] = ()
    """JSON Web Keys (RFC 7517) that verify tokens made elsewhere."""

    jwks_uri: tuple[str, ...] = ()
    """Addresses of key sets that verify tokens made elsewhere."""

    token_lifetime_s: int = 300
    """Lifetime of the tokens that the token view gives, in seconds."""

    token_claims: str | None = None
    """Dotted path of a function from a user to further claims of the user's tokens, for `auth.parameter('…')`."""

    max_token_lifetime_s: int = 86_400
    """Longest `exp - iat` accepted, in seconds."""

    max_buckets: int = 1000
    """Most buckets one client may have."""

    max_streams: int = 5000
    """Most streams that one ASGI process serves at a time; each takes some 25 KB."""

    max_streams_per_user: int = 1000
    """Most streams of one user that one ASGI process serves at a time."""

    max_request_bytes: int = 4 * 1024 * 1024
    """Largest body of a stream request."""

    body_timeout_s: float = 30.0
    """How long the body of a stream request may take to come, in seconds."""

    stall_timeout_s: float = 60.0
    """After this long in which a client took nothing of what waits for it, its stream is cut off, in seconds."""

    max_upload_bytes: int = 16 * 1024 * 1024
    """Largest body of an upload."""

    journal_retention_days: int = 90
    """How long uploads are remembered, in days: a device that sends again later than that is not recognised."""

    erase_within_s: float = 86_400.0
    """How long storage may keep the text of a row that was replaced or deleted, in seconds."""

    keepalive_interval_s: float = 20.0
    """Pause between keepalive lines; clients and proxies give up after 30 s of silence."""

    stream_pool_size: int = 8
    """Database connections that one ASGI process uses to read for its streams."""

    metrics_token: str | None = None
    """What Prometheus must send as bearer token to read `metrics`; without it there are none."""

    unknown: tuple[str, ...] = field(default=())
    """Keys of LOCALSYNC that mean nothing; a system check names them."""

    @property
    def source(self) -> str:
        """The first source: the one that uploads are written to unless their handler says otherwise."""
        return self.sources[0]


def get_settings() -> Settings:
    """The project's settings, read once. Raises ConfigurationError when LOCALSYNC is not a dict."""
    return _read_settings()


def read_rules(settings: Settings) -> str | Mapping[str, Any]:
    """The sync rules that are served: those of the project, and the stream of rejected writes where it has uploads.

    Raises ConfigurationError as `read_written_rules` does.
    """
    rules = read_written_rules(settings)
    return rules if settings.upload_handler is None else with_rejections(rules)


def read_written_rules(settings: Settings) -> str | Mapping[str, Any]:
    """The project's own rules as YAML text or as a dict, read from their file where the setting names one.

    A text of several lines is YAML, a dotted path names an object of Python, another text is the path of a file.
    QuerySets become the SQL of streams here, so that models must be loaded. Raises ConfigurationError when there are
    no rules or they cannot be read, and RulesError for what a QuerySet cannot say in a stream.
    """
    rules = settings.rules
    if rules is None:
        raise ConfigurationError("LOCALSYNC has no RULES; give YAML text, the path of a YAML file, a dict or Streams")
    if isinstance(rules, str) and "\n" in rules.strip():
        return rules
    if not isinstance(rules, str | Path) or (isinstance(rules, str) and is_dotted_path(rules)):
        return rules_document(rules, using=settings.sources[0], sensitive=settings.sensitive_columns)
    try:
        return Path(rules).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"LOCALSYNC's RULES cannot be read from {str(rules)!r}: {error}") from error


@lru_cache(maxsize=1)
def _read_settings() -> Settings:
    configured = getattr(django_settings, "LOCALSYNC", {})
    if not isinstance(configured, Mapping):
        raise ConfigurationError("LOCALSYNC must be a dict of settings")
    known = {item.name.upper(): item for item in fields(Settings) if item.name != "unknown"}
    values = {known[key].name: _normalise(value) for key, value in configured.items() if key in known}
    return Settings(**values, unknown=tuple(str(key) for key in configured if key not in known))


def _normalise(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _forget_settings(*, setting: str, **_: Any) -> None:
    if setting == "LOCALSYNC":
        _read_settings.cache_clear()


setting_changed.connect(_forget_settings)
