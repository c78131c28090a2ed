"""Values and events that other threads and tasks listen to. Callbacks run in the thread that tells."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Listeners(Generic[T]):
    """Callbacks that are told something. They must be quick and must not raise."""

    def __init__(self) -> None:
        self._callbacks: dict[object, Callable[[T], None]] = {}
        self._lock = threading.Lock()

    def add(self, callback: Callable[[T], None]) -> Callable[[], None]:
        """Be told from now on; call the result to stop."""
        token = object()
        with self._lock:
            self._callbacks[token] = callback
        return lambda: self._remove(token)

    def tell(self, what: T) -> None:
        """Call every listener."""
        with self._lock:
            callbacks = list(self._callbacks.values())
        for callback in callbacks:
            callback(what)

    def _remove(self, token: object) -> None:
        with self._lock:
            self._callbacks.pop(token, None)
