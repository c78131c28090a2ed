"""Permission tests for a project's own suite: what do the sync rules give to a user?

They evaluate the project's real rules in this process, over the rows that the test has made, with the claims that the
user's tokens carry. No replicator is needed, nothing is committed: they work in `django.test.TestCase` and under
pytest-django's `db` fixture. docs/howto/testing-permissions.md shows them at work.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import orjson
from django.contrib.auth.base_user import AbstractBaseUser
from django.db import models

from .evaluation import Evaluator, Resolved
from .evaluation.explain import Explainer
from .evaluation.reading import LiveTable, Values
from .sync_rules.plan import RequestParameters, Subscription
from .tokens import user_claims

__all__ = ["assert_matches_queryset", "assert_not_syncs", "assert_syncs", "synced_rows"]

Subscriptions = Mapping[str, Mapping[str, Any]] | Iterable[str | tuple[str, Mapping[str, Any]]]
"""Streams that a device subscribes to: names, with parameters `{"list_todos": {"list": 7}}` or pairs of both."""

SyncedRows = dict[str, dict[str, dict[str, Any]]]
"""Name of the table on the device → id → the row's columns as the device gets them."""

MAX_EXPLAINED = 3  # rows of each kind that a failure explains


def assert_syncs(
    user: AbstractBaseUser,
    obj: models.Model,
    *,
    subscriptions: Subscriptions = (),
    claims: Mapping[str, Any] | None = None,
    **parameters: Any,
) -> None:
    """The user's device gets the object's row: by streams that need no subscription, or by the given subscriptions.

    `parameters` are connection parameters, `claims` what a token made elsewhere would add. The AssertionError says
    in which buckets the row is, and which lookup did not lead there.
    """
    __tracebackhide__ = True
    question = _Question(user, subscriptions, claims, parameters)
    row, resolved = question.evaluator.locate(obj), question.resolved
    if row is None or resolved.problem or not any((p.source, p.parameters) in resolved.buckets for p in row.buckets):
        raise _failure(
            f"{question.who} does not get {_name(obj)}", question.explainer.lines_of_refusal(obj, row, resolved)
        )


def assert_not_syncs(
    user: AbstractBaseUser,
    obj: models.Model,
    *,
    subscriptions: Subscriptions = (),
    claims: Mapping[str, Any] | None = None,
    **parameters: Any,
) -> None:
    """No device of the user can get the object's row, whatever it subscribes to and whatever parameters it sends.

    Subscription and connection parameters are a client's to choose, so those that would lead to the row are looked
    for, and tried. Where rules compute with parameters rather than compare them, give the parameters to be tried.
    """
    __tracebackhide__ = True
    question = _Question(user, subscriptions, claims, parameters)
    explainer, row = question.explainer, question.evaluator.locate(obj)
    if row is None:
        return
    lines = explainer.lines_of_access(row, question.resolved)
    if not lines:
        for path, resolved in explainer.ways_to_ask(row, question.request):
            asked = _shown(path.subscription.parameters, path.parameters("connection"))
            lines = [f"its device has to subscribe to {path.definition.name}{asked}"]
            lines += explainer.lines_of_access(row, resolved)
            break
    if lines:
        raise _failure(f"{question.who} gets {_name(obj)}", lines)


def synced_rows(
    user: AbstractBaseUser,
    *,
    subscriptions: Subscriptions = (),
    claims: Mapping[str, Any] | None = None,
    **parameters: Any,
) -> SyncedRows:
    """Everything that the user's device gets, by the table's name on the device and the row's id.

    `parameters` are connection parameters. Raises AssertionError where the server would refuse the user.
    """
    __tracebackhide__ = True
    question = _Question(user, subscriptions, claims, parameters)
    if question.resolved.problem:
        raise _failure(f"{question.who} gets nothing", [question.resolved.problem])
    found: SyncedRows = {}
    for _, _, row in question.evaluator.rows_of(question.resolved.buckets):
        found.setdefault(row.row_type, {})[row.row_id] = orjson.loads(row.data)
    return found


