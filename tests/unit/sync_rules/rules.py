"""Rows of SQLite values through the real evaluator: each value becomes a column of a type that gives it back."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from typing import Any

from django_localsync.pgoutput.values import PgType
from django_localsync.sync_rules.plan import (
    BucketRow,
    Column,
    LookupKey,
    LookupRow,
    Plan,
    RequestParameters,
    Resolution,
    Subscription,
    TableName,
)


def column(name: str, value: Mapping[str, Any]) -> tuple[Column, str | None]:
    """A column and its text for a value of the vectors."""
    ((kind, content),) = value.items()
    match kind:
        case "null":
            return Column(name, PgType.named("text")), None
        case "int":
            return Column(name, PgType.named("int8")), str(content)
        case "real":
            return Column(name, PgType.named("float8")), str(content)
        case "text":
            return Column(name, PgType.named("text")), content
        case "blob":
            return Column(name, PgType.named("bytea")), "\\x" + content
    raise AssertionError(f"unknown kind of value {kind}")


def evaluate(
    plan: Plan, table: str, record: Mapping[str, Mapping[str, Any]], schema: str = "public"
) -> tuple[list[BucketRow], list[LookupRow], list[str]]:
    """What one row of a table gives: buckets, lookups, and the errors that were reported."""
    errors: list[str] = []
    columns = [column(name, value) for name, value in record.items()]
    evaluator = plan.row_evaluator(
        TableName(schema, table), [item for item, _ in columns], lambda name, message: errors.append(message)
    )
    buckets, lookups = evaluator([text for _, text in columns])
    return buckets, lookups, errors


class Index:
    """The parameter index in memory."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._entries: dict[LookupKey, list[str]] = {}
        self.stages: list[Sequence[LookupKey]] = []

    def add(self, table: str, record: Mapping[str, Mapping[str, Any]]) -> None:
        """Index a row."""
        for row in evaluate(self._plan, table, record)[1]:
            self._entries.setdefault(LookupKey(row.source, row.key), []).append(row.outputs)

    def resolve(self, request: RequestParameters) -> Resolution:
        """Run a request to its end."""
        running = self._run(request)
        while True:
            try:
                self.stages.append(next(running))
            except StopIteration as stop:
                resolution: Resolution = stop.value
                return resolution

    def _run(self, request: RequestParameters) -> Generator[Sequence[LookupKey], None, Resolution]:
        """Resolve, answering each stage, and yield the keys it asked."""
        resolving = self._plan.resolve(request)
        try:
            keys = next(resolving)
            while True:
                yield keys
                keys = resolving.send({key: self._entries[key] for key in keys if key in self._entries})
        except StopIteration as stop:
            return stop.value


def request_of(vector: Mapping[str, Any]) -> RequestParameters:
    """A request as the vectors write it."""
    streams = vector.get("streams", {})
    subscriptions = [
        Subscription(item["stream"], item["parameters"] or {}, item["override_priority"])
        for item in streams.get("subscriptions", [])
    ]
    return RequestParameters(
        vector["jwt"], vector.get("parameters", {}), subscriptions, streams.get("include_defaults", True)
    )
