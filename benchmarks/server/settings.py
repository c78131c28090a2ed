"""A bare project whose rules are the benchmark's, and whose tokens are the harness's."""

import os
from pathlib import Path
from urllib.parse import unquote, urlsplit

HERE = Path(__file__).parent
SECRET_KEY = "benchmarks only, at least thirty-two bytes long"
ALLOWED_HOSTS = ["*"]
USE_TZ = True
ROOT_URLCONF = "benchmarks.server.urls"
ASGI_APPLICATION = "benchmarks.server.asgi.application"
INSTALLED_APPS = [
    "django.contrib.contenttypes",
    "django.contrib.auth",
    "rest_framework",
    "channels",
    "django_localsync",
]


def database(url: str) -> dict[str, str]:
    """Django's form of a database URL."""
    parts = urlsplit(url)
    return {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": unquote(parts.path.lstrip("/")),
        "USER": unquote(parts.username or ""),
        "PASSWORD": unquote(parts.password or ""),
        "HOST": unquote(parts.hostname or ""),
        "PORT": str(parts.port or ""),
    }


DATABASES = {"default": database(os.environ["BENCH_SOURCE_DSN"])}
if os.environ.get("BENCH_STORAGE_DSN"):
    DATABASES["storage"] = database(os.environ["BENCH_STORAGE_DSN"])

LOCALSYNC = {
    "RULES": HERE.parent / "config" / f"sync-{os.environ.get('BENCH_STYLE', 'streams')}.yaml",
    "STORAGE": "storage" if "storage" in DATABASES else "default",
    "AUDIENCE": ("bench",),
    "KEYS": ({"kty": "oct", "kid": "bench", "alg": "HS256", "k": os.environ["BENCH_SECRET"]},),
    "MAX_BUCKETS": 20_000,
}
