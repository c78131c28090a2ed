"""`manage.py localsync_status`: how replication fares, for people and for monitoring."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import IO, Any, cast

import orjson
from django.core.management.base import BaseCommand, CommandParser
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ...conf import get_settings
from ...replication.status import BackfillStatus, Level, SourceStatus, Status, TableStatus, read_status

STYLES = {Level.OK: "green", Level.WARNING: "yellow", Level.PROBLEM: "red"}
WORDS = {Level.OK: "all is well", Level.WARNING: "there are warnings", Level.PROBLEM: "there are problems"}
UNITS = ("bytes", "KiB", "MiB", "GiB", "TiB")


class Command(BaseCommand):
    """Shows slots, lag, backfills and problems."""

    help = (
        "Show how replication fares: whether a replicator runs, the lag of each source in bytes and seconds, the WAL "
        "that its slot retains, and each table with what is wrong with it and the way out. "
        "Exit code: 0 all is well, 1 there are warnings, 2 there are problems."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        """`--json` and `--probe`."""
        parser.add_argument("--json", action="store_true", help="write one JSON object instead of text")
        parser.add_argument(
            "--probe",
            type=float,
            default=0.0,
            metavar="SECONDS",
            help="send each source an empty commit and wait this long until storage holds it: the lag as measured",
        )

    def handle(self, *args: Any, **options: Any) -> None:
        """Print the status; the exit code is its level."""
        status = read_status(get_settings(), probe_s=options["probe"])
        if options["json"]:
            self.stdout.write(orjson.dumps(status.to_json(), option=orjson.OPT_INDENT_2).decode())
        else:
            output = cast(IO[str], self.stdout)
            show(status, Console(file=output, no_color=options["no_color"], highlight=False, soft_wrap=True))
        if status.level:
            sys.exit(int(status.level))


def show(status: Status, console: Console) -> None:
    """Print the status as text."""
    console.print(f"[bold {STYLES[status.level]}]{WORDS[status.level]}[/]")
    served = "a rule set is served" if status.serving else "nothing is served yet"
    filling = ", another is being filled" if status.serving and status.filling else ""
    console.print(f"storage: {served}{filling}; checkpoint {status.checkpoint or 0:,}")
    _say(console, status)
    for source in status.sources:
        _show_source(source, console)


def _show_source(source: SourceStatus, console: Console) -> None:
    console.print(f"\n[bold]source {escape(source.alias)}[/]")
    for name, value in _facts(source):
        console.print(f"  {name:<12}{escape(value)}")
    _say(console, source)
    if source.tables:
        table = Table("table", "identity", "state", box=None, padding=(0, 2, 0, 0), header_style="dim")
        for row in source.tables:
            table.add_row(escape(row.name), escape(row.identity), escape(_state(row)))
        console.print(table)
    for row in source.tables:
        _say(console, row, f"{row.name}: ")


def _facts(source: SourceStatus) -> Iterator[tuple[str, str]]:
    if source.slot:
        reader = {True: "being read", False: "nobody reads it", None: "unknown"}[source.active]
        yield "slot", f"{source.slot}, {reader}" + (f", WAL {source.wal_status}" if source.wal_status else "")
        yield "position", f"{source.written_lsn} stored, {source.published_lsn} shown, {source.confirmed_lsn} confirmed"
    if source.lag_bytes is not None:
        seconds = f", at most {source.lag_s:.1f} s" if source.lag_s is not None else ""
        yield "lag", size(source.lag_bytes) + seconds
    if source.probe_s is not None:
        yield "probe", f"an empty commit arrived after {source.probe_s * 1000:.0f} ms"
    if source.retained_bytes is not None:
        budget = f" of {size(source.budget_bytes)}" if source.budget_bytes is not None else ", without a bound"
        safe = f"; {size(source.safe_bytes)} may yet be written" if source.safe_bytes is not None else ""
        yield "WAL kept", size(source.retained_bytes) + budget + safe
    if source.last_commit_at:
        yield "last commit", f"{source.last_commit_at:%Y-%m-%d %H:%M:%S %Z}"


def _state(table: TableStatus) -> str:
    if table.backfills:
        return "; ".join(map(_progress, table.backfills))
    return "followed" if table.followed else "not followed"


def _progress(backfill: BackfillStatus) -> str:
    text = f"{backfill.phase}: {backfill.rows:,} of about {backfill.estimated_rows:,} rows ({backfill.share:.0%})"
    if backfill.seconds_left is not None:
        text += f", {backfill.rows_per_second:,.0f} rows/s, {backfill.seconds_left:.0f} s left"
    return text


def _say(console: Console, part: Status | SourceStatus | TableStatus, prefix: str = "") -> None:
    for level, texts in ((Level.PROBLEM, part.problems), (Level.WARNING, part.warnings)):
        for text in texts:
            console.print(f"  [{STYLES[level]}]{level.name.lower()}[/]  {escape(prefix + text)}")


def size(count: float) -> str:
    """Bytes for people.

    >>> size(0), size(1536), size(3 << 30)
    ('0 bytes', '1.5 KiB', '3.0 GiB')
    """
    for unit in UNITS:
        if abs(count) < 1024 or unit == UNITS[-1]:
            break
        count /= 1024
    return f"{count:.0f} {unit}" if unit == UNITS[0] else f"{count:.1f} {unit}"
