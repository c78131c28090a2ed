"""What the parts of an upload share: who writes, from which device, into which database."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from asgiref.sync import async_to_sync
from django.db import models

from .conflicts import Conflict
from .ids import IdMap

if TYPE_CHECKING:
    from .tables import UploadTable

Result = TypeVar("Result")


@dataclass(frozen=True)
class OperationRequest:
    """What serializers and permission classes get as `request`: who writes, and what."""

    user: Any
    method: str
    data: Mapping[str, Any]
    auth: Any = None
    query_params: Mapping[str, str] = field(default_factory=dict)


@dataclass
class UploadContext:
    """One upload. `conflicts` and `row_ids` (op id → id on the server) are of the transaction that is being applied."""

    user: Any
    user_key: str
    client_id: str
    using: str
    ids: IdMap
    find_table: Callable[[type[models.Model]], UploadTable | None] = lambda model: None
    """The table that devices write a model's rows by, if they do."""
    conflicts: list[Conflict] = field(default_factory=list)
    row_ids: dict[int, str] = field(default_factory=dict)

    @classmethod
    def of(cls, user: Any, user_key: str, client_id: str, using: str) -> UploadContext:
        """The context of one upload."""
        return cls(user, user_key, client_id, using, IdMap(using, user_key, client_id))

    def forget(self) -> None:
        """Begin a transaction, or take one back."""
        self.conflicts, self.row_ids = [], {}
        self.ids.forget()


def resolve(value: Result | Awaitable[Result]) -> Result:
    """What a hook returns, when it may be a coroutine function: it is waited for, in the same transaction."""
    if inspect.isawaitable(value):
        waited: Result = async_to_sync(_wait)(value)
        return waited
    return value


async def _wait(value: Awaitable[Result]) -> Result:
    return await value
