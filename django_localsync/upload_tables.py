"""A table that devices write to: its rows, who may write them, and the serializer that checks and saves them.

In the manner of DRF's generic views, with the same names, and without HTTP: an operation of a device takes the place
of the request. Serializers and permission classes of an existing API work as they are.
"""

from __future__ import annotations

import copy
import datetime
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from django.core.exceptions import FieldDoesNotExist
from django.core.exceptions import ValidationError as DjangoValidationError
from django.db import models, router
from django.utils import timezone
from django.utils.translation import gettext as _
from rest_framework import serializers
from rest_framework.exceptions import PermissionDenied
from rest_framework.permissions import BasePermission

from .exceptions import ConfigurationError, OperationRejected
from .protocol.crud import CrudOperation, Op, Scalar

MISSING_ROW = "missing_row"
"""The remark on a PATCH or DELETE that found no row: it is applied, and changed nothing."""

_METHODS = {"create": "POST", "update": "PUT", "partial_update": "PATCH", "destroy": "DELETE"}
_ACTIONS = {Op.PUT: "update", Op.PATCH: "partial_update", Op.DELETE: "destroy"}


@dataclass(frozen=True)
class OperationRequest:
    """What serializers and permission classes get as `request`: who writes, and what."""

    user: Any
    method: str
    data: Mapping[str, Any]
    auth: Any = None
    query_params: Mapping[str, str] = field(default_factory=dict)


