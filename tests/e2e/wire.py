"""Sync streams as bytes on a socket: for tests of what no good client does."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import httpx2

TIMEOUT_S = 15.0
EVERYTHING: Mapping[str, Any] = {"client_id": "wire", "raw_data": True, "include_checksum": True}

Line = dict[str, Any]

http = httpx2.Client(verify=False, timeout=TIMEOUT_S)
"""One for all tests: making one reads the system's certificates, which takes longer than most requests."""


def headers(token: str) -> dict[str, str]:
    """What a client sends with every request."""
    return {"Authorization": f"Bearer {token}"}


def read_checkpoint(endpoint: str, token: str, request: Mapping[str, Any] = EVERYTHING) -> list[Line]:
    """Open a stream and read until its first checkpoint is complete."""
    lines: list[Line] = []
    with http.stream("POST", f"{endpoint}/sync/stream", json=request, headers=headers(token)) as response:
        assert response.status_code == 200, response.read()
        for text in response.iter_lines():
            lines.append(json.loads(text))
            if "checkpoint_complete" in lines[-1]:
                return lines
    raise AssertionError(f"the stream ended after {lines}")


def data_rows(lines: list[Line]) -> dict[tuple[str, str], Any]:
    """The rows that a client without any ends with: (type, id) → columns."""
    rows: dict[tuple[str, str], Any] = {}
    for operation in (operation for line in lines if "data" in line for operation in line["data"]["data"]):
        match operation["op"]:
            case "PUT":
                rows[operation["object_type"], operation["object_id"]] = json.loads(operation["data"])
            case "REMOVE":
                rows.pop((operation["object_type"], operation["object_id"]), None)
    return rows


class OpenStream:
    """A stream that stays open, on a socket of its own."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.received = b""

    def read_until(self, text: bytes) -> None:
        """Read on until `text` has come."""
        while text not in self.received:
            data = self.connection.recv(1 << 16)
            assert data, f"the stream ended: {self.received[-500:]!r}"
            self.received += data

    def read_to_end(self) -> None:
        """Read until the server closes the connection, or the response is complete."""
        while not self.received.endswith(b"\r\n0\r\n\r\n") and (data := self.connection.recv(1 << 16)):
            self.received += data

    @property
    def ended_normally(self) -> bool:
        """Whether the response is complete (the last chunk of HTTP/1.1's chunked encoding came)."""
        return self.received.endswith(b"\r\n0\r\n\r\n")


@contextmanager
def open_stream(endpoint: str, token: str, request: Mapping[str, Any] = EVERYTHING) -> Iterator[OpenStream]:
    """Open a stream; its connection is closed afterwards, as by a client that goes away."""
    stream = begin_stream(endpoint, token, request)
    try:
        yield stream
    finally:
        stream.connection.close()


def begin_stream(endpoint: str, token: str, request: Mapping[str, Any] = EVERYTHING, *, window: int = 0) -> OpenStream:
    """Send the request of a stream and read nothing; `window` limits what the kernel receives meanwhile (bytes)."""
    address, body = urlsplit(endpoint), json.dumps(request).encode()
    connection = socket.socket()
    if window:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, window)
    connection.settimeout(TIMEOUT_S)
    connection.connect((str(address.hostname), int(address.port or 80)))
    head = (
        f"POST {address.path}/sync/stream HTTP/1.1\r\nHost: {address.netloc}\r\nAuthorization: Bearer {token}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    connection.sendall(head.encode() + body)
    return OpenStream(connection)
