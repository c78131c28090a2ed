"""What stands between the replicator and Postgres: a network that breaks, and a pooler of transactions."""

from __future__ import annotations

import os
import select
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from urllib.parse import urlsplit, urlunsplit

import psycopg

CHUNK = 65536
SSL_REQUEST, GSS_REQUEST, CANCEL_REQUEST = 80877103, 80877104, 80877102


def with_port(url: str, port: int) -> str:
    """The same URL on another port of 127.0.0.1."""
    parts = urlsplit(url)
    user = parts.netloc.rpartition("@")[0]
    return urlunsplit(parts._replace(netloc=f"{user}@127.0.0.1:{port}"))


class Proxy:
    """Forwards connections to `target`, a port, which may change; its own port stays.

    `budget` is how many bytes may yet come from the server before every connection is cut, in the middle of whatever
    it was; None means any number. While `stalled`, nothing is forwarded and nobody is told. At most `piece` bytes are
    forwarded at a time.
    """

    def __init__(self, target: int) -> None:
        self.target, self.budget, self.stalled, self.cuts, self.forwarded = target, None, False, 0, 0
        self.budget: int | None
        self.piece = CHUNK
        self._pairs: set[tuple[socket.socket, socket.socket]] = set()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._lock = threading.Lock()
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        """Cut every connection, as a network does that breaks: with a reset."""
        with self._lock:
            self.cuts += 1
            for pair in self._pairs:
                for end in pair:
                    with suppress(OSError):
                        end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                        end.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """End it."""
        self._listener.close()
        self.cut()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client, suppress(OSError), socket.create_connection(("127.0.0.1", self.target)) as server:
            pair = (client, server)
            with self._lock:
                self._pairs.add(pair)
            try:
                while self._forward(client, server):
                    pass
            finally:
                with self._lock:
                    self._pairs.discard(pair)

    def _forward(self, client: socket.socket, server: socket.socket) -> bool:
        readable, _, _ = select.select(pair := [client, server], [], [], 0.05)
        if self.stalled:
            return True
        for end in readable:
            data = end.recv(self.piece)
            if not data:
                return False
            if end is server and not self._spend(len(data)):
                client.sendall(data[: len(data) + (self.budget or 0)])
                self.budget = None
                self.cut()
                return False
            pair[1 - pair.index(end)].sendall(data)
        return True

    def _spend(self, count: int) -> bool:
        """Whether so many bytes may pass; afterwards `budget` is what was left, below zero by what may not."""
        self.forwarded += count
        if self.budget is None:
            return True
        self.budget -= count
        return self.budget >= 0


@contextmanager
def proxied(url: str) -> Iterator[tuple[Proxy, str]]:
    """A proxy before the server of this URL, and the URL that goes through it."""
    proxy = Proxy(urlsplit(url).port or 5432)
    try:
        yield proxy, with_port(url, proxy.port)
    finally:
        proxy.close()


class TransactionPooler:
    """Lends one of few server connections to a client for a transaction at a time, as PgBouncer's pool_mode does.

    Like PgBouncer's defaults: the connection that was given back last is lent first. `refused` names start-up
    parameters that end a connection (PgBouncer before 1.23 refuses `replication`, any but a few `options`).
    """

    PARAMETERS = ("server_version", "client_encoding", "standard_conforming_strings", "integer_datetimes", "TimeZone")

    def __init__(self, url: str, refused: tuple[str, ...] = ()) -> None:
        self._url, self._refused = url, refused
        self._idle: list[psycopg.Connection] = []
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """End it."""
        self._listener.close()
        for connection in self._idle:
            connection.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client, suppress(OSError, EOFError):
            parameters = _read_startup(client)
            refused = [name for name in self._refused if name in parameters]
            if refused:
                client.sendall(_error(f"unsupported startup parameter: {refused[0]}"))
                return
            client.sendall(self._greeting())
            while True:
                first = _read_message(client)
                if first[:1] == b"X":
                    return
                self._lend(client, first)

    def _lend(self, client: socket.socket, first: bytes) -> None:
        """Serve one transaction: from a client's message to a ReadyForQuery outside of a transaction."""
        connection = self._take()
        with socket.socket(fileno=os.dup(connection.pgconn.socket)) as server:
            server.setblocking(True)
            server.sendall(first)
            while True:
                readable, _, _ = select.select([client, server], [], [])
                if server in readable:
                    message = _read_message(server)
                    client.sendall(message)
                    if message == b"Z\x00\x00\x00\x05I":
                        break
                elif client in readable:
                    server.sendall(_read_message(client))
        with self._lock:
            self._idle.append(connection)

    def _take(self) -> psycopg.Connection:
        with self._lock:
            if self._idle:
                return self._idle.pop()
        return psycopg.connect(self._url, autocommit=True, sslmode="disable", gssencmode="disable")

    def _greeting(self) -> bytes:
        connection = self._take()
        statuses = b""
        for name in self.PARAMETERS:
            value = connection.pgconn.parameter_status(name.encode()) or b""
            statuses += _message(b"S", name.encode() + b"\0" + value + b"\0")
        with self._lock:
            self._idle.append(connection)
        invented = _message(b"K", struct.pack("!ii", 7, 7))
        return _message(b"R", struct.pack("!i", 0)) + statuses + invented + _message(b"Z", b"I")


@contextmanager
def pooled(url: str, *refused: str) -> Iterator[str]:
    """The URL of a pooler before the server of this URL."""
    pooler = TransactionPooler(url, refused)
    try:
        yield with_port(url, pooler.port)
    finally:
        pooler.close()


def _read_startup(client: socket.socket) -> dict[str, str]:
    while True:
        (length,) = struct.unpack("!i", _read_exactly(client, 4))
        body = _read_exactly(client, length - 4)
        (code,) = struct.unpack("!i", body[:4])
        if code in (SSL_REQUEST, GSS_REQUEST):
            client.sendall(b"N")
            continue
        if code == CANCEL_REQUEST:
            raise EOFError
        texts = body[4:].decode().split("\0")
        return dict(zip(texts[::2], texts[1::2], strict=False))


def _read_message(end: socket.socket) -> bytes:
    header = _read_exactly(end, 5)
    return header + _read_exactly(end, struct.unpack("!i", header[1:])[0] - 4)


def _read_exactly(end: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        if not (part := end.recv(count - len(data))):
            raise EOFError
        data += part
    return data


def _message(kind: bytes, body: bytes) -> bytes:
    return kind + struct.pack("!i", len(body) + 4) + body


def _error(text: str) -> bytes:
    fields = {"S": "FATAL", "V": "FATAL", "C": "08P01", "M": text}
    return _message(b"E", b"".join(f"{key}{value}\0".encode() for key, value in fields.items()) + b"\0")
