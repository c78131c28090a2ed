"""`manage.py run_replicator`: replicate the source into bucket storage until told to stop."""

from __future__ import annotations

import gc
import logging
import os
import signal
import sys
from typing import Any

from django.core.checks import CRITICAL, Tags
from django.core.management.base import BaseCommand, CommandError
from django.db import OperationalError, connections
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from ...conf import get_settings
from ...exceptions import ConfigurationError
from ...replication.progress import Progress
from ...replication.replicator import Replicator

GARBAGE_THRESHOLD = 200_000  # objects more than were freed; some tens of megabytes

# The threads that follow, read and store hand over many times a batch. At Python's own 5 ms, whoever has an answer of
# Postgres would wait longer for the interpreter than it waited for the answer.
SWITCH_INTERVAL_S = 0.0005


class Command(BaseCommand):
    """Runs the replicator in the foreground."""

    help = (
        "Replicate the tables that the sync rules use into bucket storage: copies existing rows first, then follows "
        "Postgres's logical replication. Runs until SIGTERM or Ctrl-C. Start as many as you like: one is active, the "
        "others stand by. Needs wal_level=logical and a role that may replicate; creates its own slot and publication."
    )

    def handle(self, *args: Any, **options: Any) -> None:
        """Run until a signal arrives."""
        _log_to_stderr(options["verbosity"])
        try:
            replicator = Replicator(progress=TerminalProgress if sys.stderr.isatty() else Progress)
        except ConfigurationError as error:
            raise CommandError(f"{error}; see: manage.py check") from error
        self._check_database()

        _collect_garbage_rarely()
        sys.setswitchinterval(SWITCH_INTERVAL_S)
        signal.signal(signal.SIGTERM, _end)
        signal.signal(signal.SIGINT, _end)
        try:
            replicator.run()
        except ConfigurationError as error:
            raise CommandError(str(error)) from error

    def _check_database(self) -> None:
        """Say what the rules name and the sources have not. It ends nothing: everything else can be replicated."""
        aliases = list(get_settings().sources)
        try:
            for alias in aliases:
                with connections[alias].cursor() as cursor:
                    cursor.execute("SET lock_timeout = '1s'")  # a migration that runs now must not delay the start
            self.check(tags=[Tags.database], databases=aliases, fail_level=CRITICAL)
        except OperationalError:
            pass  # the replicator tells, and tries again
        finally:
            for alias in aliases:
                connections[alias].close()


class TerminalProgress(Progress):
    """How far reading is, as a bar."""

    def __init__(self) -> None:
        super().__init__()
        self._bar: Bar | None = None
        self._task = TaskID(0)

    def expect(self, rows: int) -> None:
        """Show the bar, or make it longer."""
        super().expect(rows)
        if self._bar is None:
            self._bar = Bar(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[rate]}"),
                TimeRemainingColumn(),
                console=Console(stderr=True),
            )
            self._task = self._bar.add_task("copying", total=rows, rate="")
            self._bar.start()

    def advance(self, table: str, rows: int) -> None:
        """Move the bar."""
        self.rows += rows
        if self._bar is not None:
            self._bar.update(
                self._task,
                completed=self.rows,
                total=max(self.estimated_rows, self.rows),
                description=f"copying {table}",
                rate=f"{self.rate():,.0f} rows/s",
            )

    def finish(self) -> None:
        """Leave the finished bar on the screen."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
        super().finish()


def _collect_garbage_rarely() -> None:
    """Rows make no cycles, so that looking for cycles among them, and among all of Django, is in vain.

    It took a fifth of the time of changes in batches of 5000 (benchmarks/replication).
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(GARBAGE_THRESHOLD)


def _end(signum: int, frame: object) -> None:
    """End at once. Nothing needs a tidy end, for a kill at any instruction is survived.

    Unwinding could wait for a Postgres that does not answer, and Python alone takes up to a second to take itself down.
    """
    if sys.stderr.isatty():
        Console(stderr=True).show_cursor()  # a progress bar hides it
    os._exit(0)


def _log_to_stderr(verbosity: int) -> None:
    package = logging.getLogger("django_localsync")
    if verbosity == 0 or package.hasHandlers():
        return  # the project's LOGGING has its own idea
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    package.addHandler(handler)
    package.setLevel(logging.DEBUG if verbosity > 1 else logging.INFO)
