"""`manage.py localsync_compact`: compact bucket storage now, and say what it saved."""

from __future__ import annotations

from contextlib import closing
from dataclasses import asdict
from typing import IO, Any, cast

import orjson
from django.core.management.base import BaseCommand, CommandError, CommandParser
from psycopg import Error
from rich.console import Console
from rich.progress import track

from ...conf import get_settings
from ...replication.diagnosis import diagnose
from ...storage.compactor import (
    Savings,
    changed_buckets,
    compact_bucket,
    reclaim_space,
    record_savings,
    storage_bytes,
)
from ...storage.connections import Connection, connect
from .localsync_status import size


class Command(BaseCommand):
    """Compacts every bucket that changed."""

    help = (
        "Compact the history of every bucket that changed since it was compacted last: rows that were replaced or "
        "deleted leave storage, and new devices download less. The replicator does the same by itself; this does it "
        "at once, safely beside it and beside open streams. It may be interrupted at any time."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        """`--json`."""
        parser.add_argument("--json", action="store_true", help="write one JSON object instead of text")

    def handle(self, *args: Any, **options: Any) -> None:
        """Compact, vacuum, and tell what that saved."""
        savings = Savings()
        try:
            with closing(connect(get_settings().storage)) as storage:
                before = storage_bytes(storage)
                console = Console(file=cast(IO[str], self.stderr), no_color=options["no_color"])
                try:
                    compact_all(storage, savings, console, quiet=options["json"] or options["verbosity"] == 0)
                finally:
                    record_savings(storage, savings)
                reclaim_space(storage)
                after = storage_bytes(storage)
        except Error as error:
            raise CommandError(str(diagnose(error))) from error
        if options["json"]:
            figures = {**asdict(savings), "storage_bytes_before": before, "storage_bytes_after": after}
            self.stdout.write(orjson.dumps(figures, option=orjson.OPT_INDENT_2).decode())
        else:
            self.stdout.write(describe(savings, before, after))


def compact_all(storage: Connection, savings: Savings, console: Console, *, quiet: bool) -> None:
    """Compact what changed, with a bar of progress."""
    buckets = changed_buckets(storage)
    for bucket_id in track(buckets, "compacting", console=console, transient=True, disable=quiet):
        for _ in compact_bucket(storage, bucket_id, savings):
            pass


def describe(savings: Savings, before: int, after: int) -> str:
    """What was saved, for people.

    >>> print(describe(Savings(buckets=3, erased=1200, deleted=900, bytes=2048), 4096, 2048))
    3 buckets compacted, 0 of them rewritten
    1,200 operations erased (2.0 KiB of row data), 900 deleted
    operations take 2.0 KiB of storage, 4.0 KiB before
    """
    return (
        f"{savings.buckets:,} buckets compacted, {savings.rewritten:,} of them rewritten\n"
        f"{savings.erased:,} operations erased ({size(savings.bytes)} of row data), {savings.deleted:,} deleted\n"
        f"operations take {size(after)} of storage, {size(before)} before"
    )
