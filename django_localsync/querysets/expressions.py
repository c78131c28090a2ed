"""`auth`, `connection`, `subscription`: what a QuerySet of a stream may ask of the request.

They are expressions of Django. A stream's QuerySet is never run: it is translated. To run one nevertheless, with the
values of some request, do so inside of `evaluated_for`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from django.contrib.auth import get_user_model
from django.core.exceptions import ImproperlyConfigured
from django.db import models
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models.expressions import Expression
from django.db.models.sql.compiler import SQLCompiler

from ..sync_rules.plan import RequestParameters
from .terms import RequestPart

_request: ContextVar[RequestParameters | None] = ContextVar("localsync_request", default=None)


@contextmanager
def evaluated_for(request: RequestParameters) -> Iterator[None]:
    """Inside of it, QuerySets that ask for values of the request can be run, with those of this one.

    `subscription` means the parameters of its only subscription.
    """
    token = _request.set(request)
    try:
        yield
    finally:
        _request.reset(token)


def user_model() -> type[models.Model]:
    """The project's user model, whose primary keys are the subjects of tokens."""
    return get_user_model()


class AnyJsonField(models.TextField):  # type: ignore[type-arg]
    """A parameter whose type is not known; Python values it is compared with stay as they are."""

    def get_prep_value(self, value: Any) -> Any:
        """The value itself, whatever its type."""
        return value


class RequestExpression(Expression):
    """A value of the request: `part` is auth, connection or subscription; without a name it is the user's id."""

    allowed_default = False

    def __init__(self, part: RequestPart, name: str | None, output_field: models.Field[Any, Any] | None = None) -> None:
        self.part, self.name, self.is_typed = part, name, output_field is not None
        super().__init__(output_field)

    def __repr__(self) -> str:
        return f"{self.part}.user()" if self.name is None else f"{self.part}.parameter({self.name!r})"

    def _resolve_output_field(self) -> models.Field[Any, Any]:
        return AnyJsonField() if self.name is not None else user_model()._meta.pk

    @property
    def identity(self) -> tuple[Any, ...]:
        """What expressions are compared by."""
        return (type(self), self.part, self.name)

    def as_sql(self, compiler: SQLCompiler, connection: BaseDatabaseWrapper) -> tuple[str, tuple[Any, ...]]:
        """The value of the request that `evaluated_for` gives; a list becomes one in parentheses, for IN."""
        request = _request.get()
        if request is None:
            raise ImproperlyConfigured(
                f"{self!r} is known only while a device syncs: a QuerySet of a stream cannot be run, "
                "except inside of django_localsync.querysets.evaluated_for(request)"
            )
        value = self._value(request)
        if not isinstance(value, list | tuple):
            return "%s", (value,)
        return f"({', '.join(['%s'] * len(value)) or 'NULL'})", tuple(value)

    def _value(self, request: RequestParameters) -> Any:
        if self.name is None:
            return user_model()._meta.pk.to_python(request.claims.get("sub"))
        parts: dict[RequestPart, Mapping[str, Any]] = {
            "auth": request.claims,
            "connection": request.connection,
            "subscription": request.subscriptions[0].parameters if request.subscriptions else {},
        }
        found: Any = parts[self.part]
        for step in self.name[2:].split(".") if self.name.startswith("$.") else [self.name]:
            found = found.get(step) if isinstance(found, Mapping) else None
        return found


class _Parameters:
    """The parameters of one part of the request."""

    def __init__(self, part: RequestPart) -> None:
        self._part = part

    def parameter(self, name: str, output_field: models.Field[Any, Any] | None = None) -> RequestExpression:
        """A parameter by its name, or by a path such as `$.a.b`; NULL where it is missing.

        `output_field` is needed to use it as a condition (BooleanField) and in comparisons by order (IntegerField,
        FloatField).
        """
        return RequestExpression(self._part, name, output_field)


class _Auth(_Parameters):
    """The token: only what it says can be trusted."""

    def user(self) -> RequestExpression:
        """The user, by primary key: compare it with foreign keys to the user model, and with its primary key."""
        return RequestExpression("auth", None)


auth = _Auth("auth")
connection = _Parameters("connection")
subscription = _Parameters("subscription")