def assert_matches_queryset(
    user: AbstractBaseUser,
    queryset: models.QuerySet[Any],
    *,
    subscriptions: Subscriptions = (),
    claims: Mapping[str, Any] | None = None,
    **parameters: Any,
) -> None:
    """The user's device gets exactly the queryset's rows of its model's table: no other, and all of them.

    Give the queryset that a view uses for the same user, and both grant the same.
    """
    __tracebackhide__ = True
    question = _Question(user, subscriptions, claims, parameters)
    model = queryset.model
    tables = question.evaluator.reader.tables_of(model)
    if not tables:
        raise _failure(f"no stream reads the table {model._meta.db_table}", [])
    expected = set(queryset.values_list("pk", flat=True))
    synced = set(_primary_keys(question, model, tables))
    lines = []
    for what, keys, explained in (
        ("gets, and is not in the queryset", synced - expected, question.lines_of_access),
        ("lacks, and is in the queryset", expected - synced, question.lines_of_refusal),
    ):
        lines += _differences(what, model, sorted(keys, key=str), explained)
    if lines:
        raise _failure(f"{question.who} does not get what the queryset of {model._meta.label} grants", lines)


class _Question:
    """A user's request, evaluated."""

    def __init__(
        self,
        user: AbstractBaseUser,
        subscriptions: Subscriptions,
        claims: Mapping[str, Any] | None,
        parameters: Mapping[str, Any],
    ) -> None:
        self.evaluator = Evaluator.of_project()
        self.explainer = Explainer(self.evaluator)
        all_claims = {**user_claims(user), **(claims or {})}
        asked = [*_subscriptions(subscriptions, {item.name for item in self.evaluator.plan.definitions})]
        self.request = RequestParameters(all_claims, parameters, asked)
        self.resolved: Resolved = self.evaluator.resolve(self.request)
        self.who = f"{user} (sub {all_claims['sub']!r})"

    def lines_of_access(self, instance: models.Model) -> list[str]:
        row = self.evaluator.locate(instance)
        return self.explainer.lines_of_access(row, self.resolved) if row else []

    def lines_of_refusal(self, instance: models.Model) -> list[str]:
        return self.explainer.lines_of_refusal(instance, self.evaluator.locate(instance), self.resolved)


def _subscriptions(given: Subscriptions, known: Iterable[str]) -> Iterator[Subscription]:
    items = given.items() if isinstance(given, Mapping) else given
    for item in items:
        name, parameters = (item, {}) if isinstance(item, str) else item
        if name not in known:
            near = difflib.get_close_matches(name, [*known], 1)
            raise ValueError(f"there is no stream {name!r}" + (f"; did you mean {near[0]!r}?" if near else ""))
        yield Subscription(name, parameters)


def _primary_keys(question: _Question, model: type[models.Model], tables: list[LiveTable]) -> Iterator[Any]:
    """Primary keys, as the ORM has them, of the rows of tables that a device gets."""
    fields = [*model._meta.pk_fields]

    def key(table: LiveTable, values: Values) -> Any:
        names = [column.name for column in table.columns]
        parts = [field.to_python(values[names.index(str(field.column))]) for field in fields]
        return parts[0] if len(parts) == 1 else tuple(parts)

    if not question.resolved.problem:
        for table, values, _ in question.evaluator.rows_of(question.resolved.buckets, tables):
            yield key(table, values)


def _differences(
    what: str, model: type[models.Model], keys: list[Any], explain: Callable[[models.Model], list[str]]
) -> list[str]:
    lines = [f"{len(keys)} rows that the device {what}:"] if keys else []
    for key in keys[:MAX_EXPLAINED]:
        lines += [f"  {key}", *(f"    {line}" for line in explain(model(pk=key)))]
    if len(keys) > MAX_EXPLAINED:
        lines.append(f"  and {len(keys) - MAX_EXPLAINED} more")
    return lines


def _name(obj: models.Model) -> str:
    return f"{obj._meta.label} {obj.pk}"


def _shown(subscription: Mapping[str, Any], connection: Mapping[str, Any]) -> str:
    parts = [("with", subscription), ("and connect with", connection)]
    return "".join(f" {word} {orjson.dumps(values).decode()}" for word, values in parts if values)


def _failure(title: str, lines: list[str]) -> AssertionError:
    return AssertionError("\n".join([title, *(f"  {line}" for line in lines)]))
