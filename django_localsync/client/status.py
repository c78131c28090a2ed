"""What a client knows about its own synchronisation, at one moment."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from .observable import Listeners


@dataclass(frozen=True, slots=True)
class SyncStatus:
    """The state of synchronisation.

    `connected`: a stream is open. `downloading`: it is sending data that is not yet complete. `uploading`: local
    writes are being sent. `last_synced_at` (UTC): when everything was last complete, also before this start.
    An error stays until the same thing succeeds: `download_error` the last of the stream or of fetching credentials,
    `upload_error` the last of uploading. `stream_errors`: what the server said of streams it could not serve.
    """

    connected: bool = False
    connecting: bool = False
    downloading: bool = False
    uploading: bool = False
    last_synced_at: datetime | None = None
    download_error: Exception | None = None
    upload_error: Exception | None = None
    stream_errors: tuple[str, ...] = ()

    @property
    def has_synced(self) -> bool:
        """Whether everything was complete at least once."""
        return self.last_synced_at is not None


class StatusHolder:
    """The current status; listeners are told of each change."""

    def __init__(self, status: SyncStatus) -> None:
        self.current = status
        self.listeners: Listeners[SyncStatus] = Listeners()
        self._lock = threading.Lock()

    def update(self, **changes: Any) -> None:
        """Replace fields of the status; listeners are told only of a difference."""
        with self._lock:
            before, self.current = self.current, replace(self.current, **changes)
        if self.current != before:
            self.listeners.tell(self.current)

    def listen(self, callback: Callable[[SyncStatus], None]) -> Callable[[], None]:
        """Be told of each change; call the result to stop."""
        return self.listeners.add(callback)
