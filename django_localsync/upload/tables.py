"""A table that devices write to: its rows, who may write them, and the serializer that checks and saves them.

In the manner of DRF's generic views, with the same names, and without HTTP: an operation of a device takes the place
of the request. Serializers and permission classes of an existing API work as they are.
"""

from __future__ import annotations

import copy
import datetime
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, Self, cast

from django.db import models, router
from django.utils import timezone
from django.utils.translation import gettext as _
from rest_framework import serializers
from rest_framework.exceptions import PermissionDenied
from rest_framework.permissions import BasePermission

from ..exceptions import ConfigurationError, OperationRejected
from ..protocol.crud import CrudOperation, Op
from ..upload_models import Rejection
from .conflicts import Conflict
from .context import OperationRequest, UploadContext, resolve
from .ids import is_counted
from .keys import find_lookup, key_attributes, key_fields
from .values import DeviceColumns, model_field_of
from .versions import Watch

MISSING_ROW = "missing_row"
"""The remark on a PATCH or DELETE that found no row: it is applied, and changed nothing."""
CONFLICT = "conflict"
"""The remark on an operation that met newer values, whatever became of it: the journal has both."""

_METHODS = {"create": "POST", "update": "PUT", "partial_update": "PATCH", "destroy": "DELETE"}
_ACTIONS = {Op.PUT: "update", Op.PATCH: "partial_update", Op.DELETE: "destroy"}


