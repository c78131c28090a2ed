"""The replicator as users run it, `manage.py run_replicator` in a process of its own; and the CPU time it takes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import psycopg

ROOT = Path(__file__).parents[2]
START_TIMEOUT_S, WORK_TIMEOUT_S = 60.0, 3600.0
_TICKS_A_SECOND = os.sysconf("SC_CLK_TCK")

_EXISTS = "SELECT 1 FROM pg_replication_slots WHERE database = current_database() AND slot_name ^@ 'localsync'"
_COPIED = "SELECT 1 FROM localsync_rule_set WHERE state = 'active'"
_ACTIVE = f"{_EXISTS} AND active"
_CONFIRMED = f"{_EXISTS} AND confirmed_flush_lsn >= %s::pg_lsn"
_BACKENDS = "SELECT application_name, pid FROM pg_stat_activity WHERE application_name ^@ 'django_localsync'"


class Usage(NamedTuple):
    """CPU seconds so far, by process: the replicator's own, and those of Postgres that work for it alone."""

    python: float
    postgres: float

    def since(self, before: Usage) -> Usage:
        """What was used since then."""
        return Usage(self.python - before.python, self.postgres - before.postgres)


class Replicator:
    """A running replicator."""

    def __init__(self, process: subprocess.Popen[bytes], source: psycopg.Connection) -> None:
        self._process, self._source = process, source

    def wait_until_begun(self) -> None:
        """Return when its slot exists, which is when it begins to copy."""
        self._wait(lambda: self._source.execute(_EXISTS).fetchone(), START_TIMEOUT_S, 0.002)

    def wait_until_copied(self, storage: psycopg.Connection) -> None:
        """Return when clients are served what it copied."""
        self._wait(lambda: storage.execute(_COPIED).fetchone(), WORK_TIMEOUT_S, 0.01)

    def wait_until_streaming(self) -> None:
        """Return when it reads its slot."""
        self._wait(lambda: self._source.execute(_ACTIVE).fetchone(), START_TIMEOUT_S, 0.002)

    def wait_until_confirmed(self, lsn: str) -> None:
        """Return when it has stored, published and confirmed everything before `lsn`."""
        self._wait(lambda: self._source.execute(_CONFIRMED, [lsn]).fetchone(), WORK_TIMEOUT_S, 0.01)

    def usage(self) -> Usage:
        """CPU seconds of now; those of Postgres are 0 where it is another machine's."""
        backends = self._source.execute(_BACKENDS).fetchall()
        return Usage(_cpu_s(self._process.pid), sum(_cpu_s(pid) for _, pid in backends))

    def peak_megabytes(self) -> float:
        """The most memory that the process ever had, resident."""
        status = Path(f"/proc/{self._process.pid}/status").read_text()
        (line,) = (line for line in status.splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 1024

    def _wait(self, condition: Callable[[], object], timeout_s: float, interval_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        while not condition():
            if self._process.poll() is not None:
                raise RuntimeError("the replicator ended")
            if time.monotonic() > deadline:
                raise TimeoutError(f"the replicator is not ready after {timeout_s:.0f} s")
            time.sleep(interval_s)


@contextmanager
def replicator(source: psycopg.Connection, environment: dict[str, str]) -> Iterator[Replicator]:
    """Start one; it is ended afterwards."""
    process = subprocess.Popen(
        [sys.executable, "manage.py", "run_replicator", "-v0"], cwd=ROOT, env=os.environ | environment
    )
    try:
        yield Replicator(process, source)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(10)


def manage(environment: dict[str, str], *arguments: str) -> None:
    """Run a command of manage.py to its end."""
    subprocess.run([sys.executable, "manage.py", *arguments], cwd=ROOT, env=os.environ | environment, check=True)


def _cpu_s(pid: int) -> float:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except FileNotFoundError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / _TICKS_A_SECOND
