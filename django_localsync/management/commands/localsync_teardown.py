"""`manage.py localsync_teardown`: take away slots and publications, and what storage holds."""

from __future__ import annotations

from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from psycopg import Error

from ...conf import get_settings
from ...exceptions import ConfigurationError
from ...replication.diagnosis import diagnose
from ...replication.teardown import Trace, find_traces, remove_trace, replicator_stopped


class Command(BaseCommand):
    """Drops what the replicator made in the servers."""

    help = (
        "Drop the replication slots and publications of every source, so that Postgres keeps no WAL for them any "
        "more. With --data, also delete what bucket storage holds. Tables of your own are never touched. Stop the "
        "replicator first; when it is started again, it makes slots and publications anew and reads all tables again."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        """`--data`, `--dry-run` and Django's `--no-input`."""
        parser.add_argument("--data", action="store_true", help="delete the contents of bucket storage, too")
        parser.add_argument("--dry-run", action="store_true", help="only say what would be taken away")
        parser.add_argument("--no-input", "--noinput", action="store_false", dest="interactive", help="do not ask")

    def handle(self, *args: Any, **options: Any) -> None:
        """Say what there is, ask, and take it away."""
        settings = get_settings()
        try:
            with replicator_stopped(settings) as storage:
                traces = find_traces(storage, settings, data=options["data"])
                if self._shall_go(traces, options):
                    for trace in traces:
                        remove_trace(storage, settings, trace)
                        self.stdout.write(f"gone: {trace}")
        except (ConfigurationError, Error) as error:
            raise CommandError(str(diagnose(error))) from error

    def _shall_go(self, traces: list[Trace], options: dict[str, Any]) -> bool:
        if not traces:
            self.stdout.write("There is nothing to take away.")
            return False
        if options["dry_run"] or options["interactive"]:
            self.stdout.write("To be taken away:")
            for trace in traces:
                self.stdout.write(f"  {trace}")
        if options["dry_run"]:
            return False
        if options["interactive"] and input("Type 'yes' to go on: ") != "yes":
            raise CommandError("nothing was changed")
        return True
