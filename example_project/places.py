"""Where the demo, and the devices of its users, keep their data."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SYSTEM_DATA = Path("/var/lib/django-localsync-demo")


def data_folder() -> Path:
    """LOCALSYNC_DEMO_DATA, or `data/` of the checkout.

    As root, Postgres runs as `nobody`; when that user cannot enter the checkout (it is in /root, say), a folder of
    /var/lib that is named after the checkout takes the place of `data/`.
    """
    if chosen := os.environ.get("LOCALSYNC_DEMO_DATA"):
        return Path(chosen).resolve()
    if os.geteuid() == 0 and not is_reachable_by_all(ROOT):
        return SYSTEM_DATA / hashlib.sha256(str(ROOT).encode()).hexdigest()[:12]
    return ROOT / "data"


def database_url_file() -> Path:
    """Where the demo, while it runs, leaves the URL of its database for other commands."""
    return data_folder() / "database-url"


def device_file(user: str) -> Path:
    """The SQLite database of a user's terminal client."""
    return data_folder() / "devices" / f"{user}.sqlite"


def is_reachable_by_all(folder: Path) -> bool:
    """Whether any user may enter `folder`, so that `nobody` may run a server below it."""
    return all(parent.stat().st_mode & 0o001 for parent in [folder.resolve(), *folder.resolve().parents])
