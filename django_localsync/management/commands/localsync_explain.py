"""`manage.py localsync_explain`: who gets what and why, from the live tables."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict
from typing import IO, Any, Self, cast

from django.apps import apps
from django.contrib.auth import get_user_model
from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import models
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
from rich.progress import Progress as Bar

from ...evaluation import Evaluator, compile_project_rules
from ...evaluation.estimate import estimate
from ...evaluation.printing import Printer
from ...evaluation.reading import LiveTable
from ...evaluation.reports import claims_of, errors_report, row_report, stream_report, user_report
from ...exceptions import ConfigurationError
from ...sync_rules.plan import RequestParameters, Subscription
from ...tokens import user_claims

PIPE_WIDTH = 200  # columns, where no terminal says its own

EPILOG = """\
It evaluates the rules of the settings over the tables as they are now; it needs no replicator and changes nothing.

examples:
  manage.py localsync_explain --user 7
      the buckets of user 7's devices, how many rows they hold, and which rows of which tables lead to them
  manage.py localsync_explain --user 7 --subscribe 'one_list:{"list": 12}' --param region=north
      the same for a device that subscribes to a stream and connects with a parameter
  manage.py localsync_explain --row shop.Order:1234
      the buckets that hold the order, and on which ways users reach them
  manage.py localsync_explain --row shop.Order:1234 --user 7
      also: does user 7 get it, and why (not)
  manage.py localsync_explain --stream shared_lists
      what the stream was compiled to: lookups, bucket parameters, rows
  manage.py localsync_explain --estimate
      buckets and rows for each user, rows for each bucket: before you deploy
