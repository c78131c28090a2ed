"""Kinds of values: which columns of Postgres compare in a stream as they do in Postgres, and how constants are written.

docs/reference/wire-protocol.md says which SQLite value each type becomes: dates, times, UUIDs and `numeric` are text.
"""

from __future__ import annotations

import datetime
import decimal
import enum
import math
import re
import uuid
from dataclasses import dataclass
from enum import Enum
from typing import Any

from django.core.exceptions import FieldDoesNotExist
from django.db import models
from django.db.backends.base.base import BaseDatabaseWrapper
from django.utils import timezone

from .errors import NotExpressible
from .terms import Constant, Value

EXACT_DIGITS = 15
"""Most digits of a decimal number that a real keeps (IEEE 754, `DBL_DIG`)."""


class Kind(Enum):
    """How values of a column compare."""

    INTEGER = "an integer"
    REAL = "a real number"
    DECIMAL = "a decimal number"
    BOOLEAN = "a boolean"
    TEXT = "a text"
    UUID = "a UUID"
    DATE = "a date"
    TIMESTAMP = "a date with time"
    TIME = "a time of day"
    PARAMETER = "a parameter of the request"
    OTHER = "a value of another type"

    @property
    def is_number(self) -> bool:
        """Whether it compares with numbers."""
        return self in (Kind.INTEGER, Kind.REAL, Kind.DECIMAL)

    @property
    def is_ordered(self) -> bool:
        """Whether `<` is the order that Postgres has; that of texts depends on the collation."""
        return self not in (Kind.TEXT, Kind.BOOLEAN, Kind.PARAMETER, Kind.OTHER)


@dataclass(frozen=True, slots=True)
class Typed:
    """A value and its kind. `field` is the model field of a column, `why_not` why it cannot be compared."""

    value: Value
    kind: Kind
    field: models.Field[Any, Any] | None = None
    why_not: str | None = None


_KINDS = {
    "smallint": Kind.INTEGER,
    "integer": Kind.INTEGER,
    "bigint": Kind.INTEGER,
    "double precision": Kind.REAL,
    "boolean": Kind.BOOLEAN,
    "text": Kind.TEXT,
    "varchar": Kind.TEXT,
    "uuid": Kind.UUID,
    "date": Kind.DATE,
    "timestamp with time zone": Kind.TIMESTAMP,
    "time": Kind.TIME,
    "numeric": Kind.DECIMAL,
}
# Deterministic ones: texts are equal if their bytes are.
_PLAIN_COLLATIONS = {None, "", "C", "POSIX", "C.UTF-8", "ucs_basic"}


def kind_of(field: models.Field[Any, Any], connection: BaseDatabaseWrapper) -> tuple[Kind, str | None]:
    """The kind of a field's column, and why it cannot be compared if so."""
    db_type = (field.db_type(connection) or "").partition(" COLLATE")[0]
    kind = _KINDS.get(db_type) or _KINDS.get(db_type.partition("(")[0], Kind.OTHER)
    final = final_target(field)
    if kind is Kind.DECIMAL and (getattr(final, "max_digits", None) or EXACT_DIGITS + 1) > EXACT_DIGITS:
        return Kind.OTHER, f"numbers of more than {EXACT_DIGITS} digits are not compared exactly"
    if kind is Kind.TEXT and (collation := getattr(final, "db_collation", None)) not in _PLAIN_COLLATIONS:
        return Kind.OTHER, f"texts of the collation {collation!r} may be equal without being the same"
    return kind, f"values of the type {db_type} cannot be compared" if kind is Kind.OTHER else None


def final_target(field: models.Field[Any, Any]) -> models.Field[Any, Any]:
    """The field whose values a foreign key holds; the field itself if it is none."""
    while field.is_relation:
        try:
            target = field.target_field  # type: ignore[attr-defined]
        except (FieldDoesNotExist, AttributeError):
            return field
        field = target
    return field


def constant(value: Any) -> Typed:
    """A Python value as a constant. Raises NotExpressible for values that streams do not have."""
    if isinstance(value, enum.Enum):
        value = value.value
    found = _constant(value)
    if found is None:
        hint = "compare with a text, number, boolean, date, time or UUID"
        raise NotExpressible(f"a value of type {type(value).__name__} cannot be compared", hint)
    return found


def _constant(value: Any) -> Typed | None:
    match value:
        case None:
            return Typed(Constant(None), Kind.OTHER)
        case bool():
            return Typed(Constant(value), Kind.BOOLEAN)
        case int():
            return Typed(Constant(int(value)), Kind.INTEGER)
        case float() if math.isfinite(value):
            return Typed(Constant(float(value)), Kind.REAL)
        case decimal.Decimal() if value.is_finite() and len(value.normalize().as_tuple().digits) <= EXACT_DIGITS:
            whole = value == value.to_integral_value() and abs(value) < 10**EXACT_DIGITS
            return Typed(Constant(int(value) if whole else float(value)), Kind.DECIMAL)
        case str():
            return Typed(Constant(str(value)), Kind.TEXT)
        case uuid.UUID():
            return Typed(Constant(str(value)), Kind.UUID)
        case datetime.datetime():
            return Typed(Constant(_timestamp(value)), Kind.TIMESTAMP)
        case datetime.date():
            return Typed(Constant(value.isoformat()), Kind.DATE)
        case datetime.time() if value.tzinfo is None:
            return Typed(Constant(value.isoformat(timespec="microseconds")), Kind.TIME)
    return None


def _timestamp(value: datetime.datetime) -> str:
    """As replication writes `timestamptz`: UTC with six digits, so that the order of texts is that of times."""
    aware = timezone.make_aware(value) if timezone.is_naive(value) else value
    utc = aware.astimezone(datetime.UTC).replace(tzinfo=None)
    return f"{utc.isoformat(timespec='microseconds')}Z"


_NUMERIC_TEXT = re.compile(r"\s*[-+]?[\d.]")


def looks_like_a_number(value: object) -> bool:
    """Whether a text might also be the text of a number."""
    return isinstance(value, str) and _NUMERIC_TEXT.match(value) is not None
