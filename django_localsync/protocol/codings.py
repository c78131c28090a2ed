"""Content codings of streams: gzip (RFC 1952) and zstd (RFC 8878), each line complete as soon as it is sent.

Every piece is compressed by itself and refers to nothing before it, so the same compressed data line goes to a
thousand clients, and an open stream needs no compressor of its own (256 KiB for gzip). What fits into one network
packet is sent as it is, in a stored block. Level 1: the higher ones cost twice the time for a twentieth of the bytes.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterable, Sequence
from enum import Enum

from .session import SendLine

try:
    from backports import zstd
except ImportError:  # Python 3.14 brings it, elsewhere it is optional
    try:
        from compression import zstd  # type: ignore[import-not-found, no-redef]
    except ImportError:
        zstd = None  # type: ignore[assignment]

WORTH_BYTES = 1400  # less fits into one packet
LEVEL = 1


class Coding(Enum):
    """A content coding, by its name in HTTP."""

    ZSTD = "zstd"
    GZIP = "gzip"
    IDENTITY = "identity"


AVAILABLE: Sequence[Coding] = (
    (Coding.ZSTD, Coding.GZIP, Coding.IDENTITY) if zstd is not None else (Coding.GZIP, Coding.IDENTITY)
)
"""The codings that can be served, the best first."""


def pack(line: bytes, coding: Coding) -> bytes | None:
    """A line compressed by itself, for SendLine.packed; None where that is not worth it. Releases the GIL."""
    return None if coding is Coding.IDENTITY or len(line) < WORTH_BYTES else _compress(line, coding)


class ContentEncoder:
    """Makes one response's body of its lines."""

    def __init__(self, coding: Coding) -> None:
        self._coding = coding
        self._begun = False
        self._crc = self._size = 0

    def encode(self, lines: Iterable[SendLine]) -> bytes:
        """The bytes to send next; a client can decode all of the lines from them."""
        if self._coding is Coding.IDENTITY:
            return b"".join([line.line for line in lines])
        parts = [] if self._begun or self._coding is not Coding.GZIP else [_GZIP_HEADER]
        self._begun = True
        loose: list[bytes] = []
        for line in lines:
            self._count(line.line)
            if line.packed is None:
                loose.append(line.line)
                continue
            parts += [self._pack_loose(loose), line.packed]
            loose = []
        return b"".join([*parts, self._pack_loose(loose)])

    def finish(self) -> bytes:
        """The end of a body that has begun."""
        if self._coding is not Coding.GZIP:
            return b""
        return _LAST_BLOCK + struct.pack("<II", self._crc, self._size & 0xFFFFFFFF)

    def _count(self, line: bytes) -> None:
        if self._coding is Coding.GZIP:
            self._crc = zlib.crc32(line, self._crc)
            self._size += len(line)

    def _pack_loose(self, lines: Sequence[bytes]) -> bytes:
        content = b"".join(lines)
        if len(content) < WORTH_BYTES:
            return _STORE[self._coding](content) if content else b""
        return _compress(content, self._coding)


_GZIP_HEADER = b"\x1f\x8b\x08\0\0\0\0\0\0\xff"  # deflate, no name, no time, system unknown
_LAST_BLOCK = b"\x03\0"  # of deflate, empty


def _compress(content: bytes, coding: Coding) -> bytes:
    if coding is Coding.ZSTD:
        return zstd.compress(content, LEVEL)
    deflate = zlib.compressobj(LEVEL, zlib.DEFLATED, -zlib.MAX_WBITS)
    return deflate.compress(content) + deflate.flush(zlib.Z_SYNC_FLUSH)


def _store_deflate(content: bytes) -> bytes:
    """A stored block that is not the last (RFC 1951, 3.2.4)."""
    return struct.pack("<BHH", 0, len(content), len(content) ^ 0xFFFF) + content


def _store_zstd(content: bytes) -> bytes:
    """A frame of one raw block: magic, a single segment, its size in 4 bytes, the block's header (RFC 8878, 3.1)."""
    block = (len(content) << 3 | 1).to_bytes(3, "little")
    return struct.pack("<IBI", 0xFD2FB528, 0b1010_0000, len(content)) + block + content


_STORE: dict[Coding, Callable[[bytes], bytes]] = {Coding.GZIP: _store_deflate, Coding.ZSTD: _store_zstd}
