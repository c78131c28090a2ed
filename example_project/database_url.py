"""Database URLs: postgresql://user:password@host:port/name, with % escapes."""

from __future__ import annotations

from urllib.parse import parse_qsl, quote, unquote, urlsplit


def parse_url(url: str) -> dict[str, object]:
    """The keys of Django's DATABASES that a URL gives; its query becomes OPTIONS. Raises ValueError for others."""
    parts = urlsplit(url)
    if parts.scheme not in ("postgresql", "postgres"):
        raise ValueError("a database URL begins with postgresql://, as in postgresql://user:password@host:5432/name")
    return {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": unquote(parts.path.lstrip("/")) or "postgres",
        "USER": unquote(parts.username or ""),
        "PASSWORD": unquote(parts.password or ""),
        "HOST": unquote(parts.hostname or ""),
        "PORT": str(parts.port or ""),
        "OPTIONS": dict(parse_qsl(parts.query)),
    }


def with_database(url: str, name: str) -> str:
    """The URL of another database on the same server."""
    return urlsplit(url)._replace(path=f"/{quote(name)}").geturl()
