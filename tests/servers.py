"""Postgres servers of a test's own, for what cannot be done to one that is shared: restarts, failovers, restores.

Each is a copy of one cluster, which is made once for all tests: a copy takes a tenth of a second, a cluster two.
"""

from __future__ import annotations

import atexit
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import psycopg
from django.db import connections

from example_project.database_url import parse_url
from example_project.postgres import EmbeddedPostgres

MAJOR = int(os.environ.get("LOCALSYNC_TEST_POSTGRES", "18"))


class OwnServer(EmbeddedPostgres):
    """A server whose address is known; a new one after each start."""

    url = ""

    def start(self) -> str:
        """Start it."""
        self.url = super().start()
        return self.url

    def connect(self, database: str = "postgres") -> psycopg.Connection:
        """A session in autocommit mode."""
        return psycopg.connect(self.url, dbname=database, autocommit=True)


@contextmanager
def own_server(**settings: str) -> Iterator[OwnServer]:
    """A running server with these settings of Postgres; whoever asks may stop it and start it again."""
    with _folder() as folder:
        server = server_in(folder, **settings)
        _copy(_template() / "cluster", server.cluster)
        server.start()
        try:
            yield server
        finally:
            server.stop()


def server_in(folder: Path, **settings: str) -> OwnServer:
    """A server that has binaries and password, and no cluster yet."""
    folder.mkdir(exist_ok=True)
    folder.chmod(0o755)  # root's server runs as `nobody`, who must get in
    for path in _template().iterdir():
        if path.name.startswith("postgres-"):
            (folder / path.name).symlink_to(path)
    shutil.copy(_template() / "password", folder)
    return OwnServer(folder, durable=False, major=MAJOR, settings=settings)


def copy_cluster(server: OwnServer, folder: Path, **settings: str) -> OwnServer:
    """A server with the files of another one, which must be stopped: what a restored disk image is."""
    copy = server_in(folder, **settings)
    _copy(server.cluster, copy.cluster)
    return copy


@contextmanager
def database_alias(name: str, url: str) -> Iterator[str]:
    """A Django alias of another server's database."""
    configured = connections.configure_settings({"default": {}, name: parse_url(url)})
    connections.settings[name] = configured[name]
    try:
        yield name
    finally:
        connections[name].close()
        del connections[name]
        del connections.settings[name]


@contextmanager
def _folder() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="localsync-server-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


@cache
def _template() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="localsync-template-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    folder.chmod(0o755)
    server = EmbeddedPostgres(folder, durable=False, major=MAJOR)
    server.start()
    server.stop()
    return folder


def _copy(source: Path, target: Path) -> None:
    subprocess.run(["cp", "-a", "--reflink=auto", str(source), str(target)], check=True)  # keeps owner and rights
