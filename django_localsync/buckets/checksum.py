"""Bucket checksums: an order-free sum over operations, modulo 2**32.

Compaction keeps this sum (I4): clients that sync before and after it agree. Clients never recompute an
operation's own checksum, they only add up what they received, so the hash is the server's choice: CRC-32 is
well mixed enough to notice a lost or repeated operation, and costs a microsecond less a row than SHA-256.
"""

from collections.abc import Iterable
from zlib import crc32

MODULUS = 1 << 32  # the wire carries an unsigned 32-bit number


def put_checksum(row_type: str, row_id: str, data: str) -> int:
    """The checksum (0 … 2**32-1) of a PUT of the row whose JSON text is `data`."""
    return crc32(f"put.{row_type}.{row_id}.{data}".encode())


def remove_checksum(row_type: str, row_id: str, subkey: str) -> int:
    """The checksum (0 … 2**32-1) of a REMOVE."""
    return crc32(f"delete.{row_type}.{row_id}.{subkey}".encode())


def add_checksums(checksums: Iterable[int]) -> int:
    """Sum checksums (each 0 … 2**32-1, or signed 32-bit) into a bucket checksum (0 … 2**32-1).

    >>> add_checksums([0xFFFFFFFF, 2])
    1
    """
    return sum(checksums) % MODULUS