class UploadTable:
    """Rows that devices may write. Give the three attributes as keywords, or make a subclass.

    `get_queryset()` is the rows that the user may write: a row outside it is refused before a write, and a write
    that would leave its row outside is refused too, so that nobody can put a row where they may not write. The
    permission classes are asked before each operation, and about the object before and after a write.

    While an operation runs there are `operation`, `user`, `request`, `action` ("create", "update",
    "partial_update", "destroy"), `model` and `using`, the alias written to.
    """

    queryset: models.QuerySet[Any] | None = None
    serializer_class: type[serializers.Serializer[Any]] | None = None
    permission_classes: Sequence[type[BasePermission]] | None = None

    operation: CrudOperation
    model: type[models.Model]
    user: Any
    using: str
    request: OperationRequest
    action: str

    def __init__(self, **attributes: Any) -> None:
        for name, value in attributes.items():
            if not hasattr(type(self), name):
                raise TypeError(f"{type(self).__name__} has no attribute {name!r}")
            setattr(self, name, value)
        if self.permission_classes is None:
            raise ConfigurationError(
                f"{type(self).__name__} must name its permission_classes; "
                "[IsAuthenticated] lets every user write the rows of get_queryset()"
            )

    def bind(self, operation: CrudOperation, user: Any, using: str) -> Self:
        """This table, about to apply `operation` for `user`."""
        bound = copy.copy(self)
        bound.operation, bound.user, bound.using = operation, user, using
        bound._set_action(_ACTIONS[operation.op])
        bound.model = bound.get_queryset().model
        written = router.db_for_write(bound.model)
        if written != using:
            raise ConfigurationError(
                f"table {operation.type!r} is written to database {written!r}, its handler to {using!r}: "
                "set `using` of the handler; one handler writes to one database"
            )
        return bound

    # What a subclass may override, named as in DRF.

    def get_queryset(self) -> models.QuerySet[Any]:
        """The rows that `self.user` may write."""
        if self.queryset is None:
            raise ConfigurationError(f"{type(self).__name__} needs a queryset, or its own get_queryset()")
        return self.queryset.all()

    def get_serializer_class(self) -> type[serializers.Serializer[Any]]:
        """The serializer that checks and saves a row."""
        if self.serializer_class is None:
            raise ConfigurationError(f"{type(self).__name__} needs a serializer_class")
        return self.serializer_class

    def get_serializer_context(self) -> dict[str, Any]:
        """What the serializer gets as its context; `request.user` is the user who writes."""
        return {"request": self.request, "view": self, "format": None}

    def get_permissions(self) -> list[BasePermission]:
        """The permissions to ask."""
        return [permission() for permission in self.permission_classes or ()]

    def perform_create(self, serializer: serializers.Serializer[Any]) -> None:
        """Save a new row; `serializer.save(owner=self.user)` sets fields that the device may not."""
        serializer.save()

    def perform_update(self, serializer: serializers.Serializer[Any]) -> None:
        """Save a changed row."""
        serializer.save()

    def perform_destroy(self, instance: Any) -> None:
        """Delete a row."""
        instance.delete()

    # Operations.

    def put(self) -> str | None:
        """Create the row or replace it: a column that the device does not send is null or has its default."""
        instance = self._find()
        if instance is None:
            self._set_action("create")
        self._check(instance)
        serializer = self._serializer(instance)
        if instance is None:
            self._check_key_may_be_given()
            serializer.validated_data[self.model._meta.pk.attname] = self.key
            self.perform_create(serializer)
        else:
            self._reset_absent_fields(serializer)
            self.perform_update(serializer)
        self._check_written()
        return None

    def patch(self) -> str | None:
        """Change the columns that the device sends. A row that is gone stays gone: deletion wins."""
        instance = self._find()
        self._check(instance)
        if instance is None:
            return MISSING_ROW
        serializer = self._serializer(instance, partial=True)
        self.perform_update(serializer)
        self._check_written()
        return None

    def delete(self) -> str | None:
        """Delete the row, if it is still there."""
        instance = self._find()
        self._check(instance)
        if instance is None:
            return MISSING_ROW
        self.perform_destroy(instance)
        return None

    # Rows and permissions.

    @property
    def key(self) -> Any:
        """The operation's row id as a value of the primary key. Raises OperationRejected when it cannot be one."""
        primary_key = self.model._meta.pk
        try:
            if "\0" in self.operation.id:
                raise DjangoValidationError(_("Null characters are not allowed."))
            value = primary_key.to_python(self.operation.id)
            primary_key.run_validators(value)
        except DjangoValidationError as error:
            raise OperationRejected("invalid_id", {"id": error.messages}) from None
        return value

    def check_permissions(self) -> None:
        """Ask every permission about the operation as such. Raises PermissionDenied."""
        for permission in self.get_permissions():
            _require(permission, permission.has_permission(self.request, self))  # type: ignore[arg-type]

    def check_object_permissions(self, instance: Any) -> None:
        """Ask every permission about a row. Raises PermissionDenied."""
        for permission in self.get_permissions():
            _require(permission, permission.has_object_permission(self.request, self, instance))  # type: ignore[arg-type]

    def _find(self) -> Any:
        """The row as it is now, locked until the transaction ends, so that no other write is lost; None if missing.

        The lock is a query of its own because a queryset of permitted rows is often DISTINCT.
        """
        key = self.key
        rows = self.model._base_manager.using(self.using).filter(pk=key)
        if not list(rows.select_for_update(no_key=True).values_list("pk", flat=True)):
            return None
        instance = self._permitted(key)
        if instance is None:
            raise PermissionDenied()
        return instance

    def _permitted(self, key: Any) -> Any:
        return self.get_queryset().using(self.using).filter(pk=key).first()

    def _set_action(self, action: str) -> None:
        self.action = action
        self.request = OperationRequest(self.user, _METHODS[action], self.operation.data or {})

    def _check(self, instance: Any) -> None:
        self.check_permissions()
        if instance is not None:
            self.check_object_permissions(instance)

    def _check_written(self) -> None:
        permitted = self._permitted(self.key)
        if permitted is None:
            raise PermissionDenied()
        self.check_object_permissions(permitted)

    def _check_key_may_be_given(self) -> None:
        if isinstance(self.model._meta.pk, models.AutoField):
            message = _("Rows of this table get their id from the server and cannot be created on a device.")
            raise OperationRejected("invalid_id", {"id": [message]})

    # Values.

    def _serializer(self, instance: Any, partial: bool = False) -> Any:
        """A serializer that has found the operation's columns valid. Raises OperationRejected otherwise."""
        serializer: Any = self.get_serializer_class()(
            instance, data={}, partial=partial, context=self.get_serializer_context()
        )
        names = _DeviceNames(serializer, self.model)
        data = names.to_fields(self.operation)
        if not partial:
            data = {**_nulls(serializer), **data, **names.key_field(self.operation)}
        serializer.initial_data = data
        # A text without a zone means UTC, as SQLite's datetime('now') makes it.
        with timezone.override(datetime.UTC):
            valid = serializer.is_valid()
        if not valid:
            raise OperationRejected("invalid", names.to_columns(serializer.errors))
        return serializer

    def _reset_absent_fields(self, serializer: Any) -> None:
        validated = serializer.validated_data
        for item in serializer.fields.values():
            model_field = _model_field(self.model, item)
            absent = item.source not in validated and not item.read_only
            if absent and model_field is not None and not model_field.primary_key:
                validated[model_field.attname] = model_field.get_default()


