"""`GET probes/…`: what Kubernetes and load balancers ask of this process.

Consumers and no views: neither ALLOWED_HOSTS nor a redirect to HTTPS may come between, for whoever probes names the
process's own address.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import orjson

from ..health import Health
from ..streams import get_stream_server
from .base import RequestConsumer

NOT_CACHED = {"Cache-Control": "no-store"}


class LivenessConsumer(RequestConsumer):
    """The process answers. It asks nothing: restarting it would not mend a database."""

    async def serve(self, message: Mapping[str, Any]) -> None:
        """Answer 200."""
        await self.respond(200, b'{"live":true}', NOT_CACHED)


class ReadinessConsumer(RequestConsumer):
    """Streams can be served: storage can be reached, rules are active and known, the process does not stop."""

    async def serve(self, message: Mapping[str, Any]) -> None:
        """Answer 200 or 503."""
        await self.run_until_disconnect(self._answer())

    async def _answer(self) -> None:
        health = await _read_health()
        await self.respond(200 if self.passes(health) else 503, orjson.dumps(asdict(health)), NOT_CACHED)

    def passes(self, health: Health) -> bool:
        """Whether this is good enough."""
        return health.ready


class StartupConsumer(ReadinessConsumer):
    """Storage could be reached. Rules need not be active: a first copy may take hours, and a restart helps nobody."""

    def passes(self, health: Health) -> bool:
        """Whether this is good enough."""
        return health.started


async def _read_health() -> Health:
    server = get_stream_server()
    if server.is_stopping:
        return Health(started=True, ready=False, problem="the server is stopping")
    return await server.health.read()