"""


class Command(BaseCommand):
    """Explains what the sync rules grant."""

    help = "Explain who gets what by the sync rules, and why; or estimate how many buckets and rows they make."

    def create_parser(self, prog_name: str, subcommand: str, **kwargs: Any) -> CommandParser:
        """Keep the lines of the examples."""
        kwargs.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        return super().create_parser(prog_name, subcommand, epilog=EPILOG, **kwargs)

    def add_arguments(self, parser: CommandParser) -> None:
        """Four questions, and what a device says of itself."""
        parser.add_argument("--user", metavar="ID", help="primary key of a user (or `sub` of a token made elsewhere)")
        parser.add_argument("--row", metavar="APP.MODEL:PK", help="a row, by model and primary key")
        parser.add_argument("--stream", metavar="NAME", help="a stream or bucket definition")
        parser.add_argument("--estimate", action="store_true", help="count buckets and rows of all active users")
        parser.add_argument("--param", metavar="K=V", action="append", default=[], help="a connection parameter")
        parser.add_argument(
            "--subscribe",
            metavar="STREAM[:JSON]",
            action="append",
            default=[],
            help="a subscription with its parameters as a JSON object",
        )
        parser.add_argument("--limit", type=int, default=20, metavar="N", help="most ways shown for a bucket (20)")
        parser.add_argument("--json", action="store_true", help="print JSON instead of tables")

    def handle(self, *args: Any, **options: Any) -> None:
        """Answer one question."""
        asked = [name for name in ("row", "user", "stream", "estimate") if options[name]]
        if not asked or (len(asked) > 1 and asked != ["row", "user"]):
            raise CommandError("ask one question: --user, --row (also with --user), --stream or --estimate; see --help")
        try:
            report = getattr(self, f"_{asked[0]}")(options)
        except ConfigurationError as error:
            raise CommandError(f"{error}; see: manage.py check") from error
        if options["json"]:
            self.stdout.write(json.dumps(report, indent=2, ensure_ascii=False, default=str))
        else:
            getattr(Printer(self._console(options)), f"print_{asked[0]}")(report)

    def _console(self, options: dict[str, Any]) -> Console:
        """Our output, without line breaks of its own where no terminal limits it."""
        output = cast("IO[str]", self.stdout)
        return Console(
            file=output,
            width=None if output.isatty() else PIPE_WIDTH,
            no_color=True if options["no_color"] else None,
            force_terminal=True if options["force_color"] else None,
        )

    # Questions

    def _user(self, options: dict[str, Any]) -> dict[str, Any]:
        return user_report(Evaluator.of_project(), _request(options, claims_of(options["user"])))

    def _row(self, options: dict[str, Any]) -> dict[str, Any]:
        instance = _instance(options["row"])
        request = _request(options, claims_of(options["user"])) if options["user"] else None
        return row_report(Evaluator.of_project(), instance, request, max_ways=options["limit"])

    def _stream(self, options: dict[str, Any]) -> dict[str, Any]:
        plan = compile_project_rules().plan
        _known_stream(options["stream"])
        return stream_report(plan, options["stream"])

    def _estimate(self, options: dict[str, Any]) -> dict[str, Any]:
        with _Progress() as progress:
            evaluator = Evaluator.of_project(on_rows=progress.on_rows)
            found = estimate(evaluator, lambda: _all_requests(options), progress.on_users)
        return {**asdict(found), "errors": errors_report(evaluator)}


def _request(options: dict[str, Any], claims: dict[str, Any]) -> RequestParameters:
    parameters = dict(_parameter(text) for text in options["param"])
    return RequestParameters(claims, parameters, [_subscription(text) for text in options["subscribe"]])


def _parameter(text: str) -> tuple[str, Any]:
    """`k=v`: JSON where it is some, else text."""
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise CommandError(f"--param {text}: write name=value")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def _subscription(text: str) -> Subscription:
    name, _, encoded = text.partition(":")
    _known_stream(name)
    try:
        parameters = json.loads(encoded or "{}")
    except ValueError as error:
        raise CommandError(f"--subscribe {text}: the parameters are not JSON: {error}") from error
    if not isinstance(parameters, dict):
        raise CommandError(f"--subscribe {text}: the parameters must be a JSON object")
    return Subscription(name, parameters)


def _known_stream(name: str) -> None:
    known = [definition.name for definition in compile_project_rules().plan.definitions]
    if name not in known:
        raise CommandError(f"there is no stream {name!r}; the rules have {', '.join(known) or 'none'}")


def _instance(text: str) -> models.Model:
    label, colon, key = text.partition(":")
    try:
        model = apps.get_model(label)
    except (LookupError, ValueError) as error:
        raise CommandError(f"--row {text}: {error}; write app.Model:primary-key") from error
    if not colon or not key:
        raise CommandError(f"--row {text}: write app.Model:primary-key")
    try:
        fields = [*model._meta.pk_fields]
        parts = [key] if len(fields) == 1 else json.loads(key)
        values = [field.to_python(part) for field, part in zip(fields, parts, strict=True)]
    except Exception as error:
        raise CommandError(f"--row {text}: {key!r} is no primary key of {model._meta.label}") from error
    instance: models.Model = model(pk=values[0] if len(values) == 1 else tuple(values))
    return instance


def _all_requests(options: dict[str, Any]) -> Iterator[RequestParameters]:
    """What a device of each active user asks."""
    for user in get_user_model()._default_manager.order_by("pk").iterator(chunk_size=2000):
        if user.is_active:
            yield _request(options, user_claims(user))


class _Progress:
    """How far an estimate is, on a terminal; nothing elsewhere."""

    def __init__(self) -> None:
        self._bar = Bar(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            console=Console(stderr=True),
            disable=not sys.stderr.isatty(),
        )
        self._task = self._bar.add_task("reading", total=None)
        self._table: LiveTable | None = None

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.stop()

    def on_rows(self, table: LiveTable, rows: int) -> None:
        if table is not self._table:
            self._table = table
            total = table.estimated_rows or None
            self._bar.reset(self._task, description=f"reading {table.name}", total=total)
        self._bar.advance(self._task, rows)

    def on_users(self, users: int) -> None:
        self._bar.update(self._task, description="asking for users", completed=users, total=None)
