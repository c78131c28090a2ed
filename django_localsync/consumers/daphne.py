"""Daphne takes whatever it is given, and keeps it in memory for a client that does not read.

So a stream asks Twisted's transport how much that is, and waits. The transport is reached through what daphne passes an
application as `send`: a `partial` of a method and the connection's protocol. Behind a middleware that wraps `send`
nothing is found, and nothing bounded. Other servers make `send` itself wait.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any

MAX_UNSENT_BYTES = 512 << 10
CHECK_INTERVAL_S = 0.01


def unsent_bytes_of(send: Any) -> Callable[[], int] | None:
    """A function that tells how many bytes daphne holds for this connection; None under any other server."""
    protocol = send.args[0] if isinstance(send, partial) and send.args else None
    if not type(protocol).__module__.startswith("daphne."):
        return None
    transport: Any = getattr(getattr(protocol, "channel", None) or protocol, "transport", None)
    if not hasattr(transport, "dataBuffer"):
        return None  # encrypted by daphne itself

    def unsent_bytes() -> int:
        if not transport.connected:
            return 0
        return len(transport.dataBuffer) - int(transport.offset) + int(transport._tempDataLen)

    return unsent_bytes


async def wait_until_taken(unsent_bytes: Callable[[], int]) -> None:
    """Return when the client has taken most of what was sent."""
    while unsent_bytes() > MAX_UNSENT_BYTES:
        await asyncio.sleep(CHECK_INTERVAL_S)