class _DeviceNames:
    """Columns, as devices name them, and the serializer's fields that they belong to."""

    def __init__(self, serializer: Any, model: type[models.Model]) -> None:
        self._serializer, self._key = serializer, model._meta.pk
        self._field_of: dict[str, str] = {}
        self._column_of: dict[str, str] = {}
        for name, item in serializer.fields.items():
            model_field = _model_field(model, item)
            column = model_field.column if model_field is not None else name
            self._column_of[name] = column
            self._field_of.update({column: name, **({model_field.attname: name} if model_field is not None else {})})
        self._field_of.update({name: name for name in serializer.fields})

    def to_fields(self, operation: CrudOperation) -> dict[str, Any]:
        """The operation's data by field name, in the types that serializers read."""
        data: dict[str, Any] = {}
        for column, value in (operation.data or {}).items():
            name = self._field_of.get(column)
            if column in (self._key.column, self._key.attname) and str(value) == operation.id:
                continue
            if name is None:
                raise OperationRejected("unknown_column", {column: [_("This column cannot be written.")]})
            if name in data or self._is_key(name):
                raise OperationRejected("unknown_column", {column: [_("This column is the row's id or given twice.")]})
            data[name], self._column_of[name] = from_sqlite(self._serializer.fields[name], value), column
        return data

    def key_field(self, operation: CrudOperation) -> dict[str, Any]:
        """The row's id, for a serializer that wants it as a field."""
        return {name: operation.id for name in self._serializer.fields if self._is_key(name)}

    def to_columns(self, errors: Mapping[str, Any]) -> dict[str, Any]:
        """A serializer's errors, by the names that the device knows."""
        return {self._column_of.get(name, name): messages for name, messages in errors.items()}

    def _is_key(self, name: str) -> bool:
        return self._serializer.fields[name].source in (self._key.name, self._key.attname, "pk")


class _JsonText(str):
    """A text that DRF's JSONField parses, as it does for forms."""

    is_json_string = True


_COMPOSITE_FIELDS = (
    serializers.ListField,
    serializers.DictField,
    serializers.MultipleChoiceField,
    serializers.ManyRelatedField,
    serializers.BaseSerializer,
)


def from_sqlite(item: serializers.Field[Any, Any, Any, Any], value: Scalar) -> Any:
    """A value from SQLite as `item` reads it: JSON and arrays are texts there. The rest DRF converts itself."""
    if isinstance(value, str) and isinstance(item, serializers.JSONField):
        return _JsonText(value)
    if isinstance(value, str) and isinstance(item, _COMPOSITE_FIELDS):
        try:
            return json.loads(value)
        except ValueError:
            return value
    return value


def _nulls(serializer: Any) -> dict[str, None]:
    """Devices leave nulls out of a PUT; fields that must be given, and may be null, were given as null."""
    return {name: None for name, item in serializer.fields.items() if item.required and item.allow_null}


def _model_field(model: type[models.Model], item: Any) -> Any:
    try:
        found = model._meta.pk if item.source == "pk" else model._meta.get_field(item.source)
    except FieldDoesNotExist:
        return None
    return found if found.concrete and not found.many_to_many else None


def _require(permission: BasePermission, granted: bool) -> None:
    if not granted:
        raise PermissionDenied(getattr(permission, "message", None))
