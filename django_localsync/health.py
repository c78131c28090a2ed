"""Whether this process can serve streams, for its probes. Nothing secret is told: anybody may ask."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import psycopg

from .exceptions import RequestError
from .storage.reader import StorageReader

FRESH_S = 1.0
UNREACHABLE = "storage cannot be reached"


@dataclass(frozen=True, slots=True)
class Health:
    """`started`: storage answered. `ready`: it can be served from. `problem`: what is in the way, if anything."""

    started: bool
    ready: bool
    problem: str | None = None


class HealthCheck:
    """Asks storage once a second at most, however many ask us (I8)."""

    def __init__(self, reader: StorageReader) -> None:
        self._reader = reader
        self._asking: asyncio.Task[Health] | None = None
        self._asked_at = 0.0

    async def read(self) -> Health:
        """How it is, as of a second ago at most."""
        now = asyncio.get_running_loop().time()
        if self._asking is None or (self._asking.done() and now - self._asked_at >= FRESH_S):
            self._asking, self._asked_at = asyncio.create_task(self._ask()), now
        return await asyncio.shield(self._asking)

    async def _ask(self) -> Health:
        try:
            await self._reader.open()
            await self._reader.check_rules()
        except RequestError as error:
            return Health(started=True, ready=False, problem=error.description)
        except (psycopg.OperationalError, psycopg.InterfaceError):
            return Health(started=False, ready=False, problem=UNREACHABLE)
        return Health(started=True, ready=True)
