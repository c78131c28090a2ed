"""Lets what waits go on one after another, one a turn of the event loop.

A turn of the loop takes as long as all that is ready in it. Where a hundred clients connect at once, or a read brings
the checkpoints of thirty, each of them would have its fifth of a millisecond in the same turn, and whoever else waits
for a socket or for Postgres would wait for all of them, at each of its own steps.
"""

from __future__ import annotations

import asyncio
from collections import deque


class Turnstile:
    """Belongs to one event loop."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._is_open = True  # nobody has passed in this turn

    async def enter(self) -> None:
        """Return in this turn of the loop, if nobody else has; else in one of the next, in the order of calls."""
        if self._is_open:
            self._close()
            return
        future = self._loop.create_future()
        self._waiting.append(future)
        await future

    def _close(self) -> None:
        self._is_open = False
        self._loop.call_soon(self._turn)

    def _turn(self) -> None:
        while self._waiting:
            future = self._waiting.popleft()
            if not future.done():  # else it was given up
                future.set_result(None)
                self._loop.call_soon(self._turn)
                return
        self._is_open = True
