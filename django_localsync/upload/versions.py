"""What the row was when the device saw it: by its version, or by the previous values of the columns written."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from django.core.exceptions import ValidationError as DjangoValidationError
from django.db import models
from django.utils import timezone

from ..protocol.crud import CrudOperation
from .conflicts import Conflict, changed_by_both, comparable


@dataclass(frozen=True)
class Watch:
    """How a table notices conflicts: see UploadTable's attributes of these names."""

    version_field: str | None
    check_previous: bool

    def find_conflict(
        self, operation: CrudOperation, instance: Any, base: Mapping[str, Any], mine: Mapping[str, Any]
    ) -> Conflict | None:
        """The conflict of a PUT or PATCH that writes `mine` where the device saw `base`, if there is one."""
        outdated = self._is_outdated(operation, instance)
        theirs = {name: current_value(instance, name) for name in mine}
        columns = changed_by_both(mine, theirs, base, without_base=outdated)
        if not (columns and (outdated or self.check_previous)):
            return None
        return Conflict(operation, instance, columns, base, theirs, mine)

    def find_delete_conflict(self, operation: CrudOperation, instance: Any, base: Mapping[str, Any]) -> Conflict | None:
        """The conflict of a DELETE, if there is one: the row is not what the device saw."""
        theirs = {name: current_value(instance, name) for name in base}
        columns = tuple(name for name in base if comparable(theirs[name]) != comparable(base[name]))
        if not (self._is_outdated(operation, instance) or (self.check_previous and columns)):
            return None
        return Conflict(operation, instance, columns, base, theirs, {})

    def next_version(self, instance: Any) -> dict[str, Any]:
        """The attribute to write with a change: a number rises; a timestamp is the model's own business."""
        if self.version_field is None:
            return {}
        field: Any = type(instance)._meta.get_field(self.version_field)
        if not isinstance(field, models.IntegerField):
            return {}
        return {field.attname: (getattr(instance, field.attname) or 0) + 1}

    def _is_outdated(self, operation: CrudOperation, instance: Any) -> bool:
        """Whether the device saw another version than the row has. A device that does not say saw this one."""
        if self.version_field is None:
            return False
        field: Any = type(instance)._meta.get_field(self.version_field)
        old = operation.old or {}
        column = next((name for name in (field.column, field.attname) if name in old), None)
        if column is None:
            return False
        try:
            seen = field.to_python(old[column])
        except DjangoValidationError:
            return True
        if isinstance(seen, datetime.datetime) and timezone.is_naive(seen):
            seen = timezone.make_aware(seen, datetime.UTC)
        return bool(seen != getattr(instance, field.attname))


def current_value(instance: Any, name: str) -> Any:
    """A row's value by the name of a serializer's source, related rows by their keys, without a query."""
    value: Any = instance
    for part in name.split("."):
        field = next((f for f in type(value)._meta.concrete_fields if f.name == part), None) if value else None
        value = getattr(value, field.attname if field is not None else part, None)
    return value
