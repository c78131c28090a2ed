"""`GET write-checkpoint.json`, for very old clients: answers when replication has passed all that they uploaded."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qs

import orjson
import psycopg
from channels.db import database_sync_to_async  # type: ignore[import-untyped]

from ..buckets.operation import OpId
from ..exceptions import RequestError
from ..protocol.receipts import check_client_id
from ..protocol.revocations import Bearer
from ..storage.resolving import Client
from ..storage.write_checkpoints import request_write_checkpoint
from ..streams import get_stream_server
from ..sync_rules.plan import RequestParameters
from ..tokens import authenticate
from .base import RequestConsumer

WAIT_S = 50.0
FIRST_PAUSE_S, LAST_PAUSE_S = 0.02, 1.0


class WriteCheckpointConsumer(RequestConsumer):
    """Answers with the op id of the first checkpoint that contains the client's uploads. It waits without a thread."""

    async def serve(self, message: Mapping[str, Any]) -> None:
        """Answer within 50 s."""
        token = await authenticate(self.header(b"authorization"))
        client_id = parse_qs(self.scope["query_string"].decode("latin-1")).get("client_id", [""])[0]
        check_client_id(client_id, "the query is not valid")
        client = Client(token.user_key, client_id, RequestParameters(token.claims))
        await self.run_until_disconnect(self._answer(client, Bearer.of(token.claims, token.user_key, client_id)))

    async def _answer(self, client: Client, bearer: Bearer) -> None:
        try:
            server = get_stream_server()
            await server.start()
            server.check(bearer)
            number = await database_sync_to_async(request_write_checkpoint)(client.user_key, client.client_id)
            async with asyncio.timeout(WAIT_S):
                op_id = await _wait_for(number, client)
        except TimeoutError:
            text = f"replication has not passed the uploads within {WAIT_S:.0f} seconds; try again"
            raise RequestError(text, status=503) from None
        except (psycopg.OperationalError, psycopg.InterfaceError):
            raise RequestError("storage cannot be reached; try again", status=503, code="PSYNC_S2003") from None
        await self.respond(200, orjson.dumps({"data": {"checkpoint": str(op_id)}}))


async def _wait_for(number: int, client: Client) -> OpId:
    """The checkpoint's op id. Raises RequestError when the server stops."""
    server, pause_s = get_stream_server(), FIRST_PAUSE_S
    while True:
        await server.start()
        checkpoint = (await server.reader.read_checkpoint(client)).checkpoint
        if (checkpoint.write_checkpoint or 0) >= number:
            return checkpoint.op_id
        await asyncio.sleep(pause_s)
        pause_s = min(2 * pause_s, LAST_PAUSE_S)
