"""Clients that want to do harm, as a process of their own: what they take of Python is nobody else's.

`python -m tests.integration.serving.attackers` reads {port, tokens, forged, deep}, says "ready" when every
connection stands that it keeps, and attacks until its input ends.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from itertools import cycle

DEADLINE_S = 10.0
PATH = "/any/prefix/sync/stream"
REQUEST = b'{"raw_data":true}'
GREEDY, SLOW, SILENT = 20, 50, 50

Attack = Callable[[], int]
"""Does harm once; returns how many requests that were."""


class Attackers:
    """Whoever attacks one server. `tokens` has one for each of those named here, and `forged` ones."""

    def __init__(self, port: int, tokens: dict[str, str], forged: list[str], deep: str) -> None:
        self._port, self._tokens, self._deep = port, tokens, deep.encode()
        self._forged = cycle(forged)
        self._kept: list[socket.socket] = []

    def keep(self) -> None:
        """Connections that stay: readers and writers that stop, and some that say nothing."""
        for _ in range(GREEDY):
            self._kept.append(self._connect(receive_buffer=4096))
            self._kept[-1].sendall(self._request(self._tokens["greedy"], REQUEST))
        for _ in range(SLOW):
            self._kept.append(self._connect())
            self._kept[-1].sendall(self._request(self._tokens["slow"], REQUEST, missing=100))
        self._kept += [self._connect() for _ in range(SILENT)]

    @property
    def attacks(self) -> dict[str, Attack]:
        """What is done again and again."""
        return {"storm": self._storm, "garbage": self._post_garbage, "forgeries": self._post_forgery}

    def _storm(self) -> int:
        """Connect ten times; each is served, and nobody waits for the answer."""
        for _ in range(10):
            with self._connect() as connection:
                connection.sendall(self._request(self._tokens["stormy"], REQUEST))
        return 10

    def _post_garbage(self) -> int:
        self._post(self._tokens["garbage"], self._deep)
        return 1

    def _post_forgery(self) -> int:
        self._post(next(self._forged), REQUEST)
        return 1

    def _post(self, token: str, body: bytes) -> None:
        with self._connect() as connection:
            connection.sendall(self._request(token, body))
            connection.recv(4096)

    def _connect(self, receive_buffer: int | None = None) -> socket.socket:
        connection = socket.socket()
        if receive_buffer:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        connection.settimeout(DEADLINE_S)
        connection.connect(("127.0.0.1", self._port))
        return connection

    def _request(self, token: str, body: bytes, missing: int = 0) -> bytes:
        head = f"POST {PATH} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\nContent-Length: "
        return f"{head}{len(body) + missing}\r\n\r\n".encode() + body


def main() -> None:
    """Attack until the input ends; then print how many requests each attack made a second."""
    os.nice(19)  # attackers have machines of their own: what they do themselves shall take nothing from the server
    lines = iter(sys.stdin.readline, "")
    sys.setswitchinterval(0.0002)  # else the storm starves the others
    attackers = Attackers(**json.loads(next(lines)))
    attackers.keep()
    attacks = attackers.attacks
    stop, counts, began = threading.Event(), dict.fromkeys(attacks, 0), time.monotonic()

    def repeat(name: str, attack: Attack) -> None:
        while not stop.is_set():
            with suppress(OSError):
                counts[name] += attack()

    threads = [threading.Thread(target=repeat, args=item) for item in attacks.items()]
    for thread in threads:
        thread.start()
    print("ready", flush=True)
    for _ in lines:
        pass
    stop.set()
    for thread in threads:
        thread.join()
    seconds = time.monotonic() - began
    print(json.dumps({name: round(count / seconds, 1) for name, count in counts.items()}), flush=True)


if __name__ == "__main__":
    main()
