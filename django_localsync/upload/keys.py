"""Which row of a model a device's row id means: one value, several with a separator, or an id that the device made."""

from __future__ import annotations

from typing import Any

from django.core.exceptions import ValidationError as DjangoValidationError
from django.db import models
from django.utils.translation import gettext as _

from ..exceptions import OperationRejected
from .ids import IdMap, is_made_by_device

MAX_ROW_ID_CHARACTERS = 1000


def key_fields(model: type[models.Model], lookup_field: str | tuple[str, ...]) -> list[Any]:
    """The fields that a row id's values are compared with, in order."""
    names = (lookup_field,) if isinstance(lookup_field, str) else lookup_field
    if names == ("pk",):
        return list(model._meta.pk_fields)
    return [model._meta.pk if name == "pk" else model._meta.get_field(name) for name in names]


def find_lookup(
    model: type[models.Model], lookup_field: str | tuple[str, ...], separator: str, row_id: str, ids: IdMap
) -> dict[str, Any]:
    """Arguments of `filter()` for the row that `row_id` means. Raises OperationRejected if it cannot be one.

    Empty for an id that the device made and the server has not met.
    """
    fields = key_fields(model, lookup_field)
    if fields == [model._meta.pk] and is_made_by_device(model, row_id):
        key = ids.find(model, row_id)
        return {} if key is None else {"pk": key}
    texts = row_id.split(separator) if len(fields) > 1 else [row_id]
    if len(texts) != len(fields):
        message = _("%(count)d values are expected, with “%(separator)s” between them.")
        raise OperationRejected("invalid_id", {"id": [message % {"count": len(fields), "separator": separator}]})
    values = [_parse(field, text, ids) for field, text in zip(fields, texts, strict=True)]
    if fields == [model._meta.pk]:
        return {"pk": values[0]}
    return {field.attname: value for field, value in zip(fields, values, strict=True)}


def key_attributes(model: type[models.Model], lookup: dict[str, Any]) -> dict[str, Any]:
    """A lookup by the names of the model's attributes."""
    return {model._meta.pk.attname if name == "pk" else name: value for name, value in lookup.items()}


def _parse(field: Any, text: str, ids: IdMap) -> Any:
    """One value; a related row that the device made is meant by its own id."""
    if field.is_relation and is_made_by_device(field.related_model, text):
        key = ids.find(field.related_model, text)
        if key is not None:
            return key
    try:
        if "\0" in text:
            raise DjangoValidationError(_("Null characters are not allowed."))
        if len(text) > MAX_ROW_ID_CHARACTERS:
            raise DjangoValidationError(_("The id is too long."))
        value = field.to_python(text)
        (field.target_field if field.is_relation else field).run_validators(value)
    except DjangoValidationError as error:
        raise OperationRejected("invalid_id", {"id": error.messages}) from None
    return value