class UploadTable:
    """Rows that devices may write. Give the attributes as keywords, or make a subclass.

    `get_queryset()` is the rows that the user may write: a row outside it is refused before a write, and a write
    that would leave its row outside is refused too, so that nobody can put a row where they may not write. The
    permission classes are asked before each operation, and about the object before and after a write. A foreign key
    to a table that devices write as well must name a row that the user may write there.

    While an operation runs there are `operation`, `user`, `request`, `action` ("create", "update",
    "partial_update", "destroy"), `model`, `using`, the alias written to, and `context`. Hooks may be coroutine
    functions.
    """

    queryset: models.QuerySet[Any] | None = None
    serializer_class: type[serializers.Serializer[Any]] | None = None
    permission_classes: Sequence[type[BasePermission]] | None = None
    fields: Sequence[str] | None = None
    """What devices may write: all of the serializer's fields, or these; without a serializer class one is made."""
    owner_field: str | None = None
    """The field that is set to the user who creates a row, whatever the device says."""
    refuse_server_columns: bool = False
    """Whether what a device sends for a column of the server's rejects the write, instead of being left out."""
    parents: Sequence[str] | None = None
    """Fields whose row must be one that the user may write; by default all that refer to tables of the handler."""
    lookup_field: str | tuple[str, ...] = "pk"
    """What the id of a device's row is compared with; several fields for a key of several columns."""
    id_separator: str = "/"
    """What stands between the values in the id of a row with a key of several columns."""
    version_field: str | None = None
    """A field that changes with every change: a device that saw another value has a conflict."""
    check_previous: bool = False
    """Whether a column whose previous value on the device is not the row's has a conflict."""

    operation: CrudOperation
    model: type[models.Model]
    user: Any
    using: str
    request: Any
    action: str
    context: UploadContext
    _rows_before: models.QuerySet[Any]

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

    def bind(self, operation: CrudOperation, context: UploadContext, action: str | None = None) -> Self:
        """This table, about to apply `operation`."""
        bound = copy.copy(self)
        bound.operation, bound.context, bound.user, bound.using = operation, context, context.user, context.using
        bound.set_action(action or _ACTIONS[operation.op])
        bound._rows_before = bound.get_queryset().using(context.using)
        bound.model = bound._rows_before.model
        written = router.db_for_write(bound.model)
        if written != bound.using:
            raise ConfigurationError(
                f"table {operation.type!r} is written to database {written!r}, its handler to {bound.using!r}: "
                "set `using` of the handler; one handler writes to one database"
            )
        return bound

    def apply(self) -> str | None:
        """Apply the operation; a returned text is a remark for the device."""
        match self.operation.op:
            case Op.PUT:
                return self.put()
            case Op.PATCH:
                return self.patch()
            case Op.DELETE:
                return self.delete()

    def names_model(self, model: type[models.Model]) -> bool:
        """Whether this table is made for `model`, as far as its attributes say."""
        if self.queryset is not None:
            return self.queryset.model is model
        return getattr(getattr(self.serializer_class, "Meta", None), "model", None) is model

    # What a subclass may override, named as in DRF.

    def get_queryset(self) -> models.QuerySet[Any]:
        """The rows that `self.user` may write."""
        if self.queryset is None:
            raise ConfigurationError(f"{type(self).__name__} needs a queryset, or its own get_queryset()")
        return self.queryset.all()

    def get_serializer_class(self) -> type[serializers.Serializer[Any]]:
        """The serializer that checks and saves a row."""
        if self.serializer_class is not None:
            return self.serializer_class
        if self.fields is None:
            raise ConfigurationError(f"{type(self).__name__} needs a serializer_class, or the fields to make one of")
        return _make_serializer(self.model, tuple(self.fields))

    def get_serializer_context(self) -> dict[str, Any]:
        """What the serializer gets as its context; `request.user` is the user who writes."""
        return {"request": self.request, "view": self, "format": None}

    def get_permissions(self) -> list[BasePermission]:
        """The permissions to ask."""
        return [permission() for permission in self.permission_classes or ()]

    def get_lookup(self) -> dict[str, Any]:
        """Which row the operation's id means, as arguments of `filter()`. Raises OperationRejected if it cannot be one.

        Empty for an id that the device made and the server has not met.
        """
        return find_lookup(self.model, self.lookup_field, self.id_separator, self.operation.id, self.context.ids)

    def perform_create(self, serializer: serializers.Serializer[Any]) -> Any:
        """Save a new row; `serializer.save(owner=self.user)` sets fields that the device may not."""
        serializer.save(**({self.owner_field: self.user} if self.owner_field else {}))

    def perform_update(self, serializer: serializers.Serializer[Any]) -> Any:
        """Save a changed row."""
        serializer.save()

    def perform_destroy(self, instance: Any) -> Any:
        """Delete a row."""
        instance.delete()

    def on_conflict(self, conflict: Conflict) -> Any:
        """What to write where a device's values meet newer ones: field → value, or None to keep what is there.

        By default the last write wins: `conflict.mine`. `{**conflict.mine, "title": …}` merges. Raise
        OperationRejected to reject. For a DELETE, None keeps the row.
        """
        return conflict.mine

    def on_missing_row(self) -> str | None:
        """A PATCH or DELETE found no row. By default it is applied, and changes nothing: deletion wins.

        But a change to a row whose creation was rejected is rejected as well: a retry of both must find it.
        """
        if self.operation.op is Op.PATCH and self._was_rejected():
            raise OperationRejected("row_rejected", _("The creation of this row was rejected."))
        return MISSING_ROW

    # Operations.

    def put(self) -> str | None:
        """Create the row or replace it: a column that the device does not send is null or has its default."""
        lookup = self.get_lookup()
        if not lookup or not self._lock(lookup):
            return self._create(lookup)
        return self._update(self._permitted(lookup), partial=False)

    def patch(self) -> str | None:
        """Change the columns that the device sends. A row that is gone stays gone: deletion wins."""
        instance = self._find()
        if instance is None:
            self.check_permissions()
            return self.on_missing_row()
        return self._update(instance, partial=True)

    def delete(self) -> str | None:
        """Delete the row, if it is still there."""
        instance = self._find()
        self._check(instance)
        if instance is None:
            return self.on_missing_row()
        conflict = self._delete_conflict(instance)
        if conflict is not None and self._settle(conflict) is None:
            return CONFLICT
        resolve(self.perform_destroy(instance))
        return None if conflict is None else CONFLICT

    def _create(self, lookup: dict[str, Any]) -> str | None:
        self.set_action("create")
        self._check(None)
        self._check_key_may_be_given(lookup)
        serializer = self._serializer(None, lookup)
        serializer.validated_data.update(key_attributes(self.model, lookup))
        resolve(self.perform_create(serializer))
        if not lookup:
            self._remember_key(serializer.instance)
        self._check_written(serializer.instance, lookup)
        return None

    def _update(self, instance: Any, partial: bool) -> str | None:
        self._check(instance)
        serializer = self._serializer(instance, self._key_of(instance), partial=partial)
        conflict = self._conflict(serializer)
        if conflict is not None:
            written = self._settle(conflict)
            if written is None:
                return CONFLICT
            serializer.validated_data.clear()
            serializer.validated_data.update(written)
        if not partial:
            self._reset_absent_fields(serializer)
        serializer.validated_data.update(self._watch.next_version(instance))
        resolve(self.perform_update(serializer))
        self._check_written(instance, {"pk": instance.pk})
        return None if conflict is None else CONFLICT

    # Rows and permissions.

    @property
    def key(self) -> Any:
        """The primary key of the operation's row. Raises OperationRejected if its id cannot be one; None if unmet."""
        lookup = self.get_lookup()
        return lookup.get("pk") if "pk" in lookup or not lookup else self._permitted(lookup).pk

    def check_permissions(self) -> None:
        """Ask every permission about the operation as such. Raises PermissionDenied."""
        for permission in self.get_permissions():
            _require(permission, permission.has_permission(self.request, cast("Any", self)))

    def check_object_permissions(self, instance: Any) -> None:
        """Ask every permission about a row. Raises PermissionDenied."""
        for permission in self.get_permissions():
            _require(permission, permission.has_object_permission(self.request, cast("Any", self), instance))

    def set_action(self, action: str) -> None:
        """Say what the operation turns out to do."""
        self.action = action
        self.request = OperationRequest(self.user, _METHODS[action], self.operation.data or {})

    def _find(self) -> Any:
        """The row as it is now, locked until the transaction ends, so that no other write is lost; None if missing."""
        lookup = self.get_lookup()
        if not lookup:
            return None
        queryset = self._rows_before
        if _can_lock(queryset):
            found = queryset.select_for_update(no_key=True, of=("self",)).filter(**lookup).first()
            if found is None and self._rows().filter(**lookup).exists():
                raise PermissionDenied()
            return found
        return self._permitted(lookup) if self._lock(lookup) else None

    def _was_rejected(self) -> bool:
        made = {"op": Op.PUT.value, "type": self.operation.type, "row_id": self.operation.id.replace("\0", "")}
        shown = Rejection._base_manager.using(self.using)
        return shown.filter(user_key=self.context.user_key, **made).exists()

    def _lock(self, lookup: dict[str, Any]) -> bool:
        """Lock the row, if there is one. A query of its own: a queryset of permitted rows is often DISTINCT."""
        rows = self._rows().filter(**lookup).select_for_update(no_key=True)
        return bool(list(rows.values_list("pk", flat=True)))

    def _rows(self) -> models.QuerySet[Any]:
        return self.model._base_manager.using(self.using)

    def _permitted(self, lookup: dict[str, Any]) -> Any:
        instance = self._rows_before.filter(**lookup).first()
        if instance is None:
            raise PermissionDenied()
        return instance

    def _check(self, instance: Any) -> None:
        self.check_permissions()
        if instance is not None:
            self.check_object_permissions(instance)

    def _check_written(self, instance: Any, lookup: dict[str, Any]) -> None:
        """A row must not have been put where its writer may not write.

        The database says whether the queryset still has it; the object, if the serializer gave it, is asked about as
        it was written, so that its related rows need not be loaded again.
        """
        if instance is None:
            instance = self.get_queryset().using(self.using).filter(**lookup).first()
        elif not self.get_queryset().using(self.using).filter(pk=instance.pk).exists():
            instance = None
        if instance is None:
            raise PermissionDenied()
        self.check_object_permissions(instance)

    # Keys.

    def _key_of(self, instance: Any) -> dict[str, Any]:
        return {item.attname: getattr(instance, item.attname) for item in key_fields(self.model, self.lookup_field)}

    def _check_key_may_be_given(self, lookup: dict[str, Any]) -> None:
        if is_counted(self.model) and "pk" in lookup:
            message = _("There is no such row, and new rows of this table get their id from the server.")
            raise OperationRejected("invalid_id", {"id": [message]})

    def _remember_key(self, instance: Any) -> None:
        self.context.ids.add(self.model, self.operation.id, instance.pk)
        self.context.row_ids[self.operation.op_id] = str(instance.pk)

    # Values.

    def _serializer(self, instance: Any, key: dict[str, Any], partial: bool = False) -> Any:
        """A serializer that has found the operation's columns valid. Raises OperationRejected otherwise."""
        serializer: Any = self.get_serializer_class()(
            instance, data={}, partial=partial, context=self.get_serializer_context()
        )
        parents = self._restrict_parents(serializer)
        columns = self._columns(serializer, key)
        data = columns.to_fields(self.operation)
        if not partial:
            data = {**_nulls(serializer), **data, **columns.key_fields(self.operation)}
        serializer.initial_data = data
        # A text without a zone means UTC, as SQLite's datetime('now') makes it.
        with timezone.override(datetime.UTC):
            valid = serializer.is_valid()
        if not valid:
            raise OperationRejected("invalid", columns.to_columns(serializer.errors))
        for item, parent in parents:
            _check_parent(serializer.validated_data.get(item.source), parent)
        return serializer

    def _columns(self, serializer: Any, key: dict[str, Any]) -> DeviceColumns:
        reserved = {name for name in (self.owner_field, self.version_field) if name}
        if self.fields is not None:
            reserved |= set(serializer.fields) - set(self.fields)
        return DeviceColumns(
            serializer,
            self.model,
            key_attributes(self.model, key),
            reserved=reserved,
            refuse_reserved=self.refuse_server_columns,
            ids=self.context.ids,
        )

    def _reset_absent_fields(self, serializer: Any) -> None:
        validated, kept = serializer.validated_data, {self.owner_field, self.version_field}
        for name, item in serializer.fields.items():
            model_field = model_field_of(self.model, item)
            absent = item.source not in validated and not item.read_only and item.source not in kept
            if self.fields is not None and name not in self.fields:
                continue
            if absent and model_field is not None and model_field.attname not in self._key_of(serializer.instance):
                validated[model_field.attname] = model_field.get_default()

    # Parents.

    def _restrict_parents(self, serializer: Any) -> list[tuple[Any, UploadTable]]:
        """Related rows are looked for among those that the user may write, so the others seem not to exist.

        Returns the fields that refer to such rows, with the tables of these.
        """
        found = []
        for name, item in serializer.fields.items():
            related = getattr(item, "child_relation", item)
            parent = self._parent_table(name, related)
            if parent is not None:
                related.queryset = parent._rows_before
                found.append((item, parent))
        return found

    def _parent_table(self, name: str, item: Any) -> UploadTable | None:
        queryset = getattr(item, "queryset", None)
        if queryset is None or item.read_only or not isinstance(item, serializers.RelatedField):
            return None
        if self.parents is not None and name not in self.parents:
            return None
        table = self.context.find_table(queryset.model)
        if table is None:
            if self.parents is None:
                return None
            raise ConfigurationError(f"{name!r} is among the parents, but the handler has no table for its rows")
        return table.bind(self.operation, self.context, action="partial_update")

    # Conflicts.

    def _conflict(self, serializer: Any) -> Conflict | None:
        if not self._watches:
            return None
        base = self._columns(serializer, {}).to_values(self.operation.old)
        mine = dict(serializer.validated_data)
        return self._watch.find_conflict(self.operation, serializer.instance, base, mine)

    def _delete_conflict(self, instance: Any) -> Conflict | None:
        if not self._watches:
            return None
        serializer: Any = self.get_serializer_class()(instance, context=self.get_serializer_context())
        base = self._columns(serializer, {}).to_values(self.operation.old)
        return self._watch.find_delete_conflict(self.operation, instance, base)

    @property
    def _watches(self) -> bool:
        return self.check_previous or self.version_field is not None

    @property
    def _watch(self) -> Watch:
        return Watch(self.version_field, self.check_previous)

    def _settle(self, conflict: Conflict) -> Mapping[str, Any] | None:
        written: Mapping[str, Any] | None = resolve(self.on_conflict(conflict))
        conflict.settle(written)
        self.context.conflicts.append(conflict)
        return written


def _check_parent(found: Any, parent: UploadTable) -> None:
    for instance in found if isinstance(found, list) else [found]:
        if isinstance(instance, models.Model):
            parent.check_object_permissions(instance)


@lru_cache(maxsize=256)
def _make_serializer(model: type[models.Model], fields: tuple[str, ...]) -> type[serializers.Serializer[Any]]:
    meta = type("Meta", (), {"model": model, "fields": list(fields)})
    return type(f"{model.__name__}UploadSerializer", (serializers.ModelSerializer,), {"Meta": meta})


def _nulls(serializer: Any) -> dict[str, None]:
    """Devices leave nulls out of a PUT; fields that must be given, and may be null, were given as null."""
    return {name: None for name, item in serializer.fields.items() if item.required and item.allow_null}


def _can_lock(queryset: models.QuerySet[Any]) -> bool:
    query = queryset.query
    grouped = query.group_by is not None or query.is_sliced or query.distinct or query.combinator
    return not grouped and not query.select_for_update and not queryset.model._meta.parents


def _require(permission: BasePermission, granted: bool) -> None:
    if not granted:
        raise PermissionDenied(getattr(permission, "message", None))
