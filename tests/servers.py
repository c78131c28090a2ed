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

    def change_settings(self, **settings: str) -> None:
        """Settings of Postgres from its next start on."""
        self._settings = {**self._settings, **settings}

    def run(self, program: str, *arguments: str) -> None:
        """Run a program of Postgres as the user who owns the cluster."""
        process = self._popen([self.programs / program, *arguments], subprocess.PIPE)
        output, _ = process.communicate(timeout=60)
        assert process.returncode == 0, output.decode(errors="replace")

    def make_empty_cluster(self) -> None:
        """Make the folder that a backup is to fill."""
        self.cluster.mkdir(mode=0o700)
        self.adopt(self.cluster)

    def adopt(self, path: Path) -> None:
        """Give a file or folder to the user who runs the server."""
        if self._account:
            os.chown(path, self._account.pw_uid, self._account.pw_gid)

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
    """A Django alias of another server's database; in place of another one of that name for a while."""
    before = connections.settings.get(name)
    _disconnect(name)
    connections.settings[name] = connections.configure_settings({"default": {}, name: parse_url(url)})[name]
    try:
        yield name
    finally:
        _disconnect(name)
        del connections.settings[name]
        if before is not None:
            connections.settings[name] = before


def _disconnect(name: str) -> None:
    for connection in connections.all(initialized_only=True):
        if connection.alias == name:
            connection.close()
            del connections[name]


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
