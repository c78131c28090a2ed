"""Waiting for sockets, and for a flag that another thread or a signal handler sets."""

from __future__ import annotations

import select
import socket
from contextlib import suppress


def wait_readable(*fds: int, timeout_s: float) -> set[int]:
    """Those of the file descriptors that can be read; waits up to `timeout_s` for the first.

    By `poll`, since `select` cannot watch descriptors above 1023.
    """
    poll = select.poll()
    for fd in fds:
        poll.register(fd, select.POLLIN)
    return {fd for fd, _ in poll.poll(timeout_s * 1000)}


class Wakeup:
    """A flag that can be waited for beside sockets."""

    def __init__(self) -> None:
        self._reader, self._writer = socket.socketpair()
        self._writer.setblocking(False)
        self.is_set = False

    @property
    def fd(self) -> int:
        """Readable once the flag is set; -1 when it is closed."""
        return self._reader.fileno()

    def set(self) -> None:
        """Set it for good; also from a signal handler or another thread, and after it was closed."""
        if not self.is_set:
            self.is_set = True
            with suppress(OSError):  # it is closed
                self._writer.send(b"x")

    def wait(self, seconds: float, *others: Wakeup) -> None:
        """Wait until this flag or one of the others is set."""
        wait_readable(self.fd, *(other.fd for other in others), timeout_s=seconds)

    def close(self) -> None:
        """Free its descriptors; nobody may wait for it any more."""
        self._reader.close()
        self._writer.close()
