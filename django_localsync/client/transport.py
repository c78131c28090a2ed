"""HTTP: the sync stream as lines, and the write checkpoint. Tokens are sent, never logged or put into errors."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import httpx2
import orjson

from ..exceptions import AuthError, ConfigurationError, ProtocolError, RequestError

CONNECT_TIMEOUT_S = 10.0
# The server sends a keepalive every 20 seconds: after two missing ones the connection is dead.
SILENCE_TIMEOUT_S = 60.0
ANSWER_TIMEOUT_S = 30.0
MAX_LINE_BYTES = 256 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Credentials:
    """Where the backend is and the token for it. `endpoint` may have a path, but no slash at its end."""

    endpoint: str
    token: str = field(repr=False)

    def __post_init__(self) -> None:
        check_endpoint(self.endpoint)
        if not self.token.isascii() or not self.token.isprintable() or " " in self.token or not self.token:
            # An HTTP library would put the whole header into its error.
            raise ConfigurationError("the token must be printable ASCII without spaces; fetch_credentials gave another")

    @property
    def headers(self) -> dict[str, str]:
        """The headers of every request."""
        return {"Authorization": f"Token {self.token}", "X-User-Agent": "django-localsync-python"}


def check_endpoint(endpoint: str) -> str:
    """The endpoint. Raises ConfigurationError if it cannot be one."""
    if not endpoint.startswith(("http://", "https://")):
        raise ConfigurationError(f"endpoint {endpoint!r} must begin with http:// or https://")
    if endpoint.endswith("/"):
        raise ConfigurationError(f"endpoint {endpoint!r} must not end with a slash")
    return endpoint


class LineSplitter:
    """Cuts chunks of bytes into lines; what follows the last newline is kept for the next chunk."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._size = 0

    def feed(self, chunk: bytes) -> list[bytes]:
        """The lines that this chunk completes, blank ones left out. Raises ProtocolError if one is endless."""
        head, newline, rest = chunk.partition(b"\n")
        self._parts.append(head)
        self._size += len(head)
        if self._size > MAX_LINE_BYTES:
            raise ProtocolError(f"a sync line is longer than {MAX_LINE_BYTES} bytes")
        if not newline:
            return []
        first = b"".join(self._parts)
        *lines, last = rest.split(b"\n")
        self._parts, self._size = [last], len(last)
        return [line for line in (first, *lines) if line.strip()]


def raise_for_status(status: int, body: bytes) -> None:
    """Raise AuthError for 401 and RequestError for every other answer that is not 2xx, with the server's own words."""
    if 200 <= status < 300:
        return
    description, code = _server_error(body)
    description = description or f"the server answered with status {status}"
    if status == 401:
        raise AuthError(description, code=code)
    raise RequestError(description, status=status, code=code)


def read_data(status: int, body: bytes) -> Any:
    """The `data` of a JSON answer. Raises RequestError for an error's, ProtocolError for one that is not JSON."""
    raise_for_status(status, body)
    try:
        return orjson.loads(body)["data"]
    except (orjson.JSONDecodeError, KeyError, TypeError):
        raise ProtocolError("the server's answer is not a JSON object with data") from None


class Transport:
    """One HTTP client for all requests of a connection. Raises httpx2.TransportError when the network fails."""

    def __init__(self) -> None:
        timeout = httpx2.Timeout(ANSWER_TIMEOUT_S, connect=CONNECT_TIMEOUT_S)
        self._client = httpx2.AsyncClient(timeout=timeout)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._client.aclose()

    @asynccontextmanager
    async def stream(self, credentials: Credentials, body: dict[str, Any]) -> AsyncIterator[AsyncIterator[list[bytes]]]:
        """POST /sync/stream; yields the lines as they arrive, those that arrive together in one list."""
        async with self._client.stream(
            "POST",
            f"{credentials.endpoint}/sync/stream",
            content=orjson.dumps(body),
            headers=credentials.headers | {"Content-Type": "application/json", "Accept": "application/x-ndjson"},
            timeout=httpx2.Timeout(SILENCE_TIMEOUT_S, connect=CONNECT_TIMEOUT_S),
        ) as response:
            if response.status_code != 200:
                raise_for_status(response.status_code, await response.aread())
                raise ProtocolError(f"the server answered the stream request with status {response.status_code}")
            yield _lines(response)

    async def write_checkpoint(self, credentials: Credentials, client_id: str) -> int:
        """GET write-checkpoint2.json: the receipt that the stream will show for what was uploaded until now."""
        response = await self._client.get(
            f"{credentials.endpoint}/write-checkpoint2.json",
            params={"client_id": client_id},
            headers=credentials.headers,
        )
        data = read_data(response.status_code, response.content)
        try:
            return int(data["write_checkpoint"])
        except (KeyError, TypeError, ValueError):
            raise ProtocolError("the server's answer holds no write checkpoint") from None


async def _lines(response: httpx2.Response) -> AsyncIterator[list[bytes]]:
    splitter = LineSplitter()
    async for chunk in response.aiter_bytes():
        if lines := splitter.feed(chunk):
            yield lines


def _server_error(body: bytes) -> tuple[str | None, str | None]:
    try:
        error = orjson.loads(body)["error"]
        description, code = error.get("description"), error.get("code")
    except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError):
        return None, None
    return (
        description if isinstance(description, str) else None,
        code if isinstance(code, str) else None,
    )
