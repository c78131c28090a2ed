"""Columns and values as devices have them, and as serializers read them.

A device's SQLite holds what sync brought there: 0 and 1 for booleans; texts for decimals, dates, UUIDs; JSON and
arrays as JSON text; binary columns as base64 text, since the rules must write `base64(column)`.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Collection, Mapping
from typing import Any

from django.core.exceptions import FieldDoesNotExist
from django.core.exceptions import ValidationError as DjangoValidationError
from django.db import models
from django.utils.translation import gettext as _
from rest_framework import serializers

from ..exceptions import OperationRejected
from ..protocol.crud import CrudOperation, Scalar
from .ids import IdMap, is_made_by_device


class DeviceColumns:
    """Columns, as devices name them, and the serializer's fields that they belong to.

    `reserved` are names of fields that are the server's to set: what a device sends for them is left out, or refused
    (`refuse_reserved`). `key` holds the row's key as far as the operation's id tells it: attname → value.
    """

    def __init__(
        self,
        serializer: Any,
        model: type[models.Model],
        key: Mapping[str, Any],
        *,
        reserved: Collection[str] = (),
        refuse_reserved: bool = False,
        ids: IdMap,
    ) -> None:
        self._fields: Mapping[str, Any] = serializer.fields
        self._model, self._key, self._ids = model, key, ids
        self._reserved, self._refuse_reserved = frozenset(reserved), refuse_reserved
        self._field_of: dict[str, str] = {}
        self._column_of: dict[str, str] = {}
        for name, item in self._fields.items():
            model_field = model_field_of(model, item)
            self._column_of[name] = name if model_field is None else model_field.column
            if model_field is not None:
                self._field_of |= {model_field.column: name, model_field.attname: name}
        self._field_of |= {name: name for name in self._fields}
        self._model_fields = {name: f for f in model._meta.concrete_fields for name in (f.column, f.attname)}

    def to_fields(self, operation: CrudOperation) -> dict[str, Any]:
        """The operation's data by field name, in the types that serializers read. Raises OperationRejected."""
        data: dict[str, Any] = {}
        for column, value in (operation.data or {}).items():
            name = self._field_of.get(column)
            if self._repeats_key(operation, column, value) or self._is_reserved(column, name):
                continue
            if name is None:
                raise OperationRejected("unknown_column", {column: [_("This column cannot be written.")]})
            if name in data or self._is_key(name):
                raise OperationRejected("unknown_column", {column: [_("This column is the row's id or given twice.")]})
            data[name], self._column_of[name] = self._read(name, value), column
        return data

    def to_values(self, columns: Mapping[str, Scalar] | None) -> dict[str, Any]:
        """Previous values, as Python has them, by the names of the serializer's sources; unreadable ones left out."""
        values: dict[str, Any] = {}
        for column, value in (columns or {}).items():
            name = self._field_of.get(column)
            if name is None:
                continue
            item = self._fields[name]
            try:
                read = self._read(name, value)
                values[item.source] = None if read is None else _to_python(item, read)
            except (serializers.ValidationError, DjangoValidationError, OperationRejected, ValueError, TypeError):
                continue
        return values

    def key_fields(self, operation: CrudOperation) -> dict[str, Any]:
        """The row's key, for a serializer that wants it among its fields."""
        found: dict[str, Any] = {}
        for name, item in self._fields.items():
            attribute = _attname(self._model, item)
            if not item.read_only and (item.source == "pk" or attribute in self._key):
                found[name] = operation.id if item.source == "pk" else self._key[str(attribute)]
        return found

    def to_columns(self, errors: Any) -> Any:
        """A serializer's errors, by the names that the device knows."""
        if not isinstance(errors, Mapping):
            return errors
        return {self._column_of.get(name, name): messages for name, messages in errors.items()}

    def _read(self, name: str, value: Scalar) -> Any:
        item = self._fields[name]
        return self._translate_ids(item, from_sqlite(item, value, model_field_of(self._model, item)))

    def _translate_ids(self, item: Any, value: Any) -> Any:
        """Related rows that this device made are meant by its own ids."""
        if isinstance(item, serializers.ManyRelatedField) and isinstance(value, list):
            return [self._translate_ids(item.child_relation, each) for each in value]
        queryset = _related_rows(item)
        if queryset is None or not is_made_by_device(queryset.model, value):
            return value
        key = self._ids.find(queryset.model, str(value))
        return value if key is None else key

    def _repeats_key(self, operation: CrudOperation, column: str, value: Scalar) -> bool:
        field = self._model_fields.get(column)
        if column == "id" or (field is not None and field.primary_key):
            return str(value) == operation.id
        return field is not None and field.attname in self._key and str(self._key[field.attname]) == str(value)

    def _is_reserved(self, column: str, name: str | None) -> bool:
        field = self._model_fields.get(column)
        names = {column, name, field and field.name}
        read_only = name is not None and self._fields[name].read_only and not self._is_key(name)
        if not (read_only or names & self._reserved):
            return False
        if self._refuse_reserved:
            raise OperationRejected("server_column", {column: [_("This column is set by the server.")]})
        return True

    def _is_key(self, name: str) -> bool:
        item = self._fields[name]
        return item.source == "pk" or _attname(self._model, item) in (*self._key, self._model._meta.pk.attname)


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


def from_sqlite(item: serializers.Field[Any, Any, Any, Any], value: Scalar, model_field: Any = None) -> Any:
    """A value from SQLite as `item` reads it. Raises OperationRejected for binary data that is not base64.

    What this does not change, DRF's fields convert themselves.
    """
    if isinstance(model_field, models.BinaryField) and value is not None:
        return _from_base64(item, value)
    if not isinstance(value, str):
        return value
    if isinstance(item, serializers.JSONField):
        return _JsonText(value)
    if isinstance(item, _COMPOSITE_FIELDS):
        try:
            return json.loads(value)
        except ValueError:
            return value
    return value


def model_field_of(model: type[models.Model], item: Any) -> Any:
    """The model's field with a column of its own that a serializer's field writes, if it is one."""
    try:
        found = model._meta.pk if item.source == "pk" else model._meta.get_field(item.source)
    except FieldDoesNotExist:
        return None
    return found if getattr(found, "column", None) and not found.many_to_many else None


def _from_base64(item: Any, value: Scalar) -> bytes:
    try:
        if isinstance(value, str):
            return base64.b64decode("".join(value.split()), validate=True)
        raise ValueError("not a text")
    except ValueError:
        raise OperationRejected("invalid", {item.field_name: [_("This is not base64.")]}) from None


def _to_python(item: Any, value: Any) -> Any:
    """A value as validation would make it, or a related row's key, without looking the row up."""
    queryset = _related_rows(item)
    if queryset is not None:
        return queryset.model._meta.pk.to_python(value)
    return item.to_internal_value(value)


def _related_rows(item: Any) -> Any:
    rows: Any = item
    return rows.queryset if isinstance(item, serializers.PrimaryKeyRelatedField) else None


def _attname(model: type[models.Model], item: Any) -> str | None:
    found = model_field_of(model, item)
    return None if found is None else str(found.attname)
