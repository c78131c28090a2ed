"""Reports of `localsync_explain` as tables for people."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

Report = dict[str, Any]

MAX_REASONS = 3  # ways that are shown for one bucket of a user

_QUANTITIES = {"buckets": "buckets_per_user", "rows": "rows_per_user", "lookup results": "lookups_per_user"}


class Printer:
    """Prints reports of evaluation/reports.py and estimates."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def print_user(self, report: Report) -> None:
        """Which buckets a user has, and why."""
        counts = _counted(len(report["buckets"]), "bucket"), _counted(report["rows"], "row")
        self._say(f"user {report['user']}: {', '.join(counts)}, {report['bytes']:,} bytes", "bold")
        if report["problem"]:
            self._say(f"the server refuses this user: {report['problem']}", "red")
        rows = []
        for item in report["buckets"]:
            why = [*item["why"][:MAX_REASONS], *(["…"] if len(item["why"]) > MAX_REASONS else [])]
            rows.append((item["bucket"], item["priority"], f"{item['rows']:,}", f"{item['bytes']:,}", "\n".join(why)))
        self._table(("bucket", "priority", "rows", "bytes", "why"), rows)
        for stream in report["streams"]:
            for error in stream["errors"]:
                self._say(f"stream {stream['stream']}: {error}", "red")
        self._print_errors(report["errors"])
        for line in report["storage"]:
            self._say(f"storage: {line}", "yellow")

    def print_row(self, report: Report) -> None:
        """Which buckets hold a row, and who reaches them."""
        self._say(f"{report['row']}: in {_counted(len(report['buckets']), 'bucket')}", "bold")
        for line in report["reasons"]:
            self._say(line)
        for bucket in report["buckets"]:
            self._say(f"\nbucket {bucket['bucket']}, as {bucket['type']} {bucket['id']}")
            self._print_ways(bucket)
        for entry in report["looked_up"]:
            self._say(f"it is looked up: {entry['index']} {entry['key']} → {entry['gives']}")
        if "user" in report:
            gets = report["user_gets_it"]
            self._say(f"\nuser {report['user']} {'gets it' if gets else 'does not get it'}", "green" if gets else "red")
            for line in report["because"]:
                self._say(f"  {line}")
        self._print_errors(report["errors"])

    def _print_ways(self, bucket: Report) -> None:
        if not bucket["ways"]:
            self._say("  nobody reaches it")
        rows = []
        for way in bucket["ways"]:
            who = "everybody" if way["everybody"] else "whoever fits" if way["user"] is None else str(way["user"])
            name = f" ({way['name']})" if way["name"] else ""
            asked = "" if way["subscribe"] is None else f", subscribed with {json.dumps(way['subscribe'])}"
            rows.append((who + name, {None: "", True: "yes", False: "no"}[way["gets_it"]], way["path"] + asked))
        self._table(("who", "gets it", "way"), rows)
        if bucket["more_ways"]:
            self._say("  and more: raise --limit")

    def print_stream(self, report: Report) -> None:
        """What a stream was compiled to."""
        self._say(f"stream {report['stream']}, subscribed {report['subscribed']}", "bold")
        for number, variant in enumerate(report["variants"], 1):
            self._say(f"\nvariant {number}: bucket {variant['bucket']}, priority {variant['priority']}")
            if variant["if"]:
                self._say(f"  only if {variant['if']}")
            for step, lookup in enumerate(variant["lookups"], 1):
                self._say(f"  lookup {step}, key ({', '.join(lookup['key'])}):")
                self._say("\n".join(f"    {query}" for query in lookup["reads"]))
            self._say(f"  bucket parameters ({', '.join(variant['parameters'])}), rows:")
            self._say("\n".join(f"    {query}" for query in variant["rows"]))

    def print_estimate(self, report: Report) -> None:
        """How much a deployment would hold."""
        columns = ("median", "p99", "max", "greatest")
        self._table(
            ("for each user", "users", *columns), [(name, *_spread(report[key])) for name, key in _QUANTITIES.items()]
        )
        self._table(
            ("rows for each bucket of", "buckets", *columns, "all rows"),
            [(name, *_spread(spread), f"{spread['total']:,}") for name, spread in report["rows_per_bucket"].items()],
        )
        self._say(f"{report['bytes_total']:,} bytes of row data in all buckets together")
        if report["beyond_limit"]:
            users = _counted(report["beyond_limit"], "user")
            self._say(f"the server refuses {users}: more than MAX_BUCKETS ({report['max_buckets']})", "red")
        self._print_errors(report["errors"])

    def _print_errors(self, errors: list[Report]) -> None:
        for error in errors:
            self._say(f"{error['query']} leaves out {_counted(error['rows'], 'row')}: {error['message']}", "yellow")

    def _table(self, columns: Iterable[str], rows: Sequence[tuple[object, ...]]) -> None:
        table = Table(*columns)
        for row in rows:
            table.add_row(*(Text(str(cell)) for cell in row))
        if rows:
            self._console.print(table)

    def _say(self, line: str, style: str = "") -> None:
        self._console.print(line, style=style, markup=False, highlight=False, soft_wrap=True)


def _counted(number: int, what: str) -> str:
    return f"{number:,} {what}" + ("" if number == 1 else "s")


def _spread(spread: Report) -> list[str]:
    return [*(f"{spread[key]:,}" for key in ("count", "median", "p99", "max")), spread["greatest"] or ""]
