"""Keys of rows that devices make offline, where the server counts: the device's id, and the key that the row got.

A device needs an id at once. For a table whose key the database gives out, it takes one that the database never
gives: a text such as a UUID, or a number below 1. Later operations of the same device, and its foreign keys, may go
on saying that id; the map tells which row is meant. Other users and devices never see these ids, nor the map.
"""

from __future__ import annotations

from typing import Any

from django.db import models

from ..upload_models import UploadedId

MAX_DEVICE_ID_CHARACTERS = 200


class IdMap:
    """The map of one device of one user."""

    def __init__(self, using: str, user_key: str, client_id: str) -> None:
        self._rows = UploadedId._base_manager.using(using)
        self._owner = {"user_key": user_key, "client_id": client_id}
        self._known: dict[tuple[str, str], int] = {}

    def find(self, model: type[models.Model], device_id: str) -> int | None:
        """The key of the row that the device calls `device_id`, if it made one."""
        name = (label(model), device_id)
        if name not in self._known:
            row = self._rows.filter(**self._owner, model=name[0], device_id=device_id)
            key = row.values_list("key", flat=True).first()
            if key is None:
                return None
            self._known[name] = key
        return self._known[name]

    def add(self, model: type[models.Model], device_id: str, key: int) -> None:
        """Remember a row that was made."""
        self._rows.create(**self._owner, model=label(model), device_id=device_id, key=key)
        self._known[label(model), device_id] = key

    def forget(self) -> None:
        """Forget what was looked up: a transaction begins, or was rolled back."""
        self._known.clear()


def is_counted(model: type[models.Model]) -> bool:
    """Whether the database gives out this model's keys."""
    return isinstance(model._meta.pk, models.AutoField)


def is_made_by_device(model: type[models.Model], value: Any) -> bool:
    """Whether `value` can only be a device's own id of a row: the database gives out whole numbers from 1."""
    if value is None or not is_counted(model) or len(str(value)) > MAX_DEVICE_ID_CHARACTERS or "\0" in str(value):
        return False
    text = str(value)
    return not (text.isascii() and text.isdigit() and int(text) > 0)


def label(model: type[models.Model]) -> str:
    """How the map names a model; proxies are the model that they stand for."""
    concrete = model._meta.concrete_model or model
    return concrete._meta.label_lower
