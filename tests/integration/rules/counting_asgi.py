"""The real streams, and a page that tells how often each user's buckets were computed."""

from __future__ import annotations

import json
import os
from collections import Counter
from typing import Any

import django
from django.conf import settings

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.settings")
settings.LOCALSYNC = {}
django.setup()

from django_localsync.routing import localsync_application  # noqa: E402
from django_localsync.storage.reader import StorageReader  # noqa: E402
from django_localsync.storage.resolving import Client, Reading  # noqa: E402

computed: Counter[str] = Counter()
_read_checkpoint = StorageReader.read_checkpoint


async def _counted(reader: StorageReader, client: Client) -> Reading:
    computed[client.parameters.claims["sub"]] += 1
    return await _read_checkpoint(reader, client)


StorageReader.read_checkpoint = _counted  # type: ignore[method-assign, assignment]


async def show_counts(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """Answers {user: computations}."""
    await send({"type": "http.response.start", "status": 200, "headers": [(b"connection", b"close")]})
    await send({"type": "http.response.body", "body": json.dumps(computed).encode()})


application = localsync_application(show_counts, prefix="any/prefix/")
